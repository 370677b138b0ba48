"""A hook of mkdocs: the site is not built while a public module, class, function or method lacks a docstring.

Public is what has no underscore at its front and is defined in the package, whether the site shows it or not. ruff's
rules D1 ask for the same; here the names are read as mkdocstrings reads them, from the sources and without importing.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import griffe

PACKAGE = "edgedistill"


def undocumented(package: str, folder: Path) -> list[str]:
    """The public names of the package in `folder` that have no docstring, in alphabetical order."""
    loaded = griffe.load(package, search_paths=[folder], allow_inspection=False)
    assert isinstance(loaded, griffe.Module)
    return sorted(_bare(loaded))


def _bare(thing: griffe.Object) -> Iterator[str]:
    if not thing.has_docstring:
        yield thing.path
    if thing.is_function:
        return
    for name, member in thing.members.items():
        if isinstance(member, griffe.Object) and not name.startswith("_") and not _plain_value(member):
            yield from _bare(member)


def _plain_value(member: griffe.Object) -> bool:
    """A constant or a field, which a comment explains; griffe counts properties among the attributes too."""
    return member.is_attribute and "property" not in member.labels


def on_pre_build(config: object) -> None:
    """Called by mkdocs before it builds. SystemExit names what is not documented."""
    if missing := undocumented(PACKAGE, Path(__file__).resolve().parent.parent):
        raise SystemExit("no docstring, though public: " + ", ".join(missing))
