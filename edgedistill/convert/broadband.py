"""Opens the broadband of a session of O'Doherty, Makin and Sabes, which is NWB 1.0 and so is not read by pynwb.

The input is an open HDF5 file. The output is a `Broadband`: its clock, its channels, and its frames block by block, as
they are stored. An hour has 17 GB, so no more than one block is ever in memory.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from edgedistill.convert.clock import Clock, Segment, read_clock
from edgedistill.convert.makin_source import USAGE
from edgedistill.convert.nwb_parts import parse_time
from edgedistill.convert.source_files import require_dataset
from edgedistill.errors import RecordingError

FOLDER = "acquisition/timeseries/broadband"
MAP = "general/extracellular_ephys/electrode_map"
BLOCK_BYTES = 16 << 20
MOST_BLOCK_BYTES = 256 << 20
VOLTS = ("v", "volt", "volts")


@dataclass(frozen=True)
class Broadband:
    """Holds the broadband of one session, frames (time, channels) of int16."""

    path: Path
    clock: Clock
    channels: int
    channel_names: tuple[str, ...]  # empty where the file names none
    volts_per_bit: float
    electrodes_um: npt.NDArray[np.float64] | None  # (channels, 3), where the file maps all of them
    session_start: datetime | None
    dtype: np.dtype[Any]
    _data: Any = field(repr=False)
    _transposed: bool  # stored (channels, time)

    @property
    def bytes(self) -> int:
        """Returns the size of all frames, uncompressed."""
        return int(np.prod(self._data.shape)) * self.dtype.itemsize

    def count_blocks(self) -> int:
        """Returns how many blocks `read_blocks` yields for all segments together."""
        rows = self._choose_rows()
        return sum(-(-(segment.stop - segment.first) // rows) for segment in self.clock.segments)

    def read_blocks(self, segment: Segment) -> Iterator[npt.NDArray[Any]]:
        """Yields the frames (n, channels) of a segment in order. Raises RecordingError where they cannot be read."""
        rows = self._choose_rows()
        for first in range(segment.first, segment.stop, rows):
            stop = min(first + rows, segment.stop)
            try:
                block = self._data[:, first:stop].T if self._transposed else self._data[first:stop]
            except (OSError, RuntimeError) as error:
                raise RecordingError(
                    f"{self.path}: frames {first} to {stop} of {FOLDER}/data cannot be read",
                    got=str(error),
                    causes=("the download was cut short", "it was compressed with a filter that is not installed"),
                    next_step="download the file again",
                ) from error
            yield block

    def _choose_rows(self) -> int:
        """Returns the frames of a block: whole chunks of the source, so that no chunk is unpacked twice."""
        row_bytes = self.channels * self.dtype.itemsize
        chunks = self._data.chunks
        wanted = chunks[1 if self._transposed else 0] if chunks else 1
        rows = max(1, BLOCK_BYTES // row_bytes)
        return int(-(-rows // wanted) * wanted if wanted * row_bytes <= MOST_BLOCK_BYTES else rows)


def read_broadband(file: Any, path: Path) -> Broadband:
    """Returns the broadband of an open NWB 1.0 file. Raises RecordingError that names what is missing or odd."""
    data = require_dataset(file, f"{FOLDER}/data", path, USAGE)
    timestamps = require_dataset(file, f"{FOLDER}/timestamps", path, USAGE)
    frames = timestamps.shape[0] if timestamps.ndim == 1 else 0
    if data.ndim != 2 or frames < 2 or frames not in data.shape or data.dtype.kind not in "if":
        raise RecordingError(
            f"{path}: {FOLDER}/data does not fit its timestamps",
            got=f"data {data.shape} of {data.dtype}, timestamps {timestamps.shape}",
            expected="numbers in (time, channels), and one timestamp a frame",
            causes=("the file was cut while it was written",),
            next_step="download the file again",
        )
    transposed = data.shape[0] != frames
    channels = data.shape[0] if transposed else data.shape[1]
    return Broadband(
        path=path,
        clock=read_clock(timestamps, path),
        channels=channels,
        channel_names=_read_channel_names(file, channels),
        volts_per_bit=_read_conversion(data, path),
        electrodes_um=_read_map(file, channels),
        session_start=_read_start(file),
        dtype=data.dtype,
        _data=data,
        _transposed=transposed,
    )


def _read_conversion(data: Any, path: Path) -> float:
    conversion, unit = float(data.attrs.get("conversion", np.nan)), _to_text(data.attrs.get("unit", "volt"))
    if not (np.isfinite(conversion) and conversion > 0) or unit.lower() not in VOLTS:
        raise RecordingError(
            f"{path}: {FOLDER}/data cannot be converted to volts",
            got=f"conversion {data.attrs.get('conversion')}, unit '{unit}'",
            expected="a positive attribute `conversion`, to volts",
            next_step="download the file again",
        )
    return conversion


def _read_channel_names(file: Any, channels: int) -> tuple[str, ...]:
    group = file[FOLDER]
    found = group["electrode_names"][()] if "electrode_names" in group else group.attrs.get("Channel Name", ())
    names = tuple(_to_text(name) for name in np.ravel(found))
    return names if len(names) == channels and len(set(names)) == channels else ()


def _read_map(file: Any, channels: int) -> npt.NDArray[np.float64] | None:
    """Returns where the electrodes are, from metres. `electrode_idx` says which row belongs to which channel."""
    rows = file[MAP][()] if MAP in file else np.zeros((0, 3))
    index = np.ravel(file[f"{FOLDER}/electrode_idx"][()]) if f"{FOLDER}/electrode_idx" in file else np.arange(channels)
    if rows.ndim != 2 or rows.shape[1] != 3 or len(index) != channels or index.max() >= len(rows):
        return None
    place = np.asarray(rows[index], np.float64) * 1e6
    return place if np.isfinite(place).all() else None


def _read_start(file: Any) -> datetime | None:
    text = _to_text(file["session_start_time"][()]) if "session_start_time" in file else ""
    try:
        return parse_time(text)
    except ValueError:
        return None


def _to_text(value: Any) -> str:
    value = value.item() if hasattr(value, "item") and np.size(value) == 1 else value
    return (value.decode(errors="replace") if isinstance(value, bytes) else str(value)).strip("\0 ")
