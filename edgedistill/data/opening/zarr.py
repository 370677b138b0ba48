"""Opens sessions that are stored as a Zarr folder, where hdmf-zarr is installed.

The input is the folder. The output is an hdmf reader, from which `nwb_reading` builds the pynwb object.
"""

from __future__ import annotations

import importlib
from contextlib import suppress
from pathlib import Path
from typing import Any

from edgedistill.errors import RecordingError
from edgedistill.limits import MOST_JSON_BYTES, read_json


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
    refuse_pickles()
    _require_plain(path)
    return hdmf_zarr.NWBZarrIO(path=str(path), mode="r", load_namespaces=True)


def refuse_pickles() -> None:
    """Lets no array of a Zarr folder be read as a pickle, which may run any code. It holds for the whole process.

    New versions of numcodecs refuse pickles themselves. What hdmf-zarr stores as such are references, which are not
    needed.
    """
    numcodecs = importlib.import_module("numcodecs")

    class RefusedPickle(numcodecs.abc.Codec):  # type: ignore[misc, name-defined]  # numcodecs has no types
        codec_id = "pickle"

        def __init__(self, protocol: int = 5) -> None:
            self.protocol = protocol

        def encode(self, buf: Any) -> Any:
            raise ValueError("a pickle is not written")

        def decode(self, buf: Any, out: Any = None) -> Any:
            raise ValueError("an array that is stored as a pickle, which may run any code, is not read")

    numcodecs.registry.register_codec(RefusedPickle)


def _require_plain(top: Path) -> None:
    """Raises RecordingError for a folder that holds a pipe or a device, or a link to one, which has no end."""
    for path in top.rglob("*"):
        if path.exists() and not path.is_file() and not path.is_dir():
            raise RecordingError(
                f"{top}: it holds {path.relative_to(top)}, which is not a plain file",
                causes=("the folder was made to do harm",),
                next_step="do not use this session unless you know who wrote it",
            )


def _read_version(path: Path) -> str:
    """Returns `nwb_version` from the attributes of the folder, or nothing."""
    for name in (".zattrs", "zarr.json"):
        with suppress(OSError, ValueError, AttributeError):
            held = read_json(path / name, MOST_JSON_BYTES)
            return str(held.get("attributes", held).get("nwb_version", ""))
    return ""
