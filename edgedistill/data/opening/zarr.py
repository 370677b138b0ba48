"""Opens sessions that are stored as a Zarr folder, where hdmf-zarr is installed.

The input is the folder. The output is an hdmf reader, from which `nwb_reading` builds the pynwb object.
"""

from __future__ import annotations

import importlib
import json
from contextlib import suppress
from pathlib import Path
from typing import Any

from edgedistill.errors import RecordingError


def open_zarr(path: Path) -> Any:
    """Returns the reader of a Zarr folder. Raises RecordingError where it is not NWB 2, or hdmf-zarr is missing."""
    version = _read_version(path)
    if not version.startswith("2"):
        raise RecordingError(
            f"{path}: a Zarr folder, but not NWB 2",
            got=f"NWB version {version}" if version else "no nwb_version",
            expected="nwb_version 2.x",
            next_step="name the NWB files one by one, or move this folder elsewhere",
        )
    try:
        hdmf_zarr, zarr = importlib.import_module("hdmf_zarr"), importlib.import_module("zarr")
    except ImportError as error:
        raise RecordingError(
            f"{path}: a session in Zarr, which needs hdmf-zarr",
            got=str(error),
            expected="NWB in HDF5, or hdmf-zarr to read this folder",
            next_step="pip install hdmf-zarr",
        ) from error
    if not (path / ".zgroup").exists() and zarr.__version__.startswith("2"):
        raise RecordingError(
            f"{path}: a session in Zarr 3, which the installed zarr does not read",
            got=f"zarr {zarr.__version__}",
            next_step="pip install --upgrade hdmf-zarr zarr",
        )
    return hdmf_zarr.NWBZarrIO(path=str(path), mode="r", load_namespaces=True)


def _read_version(path: Path) -> str:
    """Returns `nwb_version` from the attributes of the folder, or nothing."""
    for name in (".zattrs", "zarr.json"):
        with suppress(OSError, ValueError):
            held = json.loads((path / name).read_text(encoding="utf-8"))
            return str(held.get("attributes", held).get("nwb_version", ""))
    return ""
