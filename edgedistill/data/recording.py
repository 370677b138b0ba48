"""Reads one session of an NWB file: units, LFP, behavior and electrodes, each when it is asked for.

The input is a path. The output is a `Recording`, a context manager that holds the file open. Parts that a file lacks
are None. `require` raises one error where parts that a command needs are missing, and names what the file does hold.
Times are seconds on the clock of the file. The LFP keeps its own start and exact rate, see `lfp`.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from copy import copy
from datetime import datetime, timezone
from functools import cached_property
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np

from edgedistill.data.behavior.behavior import Behavior
from edgedistill.data.behavior.candidates import find_unusable_behavior
from edgedistill.data.behavior.choice import find_behavior, find_behavior_series
from edgedistill.data.candidates import NO_NAMES, SeriesNames
from edgedistill.data.invalid_times import PATH as INVALID_TIMES
from edgedistill.data.invalid_times import InvalidTime, read_invalid_times
from edgedistill.data.lfp.electrodes import read_column, to_plain
from edgedistill.data.lfp.lfp import Lfp, find_lfp
from edgedistill.data.opening.hdf5_datasets import require_readable
from edgedistill.data.opening.nwb_reading import Unreadable
from edgedistill.data.opening.opening import explain_read_errors, open_nwb
from edgedistill.data.series import Series, find_series
from edgedistill.data.units.tables import find_unit_tables
from edgedistill.data.units.units import Units, find_units
from edgedistill.errors import RecordingError, did_you_mean

__all__ = ["PARTS", "Behavior", "Lfp", "Recording", "SeriesNames", "Units", "open_recording"]

PARTS = ("units", "lfp", "behavior")
PART_NAMES = {"units": "units (spike times)", "lfp": "LFP", "behavior": "behavior"}


class Recording:
    """Reads the parts of one open session on demand. Use it in a `with` block, which closes the file."""

    def __init__(
        self, path: Path, io: Any, nwb: Any, unreadable: tuple[Unreadable, ...], names: SeriesNames = NO_NAMES
    ) -> None:
        self.path, self.names, self.unreadable = path, names, unreadable
        self._io, self._nwb = io, nwb

    def __enter__(self) -> Recording:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Closes the file. Parts that were not read yet can no longer be read."""
        self._io.close()

    def with_names(self, names: SeriesNames) -> Recording:
        """Returns the same open file with other series named. It is closed with this one."""
        other = copy(self)
        for part in PARTS:
            other.__dict__.pop(part, None)  # it was read by the former names
        other.names = names
        return other

    def with_lfp(self, lfp: Lfp) -> Recording:
        """Returns the same open file with this LFP in place of its own. It is closed with this one."""
        other = copy(self)
        other.__dict__["lfp"] = lfp
        return other

    @property
    def session_id(self) -> str:
        """Returns the session id, or the name of the file where it has none."""
        return str(self._nwb.session_id or self.path.stem)

    @property
    def identifier(self) -> str:
        """Returns the identifier of the file, which is meant to be unique."""
        return str(self._nwb.identifier or "")

    @property
    def subject_id(self) -> str | None:
        """Returns the id of the subject, or None where the file names no subject."""
        subject = self._nwb.subject
        return str(subject.subject_id) if subject is not None and subject.subject_id else None

    @property
    def session_start(self) -> str:
        """Returns the start of the session as ISO 8601 in UTC, so that strings sort by time.

        A start without a time zone counts as local time, as pynwb takes it. Raises RecordingError for one at the end of
        all years that can be counted.
        """
        start = self._nwb.session_start_time
        if not isinstance(start, datetime):  # a date without a time
            start = datetime(start.year, start.month, start.day)
        try:
            return str(start.astimezone(timezone.utc).isoformat())
        except OverflowError as error:
            raise RecordingError(f"{self.path}: it has no date that can be", got=f"started on {start}") from error

    @cached_property
    def series(self) -> list[Series]:
        """Returns every time series of the file."""
        return find_series(self._nwb)

    @cached_property
    def lfp(self) -> Lfp | None:
        """Returns the LFP, or None. Raises RecordingError when it has no regular clock or cannot be read."""
        self._require_named_readable("--lfp", self.names.lfp)
        with self._explain_errors("the LFP"):
            lfp = find_lfp(self.series, self.path, self.names.lfp)
        self._require_readable_series(() if lfp is None else lfp.series.split(" + "))
        return lfp

    @cached_property
    def behavior(self) -> Behavior | None:
        """Returns the behavior, or None. Raises RecordingError when the series that was named cannot be read."""
        self._require_named_readable("--behavior", self.names.behavior)
        with self._explain_errors("the behavior"):
            behavior = find_behavior(self.series, self.path, self.names.behavior)
        self._require_readable_series(() if behavior is None else behavior.paths)
        return behavior

    @cached_property
    def units(self) -> Units | None:
        """Returns the units; None when the file has none. Raises RecordingError where their times cannot be used."""
        self._require_named_readable("--units", self.names.units)
        with self._explain_errors("the spike times"):
            return find_units(self._nwb, self.path, self.names.units)

    @property
    def unit_tables(self) -> list[str]:
        """Returns the paths of all tables that could hold spike times."""
        return [table.path for table in find_unit_tables(self._nwb)]

    @cached_property
    def invalid_times(self) -> tuple[InvalidTime, ...]:
        """Returns the stretches that `intervals/invalid_times` marks, sorted. Raises RecordingError for a bad row."""
        for part in self.unreadable:
            if INVALID_TIMES in (part.path, part.path.rpartition("/")[0]):
                raise self._unreadable_part_error(part)
        with self._explain_errors(INVALID_TIMES):
            return read_invalid_times(self._nwb, self.path)

    @cached_property
    def electrodes(self) -> list[dict[str, object]]:
        """Returns the electrode table as one plain dict an electrode. The list is empty without a table."""
        table = self._nwb.electrodes
        if table is None:
            return []
        with self._explain_errors("the electrode table"):
            for name in table.colnames:
                require_readable(table[name].data, self.path, f"general/extracellular_ephys/electrodes/{name}")
            columns = {name: data for name in table.colnames if (data := read_column(table[name].data)) is not None}
        return [
            {"id": int(table.id[row])} | {name: _to_json(column[row]) for name, column in columns.items()}
            for row in range(len(table))
        ]

    def require(self, need: Iterable[str]) -> None:
        """Raises RecordingError that names all parts in `need` (from PARTS) which the file lacks."""
        wanted = tuple(need)
        if unknown := [part for part in wanted if part not in PARTS]:
            raise ValueError(f"unknown part {unknown[0]!r}; {did_you_mean(unknown[0], PARTS)}")
        missing = [part for part in wanted if getattr(self, part) is None]
        if not missing:
            return
        causes = self._find_causes(missing)
        held = find_behavior_series(self.series) if "behavior" in missing else []
        if "behavior" in missing:
            causes += [f"{path}: {why}" for path, why in find_unusable_behavior(self.series)[:5]]
        if held:
            causes.append(f"none of these is a velocity or a position: {', '.join(s.path for s in held)}")
        raise RecordingError(
            f"{self.path}: no {' and no '.join(PART_NAMES[part] for part in missing)}",
            got=self.describe_contents(),
            expected=", ".join(PART_NAMES[part] for part in wanted),
            causes=causes,
            next_step=self._suggest_step(bool(held)),
        )

    def _suggest_step(self, could_be_named: bool) -> str:
        if self.unreadable:
            return f"bring back or correct what cannot be read, then edgedistill inspect {self.path}"
        if could_be_named:
            return f"name one of these series with --behavior; edgedistill inspect {self.path} says why none is read"
        return f"edgedistill inspect {self.path} shows which commands can use this file"

    def _find_causes(self, missing: Sequence[str]) -> list[str]:
        causes = [f"this part cannot be read: {part}" for part in self.unreadable[:5]]
        if "units" in missing:
            causes += [f"{table.path} {table.lack}" for table in find_unit_tables(self._nwb) if table.lack]
        return causes

    def describe_contents(self) -> str:
        """Returns what the file holds, in one line. A part that cannot be read is listed as such."""
        parts = []
        try:
            parts += [] if self.units is None else [f"{len(self.units)} units"]
        except RecordingError:
            parts.append("units that cannot be used")
        parts += [series.path for series in self.series]
        parts += [f"{part.path} (cannot be read)" for part in self.unreadable]
        return ", ".join(parts) or "neither units nor time series"

    @contextmanager
    def _explain_errors(self, what: str) -> Iterator[None]:
        """Explains a read that fails: by a missing filter of any series that was looked at, else as `opening` does."""
        try:
            with explain_read_errors(self.path, what):
                yield
        except RecordingError as error:
            if isinstance(error.__cause__, (OSError, RuntimeError)):
                self._require_readable_series([series.path for series in self.series])
            raise

    def _require_readable_series(self, paths: Iterable[str]) -> None:
        """Raises RecordingError where the data or the clock of a series need a filter that is not installed."""
        wanted = set(paths)
        for series in self.series:
            if series.path in wanted:
                for name in ("data", "timestamps"):
                    require_readable(getattr(series.node, name, None), self.path, f"{series.path}/{name}")

    def _require_named_readable(self, option: str, named: str | None) -> None:
        """Raises RecordingError where the series that the user named is one that cannot be read."""
        asked = (named or "").strip("/").lower()
        for part in self.unreadable:
            if asked and f"/{part.path.lower()}".endswith(f"/{asked}"):
                raise self._unreadable_part_error(part, f"{option} {named}: ")

    def _unreadable_part_error(self, part: Unreadable, option: str = "") -> RecordingError:
        shape = f"shape {part.shape}, " if part.shape is not None else ""
        return RecordingError(
            f"{self.path}: {option}{part.path} cannot be read",
            got=f"{shape}{part.why}",
            next_step=f"correct it, or choose another part: edgedistill inspect {self.path} lists what can be read",
        )


def open_recording(path: str | Path, names: SeriesNames = NO_NAMES) -> Recording:
    """Opens a session for reading: an NWB file in HDF5, or a Zarr folder where hdmf-zarr is installed.

    `names` holds the series that the user named. Raises RecordingError when the path is not a whole NWB 2 file. Parts
    that cannot be read do not stop the others from being read, see `Recording.unreadable`.
    """
    return Recording(Path(path), *open_nwb(Path(path)), names)


def _to_json(value: Any) -> object:
    """Turns numpy scalars into Python numbers and everything else into text, ready for JSON."""
    value = to_plain(value)
    if isinstance(value, float) and not np.isfinite(value):
        return None
    return value if isinstance(value, (bool, int, float, str)) else str(getattr(value, "name", value))
