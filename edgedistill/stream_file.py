"""Writes the outputs of a stream to CSV or NWB as they come, so that little is lost however the stream ends.

Outputs go in bin by bin, and a file that grows comes out. Other results appear only when they are whole. This one does
not, because a machine may lose its power after hours. `flush` passes on what was written, and at least once a second it
waits for the disk. Memory does not grow.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from contextlib import nullcontext, suppress
from pathlib import Path
from time import monotonic
from types import TracebackType
from typing import Any, Protocol

import numpy.typing as npt

from edgedistill.decoding import (
    Predictions,
    check_destination,
    format_csv_header,
    format_csv_line,
    make_nwb,
)
from edgedistill.errors import OutputError
from edgedistill.files import output_error
from edgedistill.runtime import Output
from edgedistill.runtime.decoder import DecoderInfo

SYNC_S = 1.0
NWB_FOLDER = "processing/behavior/decoded"
SERIES = ("kinematics", "deviation", "flags", "bad_channels")


class GrowingFile(Protocol):
    """Describes a file of either format."""

    def append(self, outputs: Sequence[Output]) -> None:
        """Adds outputs, and keeps the file readable if that fails."""

    def flush(self, *, sync: bool) -> None:
        """Passes what was added on to the system, with `sync` to the disk."""

    def close(self) -> None:
        """Ends the file."""


class StreamFile:
    """Writes one stream. It is a context manager, at whose end the file is whole."""

    def __init__(self, path: Path, info: DecoderInfo) -> None:
        """Replaces the file at `path`. Raises OutputError where it cannot be written."""
        check_destination(path)
        self._path, self._synced = path, monotonic()
        kind = _GrowingNwb if path.suffix.lower() == ".nwb" else _GrowingCsv
        try:
            self._file: GrowingFile = kind(path, info)
        except OSError as error:
            raise output_error(path, "the predictions", error) from error

    def __enter__(self) -> StreamFile:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            if not isinstance(error, OutputError):
                self.flush(sync=True)
        finally:
            with suppress(OSError, RuntimeError) if isinstance(error, OutputError) else nullcontext():
                self._file.close()  # HDF5 does not find again what a full disk did not take

    def write(self, outputs: Sequence[Output]) -> None:
        """Adds outputs and passes them on to the system. Raises OutputError; what was there before stays."""
        try:
            self._file.append(outputs)
        except OSError as error:
            raise self._failure(error) from error
        self.flush()

    def flush(self, *, sync: bool = False) -> None:
        """Passes on what was written, at least once a second to the disk."""
        if sync or monotonic() - self._synced >= SYNC_S:
            sync, self._synced = True, monotonic()
        try:
            self._file.flush(sync=sync)
        except OSError as error:
            raise self._failure(error) from error

    def _failure(self, error: OSError) -> Exception:
        step = "free space or choose another --out; the outputs of before stay in the file"
        return output_error(self._path, "the predictions", error, step)


class _GrowingCsv:
    def __init__(self, path: Path, info: DecoderInfo) -> None:
        self._file = path.open("wb", buffering=0)
        self._whole = 0  # bytes of whole lines
        try:
            self._write(format_csv_header(info) + "\n")
        except OSError:
            self.close()
            raise

    def append(self, outputs: Sequence[Output]) -> None:
        self._write("".join(format_csv_line(output) + "\n" for output in outputs))

    def flush(self, *, sync: bool) -> None:
        if sync and self._file.seekable():  # a pipe has no disk
            os.fsync(self._file.fileno())

    def close(self) -> None:
        self._file.close()

    def _write(self, text: str) -> None:
        """Writes whole lines or none of them."""
        rest = memoryview(text.encode())
        done = self._whole + len(rest)
        try:
            while rest:
                rest = rest[self._file.write(rest) or 0 :]
        except OSError:
            with suppress(OSError):  # a pipe keeps what it was given
                self._file.truncate(self._whole)
            raise
        self._whole = done


def list_rows(predictions: Predictions) -> dict[str, npt.NDArray[Any]]:
    """Returns the rows (n, ...) of each of SERIES."""
    p = predictions
    return dict(zip(SERIES, (p.kinematics, p.deviations, p.flags, p.bad_channels), strict=True))


class _GrowingNwb:
    def __init__(self, path: Path, info: DecoderInfo) -> None:
        from edgedistill.data.nwb_writing import GrowingNwb

        self._info = info
        empty = Predictions(info, ())
        datasets = {name: f"{NWB_FOLDER}/{name}/data" for name in SERIES}
        self._file = GrowingNwb(make_nwb(empty, growing=True), path, datasets)

    def append(self, outputs: Sequence[Output]) -> None:
        self._file.append(list_rows(Predictions(self._info, tuple(outputs))))

    def flush(self, *, sync: bool) -> None:
        if sync:
            self._file.flush()

    def close(self) -> None:
        self._file.close()
