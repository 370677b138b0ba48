"""Reads the intervals in which each unit was observed: the column `obs_intervals` of a units table.

Outside these intervals a count of zero says nothing, since the unit could not be heard. The output is one array
(n, 2) of start and stop in seconds a unit, sorted and without overlaps.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from edgedistill.data.units.spike_times import Times
from edgedistill.errors import RecordingError


def read_observed(
    column: Any, names: Sequence[str], where: str, file: Path
) -> tuple[tuple[Times, ...] | None, tuple[str, ...]]:
    """Returns the merged intervals (n, 2) in s of every unit, and notes. None stands for "observed all the time".

    Intervals without a number are left out and noted. A column that is empty for every unit says nothing, so the units
    then count as observed all the time. Raises RecordingError where an interval ends before it begins, and for a column
    of another shape.
    """
    stored = _split_intervals(column, names, where, file)
    notes: list[str] = []
    total, lost = sum(map(len, stored)), 0
    if not total:
        return None, (f"obs_intervals is empty for all {len(names)} units, so they count as observed all the time",)
    observed = []
    for name, intervals in zip(names, stored, strict=True):
        known = intervals[~np.isnan(intervals).any(axis=1)]
        lost += len(intervals) - len(known)
        if (known[:, 1] < known[:, 0]).any():
            at = int(np.argmax(known[:, 1] < known[:, 0]))
            raise RecordingError(
                f"{where}/obs_intervals: an interval of {name} ends before it begins",
                got=f"{known[at, 0]:.3f} to {known[at, 1]:.3f} s",
                expected="start and stop in seconds, in this order",
                next_step=f"correct or delete the column obs_intervals, then edgedistill inspect {file}",
            )
        observed.append(merge_intervals(known))
    if lost:
        notes.append(f"{lost} of {total} observed intervals hold no number and are left out")
    if blind := [name for name, held in zip(names, observed, strict=True) if not (held[:, 1] > held[:, 0]).any()]:
        more = f" and {len(blind) - 5} more" if len(blind) > 5 else ""
        notes.append(f"never observed by obs_intervals: {', '.join(blind[:5])}{more}")
    return tuple(observed), tuple(notes)


def _split_intervals(column: Any, names: Sequence[str], where: str, file: Path) -> list[Times]:
    indexed = hasattr(column, "target")
    values = np.asarray((column.target if indexed else column).data[:], dtype=np.float64)
    ends = np.asarray(column.data[:]).astype(np.int64) if indexed else np.arange(1, len(values) + 1)
    if not values.size:
        values = values.reshape(0, 2)
    fits = (
        len(ends) == len(names) and (np.diff(ends, prepend=0) >= 0).all() and (not len(ends) or ends[-1] <= len(values))
    )
    if values.ndim != 2 or values.shape[1] != 2 or not fits or (len(ends) and ends[-1] != len(values)):
        raise RecordingError(
            f"{where}/obs_intervals does not say when each unit was observed",
            got=f"values of shape {values.shape}, {len(ends)} entries in the index for {len(names)} units"
            + (f", ending at {ends[-1]}" if len(ends) else ""),
            expected="(intervals, 2) and obs_intervals_index (units,)",
            next_step=f"correct or delete the column obs_intervals, then edgedistill inspect {file}",
        )
    return np.split(values, ends[:-1])


def merge_intervals(intervals: Times) -> Times:
    """Returns intervals (n, 2) sorted by start, those that touch or overlap put together."""
    if len(intervals) < 2:
        return intervals
    ordered = intervals[np.argsort(intervals[:, 0], kind="stable")]
    reached = np.maximum.accumulate(ordered[:, 1])
    begins = np.flatnonzero(np.concatenate([[True], ordered[1:, 0] > reached[:-1]]))
    return np.stack([ordered[begins, 0], np.maximum.reduceat(ordered[:, 1], begins)], axis=1)


def find_spikes_unobserved(spike_times: Sequence[Times], observed: Sequence[Times], where: str) -> tuple[str, ...]:
    """Returns a note where spikes lie outside the intervals in which their unit was observed."""
    outside = total = 0
    for unit, intervals in zip(spike_times, observed, strict=True):
        inside = np.searchsorted(unit, intervals[:, 1], side="right") - np.searchsorted(unit, intervals[:, 0])
        outside, total = outside + len(unit) - int(inside.sum()), total + len(unit)
    if not outside:
        return ()
    return (f"{outside} of {total} spikes lie outside obs_intervals, the times in which their units were observed",)
