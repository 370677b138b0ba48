"""Finds the true rate and the gaps of a long series from its timestamps.

The input is a dataset of timestamps in seconds, which is read in blocks, because an hour at 24 kHz has 0.7 GB of them.
The output is a `Clock`: one rate, and the segments between steps. A clock that runs a few ppm fast has no step.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from edgedistill.data.lfp.timestamp_clock import TimestampClock, read_timestamp_clock
from edgedistill.errors import RecordingError

BLOCK_ROWS = 1 << 20
MOST_STEPS = 1000  # more are no pauses but a clock that was rounded
MOST_WANDER_S = 5e-3  # half a bin
USUAL = 0.95  # share of frames that must keep to it; the others are late or early for a moment
ON_GRID = 0.05  # share of a period by which the times of a regular series may be off

Times = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Segment:
    """Holds the frames [first, stop) between two steps. The first of them lies at `start_s`."""

    first: int
    stop: int
    start_s: float

    def stop_s(self, rate_hz: float) -> float:
        """Returns the end of the last frame in seconds."""
        return self.start_s + (self.stop - self.first) / rate_hz


@dataclass(frozen=True)
class Clock:
    """Holds the true rate of a series and its segments.

    All but a few frames lie at most `wander_s` off the grid of their segment, and `off_grid` more than half a period.
    """

    rate_hz: float
    segments: tuple[Segment, ...]
    wander_s: float
    off_grid: int

    @property
    def gaps(self) -> list[tuple[float, float]]:
        """Returns the start and the end of each gap in seconds."""
        ends = [segment.stop_s(self.rate_hz) for segment in self.segments]
        return [(end, after.start_s) for end, after in zip(ends, self.segments[1:], strict=False)]


def read_clock(timestamps: Any, path: Path) -> Clock:
    """Returns the clock of a dataset of timestamps (frames,), as edgedistill reads it everywhere: every frame is kept.

    A step ends a segment where it lasts; a frame that is late or early for a moment ends none. Raises RecordingError
    for timestamps that run backwards, hold NaN, change their rate, step at every turn, or lie more than half a bin off
    a regular grid.
    """
    found = read_timestamp_clock(timestamps, len(timestamps), path, timestamps.name)
    if len(found.runs) > MOST_STEPS:
        raise RecordingError(
            f"{path}: {timestamps.name} steps more than {MOST_STEPS} times",
            got=f"the first steps at the frames {', '.join(str(first) for _, _, first in found.runs[1:6])}",
            expected="a regular clock with few pauses",
            causes=("times that were rounded to single precision or to milliseconds",),
            next_step="download the file again",
        )
    segments = _place_segments(found)
    wander_s, off_grid = _measure_wander(timestamps, segments, float(found.rate))
    if wander_s > MOST_WANDER_S:
        raise RecordingError(
            f"{path}: {timestamps.name} is no regular clock",
            got=f"times that wander by {wander_s * 1e3:.3g} ms from {float(found.rate):.10g} Hz",
            expected=f"at most {MOST_WANDER_S * 1e3:g} ms",
            causes=("the rate changed during the recording",),
            next_step="convert the recording with the tools of its authors",
        )
    return Clock(float(found.rate), segments, wander_s, off_grid)


def _place_segments(found: TimestampClock) -> tuple[Segment, ...]:
    """Returns the runs of a clock, each where its frames lie nearest to the grid, at least one frame after the last."""
    rate_hz, segments, earliest_s = float(found.rate), list[Segment](), -np.inf
    for grid, frames, first in found.runs:
        low, high = np.searchsorted(found.anchor_frames, [grid, grid + frames + 0.5])
        starts = found.anchor_times[low:high] - (found.anchor_frames[low:high] - grid) / rate_hz
        segment = Segment(first, first + frames, max(earliest_s, float(starts.min() + starts.max()) / 2))
        earliest_s = segment.stop_s(rate_hz) + 1 / rate_hz
        segments.append(segment)
    return tuple(segments)


def _measure_wander(timestamps: Any, segments: Sequence[Segment], rate_hz: float) -> tuple[float, int]:
    """Returns how far 95% of the frames of every block lie off the grid at most, in s, and how many lie off a frame."""
    wander_s, off_grid = 0.0, 0
    for segment in segments:
        for first in range(segment.first, segment.stop, BLOCK_ROWS):
            times = np.asarray(timestamps[first : min(first + BLOCK_ROWS, segment.stop)], np.float64)
            grid = segment.start_s + (first - segment.first + np.arange(len(times))) / rate_hz
            off = np.abs(times - grid)
            wander_s = max(wander_s, float(np.quantile(off, USUAL)))
            off_grid += int(np.count_nonzero(off > 0.5 / rate_hz))
    return wander_s, off_grid


def settings_for_times(times: Times) -> dict[str, Any]:
    """Returns `rate` and `starting_time` for times (n,) on a regular grid, else `timestamps`, as pynwb takes them."""
    rate = (len(times) - 1) / float(times[-1] - times[0])
    off = np.abs((times - times[0]) * rate - np.arange(len(times)))
    if off.max() <= ON_GRID:
        return {"rate": float(rate), "starting_time": float(times[0])}
    return {"timestamps": times}


def sum_gaps(gaps: Sequence[tuple[float, float]]) -> float:
    """Returns the length of all gaps in seconds."""
    return float(sum(after - before for before, after in gaps))
