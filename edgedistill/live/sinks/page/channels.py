"""Says what the channels of a stream looked like bin by bin, from the blocks that its sinks get."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from edgedistill.frontend import FrontEndConfig
from edgedistill.frontend.rules import left_out_channels
from edgedistill.frontend.watch import ChannelWatch, WatchedBins
from edgedistill.live.records import Floats, StreamBlock

GAP_PIECE_S = 2  # of a long gap, which is counted piece by piece so that it takes little memory
BATCH_BINS = 5  # that are judged together, because the rules look back over a second however few bins are new
LARGE_BATCH_BINS = 20  # of more channels than MANY_CHANNELS
MANY_CHANNELS = 256


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
        self._batch = config.edge(LARGE_BATCH_BINS if config.channels > MANY_CHANNELS else BATCH_BINS)
        self._frame = 0  # of the stream, the next one
        self._held: list[Floats] = []  # frames that wait until they are enough

    def add(self, block: StreamBlock) -> Iterator[ChannelBin]:
        """Takes the next block and yields finished bins. Blocks that never came count as lost frames."""
        missing, self._frame = block.first_frame - self._frame, block.first_frame + block.frame_count
        if block.frames is None or missing:
            yield from self.flush()
            yield from self._lose(missing)
        if block.frames is None:
            yield from self._lose(block.frame_count)
            return
        self._held.append(block.frames)
        if sum(map(len, self._held)) >= self._batch:
            yield from self.flush()

    def flush(self) -> Iterator[ChannelBin]:
        """Yields the bins of the frames that wait."""
        if self._held:
            frames, self._held = np.concatenate(self._held), []
            yield from self._bins(self._watch.push(frames))

    def _lose(self, count: int) -> Iterator[ChannelBin]:
        for at in range(0, count, self._piece):
            yield from self._bins(self._watch.gap(min(self._piece, count - at)))

    def _bins(self, watched: WatchedBins) -> Iterator[ChannelBin]:
        for i, bad in enumerate(watched.bad):
            yield ChannelBin(watched.first_bin + i, watched.low[i], watched.high[i], bad & self._used)
