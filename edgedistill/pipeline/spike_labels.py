"""Runs the stage that labels the rest of a training block from spikes, where labels are few.

A session with few labels and units goes in. It comes out with behavior in its whole training block: what was recorded
stays, and the rest is decoded from its spikes. The decoder of spikes is kept as a stage, because its search takes half
a minute.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from edgedistill.pipeline.run_context import Run, session_inputs
from edgedistill.training.baselines import fit_spike_decoder
from edgedistill.training.batches import TrainingSession
from edgedistill.training.few_labels import BINS_PER_MINUTE, fill_in_labels, find_labelled

DECODED, FACTS = "decoded.npy", "labels.json"


@dataclass(frozen=True, eq=False)
class SpikeLabels:
    """Holds a session whose training block was labelled from spikes, and how well that decoder does."""

    session: TrainingSession
    decoder: str  # ridge_spike or kalman_spike
    validation_r2: float
    minutes: float  # of labels that were decoded

    def to_json(self) -> dict[str, object]:
        """Returns what a manifest's provenance says of it."""
        return {"decoder": self.decoder, "validation_r2": self.validation_r2, "minutes": self.minutes}


def label_from_spikes(run: Run, session: TrainingSession) -> SpikeLabels:
    """Returns the session with labels in its whole training block. Raises RecordingError without units."""

    def make(folder: Path) -> None:
        name, found = fit_spike_decoder(session)
        np.save(folder / DECODED, found.decoded)
        facts = {"decoder": name, "validation_r2": found.score.validation_r2}
        (folder / FACTS).write_text(json.dumps(facts), encoding="utf-8")

    folder = run.cache.stage("spike-labels", session_inputs(session, "spikes", "behavior"), make)
    filled = fill_in_labels(session, np.load(folder / DECODED))
    added = int(find_labelled(filled).sum()) - int(find_labelled(session).sum())
    return SpikeLabels(filled, **json.loads((folder / FACTS).read_text("utf-8")), minutes=added / BINS_PER_MINUTE)
