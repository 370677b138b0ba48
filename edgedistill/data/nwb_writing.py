"""An NWB file to disk by plain writes.

In: a pynwb file in memory. Out: the file at a path, or an OSError. HDF5 itself crashes the interpreter when the disk
fills up while it has a file open, hence the detour through memory: the data are there already.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any


def write_nwb(nwb: Any, path: Path) -> None:
    """Writes the `pynwb.NWBFile`. Raises OSError where the disk is full or may not be written to."""
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
