"""Finds the time series of an open NWB file, wherever they lie, and the exact rate of a regular one.

The input is the pynwb object. The outputs are `Series` (a path inside the file and the pynwb object) and rates as exact
fractions. Bin edges are counted from such a fraction, because a rate such as 24414.0625 / 24 Hz drifts when it is
rounded to a float.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
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


@contextmanager
def name_dataset_in_errors(file: Path, dataset: str) -> Iterator[None]:
    """Turns a failed read inside the block into a RecordingError that names the file and the dataset."""
    try:
        yield
    except (OSError, RuntimeError) as error:
        raise RecordingError(
            f"{file}: {dataset} cannot be read",
            got=" ".join(str(error).split()),
            causes=("the file is damaged", "it was compressed with a filter that is not installed"),
            next_step="copy the file again, or check it with `h5ls -r`",
        ) from error


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


def read_strided_rows(data: Any, stride: int, transposed: bool = False) -> npt.NDArray[np.float64]:
    """Reads every `stride`-th row of a dataset as float64, in blocks. `transposed` says that time comes second."""
    rows = data.shape[1] if transposed else len(data)
    step = max(1, BLOCK_ROWS // stride) * stride
    parts = []
    for first in range(0, rows, step):
        block = data[:, first : first + step].T if transposed else data[first : first + step]
        parts.append(np.asarray(block, dtype=np.float64)[::stride])
    return np.concatenate(parts) if parts else np.empty((0,), dtype=np.float64)
