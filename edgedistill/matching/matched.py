"""Reads the LFP of a recording as a bundle takes it, in blocks, and gives the ends of its bins on the file's clock."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from edgedistill.data.bin_clock import compute_edges, find_drift
from edgedistill.data.coverage import mask_intervals
from edgedistill.data.lfp.lfp import Gap, Lfp
from edgedistill.data.recording import Recording
from edgedistill.data.session import BINS_PER_S
from edgedistill.errors import RecordingError
from edgedistill.frontend import FrontEndConfig, bin_edges

STEADY_S = 1e-5  # a clock that strays less from a constant rate than a thousandth of a bin has a constant rate


@dataclass(frozen=True, eq=False)
class MatchedRecording:
    """Reads the LFP of a recording as a bundle takes it: the channels in its order, the bad ones as NaN."""

    recording: Recording
    lfp: Lfp  # with the channels in the order of the bundle, as has the recording
    masked: npt.NDArray[np.bool_]  # (C,) channels, in the order of the bundle, that the recording marks as bad
    stretch: float  # seconds of the recording's clock for a second of the bundle's
    warnings: tuple[str, ...] = ()

    @property
    def frames(self) -> int:
        """Returns the number of frames, with those in gaps."""
        return self.lfp.frames

    @property
    def series(self) -> str:
        """Returns the path of the LFP in the file."""
        return self.lfp.series

    @property
    def longest_run(self) -> tuple[int, int]:
        """Returns [first, stop) of the longest stretch of frames without a gap. It is empty without frames."""
        runs = [(run.at, run.at + run.frames) for run in self.lfp.clock.runs]
        return max(runs, key=lambda run: run[1] - run[0], default=(0, 0))

    def read(self, start: int, stop: int) -> npt.NDArray[np.float32]:
        """Reads the frames [start, stop) as (frames, channels) in uV. Frames in gaps are NaN."""
        return self._arrange(self.lfp.read(start, stop))

    def read_blocks(self, frames_per_block: int) -> Iterator[npt.NDArray[np.float32] | Gap]:
        """Yields all frames in order as (frames, channels) in uV, or as a `Gap` where frames were lost."""
        for part in self.lfp.read_blocks(frames_per_block):
            yield part if isinstance(part, Gap) else self._arrange(part)

    def find_bin_ends(self, end_frames: npt.NDArray[np.int64]) -> tuple[npt.NDArray[np.float64], float | None]:
        """Returns when the bins 0, 1, ... end, in seconds on the clock of the file, and how many there are a second.

        `end_frames` (B,) are the frames that complete the bins. The times are those that a build gives these bins. The
        second value is None for a clock that is not constant, such as that of a recording in segments.
        """
        drift = find_drift(self.lfp, end_frames + 1)
        ends_s = compute_edges(self.lfp.start_s, len(end_frames), self.stretch)[1:] + drift
        return ends_s, None if np.abs(drift).max(initial=0) > STEADY_S else BINS_PER_S / self.stretch

    def find_invalid(self, config: FrontEndConfig) -> npt.NDArray[np.bool_]:
        """Returns which bins (B,) of the recording touch times that it marks as invalid."""
        bins = config.bin_of(self.frames)
        try:
            invalid = np.array([(one.start_s, one.stop_s) for one in self.recording.invalid_times])
        except RecordingError:  # decoding needs no such table, so a wrong one only marks nothing
            return np.zeros(bins, np.bool_)
        if not len(invalid):
            return np.zeros(bins, np.bool_)
        ends_s, _ = self.find_bin_ends(bin_edges(config.rate, 1, bins) - 1)
        return mask_intervals(np.concatenate([[self.lfp.start_s], ends_s]), invalid)

    def _arrange(self, frames: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
        return np.where(self.masked, np.float32(np.nan), frames) if self.masked.any() else frames
