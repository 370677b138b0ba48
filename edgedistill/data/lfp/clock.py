"""Holds the clock of an LFP: one regular grid of frames over all its parts, gaps included, and the time of each frame.

The inputs are a nominal rate or the timestamps of a series. The output is a `Clock`. A grid frame lies at
`start_s + frame / rate` where the file's own clock is regular. Where its timestamps wander, `anchors` follow them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from fractions import Fraction
from itertools import pairwise
from pathlib import Path

import numpy as np
import numpy.typing as npt

from edgedistill.data.lfp.timestamp_clock import TimestampClock, read_timestamp_clock
from edgedistill.data.series import Series, find_exact_rate, name_dataset_in_errors, read_nominal_rate
from edgedistill.errors import RecordingError

Times = npt.NDArray[np.float64]
SAME_RATE = 200e-6  # relative; clocks of one device differ by less
REGULAR_S, REGULAR_FRAMES = 2e-6, 0.05  # timestamps this near to a regular grid are one, rounded to microseconds


@dataclass(frozen=True)
class Run:
    """Places stored frames [first, first + frames) of one part on the grid, from grid frame `at` on."""

    at: int
    frames: int
    part: int
    first: int


@dataclass(frozen=True, eq=False)
class Clock:
    """Places the frames of an LFP on one regular grid, and the grid on the clock of the file."""

    start_s: float
    rate: Fraction
    runs: tuple[Run, ...]
    anchors: tuple[Times, Times] | None = field(default=None, repr=False)  # grid frames and their times in s
    notes: tuple[str, ...] = ()

    @property
    def frames(self) -> int:
        """Returns the length of the grid in frames, gaps included."""
        return self.runs[-1].at + self.runs[-1].frames if self.runs else 0

    @property
    def gaps(self) -> tuple[tuple[int, int], ...]:
        """Returns (first grid frame, frames) of what lies between the runs."""
        found = []
        for before, after in pairwise(self.runs):
            if after.at > (end := before.at + before.frames):
                found.append((end, after.at - end))
        return tuple(found)

    def times_at(self, frames: npt.NDArray[np.int64]) -> Times:
        """Returns the times in s of grid frames, strictly increasing. Frames outside the grid continue at `rate`."""
        asked = np.asarray(frames, dtype=np.int64)
        period = 1 / float(self.rate)
        if self.anchors is None:
            # exact in whole numbers, then rounded once per operation; a frame fits float64 up to 2^53
            return self.start_s + asked * self.rate.denominator / self.rate.numerator
        at, times = self.anchors
        inside = np.interp(asked, at, times)
        before, after = np.minimum(asked - at[0], 0), np.maximum(asked - at[-1], 0)
        return np.asarray(inside + (before + after) * period)

    @property
    def stop_s(self) -> float:
        """Returns the end of the last frame in seconds."""
        return float(self.times_at(np.array([self.frames]))[0])


def read_clock(series: Series, frames: int, file: Path, part: int = 0) -> Clock:
    """Returns the clock of a series of `frames` frames.

    Raises RecordingError for a rate that is not a positive number, and for timestamps that are no clock: not finite,
    too few, running backwards, or at a rate that changes.
    """
    if series.node.rate is None and series.node.timestamps is not None and frames > 0:
        with name_dataset_in_errors(file, f"{series.path}/timestamps"):
            return _from_timestamps(read_timestamp_clock(series.node.timestamps, frames, file, series.path), part)
    nominal = read_nominal_rate(series)
    if series.node.rate is None or not (np.isfinite(nominal) and nominal > 0):
        raise RecordingError(
            f"{file}: {series.path} has no usable clock",
            got=f"rate {series.node.rate}, {0 if series.node.timestamps is None else frames} timestamps",
            expected="a positive rate, or increasing timestamps in seconds",
            next_step="write the series again with `rate` and `starting_time`",
        )
    start = series.node.starting_time
    start_s = 0.0 if start is None else float(start)
    if not np.isfinite(start_s):
        raise RecordingError(
            f"{file}: {series.path} has no usable clock",
            got=f"starting_time {start}",
            expected="the time of the first frame in seconds",
            next_step=f"correct `starting_time` in the file, then edgedistill inspect {file}",
        )
    return Clock(start_s, find_exact_rate(nominal), (Run(0, frames, part, 0),))


def _from_timestamps(found: TimestampClock, part: int) -> Clock:
    runs = tuple(Run(at, frames, part, first) for at, frames, first in found.runs)
    clock = Clock(found.start_s, found.rate, runs, (found.anchor_frames, found.anchor_times), found.notes)
    return _drop_needless_anchors(clock)


def _drop_needless_anchors(clock: Clock) -> Clock:
    """Returns the clock without its anchors where all of them lie on the regular grid."""
    assert clock.anchors is not None
    at, times = clock.anchors
    off = np.abs(times - (clock.start_s + at / float(clock.rate)))
    if off.size == 0 or off.max() <= min(REGULAR_S, REGULAR_FRAMES / float(clock.rate)):
        return replace(clock, anchors=None)
    rising = np.concatenate([[True], (times[1:] > np.maximum.accumulate(times)[:-1]) & (np.diff(at) > 0)])
    return replace(clock, anchors=(at[rising], times[rising]))


def rates_agree(rates: Sequence[Fraction]) -> bool:
    """Returns whether rates differ by at most 200 ppm, as those of one device on several days do."""
    return bool(max(rates) - min(rates) <= Fraction(SAME_RATE) * max(rates))


def _drop_first_frame(clock: Clock) -> Clock:
    """Returns a clock of two frames or more without its first frame, which the part before holds too."""
    first, *others = clock.runs
    runs = (Run(0, first.frames - 1, first.part, first.first + 1), *(replace(run, at=run.at - 1) for run in others))
    start_s = float(clock.times_at(np.array([1]))[0])
    anchors = None if clock.anchors is None else (clock.anchors[0] - 1, clock.anchors[1])
    return replace(clock, start_s=start_s, runs=runs, anchors=anchors)


def join_clocks(clocks: Sequence[Clock]) -> Clock:
    """Puts the clocks of several parts, in the order of time, on one grid.

    Each part begins at the grid frame that is nearest to its time, counted from the start, so that rounding does not
    add up. The rate is the common one, or the mean by frames where the parts differ slightly.
    """
    if len(clocks) == 1:
        return clocks[0]
    rate = clocks[0].rate
    if len({clock.rate for clock in clocks}) > 1:
        total = sum(clock.frames for clock in clocks)
        rate = find_exact_rate(float(sum(clock.rate * clock.frames for clock in clocks) / total))
    start_s, end = clocks[0].start_s, 0
    runs: list[Run] = []
    at_all: list[Times] = []
    times_all: list[Times] = []
    for clock in clocks:
        at = round((clock.start_s - start_s) * float(rate))
        if at == end - 1 and clock.runs[0].frames > 1:  # both parts hold the frame where they meet
            clock, at = _drop_first_frame(clock), end
        at = max(end, at)
        runs += [replace(run, at=run.at + at) for run in clock.runs]
        if clock.anchors is None:
            ends = np.array([0, clock.frames], np.int64)
            own, times = ends.astype(np.float64), clock.times_at(ends)
        else:
            own, times = clock.anchors[0], clock.anchors[1].copy()
        if at_all and at == end:  # one frame has one time, so the part before is held by its last frame
            at_all[-1][-1] -= 1
            times_all[-1][-1] -= 1 / float(rate)
        at_all.append(own + at)
        times_all.append(times)
        end = at + clock.frames
    anchors = np.concatenate(at_all), np.concatenate(times_all)
    notes = tuple(dict.fromkeys(note for clock in clocks for note in clock.notes))
    return _drop_needless_anchors(Clock(start_s, rate, tuple(runs), anchors, notes))
