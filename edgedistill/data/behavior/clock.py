"""Reads the samples of one behavior series: its times, which must be a usable clock, and its values.

The input is a `BehaviorSeries`. The output is `Samples`, with times in seconds that are finite and strictly increasing.
A clock that runs backwards is refused, because sorting it would hide that trials or recordings were mixed up. Samples
without a time of their own are dropped and counted.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from edgedistill.data.behavior.candidates import BehaviorSeries
from edgedistill.data.opening.hdf5_files import damaged_file_error
from edgedistill.data.series import BLOCK_ROWS, read_strided_rows
from edgedistill.errors import RecordingError

MIN_RATE_HZ = 5  # a slower series would fill bins by interpolation; timestamps in milliseconds look like this too
HARMLESS_S = 1e-3  # a time that lies less than this before the one before it is jitter of the clock
MAX_RATE_HZ = 1000  # every n-th sample of a faster series is read, since bins last 10 ms


@dataclass(frozen=True)
class Samples:
    """Holds the samples of one series: times (n,) in seconds, and values (n, K) with conversion and offset."""

    times_s: npt.NDArray[np.float64]
    values: npt.NDArray[np.float64]
    period_s: float
    repeated: int  # samples dropped because their time was not later than that of the sample before
    timeless: int  # samples dropped because their time was NaN
    fill: tuple[float, ...] | None = None  # the values that stand for a lost sample
    filled: int = 0  # samples with them, which are NaN here


@dataclass(frozen=True)
class _Clock:
    times_s: npt.NDArray[np.float64]
    kept: npt.NDArray[np.bool_]  # of every n-th sample, those that have a time of their own
    repeated: int
    timeless: int


def read_samples(series: BehaviorSeries, columns: Sequence[int], file: Path) -> Samples:
    """Reads the given columns of a series, at most at about 1 kHz.

    Raises RecordingError where nothing tells which dimension is time, the clock is slower than 5 Hz or runs backwards,
    or the number of timestamps is not that of the samples.
    """
    if series.unclear:
        raise RecordingError(
            f"{file}: nothing tells which dimension of behavior {series.path} is time",
            got=f"shape {series.series.shape} and no timestamps",
            expected="(time, columns), with more samples than columns",
            causes=("the data were stored as (columns, time)",),
            next_step="write the series again as (time, columns), or with timestamps",
        )
    try:
        rate = _measure_typical_rate(series)
        _require_usable_rate(series, rate, file)
        stride = max(1, int(rate // MAX_RATE_HZ))
        clock = _read_clock(series, stride, file)
        raw = read_strided_rows(series.node.data, stride, series.transposed).reshape(-1, series.columns)
    except (OSError, RuntimeError) as error:
        raise damaged_file_error(file, f"behavior {series.path} cannot be read: {error}") from error
    node: Any = series.node
    scale = _read_scale(node, series, file)
    values = raw[clock.kept][:, list(columns)] * scale + float(getattr(node, "offset", None) or 0.0)
    values[np.isinf(values)] = np.nan
    if len(clock.times_s) < 2:
        raise _too_coarse_error(series, f"{len(clock.times_s)} samples with a time of their own", file)
    return Samples(clock.times_s, values, float(np.median(np.diff(clock.times_s))), clock.repeated, clock.timeless)


def _read_scale(node: Any, series: BehaviorSeries, file: Path) -> float:
    scale = 1.0 if node.conversion is None else float(node.conversion)
    if scale and np.isfinite(scale):
        return scale
    raise RecordingError(
        f"{file}: the conversion of behavior {series.path} is {scale:g}",
        expected="the factor that turns the stored numbers into its unit; 1 where they have the unit already",
        next_step=f"correct the attribute `conversion` of {series.path}/data, then edgedistill inspect {file}",
    )


def _measure_typical_rate(series: BehaviorSeries) -> float:
    """Returns the rate in Hz within trials. The pauses between them do not count."""
    if series.node.rate is not None or series.node.timestamps is None:
        return series.rate
    steps = np.diff(np.asarray(series.node.timestamps[:100_000], dtype=np.float64))
    steps = steps[steps > 0]
    return float(1 / np.median(steps)) if steps.size else 0.0


def _require_usable_rate(series: BehaviorSeries, rate: float, file: Path) -> None:
    start = series.node.starting_time
    if series.samples < 2 or not MIN_RATE_HZ <= rate < np.inf:
        step = f", one every {1 / rate:.6g} s" if rate > 0 else ""
        raise _too_coarse_error(series, f"{series.samples} samples at {rate:.4g} Hz{step}", file)
    if start is not None and not np.isfinite(start):
        raise RecordingError(
            f"{file}: the starting time of behavior {series.path} is not a number",
            got=start,
            next_step="write the series again with `starting_time`",
        )


def _too_coarse_error(series: BehaviorSeries, got: str, file: Path) -> RecordingError:
    return RecordingError(
        f"{file}: behavior {series.path} is too coarse",
        got=got,
        expected=f"at least {MIN_RATE_HZ} Hz, and timestamps in seconds",
        causes=(
            "timestamps are in milliseconds or sample numbers, or the rate is in kHz",
            "the series holds one value a trial",
        ),
        next_step=f"correct its times and write the file again, or name another series with --behavior; "
        f"edgedistill inspect {file} lists them",
    )


def _read_clock(series: BehaviorSeries, stride: int, file: Path) -> _Clock:
    rows = series.samples
    if series.node.rate is not None:
        times = float(series.node.starting_time or 0.0) + np.arange(0, rows, stride) / float(series.node.rate)
        return _Clock(times, np.ones(len(times), dtype=np.bool_), 0, 0)
    if len(series.node.timestamps) != rows:
        raise RecordingError(
            f"{file}: {series.path} has {len(series.node.timestamps)} timestamps for {rows} samples",
            causes=("the file was cut while it was written", "data and timestamps come from two recordings"),
            next_step="write the series again with one timestamp a sample",
        )
    return _read_timestamps(series, stride, file)


def _read_timestamps(series: BehaviorSeries, stride: int, file: Path) -> _Clock:
    """Reads every n-th timestamp, and checks all of them, in blocks."""
    found, kept = [], []
    latest, repeated, timeless = -np.inf, 0, 0
    step = max(1, BLOCK_ROWS // stride) * stride
    for first in range(0, series.samples, step):
        block = np.asarray(series.node.timestamps[first : first + step], dtype=np.float64)
        finite = np.isfinite(block)
        known = np.flatnonzero(finite)
        reached = np.maximum.accumulate(np.append(latest, block[finite]))
        steps = block[finite] - reached[:-1]
        if (steps < -HARMLESS_S).any():
            at = int(np.argmax(steps < -HARMLESS_S))
            raise _backwards_error(series, first + int(known[at]), float(reached[at]), float(block[known[at]]), file)
        fresh = finite.copy()
        fresh[known[steps <= 0]] = False
        latest = float(reached[-1])
        block, finite, fresh = block[::stride], finite[::stride], fresh[::stride]  # those that are read
        repeated, timeless = repeated + int((finite & ~fresh).sum()), timeless + int((~finite).sum())
        kept.append(fresh)
        found.append(block[fresh])
    return _Clock(np.concatenate(found), np.concatenate(kept), repeated, timeless)


def _backwards_error(series: BehaviorSeries, at: int, before: float, after: float, file: Path) -> RecordingError:
    return RecordingError(
        f"{file}: the timestamps of {series.path} run backwards",
        got=f"sample {at} at {after:.6g} s after {before:.6g} s",
        expected="increasing timestamps in seconds on the clock of the session",
        causes=("the times count from the start of each trial", "the clock was reset", "two recordings were joined"),
        next_step=f"add the start of each trial to its times and write the series again, or name another series with "
        f"--behavior; edgedistill inspect {file} lists them",
    )
