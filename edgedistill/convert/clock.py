"""Finds the true rate and the gaps of a long series from its timestamps.

The input is a dataset of timestamps in seconds, which is read in blocks, because an hour at 24 kHz has 0.7 GB of them.
The output is a `Clock`: one rate, and the segments between steps. A clock that runs a few ppm fast has no step.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from edgedistill.errors import RecordingError

BLOCK_ROWS = 1 << 20
MOST_STEPS = 1000  # more are no pauses but a clock that was rounded
MOST_WANDER_S = 5e-3  # half a bin
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
    """Holds the true rate of a series and its segments. Frames lie at most `wander_s` off the grid of their segment."""

    rate_hz: float
    segments: tuple[Segment, ...]
    wander_s: float

    @property
    def gaps(self) -> list[tuple[float, float]]:
        """Returns the start and the end of each gap in seconds."""
        ends = [segment.stop_s(self.rate_hz) for segment in self.segments]
        return [(end, after.start_s) for end, after in zip(ends, self.segments[1:], strict=False)]


def read_clock(timestamps: Any, path: Path) -> Clock:
    """Returns the clock of a dataset of timestamps (frames,).

    A step of more than half a period between two frames ends a segment. Raises RecordingError for timestamps that run
    backwards, hold NaN, step at every turn, or wander from a regular grid by more than half a bin.
    """
    bounds = _find_bounds(timestamps, path)
    spans = [(first, stop, float(timestamps[first]), float(timestamps[stop - 1])) for first, stop in bounds]
    frames = sum(stop - first - 1 for first, stop, _, _ in spans)
    rate_hz = frames / sum(last - start for _, _, start, last in spans)
    segments, wander_s = [], 0.0
    for first, stop, start, _ in spans:
        low, high = _find_wander(timestamps, first, stop, start, rate_hz)
        wander_s = max(wander_s, (high - low) / 2)
        segments.append(Segment(first, stop, start + (high + low) / 2))
    if wander_s > MOST_WANDER_S:
        raise RecordingError(
            f"{path}: {timestamps.name} is no regular clock",
            got=f"times that wander by {wander_s * 1e3:.3g} ms from {rate_hz:.10g} Hz",
            expected=f"at most {MOST_WANDER_S * 1e3:g} ms",
            causes=("the rate changed during the recording",),
            next_step="convert the recording with the tools of its authors",
        )
    return Clock(rate_hz, tuple(segments), wander_s)


def _find_bounds(timestamps: Any, path: Path) -> list[tuple[int, int]]:
    """Returns the frames [first, stop) of each segment of at least two frames."""
    period_s, starts = 0.0, [0]
    for first, times in _read_blocks(timestamps, 0, len(timestamps), overlap=1):
        steps = np.diff(times)
        period_s = period_s or float(np.median(steps))
        if not (steps > 0).all():
            at = first + int(np.argmin(np.where(np.isnan(steps), -np.inf, steps)))
            raise RecordingError(
                f"{path}: {timestamps.name} does not increase",
                got=f"{float(timestamps[at])!r} s at frame {at}, then {float(timestamps[at + 1])!r} s",
                expected="times in seconds that increase",
                causes=("the clock was reset", "a damaged file"),
                next_step="leave this session out",
            )
        starts += [first + int(at) + 1 for at in np.flatnonzero(np.abs(steps - period_s) > period_s / 2)]
        if len(starts) > MOST_STEPS:
            raise RecordingError(
                f"{path}: {timestamps.name} steps more than {MOST_STEPS} times",
                got=f"the first steps at the frames {', '.join(map(str, starts[1:6]))}",
                expected="a regular clock with few pauses",
                causes=("times that were rounded to single precision or to milliseconds",),
                next_step="download the file again",
            )
    bounds = list(zip(starts, [*starts[1:], len(timestamps)], strict=True))
    return [(first, stop) for first, stop in bounds if stop - first > 1]


def _find_wander(timestamps: Any, first: int, stop: int, start_s: float, rate_hz: float) -> tuple[float, float]:
    """Returns the largest distance of the frames from the grid in s, earlier (at most 0) and later (at least 0)."""
    low = high = 0.0
    for at, times in _read_blocks(timestamps, first, stop):
        off = times - (start_s + (at - first + np.arange(len(times))) / rate_hz)
        low, high = min(low, float(off.min())), max(high, float(off.max()))
    return low, high


def _read_blocks(timestamps: Any, first: int, stop: int, overlap: int = 0) -> Iterator[tuple[int, Times]]:
    for at in range(first, stop - overlap, BLOCK_ROWS):
        yield at, np.asarray(timestamps[at : min(at + BLOCK_ROWS + overlap, stop)], np.float64)


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
