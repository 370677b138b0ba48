"""Splits the spike times of a units table by unit, and puts them in order where that is harmless.

The input is the column `spike_times` of a table. The output is one sorted array a unit, and notes on what was dropped.
Times that run backwards come from a clock that was reset, and sorting them would put spikes beside a field potential
of another time. Such a table is refused.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from edgedistill.errors import RecordingError

Times = npt.NDArray[np.float64]

HARMLESS_S = 1e-3  # spikes of one unit that swap places within this time: two electrodes of one sorter
MIN_INTEGERS = 100  # so many spikes at whole seconds and at no others are counts of samples
MANY_RESTARTS = 3


def split_by_unit(column: Any, units: int, where: str, file: Path) -> tuple[Times, ...]:
    """Returns the spike times of every unit as stored. `where` begins each message: the file and the table.

    Raises RecordingError where the index that says which spike belongs to which unit is missing or does not fit.
    """
    if not hasattr(column, "target"):
        raise _no_index_error(column, units, where, file)
    ends, data = np.asarray(column.data[:]), column.target.data
    count = len(data)
    shape = getattr(data, "shape", (count,))
    numeric = np.issubdtype(getattr(data, "dtype", np.asarray(data[:1]).dtype), np.number)
    if hasattr(column.target, "target") or len(shape) != 1 or not numeric:
        raise RecordingError(
            f"{where}/spike_times is not one list of times a unit",
            got=f"shape {shape}, type {getattr(data, 'dtype', 'unknown')}"
            + (", with an index of an index" if hasattr(column.target, "target") else ""),
            expected="numbers (spikes,) and spike_times_index (units,)",
            next_step="write the units again with pynwb's `add_unit(spike_times=...)`",
        )
    if fault := _find_index_fault(ends, units, count):
        raise RecordingError(
            f"{where}/spike_times_index does not fit spike_times",
            got=fault,
            expected=f"the place behind the last spike of each unit, rising to {count}",
            causes=(
                "the file was cut while it was written",
                "an index in 8 bits that ran over, as old versions of hdmf wrote",
                "spikes that were appended without their index",
            ),
            next_step=f"write the units again with pynwb's `add_unit`, then edgedistill inspect {file}",
        )
    times = np.asarray(data[:], dtype=np.float64)
    return tuple(np.split(times, ends[:-1].astype(np.int64)))


def _find_index_fault(ends: npt.NDArray[Any], units: int, count: int) -> str | None:
    if ends.ndim != 1:
        return f"shape {ends.shape}"
    if len(ends) != units:
        return f"{len(ends)} entries for {units} units"
    if not np.issubdtype(ends.dtype, np.integer):
        return f"entries of type {ends.dtype}"
    steps = np.diff(ends.astype(np.float64), prepend=0)
    if (steps < 0).any():
        row = int(np.argmax(steps < 0))
        return f"it falls to {ends[row]} at row {row}, after {ends[row - 1] if row else 0}"
    if (last := int(ends[-1])) > count:
        return f"row {int(np.argmax(ends > count))} ends at {int(ends[np.argmax(ends > count)])} of {count} times"
    return None if last == count else f"it ends at {last}, so {count - last} of {count} times belong to no unit"


def _no_index_error(column: Any, units: int, where: str, file: Path) -> RecordingError:
    shape = getattr(column.data, "shape", (len(column.data),))
    path = where.removeprefix(f"{file}: ")
    return RecordingError(
        f"{where} has spike_times but no spike_times_index, so nothing says which spike belongs to which unit",
        got=f"times of shape {tuple(shape)} for {units} rows"
        + (", that is one spike a unit" if tuple(shape) == (units,) else ""),
        expected=f"{path}/spike_times_index with one entry a unit: the number of spikes up to the end of that unit",
        causes=("a file that was written by hand, or by an old version of MatNWB", "one unit, written without index"),
        next_step="write the units again with pynwb's `add_unit(spike_times=...)`, once a unit, "
        f"then edgedistill inspect {file}",
    )


def clean_spike_times(
    stored: Sequence[Times], names: Sequence[str], where: str, file: Path
) -> tuple[tuple[Times, ...], tuple[str, ...]]:
    """Returns finite, sorted times, and notes on times that are no number, below zero, or were put in order.

    Raises RecordingError where the times of a unit run backwards by more than a millisecond.
    """
    finite = tuple(unit[np.isfinite(unit)] for unit in stored)
    total = sum(map(len, stored))
    notes = []
    if lost := total - sum(map(len, finite)):
        notes.append(f"{lost} of {total} spike times are no number and are left out")
    if early := sum(int((unit < 0).sum()) for unit in finite):
        notes.append(
            f"{early} of {total} spike times lie before 0 s, the first at {min(_first(u) for u in finite):.3f}"
        )
    falls = [_find_fall(unit) for unit in finite]
    if any(fall > HARMLESS_S for fall in falls):
        raise _backwards_error(stored, falls, names, where, file)
    if swapped := sum(fall > 0 for fall in falls):
        notes.append(f"the spikes of {swapped} units are out of order by at most {1e3 * max(falls):.3g} ms; sorted")
    ordered = tuple(np.sort(unit) if fall > 0 else unit for unit, fall in zip(finite, falls, strict=True))
    return ordered, tuple(notes)


def _first(unit: Times) -> float:
    return float(unit.min()) if len(unit) else np.inf


def _find_fall(unit: Times) -> float:
    """Returns by how many seconds a time lies at most before an earlier entry; 0 for times in order."""
    return float((np.maximum.accumulate(unit) - unit).max()) if len(unit) else 0.0


def _backwards_error(
    stored: Sequence[Times], falls: Sequence[float], names: Sequence[str], where: str, file: Path
) -> RecordingError:
    row = next(row for row, fall in enumerate(falls) if fall > HARMLESS_S)
    unit = stored[row]
    kept = np.flatnonzero(np.isfinite(unit))
    steps = np.diff(unit[kept])
    at = int(np.argmax(np.maximum.accumulate(unit[kept]) - unit[kept] > HARMLESS_S))
    restarts = int((steps < -HARMLESS_S).sum())
    often = f"; {restarts} such steps in this unit" if restarts > 1 else ""
    others = sum(fall > HARMLESS_S for fall in falls) - 1
    here, before = kept[at], kept[at - 1]
    first = "times relative to trials, which begin again with each trial"
    reset = "a clock that was reset, or two recordings one after another"
    return RecordingError(
        f"{where}: the spike times of {names[row]} run backwards",
        got=f"{unit[here]:.6f} s at index {here} after {unit[before]:.6f} s at index {before}{often}"
        + (f"; {others} other units run backwards too" if others else ""),
        expected="times in seconds that rise within a unit, all on the clock of the file",
        causes=(*((first, reset) if restarts >= MANY_RESTARTS else (reset, first)), "units that were merged, unsorted"),
        next_step="add to every stretch the time at which it began, or sort the times of a unit where all are on one "
        f"clock; write the units again, then edgedistill inspect {file}",
    )


def require_seconds(spike_times: Sequence[Times], where: str, file: Path) -> None:
    """Raises RecordingError where all times are whole numbers, as counts of samples are and spikes never."""
    total = sum(map(len, spike_times))
    if total < MIN_INTEGERS or not all((unit == np.rint(unit)).all() for unit in spike_times):
        return
    last = max(float(unit[-1]) for unit in spike_times if len(unit))
    raise RecordingError(
        f"{where}: the spike times are not in seconds",
        got=f"{total} spikes, all at whole numbers, the last at {last:.0f}",
        expected="seconds",
        causes=("the times are numbers of samples", "the times are milliseconds or microseconds", "rounded times"),
        next_step=f"divide them by the sampling rate and write the units again, then edgedistill inspect {file}",
    )
