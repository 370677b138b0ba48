"""Finds how an ElectricalSeries is stored: which axis is time, and what one stored number is in microvolts.

The input is a series. The output is a `Layout`. Volts become microvolts here and nowhere else.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from edgedistill.data.lfp.electrodes import read_electrode_rows
from edgedistill.data.series import Series
from edgedistill.errors import RecordingError

VOLTS = re.compile(r"(micro|milli|nano|u|\u00b5|\u03bc|m|n)?v(olt)?s?")
PREFIXES = {"": 1e6, "milli": 1e3, "m": 1e3, "nano": 1e-3, "n": 1e-3}  # in microvolts; all others are micro
POSSIBLE_UV = (0.1, 2e4)  # deviation of an LFP; noise alone has more, and no electrode gives 20 mV
OBVIOUS_RATIO, OBVIOUS_FRAMES = 10, 1000  # without electrodes, (few, many) is (channels, time)


@dataclass(frozen=True)
class Layout:
    """Says where time and channels lie in the stored array."""

    frames: int
    channels: int
    transposed: bool  # stored (channels, time), against the standard
    why: str | None = None  # why it was taken as transposed


@dataclass(frozen=True, eq=False)
class Scale:
    """Turns stored numbers into microvolts: raw * gain + offset."""

    gain_uv: npt.NDArray[np.float64]  # (channels,)
    offset_uv: float

    def apply(self, raw: npt.NDArray[Any]) -> npt.NDArray[np.float32]:
        """Returns raw (frames, channels) in uV, in the same memory order. NaN stays NaN."""
        # a float32 product is exact enough for int16 and float32; wider types are scaled before they are rounded
        narrow = raw.dtype.itemsize <= 2 or raw.dtype == np.float32
        kind = np.float32 if narrow else np.float64
        scaled = np.multiply(raw, self.gain_uv.astype(kind), dtype=kind)
        if self.offset_uv:
            scaled += kind(self.offset_uv)
        return np.asarray(scaled, dtype=np.float32)


def find_layout(series: Series, file: Path) -> Layout:
    """Returns which axis is time. One row for each electrode, or one column for each timestamp, says it is second.

    Raises RecordingError for data that are not numbers in one or two dimensions, or that do not fit the electrodes.
    """
    shape = series.shape
    dtype = getattr(series.node.data, "dtype", np.dtype(object))
    real = np.issubdtype(dtype, np.integer) or np.issubdtype(dtype, np.floating)
    if len(shape) not in (1, 2) or not real or 0 in shape[1:]:
        raise RecordingError(
            f"{file}: {series.path} is not an LFP of time by channels",
            got=f"shape {shape}, type {dtype}",
            expected="real numbers in (time, channels)",
            next_step="write the series again as (time, channels)",
        )
    rows = read_electrode_rows(series.node)
    count = None if rows is None else len(rows)
    _require_rows_in_table(series, rows or (), file)
    if len(shape) == 1:
        shape = (shape[0], 1)
    if count and count not in shape:
        raise RecordingError(
            f"{file}: the data of {series.path} do not fit its electrodes",
            got=f"shape {series.shape} for {count} electrodes",
            expected=f"({shape[0]}, {count}): time by channels",
            causes=("a row of the electrode table is missing", "a channel that is no electrode, e.g. a sync line"),
            next_step="correct `electrodes` of the series, or write one column for each electrode",
        )
    why = None if len(series.shape) == 1 else _find_transposition(series, shape, count)
    if why is not None:
        return Layout(shape[1], shape[0], True, why)
    return Layout(shape[0], shape[1], False)


def _require_rows_in_table(series: Series, rows: tuple[int, ...], file: Path) -> None:
    """Raises RecordingError where `electrodes` names a row that the table does not have."""
    held = len(series.node.electrodes.table) if rows else 0
    if all(0 <= row < held for row in rows):
        return
    wrong = next(row for row in rows if not 0 <= row < held)
    counted = min(rows) == 1 and max(rows) == held
    raise RecordingError(
        f"{file}: the electrodes of {series.path} are not in the electrode table",
        got=f"row {wrong}, in a table of {held} rows",
        expected=f"rows from 0 to {held - 1}",
        causes=(
            *(("rows were counted from 1, as MATLAB does",) if counted else ()),
            "ids of electrodes were written in place of rows",
            "a row of the electrode table is missing",
        ),
        next_step=f"correct `electrodes` of the series, then edgedistill inspect {file}",
    )


def _find_transposition(series: Series, shape: tuple[int, ...], count: int | None) -> str | None:
    """Returns why the first axis is channels, or None where it is time."""
    first, second = shape
    if count and (first == count) != (second == count):
        return f"it has {count} electrodes" if first == count else None
    times = series.node.timestamps
    if times is not None and (first == len(times)) != (second == len(times)):
        return f"it has {len(times)} timestamps" if second == len(times) else None
    if not count and second >= OBVIOUS_FRAMES and second > OBVIOUS_RATIO * first:
        return "it has far more columns than rows"
    return None


def read_scale(series: Series, channels: int, file: Path) -> Scale:
    """Returns the factors from stored numbers to uV: unit times `conversion` times `channel_conversion`.

    Raises RecordingError for a factor or an `offset` that is not finite, and for another number of factors.
    """
    node = series.node
    volts = microvolts_in(_read_unit(node.data))
    volts = 1e6 if volts is None else volts
    conversion = 1.0 if node.conversion is None else float(node.conversion)
    offset = float(getattr(node, "offset", None) or 0.0)
    per_channel = getattr(node, "channel_conversion", None)
    factors = np.ones(channels) if per_channel is None else np.asarray(per_channel[:], np.float64).ravel()
    if len(factors) != channels or not np.isfinite(factors * conversion).all() or not np.isfinite(offset):
        raise RecordingError(
            f"{file}: {series.path} cannot be converted to volts",
            got=f"conversion {conversion}, offset {offset}, channel_conversion for {len(factors)} of {channels} "
            "channels",
            expected="finite factors, one per channel",
            next_step="correct `conversion`, `offset` and `channel_conversion` in the file",
        )
    return Scale(factors * conversion * volts, offset * volts)


def _read_unit(data: Any) -> str:
    """Returns the attribute `unit` of a dataset, since pynwb says volts whatever its writer meant."""
    stored = np.ravel(getattr(data, "attrs", {}).get("unit", "volts"))
    unit = stored[0] if stored.size else ""
    return (unit.decode("utf-8", "replace") if isinstance(unit, bytes) else str(unit)).strip()


def microvolts_in(unit: str) -> float | None:
    """Returns the microvolts in a unit such as `uV` or `Volts (V)`, or None for one that is no voltage."""
    found = VOLTS.fullmatch(re.sub(r"\(.*?\)|[^a-z\u00b5\u03bc]", "", unit.lower()))
    return None if found is None else PREFIXES.get(found[1] or "", 1.0)


def describe_unit(series: Series) -> str | None:
    """Returns a note on a unit that is not one of voltage, or None."""
    unit = _read_unit(series.node.data)
    if microvolts_in(unit) is not None:
        return None
    return f"the unit of {series.path} is {unit!r}, which is no voltage: its numbers times `conversion` count as volts"


def describe_amplitude(deviation_uv: float) -> str | None:
    """Returns a note on a typical standard deviation in uV that no LFP has, or None. One of 0 is not judged."""
    if deviation_uv == 0 or POSSIBLE_UV[0] <= deviation_uv <= POSSIBLE_UV[1]:
        return None
    return f"LFP of {deviation_uv:.3g} uV (standard deviation): is `conversion` to volts right?"
