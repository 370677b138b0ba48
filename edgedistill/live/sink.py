"""Defines what every sink of a live stream offers.

The loop puts a bounded queue and a thread in front of a sink (`sink_thread`), so the thread that decodes never waits
for one. All methods of a sink are called by that thread of its own, one after the other. Only a sink that says that it
never waits is called by the thread that decodes (`direct_sink`).
"""

from __future__ import annotations

from typing import Protocol

from edgedistill.errors import EdgeDistillError
from edgedistill.files import CAUSES
from edgedistill.live.records import StreamBlock, StreamDescription


class Sink(Protocol):
    """Takes what a live stream decodes.

    A method may take its time. A sink that is too slow loses the oldest blocks, which is counted for it and told by
    `StreamBlock.first_frame`. One that raises is closed and stopped; its failure is counted, and the stream goes on.
    """

    def open(self, description: StreamDescription) -> None:
        """Prepares the sink before the first frame. Raises EdgeDistillError, which ends the program, if it cannot."""

    def accept(self, block: StreamBlock) -> None:
        """Takes the next block. Raises OutputError or OSError where it fails for good."""

    def idle(self) -> None:
        """Is called after about 0.2 s without a block, such as to flush a file, where the sink has a thread."""

    def close(self) -> None:
        """Ends the sink. It is called once, also after a failure and if `open` failed."""


def never_waits(sink: Sink) -> bool:
    """Returns whether a sink says by an attribute `never_waits` that `accept` only puts a block into bounded memory.

    It is for sinks that close the loop, behind whose memory other threads do the rest.
    """
    return bool(getattr(sink, "never_waits", False))


def is_record(sink: Sink) -> bool:
    """Returns whether a sink says by an attribute `is_record` that it must be complete rather than up to date.

    More blocks wait for it, since a disk may stall for seconds.
    """
    return bool(getattr(sink, "is_record", False))


def describe_failure(error: BaseException) -> str:
    """Returns one line on why a sink stopped."""
    if isinstance(error, EdgeDistillError):
        return error.what if error.got is None else f"{error.what}: {error.got}"
    if isinstance(error, OSError) and error.errno in CAUSES:
        return CAUSES[error.errno]
    return f"{type(error).__name__}: {error}"
