"""Writes an NWB file without crashing on a full disk.

The input is a pynwb file in memory. The output is the file at a path, or an OSError. HDF5 crashes the interpreter when
the disk fills up while it has a file open. The file is therefore made in memory, where its data already are, and
written in one piece.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any


def write_nwb(nwb: Any, path: Path) -> None:
    """Writes the `pynwb.NWBFile` to `path`. Raises OSError where the disk is full or read-only."""
    import h5py
    from pynwb import NWBHDF5IO

    with (
        h5py.File(path, "w", driver="core", backing_store=False) as file,
        NWBHDF5IO(file=file, mode="w") as io,
    ):
        io.write(nwb)
        file.flush()
        image = file.id.get_file_image()
    path.write_bytes(image)
