"""Reads the behavior of an open NWB file, and gives its value at any time.

The input is the series that `behavior_choice` picked. The output is a `Behavior`, which holds a velocity as it was
stored, or positions from which `sample_at` derives the velocity. NaN, pauses and times outside the series come out as
NaN.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from edgedistill.data.series import Series, read_nominal_rate, read_strided_rows
from edgedistill.errors import RecordingError

BIN_S = 0.01
ON_SAMPLE = 1e-6  # share of a period; two roundings of one time differ by less
MIN_RATE_HZ = 5  # a slower series would fill bins by interpolation; timestamps in milliseconds look like this too
MAX_RATE_HZ = 1000  # every n-th sample of a faster series is read, since bins last 10 ms


@dataclass(frozen=True)
class Behavior:
    """Holds the behavior of one session on the clock of the file. A bin that touches a NaN sample has no behavior."""

    file: Path
    series: str  # path inside the file; the paths of several one-column series are joined by " + "
    names: tuple[str, ...]  # names of the outputs, e.g. cursor_vel_x, also where positions are stored
    units: tuple[str, ...]  # units of the outputs
    samples: int
    derived: str | None  # how the outputs are derived from `values`; None where they are the values
    others: tuple[str, ...]  # paths of the series that were not chosen
    _parts: tuple[Series, ...] = field(repr=False)

    @property
    def name(self) -> str:
        """Returns the name of the series, or of the first of several."""
        return self._parts[0].name

    @cached_property
    def times_s(self) -> npt.NDArray[np.float64]:
        """Returns the times (n,) in seconds, strictly increasing, at most about 1 kHz.

        Raises RecordingError where the timestamps are no usable clock.
        """
        return self._samples[0]

    @cached_property
    def values(self) -> npt.NDArray[np.float64]:
        """Returns the values (n, K) with conversion and offset. These are positions where `derived` is set."""
        return self._samples[1]

    @property
    def start_s(self) -> float:
        """Returns the time of the first sample in seconds."""
        return float(self.times_s[0])

    @property
    def stop_s(self) -> float:
        """Returns the end of the last sample in seconds. A sample lasts one period."""
        return float(self.times_s[-1]) + self._period_s

    @cached_property
    def _period_s(self) -> float:
        return float(np.median(np.diff(self.times_s)))

    @cached_property
    def _samples(self) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
        return _read_samples(self._parts, self.samples, self.file)

    def sample_at(self, times_s: npt.NDArray[np.float64]) -> npt.NDArray[np.float32]:
        """Returns the outputs (B, K) at the ends of bins (B,) in seconds.

        Values are interpolated between the two samples around. A derived velocity is the central difference of the
        positions one bin before and after, and a one-sided difference where only one of the two exists. Outputs are NaN
        outside the series, in pauses and beside NaN samples.
        """
        if self.derived is None:
            return self._interpolate(times_s).astype(np.float32)
        here, before, after = (self._interpolate(times_s + shift) for shift in (0.0, -BIN_S, BIN_S))
        speed = (after - before) / (2 * BIN_S)
        for one_sided in ((here - before) / BIN_S, (after - here) / BIN_S):
            speed = np.where(np.isnan(speed), one_sided, speed)
        return np.asarray(speed, dtype=np.float32)

    def _interpolate(self, at_s: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
        # a position that is held after the last sample would look like a hand that stops
        hold_s = self._period_s if self.derived is None else 0.0
        return interpolate(self.times_s, self.values, at_s, self._period_s, hold_s)


def interpolate(
    times_s: npt.NDArray[np.float64],
    values: npt.NDArray[np.float64],
    at_s: npt.NDArray[np.float64],
    period_s: float,
    hold_s: float,
) -> npt.NDArray[np.float64]:
    """Interpolates values (n, K) at times (n,) linearly at `at_s` (B,). Returns (B, K).

    The result is NaN before the first sample, later than `hold_s` after the last, and where two samples lie more than
    five periods (at least 50 ms) apart, because a line across the pause between trials is not data.
    """
    last = len(times_s) - 1
    after = np.searchsorted(times_s, at_s, side="right")
    low, high = np.clip(after - 1, 0, last), np.clip(after, 0, last)
    span = times_s[high] - times_s[low]
    share = np.divide(at_s - times_s[low], span, out=np.zeros_like(at_s), where=span > 0)
    low, share = np.where(share > 1 - ON_SAMPLE, high, low), np.where(share > 1 - ON_SAMPLE, 0.0, share)
    on_sample = share < ON_SAMPLE  # the next sample does not count then, because it may be NaN or far away
    out = np.where(on_sample[:, None], values[low], values[low] + share[:, None] * (values[high] - values[low]))
    pause = (span > max(5 * period_s, 0.05)) & ~on_sample
    out[pause | (at_s < times_s[0] - ON_SAMPLE * period_s) | (at_s > times_s[last] + hold_s + ON_SAMPLE * period_s)] = (
        np.nan
    )
    return out


def is_transposed(series: Series) -> bool:
    """Returns whether a series is stored as (columns, time), against the standard."""
    shape = series.shape
    return len(shape) == 2 and shape[0] <= 8 < shape[1]


def count_columns(series: Series) -> int:
    """Returns the number of values in a sample."""
    return 1 if len(series.shape) == 1 else min(series.shape) if is_transposed(series) else series.shape[1]


def count_samples(series: Series) -> int:
    """Returns the number of samples."""
    return series.shape[1] if is_transposed(series) else series.shape[0]


def _read_samples(
    parts: Sequence[Series], rows: int, file: Path
) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """Reads times (n,), finite and strictly increasing, and values (n, K), at most about 1 kHz."""
    first = parts[0]
    rate = _measure_typical_rate(first)
    if rows < 2 or not rate >= MIN_RATE_HZ:
        raise RecordingError(
            f"{file}: behavior {first.path} is too coarse",
            got=f"{rows} samples at {rate:.4g} Hz",
            expected=f"at least {MIN_RATE_HZ} Hz",
            causes=("timestamps are not in seconds", "the series holds one value a trial"),
            next_step="name another series with `behavior`, see `edgedistill inspect`",
        )
    stride = max(1, int(rate // MAX_RATE_HZ))
    times = _read_times(first, rows, stride, file)
    values = np.concatenate([_read_values(part, stride) for part in parts], axis=1)
    keep = np.isfinite(times)
    times, values = times[keep], values[keep]
    if (np.diff(times) < 0).any():
        at = int(np.argmax(np.diff(times) < 0))
        raise RecordingError(
            f"{file}: the timestamps of {first.path} run backwards",
            got=f"{times[at + 1]:.6g} s after {times[at]:.6g} s",
            expected="increasing timestamps in seconds",
            next_step="sort the series by time, or store each recording as a file of its own",
        )
    fresh = np.concatenate([[True], np.diff(times) > 0])
    return times[fresh], values[fresh]


def _measure_typical_rate(series: Series) -> float:
    """Returns the rate in Hz within trials. The pauses between them do not count."""
    if series.node.rate is not None or series.node.timestamps is None:
        return read_nominal_rate(series)
    steps = np.diff(np.asarray(series.node.timestamps[:100_000], dtype=np.float64))
    steps = steps[steps > 0]
    return float(1 / np.median(steps)) if steps.size else 0.0


def _read_times(series: Series, rows: int, stride: int, file: Path) -> npt.NDArray[np.float64]:
    if series.node.rate is not None:
        start = float(series.node.starting_time or 0.0)
        return start + np.arange(0, rows, stride) / float(series.node.rate)
    if len(series.node.timestamps) != rows:
        raise RecordingError(
            f"{file}: {series.path} has {len(series.node.timestamps)} timestamps for {rows} samples",
            next_step="write the series again with one timestamp a sample",
        )
    return read_strided_rows(series.node.timestamps, stride)


def _read_values(series: Series, stride: int) -> npt.NDArray[np.float64]:
    node: Any = series.node
    raw = read_strided_rows(node.data, stride, is_transposed(series)).reshape(-1, count_columns(series))
    scale = 1.0 if node.conversion is None else float(node.conversion)
    return raw * scale + float(getattr(node, "offset", None) or 0.0)
