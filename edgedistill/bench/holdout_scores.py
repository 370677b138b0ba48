"""R² of a subject, streamed from a fresh state: over the bundle's holdout, or a recording from raw frames."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from edgedistill.bench.subjects import LFP_INT8, LFP_STUDENT, PEER_INT8, Candidate
from edgedistill.bundle import Bundle
from edgedistill.bundle.contents import Floats, Holdout
from edgedistill.decoding import BINS_PER_S, decode_lfp, require_matching_lfp
from edgedistill.errors import BundleError, RecordingError
from edgedistill.measure.score import Fit, fit_of
from edgedistill.runtime import Decoder, Flag

if TYPE_CHECKING:
    from edgedistill.data.recording import Recording

HOLDOUT = "holdout of the bundle"
OTHER_UNITS = "not measured: a spike model knows the units of its own session only"
NOT_RAW = "not measured on a recording: it has no front end of its own"


@dataclass(frozen=True, eq=False)
class Decoded:
    """A fit and what it was computed from; no guess where a subject was not run for its accuracy."""

    fit: Fit
    guess: Floats | None = None  # (T, K) over the holdout


def decoded_holdout(candidate: Candidate, bundle: Bundle, holdout: Holdout) -> Decoded:
    """R² of the bins that count."""
    if candidate.without_r2 is not None:
        return Decoded(Fit(None, (), candidate.without_r2))
    candidate.engine.reset()
    guess = np.stack([candidate.engine.step(bin) for bin in candidate.inputs])
    if guess.shape != holdout.kinematics.shape:
        got = f"kinematics {holdout.kinematics.shape}, decoded {guess.shape}"
        raise BundleError(f"{bundle.path}: 'holdout.npz' contradicts itself", got=got)
    first = holdout.score_from
    return Decoded(fit_of(guess[first:], holdout.kinematics[first:], HOLDOUT), guess)


def fit_of_recording(candidate: Candidate, bundle: Bundle, recording: Recording) -> Fit:
    """The same over a recording, for a subject that decodes raw frames."""
    if candidate.name.startswith("spike"):
        return Fit(None, (), OTHER_UNITS)
    compiled = candidate.runs_on if candidate.runs_on != "onnxruntime" else PEER_INT8
    engine = {LFP_STUDENT: "onnxruntime", LFP_INT8: compiled, PEER_INT8: PEER_INT8}.get(candidate.name)
    return Fit(None, (), NOT_RAW) if engine is None else fit_on_recording(bundle, recording, engine)


def fit_on_recording(bundle: Bundle, recording: Recording, engine: str = "onnxruntime") -> Fit:
    """R² over a recording, streamed from raw frames; warm-up and invalid bins do not count.

    RecordingError for other channels, another rate or other outputs than the bundle's.
    """
    decoder = Decoder(bundle, engine)
    lfp = require_matching_lfp(decoder.info, recording)
    recording.require(("behavior",))
    behavior = recording.behavior
    assert behavior is not None
    wanted = (decoder.info.output_names, decoder.info.output_units)
    if (behavior.names, behavior.units) != wanted:
        raise RecordingError(
            f"{recording.path}: its behavior is not what the bundle decodes",
            got=_listed(behavior.names, behavior.units),
            expected=_listed(*wanted),
            next_step="name the series that was decoded with --behavior",
        )
    outputs = [o for o in decode_lfp(decoder, lfp) if not o.flags & (Flag.WARMUP | Flag.INVALID)]
    ends_s = lfp.start_s + (np.array([o.bin for o in outputs], np.float64) + 1) / BINS_PER_S
    guess = np.array([o.kinematics for o in outputs], np.float32).reshape(len(outputs), -1)
    return fit_of(guess, behavior.sample_at(ends_s), f"{recording.path}{seen_by(bundle, recording)}")


def seen_by(bundle: Bundle, recording: Recording) -> str:
    """A warning where the recording is one the bundle was trained on: R² over all of it is not held out."""
    from edgedistill.data.bins import file_sha256

    provenance = bundle.manifest.provenance
    seen = provenance is not None and file_sha256(recording.path) in provenance.sessions.values()
    return ", which the bundle was trained on: not held out" if seen else ""


def _listed(names: Sequence[str], units: Sequence[str]) -> str:
    return ", ".join(f"{name} ({unit})" for name, unit in zip(names, units, strict=True))
