"""Calls a sink whose `accept` never waits from the thread that decodes, because a thread in between costs time."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import replace

from edgedistill.live.records import SinkCounters, StreamBlock, StreamDescription
from edgedistill.live.sink import Sink, describe_failure


class DirectSink:
    """Runs one sink, and stops it alone where it fails."""

    def __init__(self, name: str, sink: Sink) -> None:
        self.name, self.counters = name, SinkCounters()
        self.failure: BaseException | None = None
        self._sink, self._closed = sink, False

    def open(self, description: StreamDescription) -> None:
        """Opens the sink. Raises what its own method raised."""
        self._sink.open(description)

    def put(self, block: StreamBlock) -> None:
        """Hands the block over."""
        if self.failure is not None:
            return
        try:
            self._sink.accept(block)
        except Exception as error:
            self._fail(error)
            with suppress(Exception):  # the first failure is the one that is told
                self.close()
        else:
            self.counters = replace(self.counters, blocks=self.counters.blocks + 1)

    def close(self) -> None:
        """Ends the sink. A second call does nothing."""
        if self._closed:
            return
        self._closed = True
        try:
            self._sink.close()
        except Exception as error:
            self._fail(error)

    def _fail(self, error: Exception) -> None:
        if self.failure is None:
            self.failure = error
            self.counters = replace(self.counters, failure=describe_failure(error))
