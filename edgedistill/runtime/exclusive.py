"""Lets one thread at a time use a decoder, and nobody once it is closed.

A library behind the C ABI does not lock, and two threads in one decoder would tear its state. The second one gets an
EngineError here, and what the first one does is not disturbed.
"""

from __future__ import annotations

from threading import Lock
from types import TracebackType

from edgedistill.errors import EngineError


class ExclusiveUse:
    """Guards one decoder: `with use:` around each call."""

    def __init__(self) -> None:
        self._lock = Lock()
        self.closed = False

    def __enter__(self) -> None:
        if not self._lock.acquire(blocking=False):
            raise EngineError(
                "this decoder is in use by another thread",
                expected="calls one after the other, or a decoder for each thread",
                next_step="open one Decoder for each stream",
            )
        if self.closed:
            self._lock.release()
            raise EngineError("this decoder is closed", next_step="Decoder.open(path) opens another one")

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._lock.release()
