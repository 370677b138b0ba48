"""Finds out whether a dataset can be read, before minutes of work begin: its compression, and files that it lies in.

The input is a dataset of an open file. HDF5 knows gzip and a few other filters. Blosc, Zstd and the like are plugins,
most of which the package hdf5plugin brings. The identifiers are those that The HDF Group registers.
"""

from __future__ import annotations

import importlib
import os
import re
from contextlib import suppress
from glob import escape
from pathlib import Path
from typing import Any

from edgedistill.errors import RecordingError

IN_HDF5PLUGIN = {
    307: "bzip2", 32001: "Blosc", 32004: "LZ4", 32008: "bitshuffle", 32013: "ZFP", 32015: "Zstd", 32017: "SZ",
    32018: "FCIDECOMP", 32024: "SZ3", 32026: "Blosc2", 32028: "SPERR", 32033: "HTJ2K",
}  # fmt: skip
NUMBER = re.compile(r"%\d*b")  # in the name of a virtual source: one file a block
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


def find_missing_file(dataset: Any) -> str | None:
    """Returns the first file that holds values of `dataset` and is not there, or None.

    HDF5 gives zeros for the part of a virtual dataset whose file is missing, and no error.
    """
    import h5py

    dataset = getattr(dataset, "dataset", dataset)
    if not isinstance(dataset, h5py.Dataset) or not dataset:
        return None
    for name in _name_value_files(dataset):
        if "%" not in name and not any(find_places(dataset.file, name)):  # %b stands for a number
            return name
    return None


def find_value_files(dataset: Any) -> list[Path]:
    """Returns the files that hold values of an open h5py dataset and are there: external storage, virtual sources."""
    return [place for name in _name_value_files(dataset) for place in find_places(dataset.file, name)]


def _name_value_files(dataset: Any) -> list[str]:
    names = [str(name) for name, _, _ in dataset.external or ()]
    if dataset.is_virtual:
        names += [str(source.file_name) for source in dataset.virtual_sources() if source.file_name != "."]
    return names


def find_places(file: Any, name: str) -> list[Path]:
    """Returns what has a name that stands in an open file. HDF5 looks beside the file and in the current folder."""
    folders = (Path(file.filename).parent, Path())
    if "%" not in name:
        return [folder / name for folder in folders if os.path.exists(folder / name)]  # noqa: PTH110, for long names
    found: list[Path] = []
    for folder in folders:
        whole = Path.cwd() / folder / name
        pattern = NUMBER.sub("*", escape(str(whole.relative_to(whole.anchor)))).replace("%%", "%")
        found += sorted(Path(whole.anchor).glob(pattern))
    return found


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
    """Raises RecordingError where `dataset`, which lies at `path` of `file`, cannot be read.

    Either a file that holds its values is not there, or it was compressed with a filter that is not installed, or the
    filter cannot unpack the first chunk.
    """
    if lost := find_missing_file(dataset):
        raise RecordingError(
            f"{file}: the values of {path} lie in {lost}, which is not there",
            causes=("the file was moved or renamed", "only a part of the session was copied"),
            next_step=f"put {Path(lost).name} into {file.parent} again",
        )
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
