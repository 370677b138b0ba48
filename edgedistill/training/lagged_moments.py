"""Sums up lagged bins for least squares, without ever stacking them.

Bins (T, I), targets (T, Y) and the rows to sum over go in. Mean and products of all lagged bins with each other and
with the targets come out. A product of two lags depends on their distance alone, except at the edges of the rows, so
one product of matrices for each distance is enough, and a correction of a few rows gives the others. Sums are taken
block by block of the rows, so that memory does not grow with the session.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from edgedistill.scratch import split_rows
from edgedistill.training.bin_blocks import BinBlocks, StackedBins, as_blocks

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


def run_filters(
    filters: Sequence[LaggedFilter], bins: BinBlocks | Array, start: int = 0, stop: int | None = None
) -> list[Array]:
    """Returns the outputs (stop - start, K) of each filter from bin `start` on, in one pass, with zeros before it."""
    source = as_blocks(bins)
    rows, longest = slice(start, len(source) if stop is None else stop), max(one.lags[-1] for one in filters)
    found = [np.empty((rows.stop - start, len(one.bias))) for one in filters]
    for part in split_rows(rows, source.width):
        length, seen = part.stop - part.start, source.read(max(start, part.start - longest), part.stop)
        for outputs, one in zip(found, filters, strict=True):
            outputs[part.start - start : part.stop - start] = one(seen)[len(seen) - length :]
    return found


def compute_lagged_moments(bins: BinBlocks | Array, targets: Array, rows: Mask, lags: Sequence[int]) -> LaggedMoments:
    """Returns the moments of bins (T, I) and targets (T, Y) over the `rows` (T,), with zeros before the first bin.

    `lags` begin at 0 and are evenly spaced. Targets are finite in `rows`.
    """
    source, longest = as_blocks(bins), lags[-1]
    step = lags[1] - lags[0] if len(lags) > 1 else 1
    y = np.column_stack([rows, np.where(rows[:, None], targets, 0.0)])  # (T, 1 + Y)
    sums = np.zeros((len(lags), source.width, y.shape[1]))  # (J, I, 1 + Y)
    gram = np.zeros((len(lags), source.width, len(lags), source.width))
    used = slice(int(np.argmax(rows)), len(rows) - int(np.argmax(rows[::-1])))
    for part in split_rows(used, len(lags) * source.width):
        seen = source.read(part.start - step - longest, part.stop)
        lagged = [seen[longest - lag : len(seen) - lag] for lag in lags]  # (step + n, I) each
        sums += np.stack([x[step:].T @ y[part] for x in lagged])
        add_products(gram, lagged, rows[part], step)
    for i in range(len(lags)):
        for j in range(i):
            gram[i, :, j] = gram[j, :, i].T
    count = int(rows.sum())
    mean, mean_target = sums[..., 0] / count, y[:, 1:].sum(0) / count
    square = np.einsum("jiji->ji", gram) / count
    for j in range(len(lags)):  # lag by lag, because each term is as large as the gram
        gram[j] -= count * mean[j, :, None, None] * mean
    cross = sums[..., 1:] - count * mean[..., None] * mean_target
    target_gram = y[:, 1:].T @ y[:, 1:] - count * np.outer(mean_target, mean_target)
    return LaggedMoments(tuple(lags), count, mean, square, gram, cross, mean_target, target_gram)


def add_products(gram: Array, lagged: Sequence[Array], rows: Mask, step: int) -> None:
    """Adds the sums over the rows (n,) of the products of each lag with itself and later ones to (J, I, J, I).

    `lagged` holds (step + n, I) each, of which the first `step` rows come before the others and are not summed over.
    Moving both lags one step further sums over rows that lie one step earlier. Rows that enter or leave the sum by that
    are few, because labels come in long runs.
    """
    taps, summed = len(lagged), np.concatenate([np.zeros(step, np.bool_), rows])
    newest = lagged[0][step:] * rows[:, None]
    change = np.concatenate([rows, np.zeros(step, np.bool_)]).astype(np.float64) - summed
    moved = np.flatnonzero(change)
    at_edges = [x[moved] for x in lagged]
    weighted = [change[moved, None] * x for x in at_edges]
    for distance in range(taps):
        block = newest.T @ lagged[distance][step:]
        for i in range(taps - distance):
            j = i + distance
            gram[i, :, j] += block
            if j + 1 < taps:
                block = block + weighted[i].T @ at_edges[j]


@dataclass(frozen=True)
class LagGrid:
    """Says at which lags inputs are read: the first `dense` of them at every bin, the others every `spacing` bins."""

    spacing: int
    dense: int

    def count_columns(self, inputs: int) -> int:
        """Returns how many columns the first `inputs` of the inputs take in what `stack` returns."""
        return inputs + min(inputs, self.dense) * (self.spacing - 1)

    def stack(self, bins: BinBlocks, columns: slice = slice(None)) -> StackedBins:
        """Returns bins with the dense inputs at each of the last `spacing` bins, before the other inputs.

        Lags with this distance then read the dense inputs at every bin. `columns` are those of it that are read.
        """
        return StackedBins(bins, self.spacing, self.dense, columns)


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
