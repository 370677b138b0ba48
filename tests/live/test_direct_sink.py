"""A sink that never waits is called by the thread that decodes, and stops alone where it fails."""

from __future__ import annotations

import errno
import threading
from threading import Event

import pytest

from edgedistill.errors import OutputError
from edgedistill.live.loop import LiveStream
from edgedistill.live.records import StreamBlock
from edgedistill.runtime import Decoder

from .fakes import FRAMES, FailingSink, FakeSource, KeepingSink
from .test_loop import PLAIN, chunks, require_same


class Direct(KeepingSink):
    never_waits = True

    def __init__(self) -> None:
        super().__init__()
        self.threads: set[int] = set()
        self.closings = 0

    def accept(self, block: StreamBlock) -> None:
        self.threads.add(threading.get_ident())
        super().accept(block)

    def close(self) -> None:
        self.closings += 1


class FailingDirect(FailingSink):
    never_waits = True


def test_it_gets_every_block_in_the_thread_that_decodes(decoder: Decoder) -> None:
    direct, kept = Direct(), KeepingSink()
    counters = LiveStream(decoder, FakeSource(chunks(0, 1000)), {"kept": kept, "direct": direct}, PLAIN).run(Event())
    assert direct.threads == {threading.get_ident()}
    assert direct.closings == 1
    assert counters.sinks["direct"].blocks == len(direct.blocks) == len(kept.blocks)
    decoder.reset()
    require_same(direct, decoder.push(FRAMES[:1000]))


def test_one_that_fails_is_closed_and_nothing_else_notices(decoder: Decoder) -> None:
    direct, kept = FailingDirect(OSError(errno.EPIPE, "Broken pipe")), KeepingSink()
    counters = LiveStream(decoder, FakeSource(chunks(0, 500)), {"kept": kept, "direct": direct}, PLAIN).run(Event())
    assert "Broken pipe" in (counters.sinks["direct"].failure or "")
    assert direct.closed
    assert len(direct.blocks) == counters.sinks["direct"].blocks == 3
    assert len(kept.bins) == 200


def test_one_that_cannot_be_opened_ends_the_program_before_the_first_frame(decoder: Decoder) -> None:
    class Broken(Direct):
        def open(self, description: object) -> None:
            raise OutputError("no room")

    direct, kept = Broken(), KeepingSink()
    with pytest.raises(OutputError, match="no room"):
        LiveStream(decoder, FakeSource(chunks(0, 50)), {"kept": kept, "direct": direct}, PLAIN).run(Event())
    assert direct.closings == 1
    assert kept.closed
    assert not kept.blocks


def test_a_failure_to_close_is_told(decoder: Decoder) -> None:
    class Stuck(Direct):
        def close(self) -> None:
            raise OutputError("it does not let go")

    counters = LiveStream(decoder, FakeSource(chunks(0, 50)), {"direct": Stuck()}, PLAIN).run(Event())
    assert counters.sinks["direct"].failure == "it does not let go"
