"""Frames behind a header are read from a pipe or a socket, whatever pieces they come in."""

from __future__ import annotations

import json
import os
import socket
import threading
from collections.abc import Callable
from fractions import Fraction
from threading import Event

import numpy as np
import pytest

from edgedistill.errors import ConfigError, RecordingError
from edgedistill.live.source import Chunk, SourceEnded, SourceLost
from edgedistill.live.sources import framed
from edgedistill.live.sources.framed import FramedSource, open_tcp_source, parse_header

from ...waiting import LONGEST_S
from ..fakes import Clock

HEADER = {"rate": 1000, "channels": ["a", "b"], "type": "int16", "unit": "uV", "gain": 0.25, "byte_order": "little"}


def line(**changes: object) -> bytes:
    facts = {key: value for key, value in (HEADER | changes).items() if value != "absent"}
    return json.dumps(facts).encode()


class Pipe:
    """A pipe that a test writes into."""

    def __init__(self) -> None:
        self.reader, self.writer = os.pipe()

    def fileno(self) -> int:
        return self.reader

    def close(self) -> None:
        pass

    def send(self, data: bytes) -> None:
        os.write(self.writer, data)


def opened(pipe: Pipe, **changes: object) -> FramedSource:
    source = FramedSource("pipe", lambda stop: pipe, comes_back=False)
    pipe.send(line(**changes) + b"\n")
    assert source.open(Event()) is not None
    return source


def read_all(source: FramedSource) -> tuple[np.ndarray, np.ndarray]:
    frames, numbers = [], []
    while (chunk := source.read(0.01)) is not None:
        assert chunk.numbers is not None
        frames.append(chunk.frames)
        numbers.append(chunk.numbers)
    return np.concatenate(frames), np.concatenate(numbers)


def test_the_header_is_read_whole() -> None:
    header, form = parse_header(line(rate="390625/16", unit="mV", gain=[1, 2]), "here")
    assert header.rate == Fraction(390625, 16)
    assert header.channel_names == ("a", "b")
    assert header.gain_uv == (1000.0, 2000.0)
    assert header.ordered
    assert form.frame.itemsize == 4
    unnamed, counted = parse_header(line(channels=3, counter="uint32", gain="absent", type="float64"), "here")
    assert (unnamed.channel_names, unnamed.channel_count) == (None, 3)
    assert not unnamed.ordered
    assert counted.frame.itemsize == 4 + 24


@pytest.mark.parametrize(
    ("bad", "said"),
    [
        (b"\x00\x01\x02", "one line of JSON"),
        (b"[1]", "an object"),
        (line(gains=1), "did you mean 'gain'"),
        *((line(**{key: "absent"}), f"no '{key}'") for key in ("rate", "channels", "type", "unit", "byte_order")),
        (line(rate=0), "'rate' is 0"),
        (line(rate="1/0"), "'rate'"),
        (line(rate=True), "'rate'"),
        (line(channels=[]), "'channels'"),
        (line(channels=["a", "a"]), "'channels'"),
        (line(channels=10**9), "'channels'"),
        (line(type="int8"), "int16, int32"),
        (line(unit="furlongs"), "unit of voltage"),
        (line(gain=[1, 2, 3]), "'gain'"),
        (line(gain="nan"), "'gain'"),
        (line(gain=[10**400, 1]), "'gain'"),
        (b"[" * 99_999, "JSON"),
        (line(byte_order="middle"), "little, big"),
        (line(counter="uint8"), "uint32"),
    ],
)
def test_a_header_that_cannot_be_read_is_refused(bad: bytes, said: str) -> None:
    with pytest.raises(RecordingError, match=said):
        parse_header(bad, "here")


@pytest.mark.parametrize("order", ["little", "big"])
def test_frames_come_out_whole_whatever_pieces_they_come_in(order: str) -> None:
    values = np.arange(-50, 50, dtype=np.int16).reshape(-1, 2)
    data = values.astype("<i2" if order == "little" else ">i2").tobytes()
    pipe = Pipe()
    source = opened(pipe, byte_order=order)
    for start in range(0, len(data), 7):
        pipe.send(data[start : start + 7])
        source.read(0.01) if start == 0 else None
    pipe.send(b"x")
    frames, numbers = read_all(source)
    assert np.array_equal(frames, values[1:])
    assert np.array_equal(numbers, np.arange(1, 50))
    os.close(pipe.writer)
    with pytest.raises(SourceEnded, match="1 bytes after"):
        source.read(0.01)


def test_a_counter_that_wraps_around_goes_on() -> None:
    form = np.dtype([("counter", "<u4"), ("samples", "<i2", (2,))])
    counters = np.array([2**32 - 2, 2**32 - 1, 0, 1, 5, 4], np.uint64)
    rows = np.zeros(len(counters), form)
    rows["counter"] = counters.astype(np.uint32)
    pipe = Pipe()
    source = opened(pipe, counter="uint32")
    pipe.send(rows[:3].tobytes())
    first = source.read(0.1)
    pipe.send(rows[3:].tobytes())
    second = source.read(0.1)
    assert isinstance(first, Chunk)
    assert isinstance(second, Chunk)
    assert first.numbers is not None
    assert second.numbers is not None
    assert (np.concatenate([first.numbers, second.numbers]) - first.numbers[0]).tolist() == [0, 1, 2, 3, 7, 6]


def test_a_counter_that_no_time_confirms_is_no_gap(monkeypatch: pytest.MonkeyPatch) -> None:
    """It was set anew, or its bytes are read in the wrong order, and hours of a gap would be decoded bin by bin."""
    clock = Clock()
    monkeypatch.setattr(framed, "perf_counter", clock)
    rows = np.zeros(3, [("counter", "<u4"), ("samples", "<i2", (2,))])
    pipe = Pipe()
    source = opened(pipe, counter="uint32")  # 1000 frames a second
    found, jumps = [], []
    for passed_s, counters in (
        (0, (7, 8, 9)),
        (0.5, (10, 11, 509)),
        (0.003, (1 << 24, 2 << 24, 3 << 24)),
        (9, (0, 1, 2)),
    ):
        clock.now_s += passed_s
        rows["counter"] = counters
        pipe.send(rows.tobytes())
        chunk = source.read(1.0)
        assert chunk is not None
        assert chunk.numbers is not None
        found.append((chunk.numbers - 7).tolist())
        jumps.append(chunk.jumps)
    assert found == [[0, 1, 2], [3, 4, 502], [503, 504, 505], [505 + 8998, 505 + 8999, 505 + 9000]]
    assert jumps == [0, 0, 3, 1]


def test_a_pipe_that_ends_before_its_header_is_refused() -> None:
    pipe = Pipe()
    pipe.send(b'{"rate"')
    os.close(pipe.writer)
    with pytest.raises(RecordingError, match="no newline"):
        FramedSource("pipe", lambda stop: pipe, comes_back=False).open(Event())


def test_a_server_that_goes_away_is_lost_and_found_again() -> None:
    server = socket.create_server(("127.0.0.1", 0))
    port = server.getsockname()[1]

    def serve(connection_done: Callable[[], object]) -> None:
        for _ in range(2):
            with server.accept()[0] as connection:
                connection.sendall(line() + b"\n" + np.arange(4, dtype="<i2").tobytes())
        connection_done()

    done = Event()
    threading.Thread(target=serve, args=(done.set,), daemon=True).start()
    source = open_tcp_source(f"127.0.0.1:{port}")
    for _ in range(2):
        assert source.open(Event()) is not None
        chunk = source.read(LONGEST_S)
        assert chunk is not None
        assert chunk.frames.tolist() == [[0, 1], [2, 3]]
        with pytest.raises(SourceLost, match="closed the connection"):
            source.read(LONGEST_S)
    assert done.wait(LONGEST_S)
    source.close()
    server.close()


def test_waiting_for_a_server_ends_with_the_stream() -> None:
    stop = Event()
    stop.set()
    assert open_tcp_source("127.0.0.1:9").open(stop) is None


@pytest.mark.parametrize("address", ["", "host", "host:", ":9", "host:0", "host:99999", "host:x"])
def test_an_address_that_is_none_is_refused(address: str) -> None:
    with pytest.raises(ConfigError, match="no address"):
        open_tcp_source(address)
