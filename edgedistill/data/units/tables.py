"""Finds the tables of an open NWB file that could hold spike times, and chooses the one that is read.

The input is the pynwb object. The outputs are the table that is read and one `Candidate` for each table, which says why
it is read or not.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edgedistill.data.candidates import Candidate, find_named
from edgedistill.errors import RecordingError

SPIKE_TIMES = "spike_times"


@dataclass(frozen=True)
class UnitTable:
    """Holds one pynwb table and its path, e.g. `units` or `processing/ecephys/units`."""

    path: str
    node: Any

    @property
    def lack(self) -> str | None:
        """Returns why the table gives no spike times, or None where it does."""
        columns = self.node.colnames or ()
        if SPIKE_TIMES not in columns:
            return f"has no column {SPIKE_TIMES}, only {', '.join(columns) or 'no columns at all'}"
        return None if len(self.node) else "has no rows"


def find_unit_tables(nwb: Any) -> list[UnitTable]:
    """Returns every Units table, and every other table with spike times. The table at /units comes first."""
    roots = [("units", nwb.units)] if nwb.units is not None else []
    roots += [(f"processing/{name}", module) for name, module in nwb.processing.items()]
    for place in ("acquisition", "analysis", "scratch"):
        roots += [(f"{place}/{name}", node) for name, node in (getattr(nwb, place, None) or {}).items()]
    return [table for path, node in roots for table in _walk(path, node)]


def _walk(path: str, node: Any) -> Iterator[UnitTable]:
    from hdmf.common import DynamicTable
    from pynwb import TimeSeries
    from pynwb.misc import Units

    if isinstance(node, DynamicTable):
        if isinstance(node, Units) or SPIKE_TIMES in (node.colnames or ()):
            yield UnitTable(path, node)
        return
    if isinstance(node, TimeSeries):
        return
    for child in getattr(node, "children", ()):
        yield from _walk(f"{path}/{child.name}", child)


def choose_unit_table(
    tables: Sequence[UnitTable], file: Path, named: str | None
) -> tuple[UnitTable | None, tuple[Candidate, ...]]:
    """Returns the table that is read and what is said of every table. Without a name, /units comes before the others.

    Raises RecordingError for a name that no table has, a named table without spike times, and several equal tables.
    """
    usable = [table for table in tables if table.lack is None]
    if named is not None:
        chosen: UnitTable | None = _take_named(tables, file, named)
        why = "named by --units"
    else:
        first = [table for table in usable if table.path == "units"] or usable
        if len(first) > 1:
            raise _several_tables_error(first, file)
        chosen = first[0] if first else None
        why = "the units table of the file" if chosen and chosen.path == "units" else "the only table with spike times"
    instead = "nothing" if chosen is None else chosen.path
    return chosen, tuple(
        Candidate(table.path, table is chosen, why if table is chosen else table.lack or f"{instead} is read instead")
        for table in tables
    )


def _take_named(tables: Sequence[UnitTable], file: Path, named: str) -> UnitTable:
    found = find_named(tables, named, "--units", file)
    usable = [table for table in found if table.lack is None]
    if len(usable) > 1:
        raise _several_tables_error(usable, file)
    if not usable:
        raise RecordingError(
            f"{file}: {found[0].path} {found[0].lack}",
            expected=f"a table with a column {SPIKE_TIMES} and one row a unit",
            next_step=f"edgedistill inspect {file} lists every table that could be read",
        )
    return usable[0]


def _several_tables_error(tables: Sequence[UnitTable], file: Path) -> RecordingError:
    listed = ", ".join(f"{table.path} ({len(table.node)} units)" for table in tables)
    return RecordingError(
        f"{file}: {len(tables)} tables hold spike times, and nothing says which is meant",
        got=listed,
        next_step="name one: " + " or ".join(f"--units {table.path}" for table in tables),
    )
