"""Chooses, from a histogram of magnitudes, the largest one that eight bits shall represent.

A quantized tensor has the scale A / 127, so each method answers how much may be clipped so that the rest is rounded
less. `Magnitudes` computes what an answer costs. The histogram itself is filled by `observers`.
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
KL_LEVELS, KL_BINS = 128, 2048  # as published, see find_entropy_threshold


@dataclass(frozen=True)
class Magnitudes:
    """Holds the histogram of |x| of one group. Sums are estimates, as if values lay evenly within a bin."""

    counts: Counts  # (bins,); the first bin holds the zeros too
    edges: Array  # (bins + 1,) from 0 to the largest value; the last ones are equal where bins lie above it
    largest: float  # exact
    moving_largest: float  # moving average of the largest values of the chunks

    @cached_property
    def _tails(self) -> tuple[Array, Array]:
        """Returns how many values lie beyond each edge, and their sum, (bins + 1,) each."""
        return _accumulate(self.counts[::-1])[::-1], _accumulate((self.counts * self._centres)[::-1])[::-1]

    @cached_property
    def _centres(self) -> Array:
        centres: Array = (self.edges[:-1] + self.edges[1:]) / 2
        return centres

    @cached_property
    def energy(self) -> float:
        """Returns the sum of x²."""
        return float(np.sum(self.counts * self._centres**2))

    def compute_share_beyond(self, threshold: float) -> float:
        """Returns the share of values above the threshold."""
        return float(np.interp(threshold, self.edges, self._tails[0]) / self._tails[0][0])

    def compute_squared_error(self, thresholds: Array) -> Array:
        """Returns the sum of (x − q(x))² at each threshold (n,), where q clips and rounds to 127 levels a side.

        With the step s = A / 127 a value reaches level n beyond the boundary b_n = (n − ½) s. With N(b) the number and
        S(b) the sum of the values beyond b, Σ x q = s Σ_n S(b_n) and Σ q² = s² Σ_n (2n − 1) N(b_n), both over n = 1 …
        127. A tie lies half a step from either level and costs the same whichever it goes to.
        """
        steps, n = np.asarray(thresholds)[:, None] / LEVELS, np.arange(1, LEVELS + 1)
        number, total = (np.interp(steps * (n - 0.5), self.edges, tail) for tail in self._tails)
        error = self.energy - 2 * np.sum(steps * total, axis=1) + np.sum(steps**2 * (2 * n - 1) * number, axis=1)
        floor = np.finfo(np.float64).eps * self.energy  # the difference is not exact below this
        return np.asarray(np.maximum(error, floor))


def find_percentile_threshold(seen: Magnitudes, percentile: float) -> float:
    """Returns the upper edge of the bin with the percentile of |x|, as np.quantile(…, method="higher") within 0.1 %."""
    total = int(seen.counts.sum())
    rank = int(np.ceil(percentile / 100 * (total - 1)))
    bin = int(np.searchsorted(np.cumsum(seen.counts), rank, side="right"))
    return float(seen.edges[bin + 1]) if bin > 0 else 0.0  # the first bin holds zeros and values far below A


def find_least_squares_threshold(seen: Magnitudes) -> float:
    """Returns the threshold with the least squared error, searched in eighths of an octave, then in steps of 0.3 %.

    An artefact far out weighs by its square and draws the threshold towards itself. Leave such windows out, or use
    percentile or entropy.
    """
    coarse = seen.edges[-1] * 2 ** (-np.arange(160) / 8)
    best = coarse[np.argmin(seen.compute_squared_error(coarse))]
    fine = np.minimum(best * 2 ** np.linspace(-1 / 8, 1 / 8, 65), seen.edges[-1])
    return float(fine[np.argmin(seen.compute_squared_error(fine))])


def find_entropy_threshold(seen: Magnitudes) -> float:
    """Returns the threshold with the least Kullback–Leibler divergence of the quantized histogram.

    The method is that of S. Migacz, "8-bit inference with TensorRT" (GTC 2017), with the two refinements of NVIDIA's
    ModelOpt (calib/histogram.py): bin 0 counts as much as bin 1, so that zeros do not decide, and levels may be a
    fractional number of bins wide. The published 2048 bins reach from zero to the largest value, which an artefact
    pushes far out. Here the range is a power of two, and is halved, at twice the resolution, until the threshold lies
    in its upper half.
    """
    limit = float(np.ldexp(1.0, np.frexp(seen.edges[-1])[1]))  # above the largest value, never equal to it
    half = (1 - seen.counts[0] / seen.counts.sum()) / 2
    while (
        seen.compute_share_beyond(limit / KL_BINS) < half
    ):  # else bin 0, which does not count, would hold most of the values
        limit /= 2
    threshold = float(seen.edges[-1])
    while limit > seen.edges[1] * KL_BINS:
        divergence = compute_divergences(count_linearly(seen, limit))
        if not np.isfinite(divergence.min()):
            break
        best = len(divergence) - 1 - int(np.argmin(divergence[::-1])) + KL_LEVELS  # the widest of equals
        threshold = min(limit * best / KL_BINS, float(seen.edges[-1]))
        if best > KL_BINS // 2:
            break
        limit /= 2
    return threshold


def count_linearly(seen: Magnitudes, limit: float) -> Counts:
    """Counts |x| in even bins from 0 to limit, a power of two. The last of (KL_BINS + 1,) bins lies beyond it.

    The counts are exact, because each edge of an even bin is an edge of a bin of `seen`, which are no wider below
    limit.
    """
    bins = np.minimum(seen.edges[:-1] / limit * KL_BINS, KL_BINS).astype(np.int64)
    return np.bincount(bins, weights=seen.counts, minlength=KL_BINS + 1).astype(np.int64)


@cache
def _level_edges() -> tuple[Counts, Counts]:
    """Returns candidates i (c, 1), and where their levels begin and end (c, KL_LEVELS + 1), in bins."""
    candidates = np.arange(KL_LEVELS, KL_BINS + 1)[:, None]
    return candidates, -(-np.arange(KL_LEVELS + 1) * candidates // KL_LEVELS)


def compute_divergences(linear: Counts) -> Array:
    """Returns the divergence D(P ‖ Q) for a threshold after 128, 129, … 2048 bins of `count_linearly`.

    P is the first i bins, with all values beyond added to the last of them. Q is the same bins, without the values
    beyond, merged into 128 levels, each spread evenly over those of its bins that are not empty. Where the last bin is
    empty but values lie beyond, Q has one value there. With none the divergence would be infinite, and no threshold in
    the gap between the bulk and an artefact could be chosen. It is infinite where nothing lies within. All candidates
    are computed at once by cumulative sums, since Q is constant within a level.
    """
    counts = linear.astype(np.float64)
    counts[0] = counts[1]
    candidates, edges = _level_edges()
    mass = np.diff(_accumulate(counts)[edges], axis=1)  # (c, KL_LEVELS)
    width = np.diff(_accumulate(counts > 0)[edges], axis=1)
    inside = mass.sum(axis=1)
    with np.errstate(divide="ignore", invalid="ignore"):
        log_q = np.log(mass / width) - np.log(inside)[:, None]  # for each bin of a level
        last, beyond = counts[candidates[:, 0] - 1], counts.sum() - inside
        log_q_last = np.where(last > 0, log_q[:, -1], -np.log(inside))
        own = _accumulate(_x_log_x(counts))[candidates[:, 0]] - _x_log_x(last) + _x_log_x(last + beyond)
        shared = np.where(mass > 0, mass * log_q, 0.0).sum(axis=1) + np.where(beyond > 0, beyond * log_q_last, 0.0)
        divergence = (own - shared) / counts.sum() - np.log(counts.sum())
    return np.where(inside > 0, divergence, np.inf)


def _accumulate(values: npt.NDArray[Any]) -> Array:
    return np.concatenate([np.zeros(1), np.cumsum(values, dtype=np.float64)])


def _x_log_x(x: Array) -> Array:
    product: Array = x * np.log(np.where(x > 0, x, 1.0))
    return product
