"""Reads frames from a pipe or a socket, behind one line of JSON that says what they are.

    {"rate": 1000, "channels": ["e1", "e2"], "type": "int16", "unit": "uV", "gain": 0.25, "byte_order": "little"}

The line ends with a newline, and frames follow without anything between them: one sample a channel, interleaved. With
`counter` an integer that grows by one with each frame stands before its samples, so that lost frames are known.
"""

from __future__ import annotations

import json
import os
import select
import socket
import sys
from collections.abc import Callable
from dataclasses import dataclass
from fractions import Fraction
from threading import Event
from time import perf_counter
from typing import Any, Protocol, cast

import numpy as np
import numpy.typing as npt

from edgedistill.data.lfp.layout import microvolts_in
from edgedistill.errors import ConfigError, RecordingError, did_you_mean
from edgedistill.live.source import Chunk, SourceEnded, SourceHeader, SourceLost

LONGEST_HEADER = 1 << 20  # bytes
MOST_CHANNELS = 65_536  # as of a bundle
READ_BYTES = 1 << 18
RETRY_S = 0.2
CONFIRMED_S = 10.0  # a step of the counter that is this much longer than the time that passed is no gap
Numbers = npt.NDArray[np.int64]
TYPES = ("int16", "int32", "float32", "float64")
COUNTERS = ("uint32", "uint64")
ORDERS = {"little": "<", "big": ">"}
NEEDED = ("rate", "channels", "type", "unit", "byte_order")
OPTIONAL = ("gain", "counter")
EXAMPLE = (
    '{"rate": 1000, "channels": ["e1", "e2"], "type": "int16", "unit": "uV", "gain": 0.25, "byte_order": "little"}'
)


@dataclass(frozen=True)
class FrameFormat:
    """Says how the bytes of a frame are read."""

    frame: np.dtype[Any]  # with the field "samples", and "counter" where frames are counted
    counter_bits: int  # 0 where they are not


def parse_header(line: bytes, where: str) -> tuple[SourceHeader, FrameFormat]:
    """Returns what the first line of a stream says. Raises RecordingError where it is not such a line."""
    try:
        facts = json.loads(line)
    except (ValueError, RecursionError):
        raise _wrong_header(where, line[:80], f"one line of JSON, such as {EXAMPLE}") from None
    if not isinstance(facts, dict):
        raise _wrong_header(where, facts, f"an object, such as {EXAMPLE}")
    for key in facts:
        if key not in (*NEEDED, *OPTIONAL):
            raise _wrong_header(where, f"the key '{key}'", did_you_mean(key, (*NEEDED, *OPTIONAL)))
    if missing := [key for key in NEEDED if key not in facts]:
        raise _wrong_header(where, f"no '{missing[0]}'", ", ".join(NEEDED))
    names = _read_channels(facts["channels"], where)
    count = facts["channels"] if names is None else len(names)
    order = ORDERS[_read_word(facts, "byte_order", tuple(ORDERS), where)]
    kind = np.dtype(order + np.dtype(_read_word(facts, "type", TYPES, where)).str[1:])
    counter = None if facts.get("counter") is None else _read_word(facts, "counter", COUNTERS, where)
    fields: list[Any] = [] if counter is None else [("counter", np.dtype(order + np.dtype(counter).str[1:]))]
    frame = np.dtype([*fields, ("samples", kind, (count,))])
    header = SourceHeader(
        where=where,
        rate=_read_rate(facts["rate"], where),
        channel_count=count,
        channel_names=names,
        gain_uv=_read_gain(facts, count, where),
        ordered=counter is None,
    )
    return header, FrameFormat(frame, 0 if counter is None else 8 * np.dtype(counter).itemsize)


def _read_word(facts: dict[str, Any], key: str, known: tuple[str, ...], where: str) -> str:
    word = facts[key]
    if word not in known:
        raise _wrong_header(where, f"'{key}' is {word!r}", f"one of {', '.join(known)}")
    return cast(str, word)


def _read_rate(value: object, where: str) -> Fraction:
    try:
        if isinstance(value, bool) or not isinstance(value, (int, float, str)):
            raise ValueError
        rate = Fraction(value)
        if not 0 < rate < 10**7:
            raise ValueError
    except (ValueError, OverflowError, ZeroDivisionError):
        expected = 'frames a second as a number, or as a fraction such as "390625/16"'
        raise _wrong_header(where, f"'rate' is {value!r}", expected) from None
    return rate


def _read_channels(value: object, where: str) -> tuple[str, ...] | None:
    """Returns the names of the channels, or None where only their number is given."""
    if isinstance(value, int) and not isinstance(value, bool) and 0 < value <= MOST_CHANNELS:
        return None
    named = isinstance(value, list) and 0 < len(value) <= MOST_CHANNELS and all(isinstance(v, str) for v in value)
    if not named or len(set(cast("list[str]", value))) != len(cast("list[str]", value)):
        raise _wrong_header(where, f"'channels' is {str(value)[:80]}", "different names, or their number")
    return tuple(cast("list[str]", value))


def _read_gain(facts: dict[str, Any], count: int, where: str) -> tuple[float, ...]:
    """Returns the microvolts (C',) of one stored number."""
    unit = microvolts_in(facts["unit"]) if isinstance(facts["unit"], str) else None
    if unit is None:
        raise _wrong_header(where, f"'unit' is {facts['unit']!r}", "a unit of voltage, such as uV, mV or V")
    gain = facts.get("gain", 1.0)
    gains = gain if isinstance(gain, list) else [gain] * count
    numbers = all(isinstance(one, (int, float)) and not isinstance(one, bool) for one in gains)
    if len(gains) != count or not numbers or not all(abs(one) <= sys.float_info.max for one in gains):
        raise _wrong_header(where, f"'gain' is {str(gain)[:80]}", "a finite number, or one a channel")
    return tuple(float(one) * unit for one in gains)


def _wrong_header(where: str, got: object, expected: str) -> RecordingError:
    return RecordingError(
        f"{where}: the stream does not begin with a header that can be read",
        got=got,
        expected=expected,
        causes=("the sender sends frames without a header", "the sender speaks another protocol"),
        next_step="docs/closed-loop.md describes the header",
    )


class Connection(Protocol):
    """Describes an open pipe or socket."""

    def fileno(self) -> int:
        """Returns the descriptor to wait for and to read from."""

    def close(self) -> None:
        """Closes it."""


class FramedSource:
    """Reads frames from what `connect` opens. A socket that ends may come back; a pipe is over."""

    def __init__(self, where: str, connect: Callable[[Event], Connection | None], comes_back: bool) -> None:
        """`connect` waits for the sender, and returns None if the event is set."""
        self._where, self._connect, self._comes_back = where, connect, comes_back
        self._connection: Connection | None = None
        self._format: FrameFormat | None = None
        self._rest = b""
        self._rate = 0.0
        self._count = 0  # frames that were read, or number of the last one
        self._counter = 0  # of that one
        self._arrived_s: float | None = None  # when it came, on this connection

    def open(self, stop: Event) -> SourceHeader | None:
        """Connects, and reads the header."""
        while not stop.is_set():
            self.close()
            self._rest = b""
            self._connection = self._connect(stop)
            if self._connection is None:
                return None
            line = self._read_line(stop)
            if line is not None:
                header, self._format = parse_header(line, self._where)
                self._rate, self._arrived_s = float(header.rate), None
                return header
        return None

    def read(self, timeout_s: float) -> Chunk | None:
        """Returns all whole frames that have arrived."""
        assert self._format is not None
        size = self._format.frame.itemsize
        came_with_header = len(self._rest) >= size
        data = b"" if came_with_header else self._read_bytes(timeout_s)
        if data is None:
            return None
        arrived_s = perf_counter()
        if not data and not came_with_header:
            torn = f", {len(self._rest)} bytes after the last whole frame" if self._rest else ""
            if self._comes_back:
                raise SourceLost(f"{self._where} closed the connection{torn}")
            raise SourceEnded(f"{self._where} ended{torn}")
        data = self._rest + data
        whole = len(data) - len(data) % size
        self._rest = data[whole:]
        found = np.frombuffer(data[:whole], self._format.frame)
        samples = found["samples"]
        frames = samples.astype(samples.dtype.newbyteorder("="))
        if not self._format.counter_bits:
            return Chunk(frames, arrived_s, numbers=self._number_here(len(found)), counted_here=True)
        numbers, jumps = self._number(found, arrived_s)
        return Chunk(frames, arrived_s, numbers=numbers, jumps=jumps)

    def close(self) -> None:
        """Closes the pipe or socket."""
        if self._connection is not None:
            self._connection.close()
            self._connection = None

    def _number_here(self, count: int) -> Numbers:
        numbers: Numbers = self._count + np.arange(count)
        self._count += count
        return numbers

    def _number(self, found: npt.NDArray[Any], arrived_s: float) -> tuple[Numbers, int]:
        """Returns the numbers (n,) of frames by their counters, and how often the counter was set anew.

        Only its steps count, because it wraps around. A step that no time confirms is none: the frame follows the last.
        """
        assert self._format is not None
        if not len(found):
            return np.empty(0, np.int64), 0
        kind = np.int32 if self._format.counter_bits == 32 else np.int64
        counters = np.concatenate([[np.uint64(self._counter)], found["counter"].astype(np.uint64)])
        steps: Numbers = np.diff(counters).astype(np.int64).astype(kind).astype(np.int64)
        jumps = 0
        if self._arrived_s is not None:
            passed = (arrived_s - self._arrived_s) * self._rate
            wild = np.abs(steps) > passed + CONFIRMED_S * self._rate
            steps[wild], jumps = 1, int(wild.sum())
            if wild[0]:  # frames may be missing as well
                steps[0] = max(1, round(passed) - len(steps) + 1)
        numbers: Numbers = self._count + np.cumsum(steps)
        self._count, self._counter, self._arrived_s = int(numbers[-1]), int(counters[-1]), arrived_s
        return numbers, jumps

    def _read_line(self, stop: Event) -> bytes | None:
        """Returns the header, or None where the sender left before it was whole."""
        while not stop.is_set():
            line, newline, rest = self._rest.partition(b"\n")
            if newline:
                self._rest = rest
                return line
            if len(self._rest) > LONGEST_HEADER:
                raise _wrong_header(self._where, f"{len(self._rest)} bytes without a newline", "a line of JSON")
            data = self._read_bytes(RETRY_S)
            if data == b"":
                if not self._comes_back:
                    raise _wrong_header(self._where, f"{len(self._rest)} bytes and no newline", "a line of JSON")
                stop.wait(RETRY_S)
                return None
            self._rest += data or b""
        return None

    def _read_bytes(self, timeout_s: float) -> bytes | None:
        """Returns what is there, nothing at the end, or None after `timeout_s`."""
        assert self._connection is not None
        descriptor = self._connection.fileno()
        if not select.select([descriptor], [], [], timeout_s)[0]:
            return None
        try:
            return os.read(descriptor, READ_BYTES)
        except OSError:  # the other side reset the connection
            return b""


class _Stdin:
    """Leaves stdin open, because it does not belong to the source."""

    def fileno(self) -> int:
        if sys.stdin is None:
            raise RecordingError("stdin is closed, so there is no stream to decode")
        return sys.stdin.fileno()

    def close(self) -> None:
        """Does nothing."""


def open_stdin_source() -> FramedSource:
    """Returns the source that reads frames from stdin."""
    return FramedSource("stdin", lambda stop: _Stdin(), comes_back=False)


def open_tcp_source(address: str) -> FramedSource:
    """Returns the source that connects to HOST:PORT. Raises ConfigError for another address."""
    host, colon, port = address.rpartition(":")
    if not colon or not host or not port.isdecimal() or not 0 < int(port) < 65536:
        raise ConfigError(f"tcp:{address} is no address", expected="tcp:HOST:PORT, such as tcp:127.0.0.1:9000")
    return FramedSource(f"tcp:{address}", lambda stop: _connect(host.strip("[]"), int(port), stop), comes_back=True)


def _connect(host: str, port: int, stop: Event) -> Connection | None:
    """Connects as soon as the other side listens."""
    while not stop.is_set():
        try:
            connection = socket.create_connection((host, port), timeout=2.0)
        except OSError:
            stop.wait(RETRY_S)
            continue
        connection.setblocking(True)
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        return connection
    return None
