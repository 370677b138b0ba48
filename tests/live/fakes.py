"""Plays a source whose faults are known, and sinks that keep what they get, block or fail."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable
from fractions import Fraction
from threading import Event
from time import perf_counter, sleep

import numpy as np

from edgedistill.live.records import DecodedBin, StreamBlock, StreamDescription
from edgedistill.live.source import Chunk, SourceEnded, SourceHeader, SourceLost

from ..bundles import CHANNELS

RATE = Fraction(250)
FRAMES = (60 * np.random.default_rng(7).normal(size=(5000, CHANNELS))).astype(np.float32)


def header(**changes: object) -> SourceHeader:
    facts: dict[str, object] = {
        "where": "fake",
        "rate": RATE,
        "channel_count": CHANNELS,
        "channel_names": None,
        "gain_uv": (1.0,) * CHANNELS,
    }
    return SourceHeader(**(facts | changes))  # type: ignore[arg-type]


class Clock:
    """Tells the time that a script says, in place of `perf_counter`."""

    def __init__(self) -> None:
        self.now_s = 100.0

    def __call__(self) -> float:
        return self.now_s


Step = tuple[int, int] | float | str | Callable[[], object]


class FakeSource:
    """Gives chunks of FRAMES by their first and last frame, waits, and vanishes, as its script says."""

    def __init__(
        self, script: Iterable[Step], stamped: bool = False, clock: Clock | None = None, **changes: object
    ) -> None:
        """An item of the script is frames [start, stop), seconds to wait, a function to call, or "lost".

        With `clock`, seconds pass on it alone.
        """
        self._script, self._stamped, self._changes = iter(script), stamped, changes
        self._clock = clock
        self.opened = 0
        self.arrivals_s: list[float] = []

    def open(self, stop: Event) -> SourceHeader | None:
        self.opened += 1
        return header(**self._changes)

    def read(self, timeout_s: float) -> Chunk | None:
        item = next(self._script, None)
        if item is None:
            raise SourceEnded("the script ended")
        if item == "lost":
            raise SourceLost("the cable was pulled")
        if callable(item):
            item()
            return None
        if isinstance(item, (int, float)):
            if self._clock is None:
                sleep(item)
            else:
                self._clock.now_s += item
            return None
        assert isinstance(item, tuple)
        numbers = np.arange(*item)
        frames = FRAMES[numbers % len(FRAMES)]
        self.arrivals_s.append(perf_counter() if self._clock is None else self._clock())
        if self._stamped:
            return Chunk(frames, self.arrivals_s[-1], stamps_s=numbers / float(RATE))
        return Chunk(frames, self.arrivals_s[-1], numbers=numbers)

    def close(self) -> None:
        pass


class KeepingSink:
    """Keeps all blocks."""

    def __init__(self) -> None:
        self.description: StreamDescription | None = None
        self.blocks: list[StreamBlock] = []
        self.closed = False

    def open(self, description: StreamDescription) -> None:
        self.description = description

    def accept(self, block: StreamBlock) -> None:
        self.blocks.append(block)

    def idle(self) -> None:
        pass

    def close(self) -> None:
        self.closed = True

    @property
    def bins(self) -> list[DecodedBin]:
        return [bin_ for block in self.blocks for bin_ in block.bins]


class BlockedSink(KeepingSink):
    """Never comes back from its first block until it is released."""

    def __init__(self) -> None:
        super().__init__()
        self.release = threading.Event()

    def accept(self, block: StreamBlock) -> None:
        self.release.wait(120)
        super().accept(block)


class FailingSink(KeepingSink):
    """Fails with an error after some blocks."""

    def __init__(self, error: BaseException, after: int = 3) -> None:
        super().__init__()
        self._error, self._after = error, after

    def accept(self, block: StreamBlock) -> None:
        if len(self.blocks) == self._after:
            raise self._error
        super().accept(block)
