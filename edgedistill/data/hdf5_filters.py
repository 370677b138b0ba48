"""Finds data that were compressed with an HDF5 filter which is not installed here, before minutes of work begin.

HDF5 knows gzip and a few others. Blosc, Zstd and the like are plugins, most of which the package hdf5plugin brings. The
identifiers are those that The HDF Group registers.
"""

from __future__ import annotations

import importlib
from contextlib import suppress
from pathlib import Path
from typing import Any

from edgedistill.errors import RecordingError

IN_HDF5PLUGIN = {
    307: "bzip2", 32001: "Blosc", 32004: "LZ4", 32008: "bitshuffle", 32013: "ZFP", 32015: "Zstd", 32017: "SZ",
    32018: "FCIDECOMP", 32024: "SZ3", 32026: "Blosc2", 32028: "SPERR", 32033: "HTJ2K",
}  # fmt: skip
ELSEWHERE = {4: "szip", 305: "LZO", 32000: "LZF", 32002: "MAFISC", 32003: "Snappy", 32019: "JPEG"}


def import_plugins() -> None:
    """Registers the filters of hdf5plugin where it is installed. It has to come before a file is opened."""
    with suppress(ImportError):
        importlib.import_module("hdf5plugin")


def find_failing_filter(dataset: Any) -> tuple[int, str, bool] | None:
    """Returns identifier and name of the first plugin without which `dataset` cannot be read, and if it is installed.

    Returns None where the first value can be read, or where no plugin is used.
    """
    import h5py

    dataset = getattr(dataset, "dataset", dataset)  # pynwb wraps datasets of text and references
    if not isinstance(dataset, h5py.Dataset) or not dataset:
        return None
    settings = dataset.id.get_create_plist()
    for at in range(settings.get_nfilters()):
        code, _, _, stored = settings.get_filter(at)
        installed = bool(h5py.h5z.filter_avail(code))
        if (not installed or code in IN_HDF5PLUGIN) and not _can_read_first(dataset):
            known = IN_HDF5PLUGIN.get(code) or ELSEWHERE.get(code)
            return code, known or stored.decode(errors="replace") or "an unknown filter", installed
    return None


def _can_read_first(dataset: Any) -> bool:
    """Returns whether the first value can be read, because its chunk was stored without the filter."""
    if not dataset.size:
        return True
    try:
        _ = dataset[(0,) * dataset.ndim]
    except (OSError, RuntimeError):
        return False
    return True


def require_readable(dataset: Any, file: Path, path: str) -> None:
    """Raises RecordingError where `dataset`, which lies at `path` of `file`, was compressed with a filter that fails.

    The filter is not installed, or it cannot unpack the first chunk.
    """
    failing = find_failing_filter(dataset)
    if failing is None:
        return
    code, name, installed = failing
    if installed:
        raise RecordingError(
            f"{file}: {path} cannot be unpacked by {name} (HDF5 filter {code}), although this filter is installed",
            causes=("the file is damaged", "a version of the filter that is older than the file"),
            next_step="pip install --upgrade hdf5plugin, else copy the file again",
        )
    raise RecordingError(
        f"{file}: {path} is compressed with {name} (HDF5 filter {code}), which is not installed here",
        expected=f"the plugin of {name}; the data themselves may be whole",
        next_step="pip install hdf5plugin"
        if code in IN_HDF5PLUGIN
        else f"install the HDF5 plugin of filter {code} and set HDF5_PLUGIN_PATH, "
        f"or run `h5repack -f GZIP=4 {file.name} readable.nwb` where it is installed",
    )
