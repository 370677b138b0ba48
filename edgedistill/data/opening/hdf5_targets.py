"""Refuses a recording that leads to what is no plain file, before HDF5 follows it.

The input is an open h5py file. External links, external storage and virtual datasets lead to other files, and a
recording from a stranger may name any. HDF5 would wait for ever to open a pipe, and /dev/zero has no end. Links are
read here and not followed, except into other plain HDF5 files.
"""

from __future__ import annotations

import stat
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

from edgedistill.data.opening.hdf5_datasets import find_places, find_value_files
from edgedistill.errors import RecordingError


def require_plain_targets(file: Any) -> None:
    """Raises RecordingError where an open HDF5 file leads, directly or through others, to what is no plain file."""
    import h5py

    seen, waiting = {Path(file.filename).resolve()}, list(_list_targets(file))
    while waiting:
        target = waiting.pop()
        if not stat.S_ISREG(target.stat().st_mode):
            raise RecordingError(
                f"{file.filename}: it leads to {target}, which is not a plain file",
                expected="links to HDF5 files, and values in plain files",
                causes=("the file was made to do harm",),
                next_step="do not use this file unless you know who wrote it",
            )
        if target.resolve() in seen:
            continue
        seen.add(target.resolve())
        with suppress(OSError):  # values without HDF5, or a damaged file
            with h5py.File(target, "r") as other:
                found = list(_list_targets(other))
            waiting += found


def _list_targets(file: Any) -> Iterator[Path]:
    """Yields the paths to which a file leads and at which something is."""
    import h5py

    groups, seen = [file["/"]], set()
    while groups:
        group = groups.pop()
        if group.id in seen:
            continue
        seen.add(group.id)
        for name in group:
            link = group.get(name, getlink=True)
            if isinstance(link, h5py.ExternalLink):
                yield from find_places(file, link.filename)
            elif isinstance(link, h5py.HardLink):
                held = group[name]
                if isinstance(held, h5py.Group):
                    groups.append(held)
                elif isinstance(held, h5py.Dataset):
                    yield from find_value_files(held)
