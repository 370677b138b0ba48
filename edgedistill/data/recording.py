"""Reads one session of an NWB file: units, LFP, behavior and electrodes, each when it is asked for.

The input is a path. The output is a `Recording`, a context manager that holds the file open. Parts that a file lacks
are None. `require` raises one error where parts that a command needs are missing, and names what the file does hold.
Times are seconds on the clock of the file. The LFP keeps its own start and exact rate, see `lfp`.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from copy import copy
from datetime import timezone
from functools import cached_property
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np

from edgedistill.data.behavior import Behavior
from edgedistill.data.behavior_choice import find_behavior, find_behavior_series
from edgedistill.data.candidates import NO_NAMES, SeriesNames
from edgedistill.data.lfp import Lfp, find_lfp
from edgedistill.data.series import Series, find_series
from edgedistill.data.session_files import damaged_file_error, open_nwb2, require_hdf5
from edgedistill.data.units import Units, find_units
from edgedistill.errors import RecordingError, did_you_mean

__all__ = ["PARTS", "Behavior", "Lfp", "Recording", "SeriesNames", "Units", "open_recording"]

PARTS = ("units", "lfp", "behavior")
PART_NAMES = {"units": "units (spike times)", "lfp": "LFP", "behavior": "behavior"}


class Recording:
    """Reads the parts of one open session on demand. Use it in a `with` block, which closes the file."""

    def __init__(self, path: Path, io: Any, nwb: Any, names: SeriesNames) -> None:
        self.path, self.names = path, names
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

    @property
    def session_id(self) -> str:
        """Returns the session id, or the name of the file where it has none."""
        return str(self._nwb.session_id or self.path.stem)

    @property
    def subject_id(self) -> str | None:
        """Returns the id of the subject, or None where the file names no subject."""
        subject = self._nwb.subject
        return str(subject.subject_id) if subject is not None and subject.subject_id else None

    @property
    def session_start(self) -> str:
        """Returns the start of the session as ISO 8601 in UTC, so that strings sort by time."""
        return str(self._nwb.session_start_time.astimezone(timezone.utc).isoformat())

    @cached_property
    def series(self) -> list[Series]:
        """Returns every time series of the file."""
        return find_series(self._nwb)

    @cached_property
    def lfp(self) -> Lfp | None:
        """Returns the LFP, or None. Raises RecordingError when it has no regular clock."""
        return find_lfp(self.series, self.path, self.names.lfp)

    @cached_property
    def behavior(self) -> Behavior | None:
        """Returns the behavior, or None. Raises RecordingError when the series that `behavior` names does not exist."""
        return find_behavior(self.series, self.path, self.names.behavior)

    @cached_property
    def units(self) -> Units | None:
        """Returns the units; None when the file has none. Raises RecordingError where their times cannot be used."""
        with _name_file_in_errors(self.path, "spike times"):
            return find_units(self._nwb, self.path, self.names.units)

    @cached_property
    def electrodes(self) -> list[dict[str, object]]:
        """Returns the electrode table as one plain dict an electrode. The list is empty without a table."""
        table = self._nwb.electrodes
        if table is None:
            return []
        columns = {name: table[name].data[:] for name in table.colnames if np.ndim(table[name].data) == 1}
        return [
            {"id": int(table.id[row])} | {name: _to_plain(column[row]) for name, column in columns.items()}
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
        causes = []
        if "behavior" in missing and (held := find_behavior_series(self.series)):
            causes.append(f"none of these is a velocity or a position: {', '.join(s.path for s in held)}")
        raise RecordingError(
            f"{self.path}: no {' and no '.join(PART_NAMES[part] for part in missing)}",
            got=self.describe_contents(),
            expected=", ".join(PART_NAMES[part] for part in wanted),
            causes=causes,
            next_step="name the series with `behavior`"
            if causes
            else f"edgedistill inspect {self.path} shows which commands can use this file",
        )

    def describe_contents(self) -> str:
        """Returns what the file holds, in one line."""
        parts = []
        if self.units is not None:
            parts.append(f"{len(self.units)} units")
        parts += [series.path for series in self.series]
        return ", ".join(parts) or "neither units nor time series"


def open_recording(path: str | Path, names: SeriesNames = NO_NAMES) -> Recording:
    """Opens a session for reading. `names` holds the series that the user named.

    Raises RecordingError when the path is not a whole NWB 2 file.
    """
    path = Path(path)
    require_hdf5(path)
    try:
        import h5py
        from pynwb import NWBHDF5IO
    except ImportError as error:
        raise RecordingError(
            f"{path}: reading NWB needs pynwb",
            got=str(error),
            next_step="pip install 'edgedistill[train]'",
        ) from error
    file = open_nwb2(h5py, path)
    try:
        with warnings.catch_warnings():  # pynwb warns of cached schemas and old conventions in files of other labs
            warnings.simplefilter("ignore")
            io = NWBHDF5IO(file=file, mode="r", load_namespaces=True)
            return Recording(path, io, io.read(), names)
    except Exception as error:  # hdmf raises many kinds
        file.close()
        raise RecordingError(
            f"{path}: pynwb cannot read this file",
            got=" ".join(str(error).split())[:300],
            causes=("the file is damaged", "it breaks the NWB schema or uses an extension it does not carry"),
            next_step=f"python -m pynwb.validate {path}",
        ) from error


@contextmanager
def _name_file_in_errors(path: Path, what: str) -> Iterator[None]:
    """Turns a read that fails half-way through a file into a RecordingError that names the file."""
    try:
        yield
    except (OSError, RuntimeError) as error:
        raise damaged_file_error(path, f"{what} cannot be read: {error}") from error


def _to_plain(value: Any) -> object:
    """Turns numpy scalars into Python numbers and everything else into text, ready for JSON."""
    value = value.item() if isinstance(value, np.generic) else value
    if isinstance(value, float) and not np.isfinite(value):
        return None
    return value if isinstance(value, (bool, int, float, str)) else str(getattr(value, "name", value))
