"""Tests that the sink shows a stream from a process of its own, which ends with the stream however that ends."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path
from urllib.request import urlopen

import pytest

from edgedistill.errors import OutputError
from edgedistill.live.sinks.page import PageSink

from ....waiting import LONGEST_S, wait_until
from .streams import CHANNELS, FRAMES, MadeStream, make_description


@pytest.fixture
def sink(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[PageSink]:
    """Opens a page from a folder whose files must not be taken for modules."""
    (tmp_path / "pickle.py").write_text("raise SystemExit('taken')\n", encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    sink = PageSink("0")
    sink.open(make_description())
    yield sink
    sink.close()


def process_of(sink: PageSink) -> int:
    assert sink._process is not None
    return sink._process.pid


def is_running(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def resident_kb(pid: int) -> int:
    lines = Path(f"/proc/{pid}/status").read_text(encoding="utf-8").splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmRSS"))


def test_blocks_and_the_end_reach_a_browser_whatever_signals_come(sink: PageSink) -> None:
    stream, pid = MadeStream(), process_of(sink)
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):  # they are for the program that decodes
        os.kill(pid, number)
    with urlopen(f"{sink.url}events", timeout=LONGEST_S) as events:
        for _ in range(3):
            sink.accept(stream.block())
        sink.idle()
        seen = b""
        while b'"bin":[0,1,2]' not in seen:
            seen = events.readline()
            assert seen
        sink.accept(stream.end("the recording is over"))
        sink.close()
        assert b"the recording is over" in events.read()
    assert not is_running(pid)


def test_a_port_in_use_is_said_by_the_sink(sink: PageSink) -> None:
    other = PageSink(str(sink.url).rstrip("/").rpartition(":")[2])
    with pytest.raises(
        OutputError, match=r"cannot be served at 127\.0\.0\.1:\d+\n.*in use\n.*another stream"
    ) as caught:
        other.open(make_description())
    assert "--to page:" in str(caught.value)
    other.close()  # as the loop does after a failure


def test_a_page_that_was_killed_fails_as_a_sink(sink: PageSink) -> None:
    os.kill(process_of(sink), signal.SIGKILL)
    stream = MadeStream()

    def fails() -> bool:
        try:
            sink.accept(stream.block())
        except OSError:
            return True
        return False

    wait_until(fails)
    sink.close()


def test_a_page_ends_with_a_program_that_was_killed(sink: PageSink) -> None:
    assert sink._process is not None
    assert sink._process.stdin is not None
    sink._process.stdin.write(b"\x80\x05half of a block")
    sink._process.stdin.close()  # as the system does for a program that it ends
    assert sink._process.wait(LONGEST_S) == 0


def test_the_memory_of_the_page_does_not_grow(sink: PageSink) -> None:
    stream, pid = MadeStream(), process_of(sink)
    with urlopen(f"{sink.url}events", timeout=LONGEST_S):  # a browser that takes nothing

        def grown_kb(bins: int) -> int:
            before = resident_kb(pid)
            for _ in range(bins):
                sink.accept(stream.block())
            return resident_kb(pid) - before

        # A page that kept its blocks would grow by their frames in every round. One that does not grows until its
        # queues are full and its heap has the room that it needs, whenever that is.
        kept_kb = 400 * FRAMES * CHANNELS * 4 // 1024
        assert any(grown_kb(400) < kept_kb // 4 for _ in range(25))
