"""Builds the pynwb object of an open file, without the parts that pynwb cannot build.

The input is an open hdmf reader. The output is the pynwb object and a list of the parts that were left out, each with
its path, its shape and the reason. One series of a wrong shape would otherwise make the whole file unreadable.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Unreadable:
    """Names a part of a file that cannot be read. `shape` is that of its data, where it has any."""

    path: str
    shape: tuple[int, ...] | None
    why: str

    def __str__(self) -> str:
        shape = f", shape {self.shape}" if self.shape is not None else ""
        return f"{self.path}{shape}: {self.why}"


def read_nwb(reader: Any, known: tuple[Unreadable, ...] = ()) -> tuple[Any, tuple[Unreadable, ...]]:
    """Returns the pynwb object of an open hdmf reader, and what was left out of it. `known` holds broken links.

    Raises what hdmf raises where the file as a whole cannot be built.
    """
    root = reader.read_builder()  # the reader keeps the tree, so that what is dropped here is not built below
    incomplete = _find_incomplete(root, reader.manager, known)
    holders = {part.path for part in incomplete}
    found = [*(part for part in known if part.path.rpartition("/")[0] not in holders), *incomplete]
    for part in found:
        _drop(root, part.path)
    while (nwb := _build_or_drop(reader, root, found)) is None:
        reader.manager.clear_cache()
    return nwb, tuple(found)


def _build_or_drop(reader: Any, root: Any, found: list[Unreadable]) -> Any:
    """Returns the pynwb object. Where a part cannot be built, drops it, adds it to `found` and returns None."""
    from hdmf.build import ConstructError

    try:
        return reader.read()
    except ConstructError as error:
        builder = error.args[0]
        path = _find_path(builder)
        if builder.parent is None or any(part.path == path for part in found):
            raise
        found.append(Unreadable(path, _find_shape(builder), _shorten(error)))
        _drop(root, path)
        return None


def _find_path(builder: Any) -> str:
    parts = []
    while builder is not None and builder.parent is not None:
        parts.append(builder.name)
        builder = builder.parent
    return "/".join(reversed(parts))


def _find_shape(builder: Any) -> tuple[int, ...] | None:
    data = getattr(builder, "datasets", {}).get("data", builder if hasattr(builder, "dtype") else None)
    shape = getattr(getattr(data, "data", None), "shape", None)
    return None if shape is None else tuple(int(n) for n in shape)


def _shorten(error: Exception) -> str:
    text = str(error.args[-1])
    text = re.sub(r"^Could not construct \w+ object due to: (\w+\.__init__: )?", "", text)
    if isinstance(error.__cause__, KeyError):
        text = f"it lacks {text}"
    return " ".join(text.split())[:300]


def _walk_groups(group: Any) -> Iterator[Any]:
    for child in list(group.groups.values()):
        yield child
        yield from _walk_groups(child)


def _find_incomplete(root: Any, manager: Any, known: tuple[Unreadable, ...]) -> list[Unreadable]:
    """Returns what pynwb would pass over or half read without a word: unknown types, and series without their data."""
    links = {part.path: part.why for part in known}
    found = []
    for group in _walk_groups(root):
        if group.attributes.get("neurodata_type") is not None:
            path = _find_path(group)
            lost = {at.rpartition("/")[2]: why for at, why in links.items() if at.rpartition("/")[0] == path}
            if why := _find_lack(group, manager, lost):
                found.append(Unreadable(path, _find_shape(group), why))
    return found


def _find_lack(group: Any, manager: Any, lost: dict[str, str]) -> str | None:
    """Returns what a group needs and lacks, or None. `lost` holds its broken links by name."""
    from hdmf.common import DynamicTable
    from pynwb import TimeSeries
    from pynwb.image import ImageSeries

    kind = f"{group.attributes.get('namespace', 'unknown')}.{group.attributes['neurodata_type']}"
    try:
        cls = manager.get_cls(group)
    except Exception:  # hdmf raises many kinds for a type or a namespace that it does not know
        cls = None
    if cls is None:
        return f"its type {kind} is of an extension that the file does not carry"
    if not issubclass(cls, (TimeSeries, DynamicTable)):
        return None
    if lost:
        return "; ".join(f"{name} is {why}" for name, why in lost.items())
    if not issubclass(cls, TimeSeries):
        return None
    for name, held in group.datasets.items():
        if held.attributes.get("neurodata_type") == "DynamicTableRegion" and "table" not in held.attributes:
            return f"{name} refers to a table that is not in this file"
    whole = "data" in group.datasets or any(link.name == "data" for link in group.links.values())
    return None if whole or issubclass(cls, ImageSeries) else "it has no data"


def _drop(root: Any, path: str) -> None:
    """Takes the builder at `path` out of the tree, and every link to it, so that nothing builds it again."""
    *folders, name = path.split("/")
    group = root
    for folder in folders:
        group = group.groups.get(folder)
        if group is None:
            return
    gone = group.groups.pop(name, None) or group.datasets.pop(name, None) or group.links.pop(name, None)
    group.obj_type.pop(name, None)
    if gone is None:
        return
    for holder in (root, *_walk_groups(root)):
        for key in [key for key, link in holder.links.items() if link.builder is gone]:
            del holder.links[key]
            holder.obj_type.pop(key, None)
