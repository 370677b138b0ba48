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
    for part in tuple(found):
        found += _drop(root, part)
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
        part = Unreadable(path, _find_shape(builder), _describe_unequal_columns(builder, error) or _shorten(error))
        found += [part, *_drop(root, part)]
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


def _describe_unequal_columns(builder: Any, error: Exception) -> str | None:
    """Returns the lengths of the columns of a table that pynwb does not build because they differ, else None."""
    if not re.search(r"same (number of ids|length)", str(error.args[-1])):
        return None
    columns = {name: held.data for name, held in builder.datasets.items() if f"{name}_index" not in builder.datasets}
    lengths = {name: data.shape[0] for name, data in columns.items() if len(getattr(data, "shape", ()))}
    listed = ", ".join(f"{name} {length}" for name, length in sorted(lengths.items()))
    lost = "spike_times" in lengths
    return f"its columns differ in length: {listed}" + ("; there is no spike_times_index" if lost else "")


def _walk_groups(group: Any) -> Iterator[Any]:
    for child in list(group.groups.values()):
        yield child
        yield from _walk_groups(child)


def _find_incomplete(root: Any, manager: Any, known: tuple[Unreadable, ...]) -> list[Unreadable]:
    """Returns what pynwb would pass over or half read without a word: unknown types, and series without their data."""
    links = {part.path: part.why for part in known}
    found = []
    for group in _walk_groups(root):
        path = _find_path(group)
        lost = {at.rpartition("/")[2]: why for at, why in links.items() if at.rpartition("/")[0] == path}
        why = _find_missing_type(group)
        if why is None and "neurodata_type" in group.attributes:
            why = _find_lack(group, manager, lost)
        if why is not None:
            found.append(Unreadable(path, _find_shape(group), why))
    return found


def _find_missing_type(group: Any) -> str | None:
    """Returns what a group or a dataset in it lacks of the two attributes that name its type, or None."""
    for held in (group, *group.datasets.values()):
        there = [name for name in ("neurodata_type", "namespace") if name in held.attributes]
        if len(there) == 1:
            lost = "namespace" if there[0] == "neurodata_type" else "neurodata_type"
            return f"it has no {lost}" if held is group else f"{held.name} has no {lost}"
    return None


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


def _drop(root: Any, part: Unreadable) -> Iterator[Unreadable]:
    """Takes a part out of the tree, with every link to it. Yields what refers to it and was therefore taken out too."""
    *folders, name = part.path.split("/")
    group = root
    for folder in folders:
        group = group.groups.get(folder)
        if group is None:
            return
    gone = _remove(group, name)
    if gone is None:
        return
    for holder in (root, *_walk_groups(root)):
        for key in [key for key, link in holder.links.items() if link.builder is gone]:
            _remove(holder, key)
        if any(value is gone for held in holder.datasets.values() for value in held.attributes.values()):
            other = Unreadable(_find_path(holder), _find_shape(holder), f"it refers to {part}")
            yield other
            yield from _drop(root, other)


def _remove(group: Any, name: str) -> Any:
    group.obj_type.pop(name, None)
    for held in (group.groups, group.datasets, group.links):
        if name in held:
            return held.pop(name)
    return None
