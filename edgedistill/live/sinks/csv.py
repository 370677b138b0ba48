"""Writes outputs as CSV, line by line, in the form of `edgedistill run`."""

from __future__ import annotations

import sys
from contextlib import ExitStack
from pathlib import Path

from edgedistill.decoding import check_destination, format_csv_header, format_csv_line
from edgedistill.errors import ConfigError
from edgedistill.live.records import StreamBlock, StreamDescription
from edgedistill.stream_file import StreamFile

STDOUT = "-"


class CsvSink:
    """Appends lines to a file, or prints them on stdout."""

    def __init__(self, place: str) -> None:
        """`place` is a path that ends in .csv, or "-". Raises ConfigError or OutputError for another."""
        self._path = None if place == STDOUT else Path(place)
        if self._path is not None:
            if self._path.suffix.lower() != ".csv":
                raise ConfigError(f"csv:{place} is no CSV file", expected="csv:NAME.csv, or csv:- for stdout")
            check_destination(self._path)
        self._stack = ExitStack()
        self._file: StreamFile | None = None

    def open(self, description: StreamDescription) -> None:
        """Replaces the file, or prints the first line."""
        if self._path is None:
            self._print(format_csv_header(description.info))
        else:
            self._file = self._stack.enter_context(StreamFile(self._path, description.info))

    def accept(self, block: StreamBlock) -> None:
        """Adds a line for each bin."""
        outputs = [bin_.output for bin_ in block.bins]
        if self._file is not None:
            self._file.write(outputs)
        elif outputs:
            self._print("\n".join(map(format_csv_line, outputs)))

    def idle(self) -> None:
        """Passes the lines on to the disk."""
        if self._file is not None:
            self._file.flush()

    def close(self) -> None:
        """Ends the file."""
        self._stack.close()

    def _print(self, lines: str) -> None:
        sys.stdout.write(lines + "\n")
        sys.stdout.flush()
