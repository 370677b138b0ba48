"""The magnitudes of a tensor as a histogram in; out, the largest one that eight bits shall represent, by method.

A quantized tensor has the scale A / 127, so each method is one answer to "how much may be clipped so that the rest
is rounded less", and `Magnitudes` knows what an answer costs. The histogram itself is filled by `observers`.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache, cached_property
from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.float64]
Counts = npt.NDArray[np.int64]

LEVELS = 127  # on each side of zero
KL_LEVELS, KL_BINS = 128, 2048  # as published, see entropy_threshold


@dataclass(frozen=True)
class Magnitudes:
    """What is remembered of |x| of one group. Sums over values are estimates: within a bin they lie evenly."""

    counts: Counts  # (bins,), the first bin holds the zeros too
    edges: Array  # (bins + 1,) from 0 to the largest value; equal ones at the end where bins lie above it
    largest: float  # exact
    moving_largest: float  # moving average of the largest value of each chunk

    @cached_property
    def _tails(self) -> tuple[Array, Array]:
        """How many values lie beyond each edge, and their sum: (bins + 1,) each."""
        return _cumulative(self.counts[::-1])[::-1], _cumulative((self.counts * self._centres)[::-1])[::-1]

    @cached_property
    def _centres(self) -> Array:
        centres: Array = (self.edges[:-1] + self.edges[1:]) / 2
        return centres

    @cached_property
    def energy(self) -> float:
        """Sum of x²."""
        return float(np.sum(self.counts * self._centres**2))

    def share_beyond(self, threshold: float) -> float:
        """Share of values above the threshold."""
        return float(np.interp(threshold, self.edges, self._tails[0]) / self._tails[0][0])

    def squared_error(self, thresholds: Array) -> Array:
        """Sum of (x − q(x))² at each threshold (n,), q with 127 levels a side, clipping and rounding both counted.

        With the step s = A / 127 a value has reached level n beyond the boundary b_n = (n − ½) s. So, with N(b) the
        number and S(b) the sum of the values beyond b, Σ x q = s Σ_n S(b_n) and Σ q² = s² Σ_n (2n − 1) N(b_n), both
        over n = 1 … 127. A tie, half a step from either level, costs the same whichever it goes to.
        """
        steps, n = np.asarray(thresholds)[:, None] / LEVELS, np.arange(1, LEVELS + 1)
        number, total = (np.interp(steps * (n - 0.5), self.edges, tail) for tail in self._tails)
        error = self.energy - 2 * np.sum(steps * total, axis=1) + np.sum(steps**2 * (2 * n - 1) * number, axis=1)
        floor = np.finfo(np.float64).eps * self.energy  # nothing smaller is left of the difference
        return np.asarray(np.maximum(error, floor))


def percentile_threshold(seen: Magnitudes, percentile: float) -> float:
    """Upper edge of the bin (0.1 % wide at most) with the percentile of |x|, as np.quantile(…, method="higher")."""
    total = int(seen.counts.sum())
    rank = int(np.ceil(percentile / 100 * (total - 1)))
    bin = int(np.searchsorted(np.cumsum(seen.counts), rank, side="right"))
    return float(seen.edges[bin + 1]) if bin > 0 else 0.0  # the first bin holds zeros and what vanishes beside A


def least_squares_threshold(seen: Magnitudes) -> float:
    """The threshold with the least squared error: in steps of an eighth of an octave, then of 0.3 % around the best.

    An artefact far out weighs by its square and draws the threshold towards itself. Leave such stretches out, or
    take percentile or entropy.
    """
    coarse = seen.edges[-1] * 2 ** (-np.arange(160) / 8)
    best = coarse[np.argmin(seen.squared_error(coarse))]
    fine = np.minimum(best * 2 ** np.linspace(-1 / 8, 1 / 8, 65), seen.edges[-1])
    return float(fine[np.argmin(seen.squared_error(fine))])


def entropy_threshold(seen: Magnitudes) -> float:
    """The threshold that loses least information: Kullback–Leibler divergence of the quantized histogram.

    After S. Migacz, "8-bit inference with TensorRT" (GTC 2017), with the two refinements of NVIDIA's ModelOpt
    (calib/histogram.py): bin 0 counts as much as bin 1, so that zeros do not decide, and levels may be a fractional
    number of bins wide. The published 2048 bins reach from zero to the largest value, which an artefact pushes far
    out; here the range is a power of two, and is halved, at twice the resolution, until the threshold lies in its
    upper half.
    """
    limit = float(np.ldexp(1.0, np.frexp(seen.edges[-1])[1]))  # above the largest value, never equal to it
    half = (1 - seen.counts[0] / seen.counts.sum()) / 2
    while seen.share_beyond(limit / KL_BINS) < half:  # bin 0 would hold most of what is not zero, and not count
        limit /= 2
    threshold = float(seen.edges[-1])
    while limit > seen.edges[1] * KL_BINS:
        divergence = divergences(linear_counts(seen, limit))
        if not np.isfinite(divergence.min()):
            break
        best = len(divergence) - 1 - int(np.argmin(divergence[::-1])) + KL_LEVELS  # of equals, the widest
        threshold = min(limit * best / KL_BINS, float(seen.edges[-1]))
        if best > KL_BINS // 2:
            break
        limit /= 2
    return threshold


def linear_counts(seen: Magnitudes, limit: float) -> Counts:
    """Counts (KL_BINS + 1,) of |x| in even bins from 0 to limit, a power of two, the last one beyond it.

    Exact: each edge of an even bin is the edge of a bin of `seen`, which are no wider below the limit.
    """
    bins = np.minimum(seen.edges[:-1] / limit * KL_BINS, KL_BINS).astype(np.int64)
    return np.bincount(bins, weights=seen.counts, minlength=KL_BINS + 1).astype(np.int64)


@cache
def _level_edges() -> tuple[Counts, Counts]:
    """Candidates i (c, 1) and where their levels begin and end (c, KL_LEVELS + 1), in bins."""
    candidates = np.arange(KL_LEVELS, KL_BINS + 1)[:, None]
    return candidates, -(-np.arange(KL_LEVELS + 1) * candidates // KL_LEVELS)


def divergences(linear: Counts) -> Array:
    """Divergence D(P ‖ Q) for a threshold after 128, 129, … 2048 bins, of `linear_counts`.

    P is the first i bins, all that lies beyond added to the last of them; Q is the same bins (without what lies
    beyond) merged into 128 levels, each spread evenly over those of its bins that are not empty. Where the last bin
    is empty but something lies beyond, Q has one value there: with none the divergence would be infinite, and no
    threshold in the gap between the bulk and an artefact could be chosen. Infinite where nothing lies within.
    All candidates at once, by cumulative sums: Q is constant within a level.
    """
    counts = linear.astype(np.float64)
    counts[0] = counts[1]
    candidates, edges = _level_edges()
    mass = np.diff(_cumulative(counts)[edges], axis=1)  # (c, KL_LEVELS)
    width = np.diff(_cumulative(counts > 0)[edges], axis=1)
    inside = mass.sum(axis=1)
    with np.errstate(divide="ignore", invalid="ignore"):
        log_q = np.log(mass / width) - np.log(inside)[:, None]  # of each bin of a level
        last, beyond = counts[candidates[:, 0] - 1], counts.sum() - inside
        log_q_last = np.where(last > 0, log_q[:, -1], -np.log(inside))
        own = _cumulative(_x_log_x(counts))[candidates[:, 0]] - _x_log_x(last) + _x_log_x(last + beyond)
        shared = np.where(mass > 0, mass * log_q, 0.0).sum(axis=1) + np.where(beyond > 0, beyond * log_q_last, 0.0)
        divergence = (own - shared) / counts.sum() - np.log(counts.sum())
    return np.where(inside > 0, divergence, np.inf)


def _cumulative(values: npt.NDArray[Any]) -> Array:
    return np.concatenate([np.zeros(1), np.cumsum(values, dtype=np.float64)])


def _x_log_x(x: Array) -> Array:
    product: Array = x * np.log(np.where(x > 0, x, 1.0))
    return product
