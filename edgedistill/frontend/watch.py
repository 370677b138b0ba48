"""Watches the channels of a stream as the front end does, without its filters.

Raw frames come in. For each completed bin the range of every channel and the bad channels come out, which are those of
the front end. An output only counts its bad channels, and this class says which ones they are.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from edgedistill.frontend.design import FrontEndConfig
from edgedistill.frontend.stream import Bins, FrontEnd

Array = npt.NDArray[np.float64]
Mask = npt.NDArray[np.bool_]


@dataclass(frozen=True, eq=False)
class WatchedBins:
    """Holds what B completed bins of C channels looked like. Row i is bin `first_bin + i`."""

    first_bin: int
    low: Array  # (B, C) smallest finite sample in uV; NaN in a bin with lost frames and where no sample was finite
    high: Array  # (B, C) largest one
    bad: Mask  # (B, C) as in `Bins`


class ChannelWatch:
    """Watches one stream, whose frames and gaps come in the order in which the decoder takes them."""

    def __init__(self, config: FrontEndConfig) -> None:
        self._front_end = _FrontEndWithoutFilters(config)

    def push(self, frames_uv: npt.NDArray[np.floating]) -> WatchedBins:
        """Takes frames (n, C) in uV, any n, and returns the bins that they complete."""
        return self._watched(self._front_end.push(frames_uv))

    def gap(self, n_frames: int) -> WatchedBins:
        """Counts lost frames and returns the bins that they complete."""
        return self._watched(self._front_end.gap(n_frames))

    def _watched(self, bins: Bins) -> WatchedBins:
        ranges = self._front_end.take_ranges()
        low, high = np.full(bins.bad.shape, np.nan), np.full(bins.bad.shape, np.nan)
        if ranges:
            low[~bins.gap], high[~bins.gap] = (np.concatenate(parts) for parts in zip(*ranges, strict=True))
        nothing = low > high
        low[nothing] = high[nothing] = np.nan
        return WatchedBins(bins.first_bin, low, high, bins.bad)


class _FrontEndWithoutFilters(FrontEnd):
    """Judges channels and keeps the ranges that they were judged by. The values of its bins are 0."""

    def __init__(self, config: FrontEndConfig) -> None:
        self._ranges: list[tuple[Array, Array]] = []
        super().__init__(config)

    def take_ranges(self) -> list[tuple[Array, Array]]:
        """Returns smallest and largest samples (B, C) of the bins without loss since the last call, in their order."""
        ranges, self._ranges = self._ranges, []
        return ranges

    def _judge(self, low: Array, high: Array, broken: Mask) -> tuple[Array, Mask]:
        self._ranges.append((low, high))
        return super()._judge(low, high, broken)

    def _filter_bin(self, x: Array, first_frame: int, restarted: Mask) -> Array:
        self._lost_bins = 0
        return np.zeros(self.config.inputs)
