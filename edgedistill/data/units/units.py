"""Reads the spike times of an open NWB file.

The input is the pynwb object. The output is `Units`: the spike times of every unit in seconds, the intervals in which
each unit was observed, and the table that they come from. Waveforms and other columns are not read.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from edgedistill.data.candidates import Candidate
from edgedistill.data.lfp.electrodes import read_column
from edgedistill.data.opening.hdf5_datasets import require_readable
from edgedistill.data.units.observed_times import find_spikes_unobserved, read_observed
from edgedistill.data.units.spike_times import Times, clean_spike_times, require_seconds, split_by_unit
from edgedistill.data.units.tables import SPIKE_TIMES, UnitTable, choose_unit_table, find_unit_tables

__all__ = ["Times", "Units", "find_units"]

OBSERVED = "obs_intervals"
NOISE = ("noise", "noisy", "artifact", "artefact")


@dataclass(frozen=True, eq=False)
class Units:
    """Holds the spike times of U units. Iterating gives the spike times (n,) of each unit in s, sorted."""

    file: Path
    series: str  # path of the table, e.g. `units` or `processing/ecephys/units`
    spike_times: tuple[Times, ...] = field(repr=False)
    observed: tuple[Times, ...] | None = field(default=None, repr=False)  # (n, 2) s per unit; None: all the time
    candidates: tuple[Candidate, ...] = ()
    notes: tuple[str, ...] = ()
    names: tuple[str, ...] = field(default=(), repr=False)  # e.g. "unit 7 (row 2)", for messages

    def __len__(self) -> int:
        return len(self.spike_times)

    def __iter__(self) -> Iterator[Times]:
        return iter(self.spike_times)


def find_units(nwb: Any, file: Path, named: str | None = None) -> Units | None:
    """Returns the units of a file, or None where it has none. `named` is the table that the user asked for.

    Raises RecordingError where several tables could be meant, where a table does not say which spike belongs to which
    unit, and where times run backwards or are not in seconds.
    """
    table, candidates = choose_unit_table(find_unit_tables(nwb), file, named)
    if table is None:
        return None
    return read_units(table, file, candidates)


def read_units(table: UnitTable, file: Path, candidates: tuple[Candidate, ...] = ()) -> Units:
    """Reads one table. Raises RecordingError as `find_units` does."""
    where = f"{file}: {table.path}"
    ids = table.node.id.data[:]
    names = tuple(f"unit {ids[row]} (row {row})" for row in range(len(ids)))
    for column in (SPIKE_TIMES, OBSERVED):
        if column in table.node.colnames:
            _require_readable_column(table.node[column], file, table.path)
    stored = split_by_unit(table.node[SPIKE_TIMES], len(names), where, file)
    spike_times, notes = clean_spike_times(stored, names, where, file)
    require_seconds(spike_times, where, file)
    observed = None
    if OBSERVED in table.node.colnames:
        observed, more = read_observed(table.node[OBSERVED], names, where, file)
        notes += more
    notes += _find_marked_noise(table)
    if observed is not None:
        notes += find_spikes_unobserved(spike_times, observed, where)
    return Units(file, table.path, spike_times, observed, candidates, notes, names)


def _find_marked_noise(table: UnitTable) -> tuple[str, ...]:
    """Returns a note where a column of text marks units as noise. They are read, since labs mean unlike things."""
    notes = []
    for name in table.node.colnames:
        column = table.node[name]
        held = None if hasattr(column, "target") else read_column(column.data)
        if held is None:
            continue
        texts = [value.decode(errors="replace") if isinstance(value, bytes) else value for value in held]
        if marked := sum(isinstance(text, str) and text.strip().lower() in NOISE for text in texts):
            notes.append(f"{marked} of {len(texts)} units are marked as noise in the column {name}; they are read too")
    return tuple(notes)


def _require_readable_column(column: Any, file: Path, table: str) -> None:
    """Checks a column, and the column that it is an index of."""
    while column is not None:
        require_readable(column.data, file, f"{table}/{column.name}")
        column = getattr(column, "target", None)
