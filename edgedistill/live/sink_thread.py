"""Gives a sink a thread of its own behind a bounded queue, so that the thread that decodes never waits for it."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import replace
from threading import Condition, Thread

from edgedistill.live.records import SinkCounters, StreamBlock, StreamDescription
from edgedistill.live.sink import Sink, describe_failure

IDLE_S = 0.2
CLOSING_S = 10.0


class SinkThread:
    """Runs one sink."""

    def __init__(
        self,
        name: str,
        sink: Sink,
        most_frames: int,
        most_blocks: int,
        closing_s: float = CLOSING_S,
        begin: Callable[[], None] | None = None,
    ) -> None:
        """Starts the thread, which calls `begin` first.

        At most `most_frames` frames in `most_blocks` blocks wait for the sink.
        """
        self.name, self.counters = name, SinkCounters()
        self.failure: BaseException | None = None
        self._sink, self._most_frames, self._most_blocks, self._closing_s = sink, most_frames, most_blocks, closing_s
        self._begin = begin
        self._waiting: deque[StreamBlock] = deque()
        self._frames, self._ending = 0, False
        self._description: StreamDescription | None = None
        self._opened = False
        self._changed = Condition()
        self._thread = Thread(target=self._run, name=f"sink {name}", daemon=True)
        self._thread.start()

    def open(self, description: StreamDescription) -> None:
        """Opens the sink. Raises what its own method raised."""
        with self._changed:
            self._description = description
            self._changed.notify_all()
            self._changed.wait_for(lambda: self._opened or self.failure is not None)
        if self.failure is not None:
            raise self.failure

    def put(self, block: StreamBlock) -> None:
        """Adds a block, and drops the oldest ones if too many wait. It does not wait for the sink."""
        with self._changed:
            if self.failure is not None:
                return
            self._waiting.append(block)
            self._frames += block.frame_count if block.frames is not None else 0
            while len(self._waiting) > 1 and self._holds_too_much():
                self._drop_oldest()
            self._changed.notify_all()

    def close(self) -> None:
        """Lets the sink take what waits, and ends it. A sink that does not end in time is left behind."""
        with self._changed:
            self._ending = True
            self._changed.notify_all()
        self._thread.join(self._closing_s)
        if self._thread.is_alive():
            with self._changed:
                while self._waiting:
                    self._drop_oldest()
                self._fail(TimeoutError(f"it did not end within {self._closing_s:g} s"))

    def _holds_too_much(self) -> bool:
        return len(self._waiting) > self._most_blocks or self._frames > self._most_frames

    def _drop_oldest(self) -> None:
        block, was = self._waiting.popleft(), self.counters
        self._frames -= block.frame_count if block.frames is not None else 0
        bins = was.dropped_bins + len(block.bins)
        self.counters = replace(was, dropped_blocks=was.dropped_blocks + 1, dropped_bins=bins)

    def _run(self) -> None:
        try:
            if self._begin is not None:
                self._begin()
            try:
                if self._open():
                    self._take_all()
            finally:
                self._sink.close()
        except Exception as error:
            with self._changed:
                self._fail(error)

    def _open(self) -> bool:
        with self._changed:
            self._changed.wait_for(lambda: self._description is not None or self._ending)
            if self._description is None:
                return False
        self._sink.open(self._description)
        with self._changed:
            self._opened = True
            self._changed.notify_all()
        return True

    def _take_all(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._waiting or self._ending, IDLE_S)
                block = self._waiting.popleft() if self._waiting else None
                if block is None and self._ending:
                    return
                if block is not None:
                    self._frames -= block.frame_count if block.frames is not None else 0
            if block is None:
                self._sink.idle()
                continue
            self._sink.accept(block)
            with self._changed:
                self.counters = replace(self.counters, blocks=self.counters.blocks + 1)

    def _fail(self, error: BaseException) -> None:
        """Notes the failure and takes nothing more. The lock is held."""
        self.failure = error
        self.counters = replace(self.counters, failure=describe_failure(error))
        self._waiting.clear()
        self._frames = 0
        self._changed.notify_all()
