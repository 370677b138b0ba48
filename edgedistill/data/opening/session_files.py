"""Finds the sessions on disk: NWB files in HDF5, and folders that are an NWB file in Zarr.

The input is files, folders, patterns and lists of them. The output is a list of sessions. Opening one is the work of
`opening`.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from pathlib import Path

from edgedistill.data.opening.catalogue import expand_paths
from edgedistill.errors import RecordingError

ZARR_MARKS = (".zgroup", ".zattrs", ".zmetadata", "zarr.json")  # of versions 2 and 3
ENDINGS = (".nwb", ".nwb.zarr")  # of folders that are meant to be a session


def find_session_files(paths: Sequence[str | Path]) -> list[Path]:
    """Returns the files among `paths` and the sessions at any depth of the folders among them, without repeats.

    Patterns and text files of paths are expanded as `catalogue` does.

    A session in a folder is a file or link that ends in .nwb, or a Zarr folder. What lies inside a Zarr folder is not
    looked at. Links whose target is missing are listed too, and so are folders that end in .nwb without one inside, so
    that opening them says what is wrong.

    Raises RecordingError when a path does not exist or a folder holds no session.
    """
    files: dict[str, Path] = {}
    for path in expand_paths(paths):
        if not path.exists() and not path.is_symlink():
            raise RecordingError(
                f"{path}: there is no such file or folder",
                expected="NWB files, or folders of them",
                next_step=f"ls {path.parent}",
            )
        is_folder = path.is_dir() and not is_zarr(path)
        found = sorted(_walk(path)) if is_folder else [path]
        if not found:
            held = sorted(p.name for p in path.iterdir())[:8]
            raise RecordingError(
                f"{path}: no NWB files in this folder",
                got=", ".join(held) or "an empty folder",
                expected="files that end in .nwb or Zarr folders, at any depth",
                causes=("files with another ending, which have to be named one by one",) if held else (),
                next_step="edgedistill simulate --out DIR makes some to try with",
            )
        files |= {os.path.realpath(p): p for p in found}  # unlike resolve(), this passes links in a circle
    if not files:
        raise RecordingError("no sessions given", expected="NWB files, or folders of them")
    return list(files.values())


def _walk(folder: Path) -> Iterator[Path]:
    for here, folders, names in os.walk(folder):
        for name in list(folders):
            if is_zarr(Path(here, name)) or (name.endswith(ENDINGS) and not any(_walk(Path(here, name)))):
                folders.remove(name)
                if not name.startswith("."):
                    yield Path(here, name)
        yield from (Path(here, name) for name in names if name.endswith(".nwb") and not name.startswith("."))


def is_zarr(path: Path) -> bool:
    """Returns whether `path` is the top folder of a Zarr hierarchy."""
    return path.is_dir() and any((path / mark).is_file() for mark in ZARR_MARKS)
