"""Finds the sessions on disk: NWB files in HDF5, and folders that are an NWB file in Zarr.

The input is files, folders, patterns and lists of them. The output is a list of sessions. Opening one is the work of
`opening`.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from edgedistill.data.opening.catalogue import expand_paths
from edgedistill.data.opening.hdf5_files import system_error
from edgedistill.errors import RecordingError

ZARR_MARKS = (".zgroup", ".zattrs", ".zmetadata", "zarr.json")  # of versions 2 and 3
ENDINGS = (".nwb", ".nwb.zarr")  # of folders that are meant to be a session


def find_session_files(paths: Sequence[str | Path]) -> list[Path]:
    """Returns the files among `paths` and the sessions at any depth of the folders among them, without repeats.

    Patterns and text files of paths are expanded as `catalogue` does.

    A session in a folder is a file or link that ends in .nwb, or a Zarr folder. What lies inside a Zarr folder is not
    looked at. Links whose target is missing are listed too, and so are folders that end in .nwb without one inside, and
    folders that nobody may look into, so that opening them says what is wrong.

    Raises RecordingError when a path does not exist or a folder holds no session.
    """
    found = [session for path in expand_paths(paths) for session in _list_sessions(path)]
    if not found:
        raise RecordingError("no sessions given", expected="NWB files, or folders of them")
    return drop_repeats(found)


def drop_repeats(paths: Iterable[Path]) -> list[Path]:
    """Returns paths without those that lead to a file or folder that another one has led to already."""
    return list({os.path.realpath(path): path for path in paths}.values())  # resolve() stops at links in a circle


def _list_sessions(path: Path) -> list[Path]:
    try:
        if not path.exists() and not path.is_symlink():
            raise RecordingError(
                f"{path}: there is no such file or folder",
                expected="NWB files, or folders of them",
                next_step=f"ls {path.parent}",
            )
        if not path.is_dir() or is_zarr(path):
            return [path]
        if found := sorted(_walk(path)):
            return found
        held = sorted(p.name for p in path.iterdir())[:8]
    except PermissionError as error:
        raise system_error(path, error) from error
    raise RecordingError(
        f"{path}: no NWB files in this folder",
        got=", ".join(held) or "an empty folder",
        expected="files that end in .nwb or Zarr folders, at any depth",
        causes=("files with another ending, which have to be named one by one",) if held else (),
        next_step="edgedistill simulate --out DIR makes some to try with",
    )


def _walk(folder: Path) -> Iterator[Path]:
    closed: list[OSError] = []
    for here, folders, names in os.walk(folder, onerror=closed.append):
        for name in list(folders):
            if is_zarr(Path(here, name)) or (name.endswith(ENDINGS) and not any(_walk(Path(here, name)))):
                folders.remove(name)
                if not name.startswith("."):
                    yield Path(here, name)
        yield from (Path(here, name) for name in names if name.endswith(".nwb") and not name.startswith("."))
    yield from (Path(error.filename) for error in closed)


def is_zarr(path: Path) -> bool:
    """Returns whether `path` is the top folder of a Zarr hierarchy."""
    try:
        return path.is_dir() and any((path / mark).is_file() for mark in ZARR_MARKS)
    except PermissionError:
        return False
