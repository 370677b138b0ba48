"""Scores subjects by R²: each decodes the bundle's holdout, or the raw frames of a recording, from a fresh state."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from edgedistill.bench.subjects import LFP_INT8, LFP_STUDENT, PEER_INT8, Candidate
from edgedistill.bundle import Bundle
from edgedistill.bundle.contents import Floats, Holdout
from edgedistill.data.coverage import GAP, INVALID, NO_BEHAVIOR, Coverage, Reasons, after_end, cover, mask_intervals
from edgedistill.decoding import BINS_PER_S, decode_lfp, describe_shift
from edgedistill.errors import BundleError, RecordingError
from edgedistill.measure.score import Fit, score_kinematics
from edgedistill.runtime import Decoder, Flag, Output

if TYPE_CHECKING:
    from edgedistill.data.recording import Recording
    from edgedistill.matching import MatchedRecording

WARMUP, INVALID_OUTPUTS = "warm-up", "invalid outputs"
HOLDOUT = "holdout of the bundle"
OTHER_UNITS = "not measured: a spike model knows the units of its own session only"
NOT_RAW = "not measured on a recording: it has no front end of its own"


@dataclass(frozen=True, eq=False)
class DecodedHoldout:
    """A score and the kinematics that it was computed from."""

    fit: Fit
    guess: Floats | None = None  # (T, K) over the holdout; None where a subject has no R², so that it did not decode


def decode_holdout(candidate: Candidate, bundle: Bundle, holdout: Holdout) -> DecodedHoldout:
    """Streams the holdout through a candidate and scores the bins from `score_from` on.

    Raises BundleError where its outputs do not have the shape of the holdout's kinematics.
    """
    if candidate.without_r2 is not None:
        return DecodedHoldout(Fit(None, (), candidate.without_r2))
    guess = candidate.decode(candidate.inputs)
    if guess.shape != holdout.kinematics.shape:
        got = f"kinematics {holdout.kinematics.shape}, decoded {guess.shape}"
        raise BundleError(f"{bundle.path}: 'holdout.npz' contradicts itself", got=got)
    first = holdout.score_from
    return DecodedHoldout(score_kinematics(guess[first:], holdout.kinematics[first:], HOLDOUT), guess)


@dataclass(frozen=True)
class RecordingFit(Fit):
    """A score on a recording, with the seconds that count and those that do not."""

    coverage: Coverage
    late_warning: str | None  # about bins of another amplitude


def score_candidate_on_recording(candidate: Candidate, bundle: Bundle, matched: MatchedRecording) -> Fit:
    """Scores a candidate on a recording, or returns a fit without R² and the reason where it cannot decode one."""
    if candidate.name.startswith("spike"):
        return Fit(None, (), OTHER_UNITS)
    compiled = candidate.runs_on if candidate.runs_on != "onnxruntime" else PEER_INT8
    engine = {LFP_STUDENT: "onnxruntime", LFP_INT8: compiled, PEER_INT8: PEER_INT8}.get(candidate.name)
    return Fit(None, (), NOT_RAW) if engine is None else score_on_recording(bundle, matched, engine)


def score_on_recording(bundle: Bundle, matched: MatchedRecording, engine: str = "onnxruntime") -> RecordingFit:
    """Scores the bundle's decoder on a recording that was compared with it and is streamed from raw frames.

    Bins of the warm-up, gaps, the invalid times of the recording, invalid outputs and bins without behavior do not
    count. Raises RecordingError where the recording has other outputs than the bundle.
    """
    decoder, recording = Decoder(bundle, engine), matched.recording
    recording.require(("behavior",))
    behavior = recording.behavior
    assert behavior is not None
    wanted = (decoder.info.output_names, decoder.info.output_units)
    if (behavior.names, behavior.units) != wanted:
        raise RecordingError(
            f"{recording.path}: its behavior is not what the bundle decodes",
            got=_list_outputs(behavior.names, behavior.units),
            expected=_list_outputs(*wanted),
            next_step="name the series that was decoded with --behavior",
        )
    outputs = list(decode_lfp(decoder, matched))
    ends_s, _ = matched.find_bin_ends(np.array([o.end_frame for o in outputs], np.int64))
    edges_s = np.concatenate([ends_s[:1] - 1 / BINS_PER_S, ends_s])
    truth = behavior.sample_at(ends_s)
    invalid_s = np.array([(one.start_s, one.stop_s) for one in recording.invalid_times])
    reasons: Reasons = [
        (WARMUP, _find_flagged(outputs, Flag.WARMUP)),
        (GAP, _find_flagged(outputs, Flag.GAP)),
        (INVALID, mask_intervals(edges_s, invalid_s)),
        (INVALID_OUTPUTS, _find_flagged(outputs, Flag.INVALID)),
        (NO_BEHAVIOR, np.asarray(~np.isfinite(truth).all(axis=1))),
    ]
    scored = ~np.any([mask for _, mask in reasons], axis=0)
    guess = np.array([o.kinematics for o in outputs], np.float32).reshape(len(outputs), -1)
    fit = score_kinematics(guess[scored], truth[scored], f"{recording.path}{_note_training(bundle, recording)}")
    coverage = cover((float(edges_s[0]), float(edges_s[-1])), edges_s, after_end("LFP"), reasons)
    return RecordingFit(fit.r2, fit.per_output, fit.source, coverage, describe_shift(outputs))


def _find_flagged(outputs: Sequence[Output], flag: Flag) -> npt.NDArray[np.bool_]:
    return np.array([bool(output.flags & flag) for output in outputs], np.bool_)


def _note_training(bundle: Bundle, recording: Recording) -> str:
    """Returns a warning where the bundle was trained on the recording, because its R² is then not held out."""
    from edgedistill.data.bins import file_sha256

    provenance = bundle.manifest.provenance
    seen = provenance is not None and file_sha256(recording.path) in provenance.sessions.values()
    return ", which the bundle was trained on or adapted to: not held out" if seen else ""


def _list_outputs(names: Sequence[str], units: Sequence[str]) -> str:
    return ", ".join(f"{name} ({unit})" for name, unit in zip(names, units, strict=True))
