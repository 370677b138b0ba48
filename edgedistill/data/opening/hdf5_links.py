"""Finds the links of an HDF5 file that lead nowhere, and reads a file whose references lead nowhere.

The input is an open h5py file. The outputs are the broken links, and an hdmf reader that leaves out references to
objects which are not there, because hdmf stops at the first.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import h5py
from pynwb import NWBHDF5IO

from edgedistill.data.opening.hdf5_datasets import find_places
from edgedistill.data.opening.nwb_reading import Unreadable

NOT_DATA = ("specifications",)


def find_broken_links(file: Any) -> tuple[Unreadable, ...]:
    """Returns the soft and external links that lead nowhere, with the file that is missing."""
    return tuple(_walk(file, "", set()))


def _walk(group: Any, at: str, seen: set[Any]) -> Iterator[Unreadable]:
    if group.id in seen:
        return
    seen.add(group.id)
    for name in group:
        path = f"{at}/{name}".lstrip("/")
        if path in NOT_DATA:
            continue
        link = group.get(name, getlink=True)
        if isinstance(link, h5py.HardLink):
            if group.get(name, getclass=True) is h5py.Group:
                yield from _walk(group[name], path, seen)
        elif group.get(name) is None:
            yield Unreadable(path, None, _explain(link, group.file))


def _explain(link: Any, file: Any) -> str:
    if not isinstance(link, h5py.ExternalLink):
        return f"a link to {link.path}, which is not in this file"
    if find_places(file, link.filename):
        return f"a link to {link.path} of {link.filename}, which cannot be read there"
    target = Path(file.filename).parent / link.filename
    return f"a link to {link.path.strip('/')} of the file {link.filename}, which is not there (looked for {target})"


class LenientReader(NWBHDF5IO):  # type: ignore[misc]  # pynwb has no types
    """Reads as NWBHDF5IO does, but leaves out attributes that refer to objects which are not there.

    The method below replaces a private one of hdmf 3.14 to 6.2. Where another version names it differently, it is never
    called, and such a file is refused as a whole.
    """

    def _HDF5IO__read_attrs(self, item: Any) -> dict[str, Any]:  # noqa: N802
        kept = {}
        for name, value in item.attrs.items():
            if name == ".specloc":
                continue
            if isinstance(value, h5py.Reference):
                target = _follow(item.file, value)
                if target is None:
                    continue
                value = self._HDF5IO__read_ref(target)
            kept[name] = value
        return kept


def _follow(file: Any, reference: Any) -> Any:
    try:
        target = file[reference]
    except (KeyError, ValueError, RuntimeError):
        return None
    return target if target.name is not None else None
