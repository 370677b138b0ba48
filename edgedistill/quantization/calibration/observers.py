"""Observes an activation chunk by chunk, and finds the largest magnitude A that eight bits shall represent.

An observer keeps a histogram of |x| whose bins are the upper bits of the float32 itself: 1024 bins for each factor of
two, over the 32 factors of two below the largest value so far. Smaller values count as zero. Bins are narrow relative
to A wherever A falls, so that one artefact does not blur the rest, as it does in even bins up to the largest value.
When a larger value comes, the counts move down and the lowest merge into the bin of zero. Memory is constant (256 kB a
group). Neither the order nor the size of the chunks matters, except to moving_minmax. The methods are in `thresholds`.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt

from edgedistill.errors import ConfigError, EdgeDistillError, did_you_mean
from edgedistill.quantization.calibration.thresholds import (
    LEVELS,
    Array,
    Counts,
    Magnitudes,
    find_entropy_threshold,
    find_least_squares_threshold,
    find_percentile_threshold,
)

Rule = Callable[[Magnitudes], float]

OCTAVE = 1024  # bins for each factor of two, that is, ten bits of the mantissa
BINS = 32 * OCTAVE
DROPPED_BITS = 13  # lower bits of the 23-bit float32 mantissa
LARGEST_FLOAT32 = float(np.finfo(np.float32).max)


class Observer:
    """Collects |x| of `groups` tensors (the heads of one activation) and computes the A of each.

    Errors call it `name` ("layers.0.k"), with ", head 2" added where there are several groups.
    """

    def __init__(self, name: str, groups: int, rule: Rule, momentum: float = 0.1) -> None:
        self.name, self.groups = name, groups
        self._rule, self._momentum = rule, momentum
        self._chunks = 0
        self._counts = np.zeros((groups, BINS), np.int64)
        self._first = np.full(groups, OCTAVE - BINS)  # upper bits of the float32 where a group's first bin begins
        self._largest, self._moving = np.zeros(groups), np.zeros(groups)
        self._ranges: Array | None = None  # result of compute() since the last collect()

    def collect(self, x: npt.NDArray[np.floating[Any]]) -> None:
        """Adds the magnitudes of x (n, groups). Raises EdgeDistillError, and adds nothing, for NaN or infinity."""
        if x.ndim != 2 or x.shape[1] != self.groups:
            raise EdgeDistillError(f"{self.name} was fed the wrong shape", got=x.shape, expected=f"(n, {self.groups})")
        if len(x) == 0:
            return
        magnitude = np.abs(x if x.dtype == np.float32 else x.astype(np.float64))
        largest = magnitude.max(axis=0).astype(np.float64)
        if not np.isfinite(largest).all():
            group = int(np.argmin(np.isfinite(largest)))
            raise _not_finite_error(self._name_group(group), largest[group])
        self._ranges = None
        weight = self._momentum if self._chunks else 1.0
        self._chunks += 1
        self._moving = (1 - weight) * self._moving + weight * largest
        self._largest = np.maximum(self._largest, largest)
        self._make_room()
        bins = np.maximum(_upper_bits(magnitude) - self._first, 0) + np.arange(self.groups) * BINS
        self._counts += np.bincount(bins.ravel(), minlength=self._counts.size).reshape(self._counts.shape)

    def compute(self) -> Array:
        """Returns the largest magnitude to represent, A (groups,). Raises EdgeDistillError where it gives no scale."""
        if self._ranges is not None:
            return self._ranges.copy()
        ranges = np.array([self._rule(seen) if seen.largest > 0 else 0.0 for seen in self._read_histograms()])
        with np.errstate(over="ignore", divide="ignore"):
            scales = (ranges / LEVELS).astype(np.float32)
            usable = np.isfinite(scales) & (scales > 0) & np.isfinite(np.float32(1) / scales)
        if not usable.all():
            group = int(np.argmin(usable))
            raise _no_scale_error(self._name_group(group), ranges[group], self._largest[group])
        self._ranges = ranges
        return ranges.copy()

    def compute_clipped_share(self) -> Array:
        """Returns the share of values beyond A (groups,), estimated to within the share in A's own bin."""
        return np.array(
            [seen.compute_share_beyond(a) for seen, a in zip(self._read_histograms(), self.compute(), strict=True)]
        )

    def compute_noise_db(self) -> Array:
        """Returns the signal to quantization noise at A in dB (groups,): 10 log10(Σ x² / Σ (x − q(x))²).

        It is estimated from the histogram, within 0.1 dB where values are spread over many levels. Where they are not,
        as for a constant, it is finite though the noise may be zero.
        """
        pairs = zip(self._read_histograms(), self.compute(), strict=True)
        return np.array(
            [10 * np.log10(seen.energy / seen.compute_squared_error(np.array([a]))[0]) for seen, a in pairs]
        )

    def _read_histograms(self) -> list[Magnitudes]:
        if not self._chunks:
            raise EdgeDistillError(
                f"{self.name} has collected nothing",
                expected="at least one value",
                causes=["the calibration set is empty", "all of its windows were left out"],
                next_step="calibrate on more or other sessions",
            )
        return [self._read_histogram(group) for group in range(self.groups)]

    def _read_histogram(self, group: int) -> Magnitudes:
        bits = np.maximum(self._first[group] + np.arange(BINS + 1), 0) << DROPPED_BITS
        edges = bits.astype(np.int32).view(np.float32).astype(np.float64)
        edges[0], largest = 0.0, float(self._largest[group])
        edges = np.minimum(edges, min(largest, LARGEST_FLOAT32))
        return Magnitudes(self._counts[group], edges, largest, float(self._moving[group]))

    def _make_room(self) -> None:
        """Moves each group's bins up by whole octaves until the last one holds its largest value."""
        first = (_upper_bits(self._largest) // OCTAVE + 1) * OCTAVE - BINS
        for group in np.flatnonzero(first > self._first):
            by, row = min(int(first[group] - self._first[group]), BINS - 1), self._counts[group]
            self._counts[group] = np.concatenate([[row[: by + 1].sum()], row[by + 1 :], np.zeros(by, np.int64)])
        self._first = np.maximum(self._first, first)

    def _name_group(self, group: int) -> str:
        return self.name if self.groups == 1 else f"{self.name}, head {group}"


def _upper_bits(magnitude: npt.NDArray[np.floating[Any]]) -> Counts:
    """Returns the upper bits of a float32, an integer that grows with it. Larger values count as the largest one."""
    single = np.minimum(magnitude, LARGEST_FLOAT32).astype(np.float32)
    return np.asarray(single.view(np.int32) >> DROPPED_BITS, np.int64)


def make_observer(
    method: str, name: str, groups: int = 1, *, percentile: float = 99.99, momentum: float = 0.1
) -> Observer:
    """Makes an observer that uses `method`. Each method uses only its own parameters.

    - minmax takes the largest magnitude.
    - moving_minmax takes the moving average of the largest magnitude of each chunk, the newest with weight `momentum`.
    - percentile takes the `percentile` of the magnitudes.
    - entropy takes the threshold with the least Kullback–Leibler divergence.
    - mse takes the threshold with the least squared error.
    """
    if not 0 < percentile <= 100:
        raise ConfigError("percentile is out of range", got=percentile, expected="above 0, at most 100")
    if not 0 < momentum <= 1:
        raise ConfigError("momentum is out of range", got=momentum, expected="above 0, at most 1")
    rules: dict[str, Rule] = {
        "minmax": lambda seen: seen.largest,
        "moving_minmax": lambda seen: seen.moving_largest,
        "percentile": partial(find_percentile_threshold, percentile=percentile),
        "entropy": find_entropy_threshold,
        "mse": find_least_squares_threshold,
    }
    if method not in rules:
        raise ConfigError("unknown calibration method", got=method, expected=did_you_mean(method, rules))
    return Observer(name, groups, rules[method], momentum)


def _not_finite_error(name: str, value: float) -> EdgeDistillError:
    return EdgeDistillError(
        f"{name} holds a value that is not finite",
        got=value,
        expected="finite values only",
        causes=["the recording holds NaN or infinite samples", "the student's weights are damaged"],
        next_step="look at the sessions with `edgedistill inspect`",
    )


def _no_scale_error(name: str, range_: float, largest: float) -> EdgeDistillError:
    return EdgeDistillError(
        f"{name} has no usable range",
        got=f"{range_:g} (largest magnitude seen {largest:g})",
        expected="a range whose scale, a 127th of it, is neither zero nor infinite in float32",
        causes=["it is constantly zero: a dead channel or head", "single values dwarf all others: an artefact"],
        next_step="calibrate on other sessions, or with another recipe",
    )
