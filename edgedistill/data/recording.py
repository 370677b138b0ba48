"""One session of an NWB file: units, LFP, behavior and electrodes, each read when it is asked for.

In: a path. Out: `Recording`, a context manager that holds the file open. Parts that a file lacks are None;
`require` turns what a command needs into one error that names the file and what it does hold. Times are
seconds on the clock of the file; the LFP keeps its own start and exact rate, see `lfp`.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from datetime import timezone
from functools import cached_property
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
import numpy.typing as npt

from edgedistill.data.behavior import Behavior
from edgedistill.data.behavior_choice import behavior_series, find_behavior
from edgedistill.data.lfp import Lfp, find_lfp
from edgedistill.data.series import Series, series_in
from edgedistill.errors import RecordingError, did_you_mean

__all__ = ["PARTS", "Behavior", "Lfp", "Recording", "open_recording", "session_files"]

PARTS = ("units", "lfp", "behavior")
PART_NAMES = {"units": "units (spike times)", "lfp": "LFP", "behavior": "behavior"}
HDF5_SIGNATURE = b"\x89HDF\r\n\x1a\n"


class Recording:
    """An open session. Use it in a `with` block: arrays are read from the file on demand."""

    def __init__(self, path: Path, io: Any, nwb: Any, behavior: str | None) -> None:
        self.path = path
        self._io, self._nwb, self._behavior = io, nwb, behavior

    def __enter__(self) -> Recording:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the file; parts that were not read yet can no longer be."""
        self._io.close()

    @property
    def session_id(self) -> str:
        """The session id, or the name of the file where it has none."""
        return str(self._nwb.session_id or self.path.stem)

    @property
    def subject_id(self) -> str | None:
        """None where the file names no subject."""
        subject = self._nwb.subject
        return str(subject.subject_id) if subject is not None and subject.subject_id else None

    @property
    def session_start(self) -> str:
        """Start of the session as ISO 8601 in UTC, so that strings sort by time."""
        return str(self._nwb.session_start_time.astimezone(timezone.utc).isoformat())

    @cached_property
    def series(self) -> list[Series]:
        """Every time series of the file."""
        return series_in(self._nwb)

    @cached_property
    def lfp(self) -> Lfp | None:
        """Raises RecordingError when the LFP has no regular clock."""
        return find_lfp(self.series, self.path)

    @cached_property
    def behavior(self) -> Behavior | None:
        """Raises RecordingError when the series named by `behavior` does not exist."""
        return find_behavior(self.series, self.path, self._behavior)

    @cached_property
    def units(self) -> tuple[npt.NDArray[np.float64], ...] | None:
        """Sorted spike times in s of every unit; None when the file has no units."""
        table = self._nwb.units
        if table is None or len(table) == 0 or "spike_times" not in table.colnames:
            return None
        index = table["spike_times"]
        with _reading(self.path, "spike times"):
            ends = np.asarray(index.data[:], dtype=np.int64)
            times = np.asarray(index.target.data[:], dtype=np.float64)
        return tuple(np.sort(unit[np.isfinite(unit)]) for unit in np.split(times, ends[:-1]))

    @cached_property
    def electrodes(self) -> list[dict[str, object]]:
        """The electrode table, one plain dict an electrode; empty without a table."""
        table = self._nwb.electrodes
        if table is None:
            return []
        columns = {name: table[name].data[:] for name in table.colnames if np.ndim(table[name].data) == 1}
        return [
            {"id": int(table.id[row])} | {name: _plain(column[row]) for name, column in columns.items()}
            for row in range(len(table))
        ]

    def require(self, need: Iterable[str]) -> None:
        """Raises RecordingError when one of `need` (of PARTS) is missing, naming all that are."""
        wanted = tuple(need)
        if unknown := [part for part in wanted if part not in PARTS]:
            raise ValueError(f"unknown part {unknown[0]!r}; {did_you_mean(unknown[0], PARTS)}")
        missing = [part for part in wanted if getattr(self, part) is None]
        if not missing:
            return
        causes = []
        if "behavior" in missing and (held := behavior_series(self.series)):
            causes.append(f"none of these is a velocity or a position: {', '.join(s.path for s in held)}")
        raise RecordingError(
            f"{self.path}: no {' and no '.join(PART_NAMES[part] for part in missing)}",
            got=self.contents(),
            expected=", ".join(PART_NAMES[part] for part in wanted),
            causes=causes,
            next_step="name the series with `behavior`"
            if causes
            else f"edgedistill inspect {self.path} shows which commands can use this file",
        )

    def contents(self) -> str:
        """What the file holds, in one line."""
        parts = []
        if self.units is not None:
            parts.append(f"{len(self.units)} units")
        parts += [series.path for series in self.series]
        return ", ".join(parts) or "neither units nor time series"


def open_recording(path: str | Path, *, behavior: str | None = None) -> Recording:
    """Open a session for reading; `behavior` names the behavior series where the choice is not obvious.

    Raises RecordingError when the path is not a whole NWB 2 file.
    """
    path = Path(path)
    _check_signature(path)
    try:
        import h5py
        from pynwb import NWBHDF5IO
    except ImportError as error:
        raise RecordingError(
            f"{path}: reading NWB needs pynwb",
            got=str(error),
            next_step="pip install 'edgedistill[train]'",
        ) from error
    file = _open_hdf5(h5py, path)
    try:
        with warnings.catch_warnings():  # files of other labs warn about cached schemas and old conventions
            warnings.simplefilter("ignore")
            io = NWBHDF5IO(file=file, mode="r", load_namespaces=True)
            return Recording(path, io, io.read(), behavior)
    except Exception as error:  # hdmf raises many kinds
        file.close()
        raise RecordingError(
            f"{path}: pynwb cannot read this file",
            got=" ".join(str(error).split())[:300],
            causes=("the file is damaged", "it breaks the NWB schema or uses an extension it does not carry"),
            next_step=f"python -m pynwb.validate {path}",
        ) from error


def session_files(paths: Sequence[str | Path]) -> list[Path]:
    """Files and folders (searched to any depth for *.nwb) as a list of files without repeats.

    Raises RecordingError when a path does not exist or a folder holds no session.
    """
    files: dict[Path, Path] = {}
    for path in map(Path, paths):
        if not path.exists():
            raise RecordingError(
                f"{path}: there is no such file or folder",
                expected="NWB files, or folders of them",
                next_step=f"ls {path.parent}",
            )
        found = sorted(p for p in path.rglob("*.nwb") if p.is_file() and not p.name.startswith("."))
        if path.is_dir() and not found:
            held = sorted(p.name for p in path.iterdir())[:8]
            raise RecordingError(
                f"{path}: no NWB files in this folder",
                got=", ".join(held) or "an empty folder",
                expected="files that end in .nwb, at any depth",
                next_step="edgedistill simulate --out DIR makes some to try with",
            )
        files |= {p.resolve(): p for p in (found if path.is_dir() else [path])}
    if not files:
        raise RecordingError("no sessions given", expected="NWB files, or folders of them")
    return list(files.values())


@contextmanager
def _reading(path: Path, what: str) -> Iterator[None]:
    """A read that fails half-way through a file becomes a RecordingError that names it."""
    try:
        yield
    except (OSError, RuntimeError) as error:
        raise _damaged(path, f"{what} cannot be read: {error}") from error


def _check_signature(path: Path) -> None:
    """Is there an HDF5 file at all? Said here, since HDF5's own words are hard to read."""
    if path.is_dir():
        kind = "a folder (NWB in Zarr is not supported)" if (path / ".zgroup").exists() else "a folder"
        raise RecordingError(f"{path}: not an NWB file", got=kind, expected="one .nwb file")
    try:
        with path.open("rb") as file:
            head = file.read(len(HDF5_SIGNATURE))
    except OSError as error:
        raise RecordingError(
            f"{path}: cannot be opened", got=error.strerror, next_step=f"ls -l {path.parent}"
        ) from error
    if head != HDF5_SIGNATURE:
        raise RecordingError(
            f"{path}: not an NWB file",
            got=f"a file that begins with {head!r}" if head else "an empty file",
            expected="NWB 2 in HDF5",
            causes=("a placeholder of git-lfs or git-annex", "a download that failed", "another format"),
            next_step="download or convert the session again",
        )


def _open_hdf5(h5py: Any, path: Path) -> Any:
    try:
        file = h5py.File(path, "r")
    except OSError as error:
        raise _damaged(path, str(error)) from error
    version = file.attrs.get("nwb_version", b"")
    text = version.decode() if isinstance(version, bytes) else str(version)
    if text.removeprefix("NWB-").startswith("2"):
        return file
    held = ", ".join(sorted(file)[:8]) or "nothing"
    file.close()
    raise RecordingError(
        f"{path}: an HDF5 file, but not NWB 2",
        got=f"NWB version {text}" if text else f"no nwb_version; it holds {held}",
        expected="nwb_version 2.x",
        next_step="convert the session to NWB 2",
    )


def _damaged(path: Path, got: str) -> RecordingError:
    return RecordingError(
        f"{path}: the file is truncated or damaged",
        got=got,
        expected="a whole NWB file",
        causes=("the download or copy was cut short", "the program that wrote it was stopped"),
        next_step="copy the file again and compare its size with the source",
    )


def _plain(value: Any) -> object:
    """numpy scalars as Python numbers, everything else as text: ready for JSON."""
    value = value.item() if isinstance(value, np.generic) else value
    if isinstance(value, float) and not np.isfinite(value):
        return None
    return value if isinstance(value, (bool, int, float, str)) else str(getattr(value, "name", value))
