"""Finds how an ElectricalSeries is stored: which axis is time, and what one stored number is in microvolts.

The input is a series. The output is a `Layout`. Volts become microvolts here and nowhere else.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from edgedistill.data.electrodes import read_electrode_rows
from edgedistill.data.series import Series
from edgedistill.errors import RecordingError

# pynwb always says volts; the attribute in the file is what its writer meant
MICROVOLTS = {
    "volts": 1e6, "volt": 1e6, "v": 1e6,
    "millivolts": 1e3, "millivolt": 1e3, "mv": 1e3,
    "microvolts": 1.0, "microvolt": 1.0, "uv": 1.0, "µv": 1.0, "μv": 1.0,
}  # fmt: skip
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
    if len(shape) not in (1, 2) or not np.issubdtype(dtype, np.number) or 0 in shape[1:]:
        raise RecordingError(
            f"{file}: {series.path} is not an LFP of time by channels",
            got=f"shape {shape}, type {dtype}",
            expected="numbers in (time, channels)",
            next_step="write the series again as (time, channels)",
        )
    rows = read_electrode_rows(series.node)
    count = None if rows is None else len(rows)
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
    """Returns the factors from stored numbers to uV: unit times `conversion` times `channel_conversion`."""
    node = series.node
    volts = MICROVOLTS.get(str(getattr(node.data, "attrs", {}).get("unit", "volts")).strip().lower(), 1e6)
    conversion = 1.0 if node.conversion is None else float(node.conversion)
    per_channel = getattr(node, "channel_conversion", None)
    factors = np.ones(channels) if per_channel is None else np.asarray(per_channel[:], np.float64).ravel()
    if len(factors) != channels or not np.isfinite(factors * conversion).all():
        raise RecordingError(
            f"{file}: {series.path} cannot be converted to volts",
            got=f"conversion {conversion}, channel_conversion for {len(factors)} of {channels} channels",
            expected="finite factors, one per channel",
            next_step="correct `conversion` and `channel_conversion` in the file",
        )
    return Scale(factors * conversion * volts, float(getattr(node, "offset", None) or 0.0) * volts)
