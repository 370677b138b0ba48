"""Ends commands and streams when a signal asks for it, so that nothing half-written stays and no byte is lost.

Ctrl-C, SIGTERM and SIGHUP end the stream as its sender would: what waits in the pipe is still read, and then the stream
is over. A second signal ends the program at once. A signal that was ignored before, as by `nohup`, stays ignored.
"""

from __future__ import annotations

import array
import fcntl
import os
import select
import signal
import stat
import sys
import termios
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import TYPE_CHECKING, cast

from edgedistill.errors import RecordingError

if TYPE_CHECKING:
    from edgedistill.decoding import ByteStream

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
IDLE_S = 1.0
MOST_WAITING = 1 << 20  # bytes; no pipe holds more, unless root allowed it


class StopSignals:
    """Listens for the signals that end a stream."""

    def __init__(self, stop: Callable[[], object]) -> None:
        """`stop` is called at the first signal, inside whatever runs then."""
        self.stopped_by: str | None = None  # the name of the signal
        self._stop = stop
        self._heard: list[signal.Signals] = []

    @contextmanager
    def listening(self) -> Iterator[None]:
        """Ends the stream, and not the program, at the first signal inside this block."""
        self._heard = [number for number in SIGNALS if signal.getsignal(number) is not signal.SIG_IGN]
        before = {}
        try:
            for number in self._heard:
                before[number] = signal.signal(number, self._note)
        except ValueError:  # only the main thread may listen
            pass
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def _note(self, number: int, frame: FrameType | None) -> None:
        """Notes the signal. It raises nothing, because a push or a write must not be torn."""
        self.stopped_by = signal.Signals(number).name
        for each in self._heard:
            signal.signal(each, signal.SIG_DFL)
        self._stop()


class Terminated(KeyboardInterrupt):
    """Ends a command as Ctrl-C does, when a signal asks for it."""

    def __init__(self, number: int) -> None:
        self.number = number


@contextmanager
def terminating() -> Iterator[None]:
    """Raises Terminated inside the block for SIGTERM and SIGHUP, so that what is half done is removed."""

    def stop(number: int, frame: FrameType | None) -> None:
        signal.signal(number, signal.SIG_DFL)  # a second signal ends the program at once
        raise Terminated(number)

    numbers = [number for number in (signal.SIGTERM, signal.SIGHUP) if signal.getsignal(number) is signal.SIG_DFL]
    try:
        for number in numbers:
            signal.signal(number, stop)
    except ValueError:  # only the main thread may listen
        numbers = []
    try:
        yield
    finally:
        for number in numbers:
            signal.signal(number, signal.SIG_DFL)


class StoppableStdin:
    """Reads stdin as `decode_stream` wants it."""

    def __init__(self, when_idle: Callable[[], object]) -> None:
        """`when_idle` is called after each second without input. Raises RecordingError if stdin is closed."""
        if sys.stdin is None:
            raise RecordingError(
                "stdin is closed, so there is no stream to decode", next_step="amplifier | edgedistill run"
            )
        self.bytes_read = 0
        self._when_idle = when_idle
        self._signals = StopSignals(self._end_wait)
        self._waiting = MOST_WAITING  # bytes that may still be read after a signal
        self._wake: tuple[int, int] | None = None
        try:
            self._descriptor: int | None = sys.stdin.fileno()
        except OSError:  # stdin was replaced by memory
            self._descriptor = None

    def read1(self, size: int, /) -> bytes:
        """Returns at most `size` bytes as soon as there are any, and none at the end."""
        if self._descriptor is None:
            data = cast("ByteStream", sys.stdin.buffer).read1(size)
        else:
            data = self._read(self._descriptor, size)
        self.bytes_read += len(data)
        return data

    @contextmanager
    def listening(self) -> Iterator[None]:
        """Ends the stream, and not the program, at the first signal inside this block."""
        self._wake = os.pipe()
        try:
            with self._signals.listening():
                yield
        finally:
            for end in self._wake:
                os.close(end)
            self._wake = None

    @property
    def stopped_by(self) -> str | None:
        """Returns the name of the signal that ended the stream, or None."""
        return self._signals.stopped_by

    def _end_wait(self) -> None:
        if self._wake is not None:
            os.write(self._wake[1], b"x")

    def _read(self, descriptor: int, size: int) -> bytes:
        wakes = [] if self._wake is None else [self._wake[0]]
        while self.stopped_by is None:
            ready = select.select([descriptor, *wakes], [], [], IDLE_S)[0]
            if descriptor in ready:
                return os.read(descriptor, size)
            if not ready:
                self._when_idle()
        size = min(size, self._waiting, _count_waiting(descriptor))
        self._waiting -= size
        return os.read(descriptor, size) if size else b""


def _count_waiting(descriptor: int) -> int:
    """Returns how many bytes wait in a pipe or socket. A file has all the time to be read again."""
    if stat.S_ISREG(os.fstat(descriptor).st_mode):
        return 0
    count = array.array("i", [0])
    try:
        fcntl.ioctl(descriptor, termios.FIONREAD, count)
    except OSError:
        return 0
    return count[0]
