"""Writes NWB files without crashing on a full disk.

The input is a pynwb file in memory. The output is the file at a path, or an OSError. HDF5 crashes the interpreter when
the disk fills up while it has a file open. `write_nwb` therefore makes a small file in memory, where its data already
are, and writes it in one piece. `write_large_nwb` writes straight to the disk, but hides its errors from HDF5 until
HDF5 has closed the file. `GrowingNwb` stays open for hours, and keeps a file that can be read whenever it is killed.
"""

from __future__ import annotations

import io
from collections.abc import Iterable, Mapping
from contextlib import suppress
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy.typing as npt

from edgedistill.data.rollback_file import RollbackFile
from edgedistill.limits import plain_line

BORN = "date_of_birth"
SUBJECT_FACTS = ("age", BORN, "description", "genotype", "sex", "species", "strain")


def write_nwb(nwb: Any, path: Path) -> None:
    """Writes the `pynwb.NWBFile` to `path`. Raises OSError where the disk is full or read-only."""
    import h5py
    from pynwb import NWBHDF5IO

    with (
        h5py.File(path, "w", driver="core", backing_store=False) as file,
        NWBHDF5IO(file=file, mode="w") as nwb_io,
    ):
        nwb_io.write(nwb)
        file.flush()
        image = file.id.get_file_image()
    path.write_bytes(image)


def write_large_nwb(nwb: Any, path: Path, blocks: Mapping[str, Iterable[npt.NDArray[Any]]]) -> None:
    """Writes the `pynwb.NWBFile` to `path`, and fills datasets block by block, so that memory stays constant.

    `blocks` gives for the path of a dataset in the file its rows (n, ...), in order. In `nwb` such a dataset is an
    `H5DataIO` of a shape without data. Raises OSError where the disk is full or read-only.
    """
    import h5py
    from pynwb import NWBHDF5IO

    with _QuietFile(path, "w+") as raw:
        try:
            with h5py.File(raw, "w") as file, NWBHDF5IO(file=file, mode="w") as nwb_io:
                nwb_io.write(nwb)
                for name, parts in blocks.items():
                    _fill(file[name], parts, raw)
        except Exception:
            raw.raise_hidden_error()  # the cause: HDF5 did not find again what it believed to have written
            raise
        raw.raise_hidden_error()


def _fill(dataset: Any, parts: Iterable[npt.NDArray[Any]], raw: _QuietFile) -> None:
    at = 0
    for rows in parts:
        dataset[at : at + len(rows)] = rows
        at += len(rows)
        raw.raise_hidden_error()


class GrowingNwb:
    """An NWB file on the disk, to whose series rows are added as they come.

    It can be read after each `flush`, and holds what was there at the last one if this process is killed.
    """

    def __init__(self, nwb: Any, path: Path, datasets: Mapping[str, str]) -> None:
        """Writes the `pynwb.NWBFile`. `datasets` gives a name to the path of each series that grows. Raises OSError."""
        import h5py
        from pynwb import NWBHDF5IO

        self._raw = RollbackFile(path)
        self._file = h5py.File(self._raw, "w")
        self._io = NWBHDF5IO(file=self._file, mode="w")  # whose end would close the file
        try:
            self._io.write(nwb)
            self._series = {name: self._file[place] for name, place in datasets.items()}
            self.flush()
        except Exception:
            with suppress(OSError, RuntimeError):
                self.close()
            self._raw.raise_hidden_error()
            raise

    def append(self, rows: Mapping[str, npt.NDArray[Any]]) -> None:
        """Adds rows (n, ...) to each series, by its name. Raises OSError where the disk is full."""
        for name, values in rows.items():
            dataset = self._series[name]
            at = len(dataset)
            dataset.resize(at + len(values), axis=0)
            dataset[at:] = values
        self._raw.raise_hidden_error()

    def skip(self, name: str, rows: int) -> None:
        """Adds rows that hold the fill value of the series and take no space where they fill chunks."""
        dataset = self._series[name]
        dataset.resize(len(dataset) + rows, axis=0)

    def flush(self) -> None:
        """Writes what was added to the disk. Raises OSError where it is full."""
        self._file.flush()
        self._raw.commit()

    def close(self) -> None:
        """Ends the file as the last `flush` left it."""
        try:
            self._io.close()
            self._file.close()
        finally:
            self._raw.close()


class _QuietFile(io.FileIO):
    """A file whose write errors are kept for `raise_hidden_error`, because HDF5 does not survive them."""

    hidden: OSError | None = None

    def write(self, data: Any, /) -> int:
        view = memoryview(data).cast("B")
        done = 0
        try:
            while done < len(view):
                done += super().write(view[done:]) or 0
        except OSError as error:
            self.hidden = self.hidden or error
        return len(view)

    def truncate(self, size: int | None = None, /) -> int:
        try:
            return super().truncate(size)
        except OSError as error:
            self.hidden = self.hidden or error
            return size or 0

    def raise_hidden_error(self) -> None:
        """Raises the first OSError that a write met."""
        if self.hidden is not None:
            raise self.hidden


def read_subject(path: Path) -> dict[str, Any]:
    """Returns what the file at `path` says of its subject, as arguments of `pynwb.file.Subject`, without its id.

    Returns nothing where the file is not NWB in HDF5 or names no subject, and no fact that is not a text.
    """
    import h5py

    try:
        with h5py.File(path, "r") as file:
            held = {name: file.get(f"general/subject/{name}") for name in SUBJECT_FACTS}
            facts: dict[str, Any] = {name: _to_text(one[()]) for name, one in held.items() if _is_one_value(one)}
    except OSError:
        return {}
    born = facts.pop(BORN, "")
    with suppress(ValueError):  # a date of another form is left out
        facts[BORN] = datetime.fromisoformat(born)
    return facts


def _is_one_value(held: Any) -> bool:
    return getattr(held, "shape", None) == ()


def _to_text(value: object) -> str:
    return plain_line(value.decode(errors="replace") if isinstance(value, bytes) else str(value))
