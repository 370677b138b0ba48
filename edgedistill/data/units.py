"""Reads the spike times of an open NWB file.

The input is the pynwb object. The output is `Units`: the spike times of every unit in seconds, the intervals in which
each unit was observed, and the table that they come from.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from edgedistill.data.candidates import Candidate

Times = npt.NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Units:
    """Holds the spike times of U units. Iterating gives the spike times (n,) of each unit in s, sorted."""

    file: Path
    series: str  # path of the table, e.g. `units` or `processing/ecephys/units`
    spike_times: tuple[Times, ...] = field(repr=False)
    observed: tuple[Times, ...] | None = field(default=None, repr=False)  # (n, 2) s per unit; None: all the time
    candidates: tuple[Candidate, ...] = ()
    notes: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.spike_times)

    def __iter__(self) -> Iterator[Times]:
        return iter(self.spike_times)


def find_units(nwb: Any, file: Path, named: str | None = None) -> Units | None:
    """Returns the units of a file, or None where it has none. `named` is the table that the user asked for."""
    table = nwb.units
    if table is None or len(table) == 0 or "spike_times" not in table.colnames:
        return None
    index = table["spike_times"]
    ends = np.asarray(index.data[:], dtype=np.int64)
    times = np.asarray(index.target.data[:], dtype=np.float64)
    return Units(file, "units", tuple(np.sort(unit[np.isfinite(unit)]) for unit in np.split(times, ends[:-1])))
