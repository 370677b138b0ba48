"""Joins the field potentials of the trials of Flint and others, 2012, to one series with gaps.

The inputs are the trials, in which some neurons carry an LFP of 2 kHz. The output is a `JoinedLfp`: float32 frames
(time, channels) with the time of each, which steps at every pause.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import pairwise

import numpy as np
import numpy.typing as npt

from edgedistill.convert.flint_scale import VOLTS, tell_lfp_unit
from edgedistill.convert.flint_source import HAND_RATE_HZ, FlintTrial
from edgedistill.errors import RecordingError

RATES_HZ = (500.0, 1000.0, 2000.0)  # the published rate is the last
MOST_SAMPLES_OFF = 2  # of the hand, by which LFP and hand of a trial may differ in length
OFTEN = 0.5  # a channel has an LFP in at least this share of the trials


@dataclass(frozen=True)
class JoinedLfp:
    """Holds the LFP of a recording. `neurons` says which neuron, counted from 0, carries the LFP of each channel."""

    rate_hz: float
    times_s: npt.NDArray[np.float64]  # (frames,)
    frames: npt.NDArray[np.float32] = field(repr=False)  # (frames, channels), NaN where a channel has none
    neurons: tuple[int, ...]
    volts: float  # a stored number in volts
    gaps_s: tuple[tuple[float, float], ...]
    notes: tuple[str, ...]


def join_lfp(trials: Sequence[FlintTrial], unit: str | None, where: str) -> JoinedLfp:
    """Returns the LFP of all trials. `unit` (V, mV, uV) replaces what its size tells.

    Raises RecordingError where there is none, and where its length fits no known rate.
    """
    share = np.mean([[len(lfp) > 0 for lfp in trial.lfp] for trial in trials], axis=0)
    neurons = tuple(int(k) for k in np.flatnonzero(share >= OFTEN))
    if not neurons:
        raise RecordingError(
            f"{where}: no neuron has an LFP", got=f"{len(share)} neurons, {len(trials)} trials", expected="LFP at 2 kHz"
        )
    rate_hz = _find_rate(trials, neurons, where)
    lengths = [_find_length(trial, neurons, rate_hz, where) for trial in trials]
    ends = [trial.times_s[0] for trial in trials[1:]] + [np.inf]
    parts = [trial.times_s[0] + np.arange(length) / rate_hz for trial, length in zip(trials, lengths, strict=True)]
    kept = [part[part < end - 0.5 / rate_hz] for part, end in zip(parts, ends, strict=True)]
    frames = np.concatenate([_read_frames(t, neurons, len(k)) for t, k in zip(trials, kept, strict=True)])
    spread = float(np.median(np.nanstd(frames, axis=0, dtype=np.float64)))
    notes = _describe_cuts(parts, kept, share)
    if unit is None:
        unit, note = tell_lfp_unit(spread, where)
        notes = [note, *notes]
    edges = [(float(a[-1]) + 1 / rate_hz, float(b[0])) for a, b in pairwise(kept)]
    gaps = tuple((before, after) for before, after in edges if after - before > 0.5 / rate_hz)
    return JoinedLfp(rate_hz, np.concatenate(kept), frames, neurons, VOLTS[unit], gaps, tuple(notes))


def _find_rate(trials: Sequence[FlintTrial], neurons: Sequence[int], where: str) -> float:
    measured = float(np.median([max(len(t.lfp[k]) for k in neurons) / (len(t.times_s) / HAND_RATE_HZ) for t in trials]))
    nearest = min(RATES_HZ, key=lambda rate: abs(measured / rate - 1))
    if abs(measured / nearest - 1) > 0.05:
        raise RecordingError(
            f"{where}: the rate of the LFP is unknown",
            got=f"about {measured:.0f} samples a second of the hand's time",
            expected=" or ".join(f"{rate:g} Hz" for rate in RATES_HZ),
        )
    return nearest


def _find_length(trial: FlintTrial, neurons: Sequence[int], rate_hz: float, where: str) -> int:
    """Returns the frames of a trial. Raises RecordingError where channels or LFP and hand differ in length."""
    lengths = {len(trial.lfp[k]) for k in neurons} - {0}
    expected = len(trial.times_s) / HAND_RATE_HZ * rate_hz
    off = MOST_SAMPLES_OFF / HAND_RATE_HZ * rate_hz
    if len(lengths) > 1 or any(abs(length - expected) > off for length in lengths):
        raise RecordingError(
            f"{where}.Trial({trial.number}): LFP and hand differ in length",
            got=f"{' and '.join(map(str, sorted(lengths)))} frames of LFP",
            expected=f"about {expected:.0f} for {len(trial.times_s)} samples of the hand",
            next_step="download the file again",
        )
    return lengths.pop() if lengths else round(expected)


def _read_frames(trial: FlintTrial, neurons: Sequence[int], length: int) -> npt.NDArray[np.float32]:
    frames = np.full((length, len(neurons)), np.nan, np.float32)
    for channel, k in enumerate(neurons):
        if len(trial.lfp[k]):
            frames[:, channel] = trial.lfp[k][:length]
    return frames


def _describe_cuts(
    parts: Sequence[npt.NDArray[np.float64]], kept: Sequence[npt.NDArray[np.float64]], share: npt.NDArray[np.float64]
) -> list[str]:
    notes = []
    if cut := sum(map(len, parts)) - sum(map(len, kept)):
        notes.append(f"{cut} frames at ends of trials lie in the next trial and were left out")
    if rare := int(np.count_nonzero((share > 0) & (share < OFTEN))):
        notes.append(f"{rare} neurons with an LFP in less than half of the trials give no channel")
    if some := int(np.count_nonzero((share >= OFTEN) & (share < 1))):
        notes.append(f"{some} channels have no LFP in some trials, and NaN there")
    return notes
