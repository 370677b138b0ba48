"""Opens sessions that are stored as a Zarr folder, where hdmf-zarr is installed.

The input is the folder. The output is an hdmf reader, from which `nwb_reading` builds the pynwb object.
"""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any

from edgedistill.errors import RecordingError


def open_zarr(path: Path) -> Any:
    """Returns the reader of a Zarr folder. Raises RecordingError where hdmf-zarr is not installed."""
    try:
        hdmf_zarr = importlib.import_module("hdmf_zarr")
    except ImportError as error:
        raise RecordingError(
            f"{path}: a session in Zarr, which needs hdmf-zarr",
            got=str(error),
            expected="NWB in HDF5, or hdmf-zarr to read this folder",
            next_step="pip install hdmf-zarr",
        ) from error
    return hdmf_zarr.NWBZarrIO(path=str(path), mode="r", load_namespaces=True)
