"""Replays a recording at its true pace, or several times faster, to rehearse a closed loop without an animal."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from threading import Event
from time import perf_counter, sleep

import numpy as np
import numpy.typing as npt

from edgedistill.bundle import Bundle
from edgedistill.data.lfp.lfp import Gap
from edgedistill.data.recording import Recording, SeriesNames, open_recording
from edgedistill.live.source import Chunk, SourceEnded, SourceHeader
from edgedistill.matching import MatchedRecording, match_recording

CHUNK_S = 0.002  # of time between two chunks
BLOCK_S = 1.0  # of signal that is read from the file at a time

Frames = npt.NDArray[np.float32]


class ReplaySource:
    """Gives the frames of an NWB file when they would come from an amplifier."""

    def __init__(self, path: Path, bundle: Bundle, lfp: str | None = None, speed: float = 1.0) -> None:
        """`speed` is how many times faster than in the recording frames come. `lfp` names the series."""
        self._path, self._bundle, self._lfp, self._speed = path, bundle, lfp, speed
        self._recording: Recording | None = None
        self._matched: MatchedRecording | None = None
        self._chunks: Iterator[tuple[int, Frames]] = iter(())
        self._next: tuple[int, Frames] | None = None
        self._started_s: float | None = None

    def open(self, stop: Event) -> SourceHeader | None:
        """Compares the recording with the bundle. Raises RecordingError where it does not fit."""
        self._recording = open_recording(self._path, SeriesNames(lfp=self._lfp))
        self._matched = matched = match_recording(self._bundle, self._recording)
        self._chunks = self._cut(matched)
        count = matched.lfp.channels
        return SourceHeader(
            where=f"{self._path}, {matched.series}",
            rate=matched.lfp.rate,
            channel_count=count,
            channel_names=None,
            gain_uv=(1.0,) * count,
            clock="file",
            matched=True,
            warnings=matched.warnings,
        )

    def read(self, timeout_s: float) -> Chunk | None:
        """Returns the next frames when they are due."""
        assert self._matched is not None
        if self._next is None:
            self._next = next(self._chunks, None)
            if self._next is None:
                raise SourceEnded("the recording ended")
        first, frames = self._next
        self._started_s = perf_counter() if self._started_s is None else self._started_s
        due_s = self._started_s + (first + len(frames)) / float(self._matched.lfp.rate) / self._speed
        left_s = due_s - perf_counter()
        if left_s > timeout_s:
            sleep(timeout_s)
            return None
        if left_s > 0:
            sleep(left_s)
        self._next = None
        numbers = np.arange(first, first + len(frames))
        return Chunk(frames, perf_counter(), numbers, self._matched.lfp.times_at(numbers))

    def close(self) -> None:
        """Closes the file."""
        if self._recording is not None:
            self._recording.close()

    def _cut(self, matched: MatchedRecording) -> Iterator[tuple[int, Frames]]:
        """Yields the number of the first frame, and frames (n, C), of each chunk. Lost frames are left out."""
        rate, at = float(matched.lfp.rate), 0
        count = max(1, round(CHUNK_S * self._speed * rate))
        for part in matched.read_blocks(max(count, round(BLOCK_S * rate))):
            if isinstance(part, Gap):
                at += part.frames
                continue
            for start in range(0, len(part), count):
                yield at + start, part[start : start + count]
            at += len(part)
