"""Says what the channels of a stream looked like bin by bin, from the blocks that its sinks get."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from edgedistill.frontend import FrontEndConfig
from edgedistill.frontend.rules import left_out_channels
from edgedistill.frontend.watch import ChannelWatch, WatchedBins
from edgedistill.live.records import StreamBlock

GAP_PIECE_S = 2  # of a long gap, which is counted piece by piece so that it takes little memory


@dataclass(frozen=True, eq=False)
class ChannelBin:
    """Holds the channels in one bin."""

    index: int
    low: npt.NDArray[np.float64]  # (C,) uV; NaN where a channel has no sample
    high: npt.NDArray[np.float64]  # (C,) uV
    masked: npt.NDArray[np.bool_]  # (C,) without those that the settings leave out


class Channels:
    """Follows one stream."""

    def __init__(self, config: FrontEndConfig) -> None:
        self._watch, self._used = ChannelWatch(config), ~left_out_channels(config)
        self._piece = max(1, round(GAP_PIECE_S * config.rate))
        self._frame = 0

    def add(self, block: StreamBlock) -> Iterator[ChannelBin]:
        """Takes the next block and yields the bins that it completes. Blocks that never came count as lost frames."""
        yield from self._lose(block.first_frame - self._frame)
        if block.frames is None:
            yield from self._lose(block.frame_count)
        else:
            yield from self._bins(self._watch.push(block.frames))
        self._frame = block.first_frame + block.frame_count

    def _lose(self, count: int) -> Iterator[ChannelBin]:
        for at in range(0, count, self._piece):
            yield from self._bins(self._watch.gap(min(self._piece, count - at)))

    def _bins(self, watched: WatchedBins) -> Iterator[ChannelBin]:
        for i, bad in enumerate(watched.bad):
            yield ChannelBin(watched.first_bin + i, watched.low[i], watched.high[i], bad & self._used)
