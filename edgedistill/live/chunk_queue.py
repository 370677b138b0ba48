"""Hands chunks from the thread that reads a source to the one that decodes, and never grows.

If decoding falls behind, the oldest frames are dropped, because a closed loop needs the newest. They are counted, and
the numbers of the frames behind them say that they are missing.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from threading import Condition

from edgedistill.live.source import Chunk


@dataclass(frozen=True)
class SourceNews:
    """Says that a source vanished, came back or is over, or that reading it failed."""

    kind: str  # "lost", "back" or "ended"
    reason: str | None = None
    failure: BaseException | None = None


class ChunkQueue:
    """Holds at most `most_frames` frames, or one chunk, and the news between them."""

    def __init__(self, most_frames: int) -> None:
        self.dropped_frames = 0
        self._most, self._frames, self._chunks = most_frames, 0, 0
        self._waiting: deque[Chunk | SourceNews] = deque()
        self._changed = Condition()

    def put(self, item: Chunk | SourceNews) -> None:
        """Adds a chunk or news, and drops the oldest frames if there are too many."""
        with self._changed:
            self._waiting.append(item)
            if isinstance(item, Chunk):
                self._frames, self._chunks = self._frames + len(item.frames), self._chunks + 1
            while self._frames > self._most and self._chunks > 1:
                self._drop_oldest()
            self._changed.notify()

    def get(self, timeout_s: float) -> Chunk | SourceNews | None:
        """Returns the oldest item, or None after `timeout_s` without one."""
        with self._changed:
            if not self._waiting and not self._changed.wait_for(lambda: bool(self._waiting), timeout_s):
                return None
            item = self._waiting.popleft()
            if isinstance(item, Chunk):
                self._frames, self._chunks = self._frames - len(item.frames), self._chunks - 1
            return item

    def _drop_oldest(self) -> None:
        at = next(i for i, item in enumerate(self._waiting) if isinstance(item, Chunk))
        chunk = self._waiting[at]
        del self._waiting[at]
        assert isinstance(chunk, Chunk)
        self._frames, self._chunks = self._frames - len(chunk.frames), self._chunks - 1
        self.dropped_frames += len(chunk.frames)
