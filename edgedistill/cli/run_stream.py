"""Decodes the frames that arrive on stdin: to stdout line by line, to a file that grows, or to one JSON object.

However the stream ends, all whole frames that were read are decoded and kept. What is left of a frame is told. Without
a signal that is a failure, because the sender may count other channels.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import click

from edgedistill.cli.stopping import StoppableStdin
from edgedistill.decoding import Tally, decode_stream, format_csv_header, format_csv_line
from edgedistill.errors import RecordingError
from edgedistill.runtime import Decoder, Output
from edgedistill.stream_file import StreamFile


class StreamRun:
    """Decodes one stream, and says afterwards how it ended."""

    def __init__(self, decoder: Decoder) -> None:
        self.tally = Tally()
        self.torn_bytes = 0  # of the last frame
        self.stopped_by: str | None = None  # the name of a signal
        self._decoder = decoder

    def to_stdout(self) -> None:
        """Prints CSV on stdout and flushes it after every push, because a program downstream acts on it."""
        click.echo(format_csv_header(self._decoder.info))
        self._run(lambda outputs: click.echo("\n".join(map(format_csv_line, outputs))))  # echo flushes

    def to_file(self, path: Path) -> None:
        """Writes CSV or NWB as the outputs come."""
        with StreamFile(path, self._decoder.info) as file:
            self._run(file.write, file.flush)

    def to_memory(self) -> tuple[Output, ...]:
        """Returns all outputs."""
        kept: list[Output] = []
        self._run(kept.extend)
        return tuple(kept)

    def find_failure(self, out: Path | None) -> RecordingError | None:
        """Returns the error of a stream that ended inside a frame by itself."""
        if not self.torn_bytes or self.stopped_by is not None:
            return None
        channels = len(self._decoder.info.channel_ids)
        return RecordingError(
            "the stream ended inside a frame",
            got=f"{self.torn_bytes} bytes after the last whole frame; the {self.tally.bins} bins before it "
            f"{f'are in {out}' if out else 'were written'}",
            expected=f"frames of {4 * channels} bytes: {channels} channels of float32",
            causes=("the sender ended early", "it has another number of channels", "the samples are not float32"),
        )

    def describe_stop(self) -> str | None:
        """Returns a sentence about the signal that ended the stream, or None without one."""
        if self.stopped_by is None:
            return None
        torn = f"; {self.torn_bytes} bytes of a frame that had begun were left out" if self.torn_bytes else ""
        return f"the stream was stopped by {self.stopped_by} after {self.tally.bins} bins{torn}"

    def _run(self, take: Callable[[Sequence[Output]], object], when_idle: Callable[[], object] = lambda: None) -> None:
        stdin = StoppableStdin(when_idle)
        try:
            with stdin.listening():
                for outputs in decode_stream(self._decoder, stdin, torn="left out"):
                    take(outputs)
                    self.tally.add(outputs)
        finally:
            self.torn_bytes = stdin.bytes_read % (4 * len(self._decoder.info.channel_ids))
            self.stopped_by = stdin.stopped_by
