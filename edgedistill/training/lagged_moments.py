"""Sums up lagged bins for least squares, without ever stacking them.

Bins (T, I), targets (T, Y) and the rows to sum over go in. Mean and products of all lagged bins with each other and
with the targets come out. A product of two lags depends on their distance alone, except at the edges of the rows, so
one product of matrices for each distance is enough, and a correction of a few rows gives the others.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.float64]
Mask = npt.NDArray[np.bool_]

CONSTANT = 1e-12  # share of a feature's mean square; a smaller variance is that of a constant


@dataclass(frozen=True, eq=False)
class LaggedMoments:
    """Holds what least squares needs of J lags of I inputs, the newest bin first, and of Y targets."""

    lags: tuple[int, ...]  # (J,) in bins
    count: int  # rows that were summed over
    mean: Array  # (J, I)
    square: Array  # (J, I) mean square
    gram: Array  # (J, I, J, I) sums of products of what is left without the mean
    cross: Array  # (J, I, Y) the same with the targets
    mean_target: Array  # (Y,)
    target_gram: Array  # (Y, Y)

    def select(self, columns: slice, longest: int) -> LaggedMoments:
        """Returns the moments of some of the inputs, up to the lag `longest`."""
        taps = sum(lag <= longest for lag in self.lags)
        return LaggedMoments(
            self.lags[:taps],
            self.count,
            self.mean[:taps, columns],
            self.square[:taps, columns],
            self.gram[:taps, columns, :taps, columns],
            self.cross[:taps, columns],
            self.mean_target,
            self.target_gram,
        )

    @property
    def features(self) -> int:
        """Returns the number of features, J * I."""
        return int(self.mean.size)

    @property
    def flat_gram(self) -> Array:
        """Returns the products of the features (F, F), lag after lag."""
        return np.asarray(self.gram.reshape(self.features, self.features))

    @property
    def flat_cross(self) -> Array:
        """Returns the products of features and targets (F, Y)."""
        return np.asarray(self.cross.reshape(self.features, -1))

    @property
    def scale(self) -> Array:
        """Returns the standard deviation (F,) of each feature, and 1 for one that does not vary."""
        return np.sqrt(_find_variance(self.flat_gram, self.square.reshape(-1), self.count))

    @property
    def target_variance(self) -> Array:
        """Returns the variance (Y,) of each target, and 1 for one that does not vary."""
        variance = np.diagonal(self.target_gram) / self.count
        return _find_variance(self.target_gram, variance + self.mean_target**2, self.count)


def _find_variance(gram: Array, square: Array, count: int) -> Array:
    variance = np.diagonal(gram) / count
    return np.where(variance > CONSTANT * square, variance, 1.0)


@dataclass(frozen=True, eq=False)
class LaggedFilter:
    """Maps the last bins to outputs linearly: the sum over lags of weight @ bin, plus bias."""

    lags: tuple[int, ...]  # (J,)
    weight: Array  # (K, J, I)
    bias: Array  # (K,)

    def __call__(self, bins: Array) -> Array:
        """Returns the outputs (T, K) of bins (T, I), with zeros before the first bin."""
        total = np.tile(self.bias, (len(bins), 1))
        for lag, weight in zip(self.lags, self.weight.swapaxes(0, 1), strict=True):
            total[lag:] += bins[: len(bins) - lag] @ weight.T
        return total


def compute_lagged_moments(bins: Array, targets: Array, rows: Mask, lags: Sequence[int]) -> LaggedMoments:
    """Returns the moments of bins (T, I) and targets (T, Y) over the `rows` (T,), with zeros before the first bin.

    `lags` begin at 0 and are evenly spaced. Targets are finite in `rows`.
    """
    step = lags[1] - lags[0] if len(lags) > 1 else 1
    padded = np.vstack([np.zeros((lags[-1], bins.shape[1])), bins])
    lagged = [padded[lags[-1] - lag : len(padded) - lag] for lag in lags]
    y = np.column_stack([rows, np.where(rows[:, None], targets, 0.0)])  # (T, 1 + Y)
    used = slice(int(np.argmax(rows)), len(rows) - int(np.argmax(rows[::-1])))
    count = int(rows.sum())
    sums = np.stack([x[used].T @ y[used] for x in lagged])  # (J, I, 1 + Y)
    gram = sum_products([x[used] for x in lagged], lagged, rows, used, step)
    mean, mean_target = sums[..., 0] / count, y[:, 1:].sum(0) / count
    square = np.einsum("jiji->ji", gram) / count
    gram -= count * mean[:, :, None, None] * mean
    cross = sums[..., 1:] - count * mean[..., None] * mean_target
    target_gram = y[:, 1:].T @ y[:, 1:] - count * np.outer(mean_target, mean_target)
    return LaggedMoments(tuple(lags), count, mean, square, gram, cross, mean_target, target_gram)


def sum_products(used_lagged: Sequence[Array], lagged: Sequence[Array], rows: Mask, used: slice, step: int) -> Array:
    """Returns the sums over the rows of the products of all lagged bins (J, I, J, I), not centred.

    Moving both lags one step further sums over rows that lie one step earlier. Rows that enter or leave the sum by that
    are few, because labels come in long runs.
    """
    taps, inputs = len(lagged), lagged[0].shape[1]
    gram = np.empty((taps, inputs, taps, inputs))
    newest = used_lagged[0] * rows[used, None]
    later = np.concatenate([rows[step:], np.zeros(min(step, len(rows)), np.bool_)])
    change = later.astype(np.float64) - rows
    moved = np.flatnonzero(change)
    at_edges = [x[moved] for x in lagged]
    weighted = [change[moved, None] * x for x in at_edges]
    for distance in range(taps):
        block = newest.T @ used_lagged[distance]
        for i in range(taps - distance):
            j = i + distance
            gram[i, :, j], gram[j, :, i] = block, block.T
            if j + 1 < taps:
                block = block + weighted[i].T @ at_edges[j]
    return gram


@dataclass(frozen=True)
class LagGrid:
    """Says at which lags inputs are read: the first `dense` of them at every bin, the others every `spacing` bins."""

    spacing: int
    dense: int

    def count_columns(self, inputs: int) -> int:
        """Returns how many columns the first `inputs` of the inputs take in what `stack` returns."""
        return inputs + min(inputs, self.dense) * (self.spacing - 1)

    def stack(self, bins: Array) -> Array:
        """Returns bins (T, I) with the dense inputs at each of the last `spacing` bins, before the other inputs.

        Lags with this distance then read the dense inputs at every bin.
        """
        phases = [
            np.vstack([np.zeros((lag, self.dense)), bins[: len(bins) - lag, : self.dense]])
            for lag in range(self.spacing)
        ]
        return np.hstack([*phases, bins[:, self.dense :]])


EVERY_BIN = LagGrid(1, 0)


def choose_grid(longest: int, inputs: int, dense: int, most_features: int) -> LagGrid:
    """Returns the grid with the least spacing of lags from 0 to `longest` that gives at most `most_features`.

    The first `dense` of the inputs are read at every bin, unless they alone give more.
    """
    if dense * (longest + 1) > most_features:
        dense = 0
    for spacing in range(1, longest + 1):
        if (longest // spacing + 1) * (dense * spacing + inputs - dense) <= most_features:
            return LagGrid(spacing, dense)
    return LagGrid(longest + 1, dense)
