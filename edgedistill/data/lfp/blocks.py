"""Reads frames of one stored array in linear time and bounded memory, whatever its chunks are.

The input is a dataset (time, channels) or its transpose. The output is raw frames in the stored number type. HDF5 can
only unpack whole compressed chunks. Where a stretch of whole chunks over all channels fits the memory, that is what is
read. Otherwise, as with chunks of one channel over the whole session, the array is copied once into a scratch file,
channel after channel, so that each chunk is unpacked once.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from edgedistill.data.series import name_dataset_in_errors
from edgedistill.errors import RecordingError

SPAN_BYTES = 16 << 20  # what is read at a time where chunks are small
MOST_SPAN_BYTES = 256 << 20  # the largest stretch of whole chunks that is held in memory
PATIENCE = 1.5  # frames unpacked per frame of the array, before single reads turn to the scratch file


class FrameReader:
    """Reads frames of one stored array. Neighboring reads share what was unpacked."""

    def __init__(self, data: Any, frames: int, channels: int, transposed: bool, file: Path, series: str) -> None:
        self.data, self.frames, self.channels, self.transposed = data, frames, channels, transposed
        self.file, self.series = file, series
        self.dtype = np.dtype(data.dtype)
        self._row_bytes = self.dtype.itemsize * channels
        self._time_extent, self._channel_extent = self._find_unit()
        self._needs_scratch = self._time_extent * self._row_bytes > MOST_SPAN_BYTES
        unit = 1 if self._needs_scratch else self._time_extent
        self._span = unit * max(1, SPAN_BYTES // (unit * self._row_bytes))
        self._scratch: int | None = None  # the descriptor of the unlinked scratch file
        self._unpacked = 0
        self._held_at, self._held = -1, np.empty((0, channels), self.dtype)

    def __del__(self) -> None:
        if getattr(self, "_scratch", None) is not None:
            os.close(self._scratch)  # type: ignore[arg-type]

    def read(self, start: int, stop: int, streaming: bool = False) -> npt.NDArray[Any]:
        """Returns the raw frames [start, stop) as (frames, channels). `streaming` says that all frames will be read.

        Raises RecordingError when the file cannot be read, and when the scratch file finds no room.
        """
        if start >= stop:
            return np.empty((0, self.channels), self.dtype)
        if self._needs_scratch and self._scratch is None:
            self._unpacked += -(-(stop - start) // self._time_extent) * self._time_extent
            if not streaming and self._unpacked <= PATIENCE * self.frames:
                return self._load(start, stop)
            self._copy_to_scratch()
        first, last = start // self._span, (stop - 1) // self._span
        # views of all spans but the last are copied, as each would keep its whole span in memory
        parts = [self._cut(span, start, stop).copy() for span in range(first, last)]
        parts.append(self._cut(last, start, stop))
        return parts[0] if len(parts) == 1 else np.concatenate(parts)

    def read_channel(self, channel: int, starts: list[int], length: int) -> npt.NDArray[Any]:
        """Returns evenly spaced stretches of one channel, (starts, length), which HDF5 unpacks at once."""
        import h5py

        stride = starts[1] - starts[0] if len(starts) > 1 else length
        if isinstance(self.data, h5py.Dataset) and self.data.ndim == 2:
            blocks = h5py.MultiBlockSlice(start=starts[0], stride=stride, count=len(starts), block=length)
            raw = self._guard(lambda: self.data[(channel, blocks) if self.transposed else (blocks, channel)], *starts)
            return np.asarray(raw).reshape(len(starts), length)
        return np.stack([self._load(at, at + length)[:, channel] for at in starts])

    def _cut(self, span: int, start: int, stop: int) -> npt.NDArray[Any]:
        at = span * self._span
        return self._hold(span)[max(0, start - at) : stop - at]

    def _hold(self, span: int) -> npt.NDArray[Any]:
        if self._held_at != span:
            self._held_at, self._held = -1, np.empty((0, self.channels), self.dtype)  # free it before the next is read
            start, stop = span * self._span, min((span + 1) * self._span, self.frames)
            self._held = self._load(start, stop) if self._scratch is None else self._load_scratch(start, stop)
            self._held_at = span
        return self._held

    def _load(self, start: int, stop: int) -> npt.NDArray[Any]:
        if self.transposed:
            return np.asarray(self._guard(lambda: self.data[:, start:stop], start, stop)).T
        if self._channel_extent < self.channels:  # HDF5 is slow to spread a column over rows
            rows = np.empty((self.channels, stop - start), self.dtype)
            for at in range(0, self.channels, self._channel_extent):
                columns = slice(at, at + self._channel_extent)
                rows[columns] = self._guard(lambda columns=columns: self.data[start:stop, columns], start, stop).T
            return rows.T
        return np.asarray(self._guard(lambda: self.data[start:stop], start, stop)).reshape(-1, self.channels)

    def _guard(self, read: Any, *frames: int) -> Any:
        with name_dataset_in_errors(self.file, f"{self.series}/data (frames {frames[0]} to {frames[-1]})"):
            return read()

    def _find_unit(self) -> tuple[int, int]:
        """Returns the frames and channels that are unpacked together."""
        chunks = getattr(self.data, "chunks", None)
        if not chunks or len(chunks) != len(self.data.shape):
            return 1, self.channels
        wide = (*chunks, 1)
        time, channel = (wide[1], wide[0]) if self.transposed else (wide[0], wide[1])
        if _is_read_in_parts(self.data, int(np.prod(chunks)) * self.dtype.itemsize):
            return 1, self.channels
        return min(int(time), max(1, self.frames)), min(int(channel), self.channels)

    # ------------------------------------------------------------ the scratch file

    def _copy_to_scratch(self) -> None:
        """Copies the array, channel after channel, into a file that has no name and vanishes with this reader."""
        folder, need = tempfile.gettempdir(), self.frames * self._row_bytes
        if (free := shutil.disk_usage(folder).free) < need + (64 << 20):
            raise RecordingError(
                f"{self.file}: no room to sort {self.series} by time",
                got=f"{free / 1e9:.1f} GB free in {folder}",
                expected=f"{need / 1e9:.1f} GB ({need} bytes), as its chunks hold {self._time_extent} frames of "
                f"{self._channel_extent} channels",
                causes=("the dataset is compressed in long chunks of few channels",),
                next_step="set TMPDIR to a folder with room, or store the dataset in chunks of all channels",
            )
        handle: int | None = None
        try:
            handle, name = tempfile.mkstemp(prefix="edgedistill-")
            Path(name).unlink()
            for first in range(0, self.frames, self._time_extent):
                for channel in range(0, self.channels, self._channel_extent):
                    self._copy_chunk(handle, first, channel)
        except BaseException as error:
            if handle is not None:
                os.close(handle)
            if isinstance(error, OSError):
                raise self._scratch_error(error) from error
            raise
        self._scratch = handle

    def _copy_chunk(self, handle: int, first: int, channel: int) -> None:
        last, until = min(first + self._time_extent, self.frames), min(channel + self._channel_extent, self.channels)
        time, channels = slice(first, last), slice(channel, until)
        if len(self.data.shape) == 1:
            where: tuple[slice, ...] = (time,)
        else:
            where = (channels, time) if self.transposed else (time, channels)
        raw = np.asarray(self._guard(lambda: self.data[where], first, last))
        rows = raw if self.transposed else raw.reshape(last - first, -1).T
        for c, row in enumerate(rows, channel):
            at = (c * self.frames + first) * self.dtype.itemsize
            _write_all(handle, np.ascontiguousarray(row), at)

    def _load_scratch(self, start: int, stop: int) -> npt.NDArray[Any]:
        assert self._scratch is not None
        rows = np.empty((self.channels, stop - start), self.dtype)
        for c in range(self.channels):
            at = (c * self.frames + start) * self.dtype.itemsize
            try:
                _read_all(self._scratch, rows[c], at)
            except OSError as error:
                raise self._scratch_error(error) from error
        return rows.T

    def _scratch_error(self, error: OSError) -> RecordingError:
        return RecordingError(
            f"{self.file}: {self.series} cannot be sorted by time",
            got=f"{error.strerror or error} in {tempfile.gettempdir()}",
            expected=f"room for {self.frames * self._row_bytes} bytes, and a drive that works",
            next_step="set TMPDIR to another folder",
        )


def _is_read_in_parts(data: Any, chunk_bytes: int) -> bool:
    """Returns whether HDF5 reads parts of a chunk: no filter changed it, and it is too large for the chunk cache."""
    try:
        filters = data.id.get_create_plist().get_nfilters()
        cache = data.id.get_access_plist().get_chunk_cache()[1]
    except AttributeError:  # not HDF5
        return False
    return bool(filters == 0 and chunk_bytes > cache)


def _write_all(handle: int, values: npt.NDArray[Any], at: int) -> None:
    view = memoryview(values.view(np.uint8).data)
    while view:
        done = os.pwrite(handle, view, at)
        view, at = view[done:], at + done


def _read_all(handle: int, values: npt.NDArray[Any], at: int) -> None:
    view = memoryview(values.view(np.uint8).data)
    while view:
        done = os.preadv(handle, [view], at)
        if done == 0:
            raise OSError("the scratch file is too short")
        view, at = view[done:], at + done
