"""Reads the behavior of an open NWB file, and gives its value at any time.

The input is the family of series that `behavior.choice` picked. The output is a `Behavior`. Every axis keeps its own
clock until `sample_at` brings all of them to the ends of bins. NaN, pauses and times outside the series come out as
NaN.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property, reduce
from itertools import zip_longest
from pathlib import Path

import numpy as np
import numpy.typing as npt

from edgedistill.data.behavior.candidates import BehaviorSeries
from edgedistill.data.behavior.clock import Samples, read_samples
from edgedistill.data.behavior.columns import STILL, describe_odd_column, read_column_names
from edgedistill.data.behavior.families import Track
from edgedistill.data.behavior.fill import find_fill
from edgedistill.data.behavior.resampling import BIN_S, find_spans, interpolate, intersect_spans, resample
from edgedistill.data.candidates import Candidate
from edgedistill.errors import RecordingError

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Behavior:
    """Holds the behavior of one session on the clock of the file. A bin that touches a NaN sample has no behavior."""

    file: Path
    series: str  # path inside the file, those of up to eight series joined by " + ", and named columns: "a/b[0,1]"
    names: tuple[str, ...]  # names of the outputs, e.g. cursor_vel_x, also where positions are stored
    units: tuple[str, ...]  # units of the outputs
    samples: int  # of the first axis, all epochs together
    derived: str | None  # how the outputs are derived from `values`; None where they are the values
    others: tuple[str, ...]  # paths of the series that were not chosen
    candidates: tuple[Candidate, ...]  # every series that could be behavior
    remarks: tuple[str, ...]  # what the choice left out or put together; `notes` adds what the samples tell
    _tracks: tuple[Track, ...] = field(repr=False)
    _columns: tuple[tuple[int, ...], ...] = field(repr=False)  # of each track
    _trusted: bool = field(repr=False, default=False)  # the user named the columns, so counters are read too

    @property
    def paths(self) -> tuple[str, ...]:
        """Returns the paths of all series that are read."""
        return tuple(part.path for track in self._tracks for part in track.parts)

    @property
    def name(self) -> str:
        """Returns the name of the series, or of the first of several."""
        return self._tracks[0].parts[0].name

    @property
    def notes(self) -> tuple[str, ...]:
        """Returns what a user should know of how this behavior is read, one sentence each, without a full stop.

        Raises RecordingError where the samples cannot be read.
        """
        return (*self.remarks, *self._describe_samples())

    @cached_property
    def times_s(self) -> Floats:
        """Returns the times (n,) of the first axis in seconds, strictly increasing, at most about 1 kHz.

        Raises RecordingError where the timestamps are no usable clock, and where a column is a counter or never moves.
        """
        return np.concatenate([part.times_s for part in self._samples[0]])

    @cached_property
    def values(self) -> Floats:
        """Returns the values (n, K) with conversion and offset. These are positions where `derived` is set.

        Axes with another clock than the first are interpolated at `times_s`.
        """
        first = np.concatenate([part.values for part in self._samples[0]])
        others = []
        for track in self._samples[1:]:
            times, values = (np.concatenate([getattr(part, key) for part in track]) for key in ("times_s", "values"))
            alike = np.array_equal(times, self.times_s)
            others.append(
                values
                if alike
                else _fill_parts(
                    track, self.times_s, lambda p, at_s: interpolate(p.times_s, p.values, at_s, p.period_s, 0.0)
                )
            )
        return np.concatenate([first, *others], axis=1)

    @property
    def start_s(self) -> float:
        """Returns the time in seconds at which all axes have begun."""
        return max(float(track[0].times_s[0]) for track in self._samples)

    @property
    def stop_s(self) -> float:
        """Returns the time in seconds at which the first axis ends. A sample lasts one period."""
        return min(float(track[-1].times_s[-1]) + track[-1].period_s for track in self._samples)

    def spans(self) -> Floats:
        """Returns the stretches (n, 2) in seconds in which all axes have samples, be they numbers or NaN."""
        each = (np.concatenate([find_spans(part.times_s, part.period_s) for part in track]) for track in self._samples)
        return reduce(intersect_spans, each)

    def sample_at(self, times_s: Floats) -> npt.NDArray[np.float32]:
        """Returns the outputs (B, K) at the ends of bins (B,) in seconds, which increase. Each axis has its own clock.

        Positions are interpolated, and the velocity is their central difference over one bin on either side, one-sided
        where only one side exists. A stored velocity is averaged over the 10 ms before the end of the bin where its
        series is faster than 100 Hz (by more than 1 %), and interpolated at the end of the bin where it is not. Outputs
        are NaN outside the series, in pauses and beside NaN samples. See `behavior.resampling`.
        """
        positions = self.derived is not None

        def read(part: Samples, at_s: Floats) -> Floats:
            return resample(part.times_s, part.values, at_s, part.period_s, positions=positions)

        axes = [_fill_parts(track, times_s, read) for track in self._samples]
        return np.concatenate(axes, axis=1).astype(np.float32)

    @cached_property
    def _samples(self) -> tuple[tuple[Samples, ...], ...]:
        read = tuple(
            tuple(self._void_fill(read_samples(part, columns, self.file)) for part in track.parts)
            for track, columns in zip(self._tracks, self._columns, strict=True)
        )
        self._require_moving_columns(read)
        return read

    def _void_fill(self, part: Samples) -> Samples:
        """Makes the samples NaN at which the tracker had lost what it follows, unless the user named the columns."""
        fill = None if self._trusted else find_fill(part.values)
        if fill is None or (self.derived is None and not fill.any()):
            return part  # a velocity of zero is rest
        at = (part.values == fill).all(axis=1)
        values = np.where(at[:, None], np.nan, part.values)
        return replace(part, values=values, fill=tuple(map(float, fill)), filled=int(at.sum()))

    def _require_moving_columns(self, read: tuple[tuple[Samples, ...], ...]) -> None:
        for track, columns, parts in zip(self._tracks, self._columns, read, strict=True):
            times, values = np.concatenate([p.times_s for p in parts]), np.concatenate([p.values for p in parts])
            odd = {
                column: found
                for column, x in zip(columns, values.T, strict=True)
                if (found := describe_odd_column(x, times))
            }
            all_still = len(odd) == len(columns) and all(found.startswith(STILL) for found in odd.values())
            if all_still or (odd and not self._trusted):
                others = [one.path for other in self._tracks if other is not track for one in other.parts]
                raise _odd_columns_error(track.parts[0], columns, odd, others, self.file)

    def _describe_samples(self) -> Iterator[str]:
        for track, parts in zip(self._tracks, self._samples, strict=True):
            path = track.parts[0].path + (f" and {len(parts) - 1} more epochs" if len(parts) > 1 else "")
            if repeated := sum(part.repeated for part in parts):
                yield f"{path}: {repeated} samples whose time is not later than that of the sample before were dropped"
            if timeless := sum(part.timeless for part in parts):
                yield f"{path}: {timeless} samples without a time (NaN) were dropped"
            if fills := [part for part in parts if part.fill is not None]:
                held = ", ".join(f"{value:.6g}" for value in fills[0].fill or ())
                yield (
                    f"{path}: {sum(part.filled for part in fills)} samples are {held}, to which and from which the "
                    f'values jump. They count as lost (NaN); --behavior "NAME[0]" with columns reads them as they are'
                )
            missing = [int(np.isnan(part.values).any(axis=1).sum()) for part in parts]
            if lost := sum(missing):
                share = lost / sum(len(part.values) for part in parts)
                seconds = sum(count * part.period_s for count, part in zip(missing, parts, strict=True))
                yield f"{path}: {share:.1%} of the samples are NaN ({seconds:.2f} s); their bins are left out"
            pauses = sum(float(np.diff(find_spans(p.times_s, p.period_s).ravel())[1::2].sum()) for p in parts)
            if pauses:
                yield f"{path}: {pauses:.2f} s are pauses between samples; their bins are left out"


def _fill_parts(parts: Sequence[Samples], times_s: Floats, read: Callable[[Samples, Floats], Floats]) -> Floats:
    """Returns the values (B, K) of epochs that do not overlap, each of which is read only at the times it reaches."""
    out = np.full((len(times_s), parts[0].values.shape[1]), np.nan)
    for part in parts:
        reach = BIN_S + part.period_s
        first, stop = np.searchsorted(times_s, (part.times_s[0] - reach, part.times_s[-1] + reach))
        near = out[first:stop]
        near[:] = np.where(np.isnan(near), read(part, times_s[first:stop]), near)
    return out


def _odd_columns_error(
    series: BehaviorSeries, columns: tuple[int, ...], odd: dict[int, str], others: Sequence[str], file: Path
) -> RecordingError:
    names = read_column_names(series) or []
    labels = {
        column: f"column {column}" + (f" ({name})" if name else "")
        for column, name in zip_longest(range(series.columns), names)
    }
    good = [column for column in columns if column not in odd]
    option = f'--behavior "{series.path}[{",".join(map(str, good or columns))}]"'
    all_still = all(found.startswith(STILL) for found in odd.values())
    anyway = "" if all_still else f", or {option} where this is a movement after all"
    if not good and others:
        option, good = f'--behavior "{" + ".join(others)}"', list(columns)
    return RecordingError(
        f"{file}: {'the columns' if len(odd) == len(columns) else 'columns'} of behavior {series.path} are no movement",
        got="; ".join(f"{labels[column]} {odd.get(column, 'moves')}" for column in columns),
        expected="columns that move back and forth",
        causes=("the tracker stores frame numbers, time stamps or labels beside the position",),
        next_step=f"{option} reads the others"
        if good
        else f"name another series with --behavior; edgedistill inspect {file} lists them{anyway}",
    )
