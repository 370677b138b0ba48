"""Opens the files that are converted, and refuses a file of another kind by name.

The input is a path. The output is an open HDF5 file, or a variable of a MATLAB 5 file. A file that was cut off, a
placeholder of git-annex and two swapped arguments are told apart, because each is mended in another way.
"""

from __future__ import annotations

import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from edgedistill.errors import RecordingError
from edgedistill.limits import require_plain

MATLAB_5, MATLAB_73 = "a MATLAB 5 file", "a MATLAB 7.3 file"
NWB_1, NWB_2 = "an NWB 1 file", "an NWB 2 file"
HEADS = {b"MATLAB 5.0 MAT-file": MATLAB_5, b"MATLAB 7.3 MAT-file": MATLAB_73}
HDF5_HEAD = b"\x89HDF\r\n\x1a\n"
# what scipy raises for a file that was cut off depends on the byte at which it ends
MATLAB_5_ERRORS = (OSError, ValueError, TypeError, EOFError, IndexError, KeyError, struct.error, zlib.error)


def open_hdf5(path: Path, wanted: str, next_step: str) -> Any:
    """Returns the open HDF5 file. `wanted` is MATLAB_73 or NWB_1. Raises RecordingError for a file of another kind."""
    import h5py

    require_kind(path, wanted, next_step)
    return h5py.File(path, "r")


def read_matlab5(path: Path, variable: str, next_step: str) -> Any:
    """Returns a variable of a MATLAB 5 file. Raises RecordingError for another kind, and where it is not there."""
    from scipy.io import loadmat, whosmat

    require_kind(path, MATLAB_5, next_step)
    try:
        found = loadmat(path, variable_names=[variable])
        if variable not in found:
            held = ", ".join(name for name, _, _ in whosmat(path)) or "nothing"
            raise RecordingError(
                f"{path}: no variable '{variable}'", got=f"it holds {held}", expected=variable, next_step=next_step
            )
    except MATLAB_5_ERRORS as error:
        raise _cut_off_error(path, f"{type(error).__name__}: {error}") from error
    return found[variable]


def require_kind(path: Path, wanted: str, next_step: str) -> None:
    """Raises RecordingError unless `path` is a file of the kind `wanted`."""
    found = tell_kind(path)
    if found != wanted:
        raise RecordingError(
            f"{path}: a file of another kind",
            got=found,
            expected=wanted,
            causes=_find_causes(found, wanted),
            next_step=next_step,
        )


def _find_causes(found: str, wanted: str) -> tuple[str, ...]:
    if {found, wanted} == {MATLAB_73, NWB_1}:
        return ("the two files were given in the wrong order: the MATLAB file comes first",)
    if found == NWB_2:
        return ("this file is converted already",)
    if {found, wanted} == {MATLAB_5, MATLAB_73}:
        return ("the file is of the other data set", "it was saved again by another version of MATLAB")
    return ("a download that failed", "a placeholder of git-lfs or git-annex", "another data set")


def tell_kind(path: Path) -> str:
    """Returns what a file is, in words. Raises RecordingError for a missing file and for one that was cut off."""
    import h5py

    if path.is_dir():
        return "a folder"
    try:
        require_plain(path, path.stat())  # a pipe would be waited for
        with path.open("rb") as file:
            head = file.read(128)
    except OSError as error:
        raise RecordingError(
            f"{path}: cannot be opened", got=error.strerror, next_step=f"ls -l {path.parent}"
        ) from error
    kind = next((kind for start, kind in HEADS.items() if head.startswith(start)), None)
    if kind == MATLAB_5:
        return kind
    if kind is None and not head.startswith(HDF5_HEAD):
        return f"a file that begins with {head[:20]!r}" if head else "an empty file"
    try:
        with h5py.File(path, "r") as opened:
            if "nwb_version" in opened.attrs:
                return NWB_2
            return NWB_1 if "nwb_version" in opened or "acquisition/timeseries" in opened else MATLAB_73
    except OSError as error:
        raise _cut_off_error(path, str(error)) from error


def _cut_off_error(path: Path, got: str) -> RecordingError:
    return RecordingError(
        f"{path}: the file was cut off or is damaged",
        got=got,
        expected="a whole file",
        causes=("the download was cut short",),
        next_step="download the file again and compare its size with the published one",
    )


def require_dataset(file: Any, name: str, path: Path, next_step: str) -> Any:
    """Returns a dataset of an HDF5 file. Raises RecordingError that says what the file holds where it is missing."""
    import h5py

    found = file.get(name)
    if isinstance(found, h5py.Dataset):
        return found
    group = file
    for part in name.split("/")[:-1]:
        inner = group.get(part)
        if not isinstance(inner, h5py.Group):
            break
        group = inner
    held = sorted(group)[:12]
    raise RecordingError(
        f"{path}: no dataset '{name}'",
        got=f"{group.name} holds {', '.join(held) or 'nothing'}",
        expected=name,
        causes=("another data set", "a file without the broadband" if "broadband" in name else "another version"),
        next_step=next_step,
    )


def read_array(dataset: Any, path: Path) -> npt.NDArray[Any]:
    """Returns all values of a dataset. Raises RecordingError where the file is damaged there."""
    try:
        return np.asarray(dataset[()])
    except (OSError, RuntimeError) as error:
        raise _cut_off_error(path, f"{dataset.name}: {error}") from error
