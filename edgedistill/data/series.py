"""Finds the time series of an open NWB file, wherever they lie, and the exact clock of a regular one.

The input is the pynwb object. The outputs are `Series` (a path inside the file and the pynwb object) and, for a series
that must be regular, its start in seconds and its rate as an exact fraction. Bin edges are counted from that fraction,
because a rate such as 24414.0625 / 24 Hz drifts when it is rounded to a float.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from edgedistill.errors import RecordingError

BLOCK_ROWS = 1 << 20


@dataclass(frozen=True)
class Series:
    """Holds one pynwb TimeSeries and its path, e.g. `processing/ecephys/LFP/ElectricalSeries`."""

    path: str
    node: Any

    @property
    def name(self) -> str:
        """Returns the last part of the path."""
        return str(self.node.name)

    @property
    def shape(self) -> tuple[int, ...]:
        """Returns the shape of the data as stored."""
        return tuple(int(n) for n in getattr(self.node.data, "shape", np.shape(self.node.data)))


def find_series(nwb: Any) -> list[Series]:
    """Returns all time series in the processing modules, `acquisition` and `analysis`, sorted by path."""
    roots = [(f"processing/{name}", module) for name, module in nwb.processing.items()]
    roots += [(f"acquisition/{name}", node) for name, node in nwb.acquisition.items()]
    roots += [(f"analysis/{name}", node) for name, node in nwb.analysis.items()]
    return sorted((found for path, node in roots for found in _walk(path, node)), key=lambda s: s.path)


def _walk(path: str, node: Any) -> Iterator[Series]:
    from pynwb import TimeSeries

    if isinstance(node, TimeSeries):
        yield Series(path, node)
        return
    interfaces = getattr(node, "data_interfaces", None)
    children = interfaces.values() if interfaces is not None else _list_members(node)
    for child in children:
        yield from _walk(f"{path}/{child.name}", child)


def _list_members(node: Any) -> list[Any]:
    """Returns what a container such as LFP or Position holds, with its links, which `children` does not list."""
    for attribute in ("electrical_series", "spatial_series", "time_series"):
        held: Any = getattr(node, attribute, None)
        if hasattr(held, "values"):
            return list(held.values())
    return list(getattr(node, "children", ()))


def find_exact_rate(hz: float, tolerance: float = 1e-9) -> Fraction:
    """Returns the simplest fraction within `tolerance` (relative) of a rate in Hz that was stored as a float.

    Examples: 1000.0 -> 1000, 24414.0625 -> 390625/16, 1017.2526041666666 -> 390625/384. Denominators stop at a
    million, so that the bin edges of day-long sessions still fit 64 bits.
    """
    exact = Fraction(hz)
    for limit in (1, 16, 1000):
        near = exact.limit_denominator(limit)
        if abs(near - exact) <= tolerance * abs(exact):
            return near
    return exact.limit_denominator(1_000_000)


def read_nominal_rate(series: Series) -> float:
    """Returns the rate in Hz without checking the timestamps; 0 where there is none."""
    if series.node.rate is not None:
        return float(series.node.rate)
    times = series.node.timestamps
    if times is None or len(times) < 2:
        return 0.0
    span = float(times[-1]) - float(times[0])
    return (len(times) - 1) / span if span > 0 else 0.0


def read_regular_clock(series: Series, frames: int, file: Path) -> tuple[float, Fraction]:
    """Returns the start in seconds and the exact rate in Hz of a series of `frames` frames.

    Raises RecordingError for a rate that is not a positive number, and for timestamps that leave a regular grid by more
    than half a frame (pauses, lost packets, several recordings in one series).
    """
    nominal = read_nominal_rate(series)
    if not (np.isfinite(nominal) and nominal > 0):
        raise RecordingError(
            f"{file}: {series.path} has no usable clock",
            got=f"rate {series.node.rate}, {0 if series.node.timestamps is None else frames} timestamps",
            expected="a positive rate, or increasing timestamps in seconds",
            next_step="write the series again with `rate` and `starting_time`",
        )
    if series.node.rate is not None:
        start = series.node.starting_time
        return 0.0 if start is None else float(start), find_exact_rate(nominal)
    return _read_clock_from_timestamps(series, frames, file)


def _read_clock_from_timestamps(series: Series, frames: int, file: Path) -> tuple[float, Fraction]:
    times = series.node.timestamps
    if len(times) != frames:
        raise RecordingError(
            f"{file}: {series.path} has {len(times)} timestamps for {frames} frames",
            causes=("the file was cut while it was written", "data and timestamps come from two recordings"),
            next_step="write the series again with `rate` and `starting_time`",
        )
    start, duration = float(times[0]), float(times[-1]) - float(times[0])
    # timestamps are often rounded to a microsecond, which blurs the rate by about 2 us over the whole file
    rate = find_exact_rate((frames - 1) / duration, max(1e-9, 2e-6 / duration))
    off_frames, step_s, step_at = _find_irregularity(times, start, float(rate))
    if not off_frames <= 0.5:
        raise RecordingError(
            f"{file}: the timestamps of {series.path} are irregular",
            got=f"a step of {step_s:.6g} s after frame {step_at}, at {float(times[step_at]):.3f} s, "
            f"where about {float(1 / rate):.6g} s were due",
            expected="frames on a regular grid, each within half a frame",
            causes=("the recording was paused or lost packets", "trials were stored one after another"),
            next_step="store each regular stretch as a file of its own, or fill the pauses with NaN",
        )
    return start, rate


def _find_irregularity(times: Any, start: float, rate: float) -> tuple[float, float, int]:
    """Returns the largest distance from the grid in frames, the oddest step in s, and the frame before that step.

    The timestamps are read in blocks, because an hour at 30 kHz has 0.9 GB of them.
    """
    off, step, step_at = 0.0, 1 / rate, 0
    for first in range(0, len(times), BLOCK_ROWS):
        block = np.asarray(times[first : first + BLOCK_ROWS + 1], dtype=np.float64)
        frames = np.arange(first, first + len(block))
        deviation = np.abs((block - start) * rate - frames)
        off = max(off, float(np.where(np.isnan(deviation), np.inf, deviation).max()))
        steps = np.diff(block)
        if steps.size:
            worst = int(np.argmax(np.where(np.isnan(steps), np.inf, np.abs(steps - 1 / rate))))
            if not abs(steps[worst] - 1 / rate) <= abs(step - 1 / rate):
                step, step_at = float(steps[worst]), first + worst
    return off, step, step_at


def read_strided_rows(data: Any, stride: int, transposed: bool = False) -> npt.NDArray[np.float64]:
    """Reads every `stride`-th row of a dataset as float64, in blocks. `transposed` says that time comes second."""
    rows = data.shape[1] if transposed else len(data)
    step = max(1, BLOCK_ROWS // stride) * stride
    parts = []
    for first in range(0, rows, step):
        block = data[:, first : first + step].T if transposed else data[first : first + step]
        parts.append(np.asarray(block, dtype=np.float64)[::stride])
    return np.concatenate(parts) if parts else np.empty((0,), dtype=np.float64)
