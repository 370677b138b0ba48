"""Reads the MATLAB file of a session of O'Doherty, Makin and Sabes: movement, spikes and the names of the channels.

The input is an open MATLAB 7.3 file (HDF5), in which every matrix is transposed and every cell is a reference. The
output is a `MakinSession`. Published at doi:10.5281/zenodo.3854034, where the variables are described.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from edgedistill.convert.source_files import read_array, require_dataset
from edgedistill.errors import RecordingError

Array = npt.NDArray[np.float64]
NAME = re.compile(r"(indy|loco)_(\d{4})(\d{2})(\d{2})_(\d+)")  # animal, year, month, day, number
USAGE = "edgedistill convert makin FILE.mat BROADBAND.nwb --out OUT.nwb"


@dataclass(frozen=True)
class MakinUnit:
    """Holds the spike times (n,) in s of one unit. `number` 0 are the crossings that no sorted unit took."""

    channel: int
    number: int
    times_s: Array


@dataclass(frozen=True)
class MakinSession:
    """Holds one session. Positions are (n, columns) at `times_s` (n,): cursor and target in mm, the finger in cm."""

    times_s: Array
    cursor_pos: Array
    finger_pos: Array
    target_pos: Array
    channel_names: tuple[str, ...]
    units: tuple[MakinUnit, ...]  # those with spikes

    @property
    def span_s(self) -> tuple[float, float]:
        """Returns the first and last time of movement and spikes in seconds."""
        first = [self.times_s[0], *(unit.times_s[0] for unit in self.units)]
        last = [self.times_s[-1], *(unit.times_s[-1] for unit in self.units)]
        return float(min(first)), float(max(last))


def read_makin(file: Any, path: Path) -> MakinSession:
    """Returns the session in an open MATLAB 7.3 file. Raises RecordingError that names what is missing or odd."""
    times = _read_times(file, path)
    names = _read_names(file, path)
    return MakinSession(
        times_s=times,
        cursor_pos=_read_positions(file, "cursor_pos", len(times), (2,), path),
        finger_pos=_read_positions(file, "finger_pos", len(times), (2, 3, 6), path),
        target_pos=_read_positions(file, "target_pos", len(times), (2, 3), path),
        channel_names=names,
        units=_read_units(file, len(names), path),
    )


def _read_times(file: Any, path: Path) -> Array:
    times = read_array(require_dataset(file, "t", path, USAGE), path).astype(np.float64).ravel()
    if len(times) < 2 or not (np.diff(times) > 0).all():
        at = int(np.argmin(np.diff(times))) if len(times) > 1 else 0
        raise RecordingError(
            f"{path}: 't' is no clock",
            got=f"{len(times)} times, {times[at : at + 2].tolist()} at sample {at}",
            expected="times in seconds that increase",
            next_step="download the file again",
        )
    return times


def _read_positions(file: Any, name: str, samples: int, columns: tuple[int, ...], path: Path) -> Array:
    found = read_array(require_dataset(file, name, path, USAGE), path).astype(np.float64)
    if found.ndim == 2 and found.shape[1] == samples and found.shape[0] in columns:
        return np.ascontiguousarray(found.T)
    raise RecordingError(
        f"{path}: '{name}' does not fit 't'",
        got=f"shape {found.shape}",
        expected=f"({' or '.join(map(str, columns))}, {samples})",
        causes=("another data set",),
        next_step=USAGE,
    )


def _read_names(file: Any, path: Path) -> tuple[str, ...]:
    cells = require_dataset(file, "chan_names", path, USAGE)
    texts = [_read_cell(file, cell, path) for cell in read_array(cells, path).ravel()]
    return tuple("".join(chr(int(code)) for code in text.ravel()).strip() for text in texts)


def _read_units(file: Any, channels: int, path: Path) -> tuple[MakinUnit, ...]:
    cells = require_dataset(file, "spikes", path, USAGE)
    if cells.dtype.kind != "O" or cells.ndim != 2 or channels not in cells.shape:
        raise RecordingError(
            f"{path}: 'spikes' is no cell array of channels by units",
            got=f"shape {cells.shape} of {cells.dtype}, {channels} names of channels",
            expected=f"references, (units, {channels})",
            next_step=USAGE,
        )
    grid = read_array(cells, path)
    grid = grid if grid.shape[1] == channels else grid.T  # MATLAB's channels x units are transposed in HDF5
    units = []
    for channel in range(channels):
        for number in range(len(grid)):
            times = _read_cell(file, grid[number, channel], path).astype(np.float64).ravel()
            if len(times := np.sort(times[np.isfinite(times)])):
                units.append(MakinUnit(channel, number, times))
    return tuple(units)


def _read_cell(file: Any, reference: Any, path: Path) -> npt.NDArray[Any]:
    """Returns the values of one cell. MATLAB stores an empty one as its shape, with an attribute that says so."""
    if not reference:
        return np.zeros(0)
    cell = file[reference]
    return np.zeros(0) if cell.attrs.get("MATLAB_empty", 0) else read_array(cell, path)


def split_name(name: str) -> tuple[str, int | None]:
    """Splits "M1 001" into the region "M1" and the number 1; the number is None where the name has none."""
    found = re.fullmatch(r"\s*(.*?)[\s_-]*(\d+)\s*", name)
    if found is None or not found[1]:
        return name.strip(), None
    return found[1], int(found[2])
