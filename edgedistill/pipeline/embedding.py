"""Runs `edgedistill embed`, which writes the latents of sessions to one .npz file.

The folder of a teacher or a student goes in, with sessions. A student's latents are streamed. Those of a teacher are
the features that students follow, and see the past and the future. Every session is normalized as in a training: by
statistics of its own training block.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from edgedistill.config import NO_BANDS, BandPower, load_preset
from edgedistill.data.bins import SessionBins
from edgedistill.data.candidates import NO_NAMES, SeriesNames
from edgedistill.errors import OutputError
from edgedistill.files import atomic_write, require_no_input
from edgedistill.models.files import find_kind, load_teacher
from edgedistill.pipeline.cache import Cache
from edgedistill.pipeline.early_checks import OTHER_OUT, require_writable
from edgedistill.pipeline.holdout_files import write_npz
from edgedistill.pipeline.inputs import read_sessions
from edgedistill.pipeline.pretrained_student import load_pretrained_student
from edgedistill.pipeline.teacher import load_known_teacher
from edgedistill.scratch import with_scratch
from edgedistill.training.batches import TrainingSession, compute_gap, training_session_from_bins
from edgedistill.training.evaluate import stream_latents
from edgedistill.training.pretrain import compute_teacher_features

BIN_S = 0.01

LatentsOf = Callable[[TrainingSession], npt.NDArray[Any]]
Embedding = tuple[list[SessionBins], list[TrainingSession], LatentsOf]


@dataclass(frozen=True)
class EmbedOptions:
    """Holds the options of `edgedistill embed`."""

    run: Path
    data: tuple[Path, ...]
    out: Path
    names: SeriesNames = NO_NAMES
    line_hz: float = 60


@dataclass(frozen=True)
class Embedded:
    """Says what `embed` wrote."""

    out: Path
    model: str  # "teacher" or "student"
    d: int  # width of the latents
    bins: dict[str, int]  # of each session

    def to_json(self) -> dict[str, object]:
        """Returns the keys of docs/json.md."""
        sessions = [{"session": name, "bins": bins} for name, bins in self.bins.items()]
        return {"out": self.out, "model": self.model, "d": self.d, "sessions": sessions}


@with_scratch(lambda options: options.out.parent)
def embed(options: EmbedOptions) -> Embedded:
    """Writes the latents of all sessions to `options.out`.

    Raises EdgeDistillError for a folder without a model, for units that a teacher was not trained on, and for an array
    that a student was not trained on.
    """
    require_writable(options.out)
    if options.out.is_dir():
        raise OutputError(
            f"{options.out}: there is a folder here", expected="the name of an .npz file", next_step=OTHER_OUT
        )
    require_no_input(options.out, options.run.glob("*"))
    kind = read_kind(options.run)
    bins, sessions, latents_of = embed_by_student(options) if kind == "student" else embed_by_teacher(options)
    require_no_input(options.out, [one.path for one in bins])
    arrays: dict[str, npt.NDArray[Any]] = {}
    lengths: dict[str, int] = {}
    d = 0
    with torch.no_grad():
        for one, session in zip(bins, sessions, strict=True):
            latents = latents_of(session).astype(np.float32, copy=False)
            lengths[session.id], d = latents.shape
            arrays[f"{session.id}/latents"] = latents
            arrays[f"{session.id}/time_s"] = one.start_s + BIN_S * (1 + np.arange(len(latents)))
            arrays[f"{session.id}/valid"] = session.valid.numpy()
    with atomic_write(options.out, "the latents") as partial, partial.open("wb") as file:
        write_npz(file, arrays)
    return Embedded(options.out, kind, d, lengths)


def read_kind(run: Path) -> str:
    """Returns which model a folder holds, "teacher" or "student". A folder without one counts as that of a teacher."""
    return "student" if find_kind(run) == "student" else "teacher"


def embed_by_teacher(options: EmbedOptions) -> Embedding:
    """Returns the sessions as the teacher was trained on them, and what computes their latents from both sides."""
    _, facts = load_teacher(options.run)
    bins = read_bins(options, ("units",), ("lfp", "behavior"))
    # folders of the version before do not say how far the blocks of a session lay apart
    gap = int(facts.get("gap_bins", compute_gap(bins, load_preset("edge").student)))
    sessions = [training_session_from_bins(one, gap) for one in bins]
    teacher, length = load_known_teacher(options.run, sessions), int(facts["config"]["segment_bins"])

    def latents_of(session: TrainingSession) -> npt.NDArray[Any]:
        found = compute_teacher_features(teacher, session.id, session.inputs("spikes"), length)
        return np.asarray(found.numpy())

    return bins, sessions, latents_of


def embed_by_student(options: EmbedOptions) -> Embedding:
    """Returns the sessions as the student sees them, and what streams their latents."""
    pretrained = load_pretrained_student(options.run)
    bins = read_bins(options, ("lfp",), ("units", "behavior"), pretrained.band_power)
    gap = compute_gap(bins, pretrained.student.size)
    sessions = [training_session_from_bins(one, gap) for one in bins]
    student = pretrained.adapted_to_all(sessions).eval()
    return bins, sessions, lambda session: stream_latents(student, session.id, session.inputs("lfp"))


def read_bins(
    options: EmbedOptions, need: tuple[str, ...], also: tuple[str, ...], bands: BandPower = NO_BANDS
) -> list[SessionBins]:
    """Returns the bins of the sessions, kept beside the result."""
    cache = Cache(options.out.with_name(options.out.name + ".work"))
    return read_sessions(cache, options.data, options.names, options.line_hz, bands, need=need, also=also)
