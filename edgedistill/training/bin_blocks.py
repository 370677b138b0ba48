"""Reads the inputs of linear decoders block by block: smoothed, moved in time, and with their last bins beside them.

The bins of a session go in. Blocks of what a decoder reads come out, in float64, the same for any size of a block. The
whole of it is never in memory, because an hour of 96 channels with the lags of a search would take many gigabytes.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
from scipy.signal import lfilter

from edgedistill.scratch import release_pages

Array = npt.NDArray[np.float64]
STRIDE = 1024  # bins between two states of a smoothing filter that are kept


class BinBlocks(Protocol):
    """T bins of I inputs that are read block by block."""

    def __len__(self) -> int:
        """Returns the number of bins T."""
        ...

    @property
    def width(self) -> int:
        """Returns the number of inputs I."""
        ...

    def read(self, start: int, stop: int) -> Array:
        """Returns the bins (stop - start, I), with zeros before the first and after the last."""
        ...


@dataclass(frozen=True, eq=False)
class PlainBins:
    """Holds bins (T, I) as they are, or `ahead` bins earlier."""

    bins: npt.NDArray[Any]
    ahead: int = 0

    def __len__(self) -> int:
        """Returns the number of bins."""
        return len(self.bins)

    @property
    def width(self) -> int:
        """Returns the number of inputs."""
        return int(self.bins.shape[1])

    def read(self, start: int, stop: int) -> Array:
        """Returns the bins (stop - start, I), with zeros before the first and after the last."""
        found = np.zeros((stop - start, self.width))
        first, last = max(start, 0), min(stop, len(self.bins) - self.ahead)
        if first < last:
            found[first - start : last - start] = self.bins[first + self.ahead : last + self.ahead]
        return found


@dataclass(frozen=True, eq=False)
class SmoothedBins:
    """Holds bins of which all but the first `slow` inputs are smoothed by an exponential that begins at 0."""

    bins: PlainBins
    slow: int
    keep: float  # share of its value that the exponential keeps from bin to bin
    states: Array  # (T / STRIDE, I - slow) of the filter, before every bin that STRIDE divides

    def __len__(self) -> int:
        """Returns the number of bins."""
        return len(self.bins)

    @property
    def width(self) -> int:
        """Returns the number of inputs."""
        return self.bins.width

    def read(self, start: int, stop: int) -> Array:
        """Returns the bins (stop - start, I), with zeros before the first and after the last."""
        found = np.zeros((stop - start, self.width))
        first, last = max(start, 0), min(stop, len(self))
        if first < last:
            kept = first // STRIDE
            raw = self.bins.read(kept * STRIDE, last)
            smoothed = smooth_block(raw[:, self.slow :], self.keep, self.states[kept])[0]
            inside, skipped = slice(first - start, last - start), first - kept * STRIDE
            found[inside, : self.slow], found[inside, self.slow :] = raw[skipped:, : self.slow], smoothed[skipped:]
        return found


def smooth_bins(bins: PlainBins, slow: int, keep: float) -> SmoothedBins:
    """Returns bins of which all but the first `slow` inputs are smoothed. It runs the filter once over all of them."""
    states = [np.zeros(bins.width - slow)]
    for start in range(0, len(bins) - STRIDE, STRIDE):
        states.append(smooth_block(bins.read(start, start + STRIDE)[:, slow:], keep, states[-1])[1])
        release_pages()
    return SmoothedBins(bins, slow, keep, np.stack(states))


def smooth_block(bins: Array, keep: float, state: Array) -> tuple[Array, Array]:
    """Returns bins (n, I) smoothed from a state (I,), and the state after them."""
    columns = np.ascontiguousarray(bins.T)
    smoothed, after = lfilter([1 - keep], [1, -keep], columns, zi=state[:, None])
    return np.asarray(smoothed.T), np.asarray(after[:, 0])


@dataclass(frozen=True, eq=False)
class StackedBins:
    """Holds bins with the first `dense` inputs at each of the last `spacing` bins, before the other inputs."""

    bins: BinBlocks
    spacing: int
    dense: int
    columns: slice  # those that are read

    def __len__(self) -> int:
        """Returns the number of bins."""
        return len(self.bins)

    @property
    def width(self) -> int:
        """Returns the number of inputs that are read."""
        every = self.bins.width + self.dense * (self.spacing - 1)
        return len(range(every)[self.columns])

    def read(self, start: int, stop: int) -> Array:
        """Returns the bins (stop - start, inputs), with zeros before the first and after the last."""
        reach = self.spacing - 1
        seen = self.bins.read(start - reach, stop)
        phases = [seen[reach - lag : len(seen) - lag, : self.dense] for lag in range(self.spacing)]
        return np.hstack([*phases, seen[reach:, self.dense :]])[:, self.columns]


def as_blocks(bins: BinBlocks | npt.NDArray[Any]) -> BinBlocks:
    """Returns bins (T, I) as something that is read block by block."""
    return PlainBins(bins) if isinstance(bins, np.ndarray) else bins
