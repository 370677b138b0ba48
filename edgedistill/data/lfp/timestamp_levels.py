"""Reads timestamps block by block, and keeps how far they lie from a regular grid: one level per stretch, and steps.

The input is a dataset of timestamps and its pace. The output is `Levels`, a few numbers per hundred frames.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any

import numpy as np
import numpy.typing as npt

from edgedistill.data.lfp.timestamp_rate import Pace, explain_rounding, find_packet_ends
from edgedistill.data.lfp.timestamp_steps import HOP, Step, find_steps
from edgedistill.errors import RecordingError

Times = npt.NDArray[np.float64]

BLOCK = 1 << 19  # frames that are judged together
HALO = 1 << 13  # frames on either side of them that are seen too
NOT_SECONDS = "the timestamps are not in seconds"
MOST_STEPS = 0.2  # share of frames that step; beyond it the timestamps have no rate


@dataclass(frozen=True, eq=False)
class Levels:
    """Holds offsets from `times[0] + frame * period`: `off` frames at the stored frames `frames`, and lasting steps."""

    frames: Times
    off: Times
    steps: tuple[Step, ...]
    noise: float  # frames; the typical distance of a frame from its level

    def without_steps(self) -> Times:
        """Returns the offsets as they would be without any step."""
        at = np.array([step.at for step in self.steps], dtype=np.int64)
        total = np.concatenate([[0.0], np.cumsum([step.frames for step in self.steps])])
        return np.asarray(self.off - total[np.searchsorted(at, self.frames)])

    def outside(self, stretches: list[tuple[int, int]]) -> Levels:
        """Returns the levels without those inside stretches of frames (after, up to)."""
        keep = np.ones(len(self.frames), dtype=np.bool_)
        for after, last in stretches:
            low, high = np.searchsorted(self.frames, [after + 0.5, last + 0.5])
            keep[low:high] = False
        return replace(self, frames=self.frames[keep], off=self.off[keep])


def scan_timestamps(times: Any, count: int, pace: Pace, where: str) -> Levels:
    """Returns levels and steps of all timestamps. `where` begins the message of an error.

    Raises RecordingError for a time that is not finite, and where so many frames step that there is no rate.
    """
    start = float(times[0])
    steps: list[Step] = []
    at: list[Times] = []
    off: list[Times] = []
    noises: list[float] = []
    for first in range(0, count, BLOCK):
        stop = min(first + BLOCK, count)
        low, high = max(0, first - HALO), min(count, stop + HALO)
        block = np.asarray(times[low:high], dtype=np.float64)
        require_finite(block, low, where)
        frames = np.arange(low, high, dtype=np.float64)
        offsets = (block - start) / pace.period_s - frames
        if pace.packets:
            ends = find_packet_ends(block, pace.period_s)
            frames, offsets = frames[ends], offsets[ends] - 1  # a packet arrives when its last frame has ended
        found = find_steps(offsets, pace.noisy)
        if len(found) > MOST_STEPS * max(10, len(offsets)):
            raise _no_rate_error(where, pace, block, low, found[0].at)
        steps += [Step(int(frames[s.at]), s.frames) for s in found if first <= frames[s.at] < stop]
        own = (frames >= first) & (frames < stop)
        edges = np.array([frames[s.at] for s in found])
        x, y, noise = _level_stretches(frames[own], offsets[own], edges, 32 if pace.packets else HOP, pace.packets)
        at.append(x)
        off.append(y)
        noises.append(noise)
    return Levels(np.concatenate(at), np.concatenate(off), tuple(steps), float(np.median(noises)))


def _level_stretches(frames: Times, off: Times, edges: Times, hop: int, packets: bool) -> tuple[Times, Times, float]:
    """Returns the middle and the median offset of stretches of `hop` frames, which no step crosses, and the noise."""
    if not len(frames):
        return frames, off, 0.0
    cuts = np.searchsorted(frames, edges, side="right")
    starts: list[int] = []
    for low, high in zip([0, *cuts.tolist()], [*cuts.tolist(), len(frames)], strict=True):
        starts += (
            np.linspace(low, high, max(1, (high - low) // hop) + 1).astype(int)[:-1].tolist() if high > low else []
        )
    bounds = [*starts, len(frames)]
    choose = np.min if packets else np.median
    middle = np.array([frames[a:b].mean() for a, b in pairwise(bounds)])
    level = np.array([choose(off[a:b]) for a, b in pairwise(bounds)])
    typical = np.repeat(level, np.diff(bounds))
    return middle, level, float(1.48 * np.median(np.abs(off - typical)))


def require_finite(block: Times, first: int, where: str) -> None:
    """Raises RecordingError for a time that is not finite. `first` is the frame of the first one in `block`."""
    if np.isfinite(block).all():
        return
    at = int(np.argmax(~np.isfinite(block)))
    before = f" after {block[at - 1]:.6f} s" if at else ""
    raise RecordingError(
        f"{where} are not all numbers",
        got=f"{block[at]} at frame {first + at}{before}",
        expected="a finite time in seconds for every frame",
        causes=("the recording was cut while it was written", "lost packets were filled with NaN in the timestamps"),
        next_step="write the series again with `rate` and `starting_time`, and NaN in the data where frames are lost",
    )


def _no_rate_error(where: str, pace: Pace, block: Times, first: int, at: int) -> RecordingError:
    step = float(np.median(np.diff(block[at : at + 1001])))
    return RecordingError(
        f"{where} change their rate",
        got=f"a typical step of {step:.6g} s from frame {first + at} at {block[at]:.3f} s on, "
        f"{pace.period_s:.6g} s in most of the series",
        expected="one rate, with at most 1000 ppm of drift",
        causes=(*explain_rounding(block, pace), "recordings of two rates were joined", NOT_SECONDS),
        next_step="store each rate as a series of its own",
    )
