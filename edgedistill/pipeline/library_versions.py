"""Finds the versions of the libraries that a kept stage computes with.

The name of the module that makes a stage goes in. Name and version of each library come out that this module, or one of
this package behind it, imports. A stage that was made with another version of one of them is made again.
"""

from __future__ import annotations

import sys
from functools import cache
from importlib import metadata
from importlib.resources import files
from typing import TYPE_CHECKING

from edgedistill.pipeline.code_digest import PACKAGE, find_needed_modules, read_source, source_of

if TYPE_CHECKING:
    if sys.version_info >= (3, 11):
        from importlib.resources.abc import Traversable
    else:
        from importlib.abc import Traversable

DISTRIBUTIONS = {"sklearn": "scikit-learn"}  # where a library is not installed under the name that is imported


@cache
def installed_versions(module: str) -> dict[str, str | None]:
    """Returns the version of Python and of every library behind a module of the package that is running.

    The version of a library that is not installed, and that a stage can do without, is None.
    """
    libraries = find_libraries(module, files(PACKAGE))
    python = ".".join(map(str, sys.version_info[:2]))
    return {"python": python} | {name: find_version(name) for name in sorted(libraries)}


def find_libraries(module: str, package: Traversable) -> set[str]:
    """Returns the names under which `module` and the modules of this package behind it import other libraries."""
    found: set[str] = set()
    for name in find_needed_modules(module, package):
        imported = read_source(source_of(name, package) or "", name)[1]
        found.update(full.partition(".")[0] for full in imported)
    return found - {PACKAGE, ""} - sys.stdlib_module_names


def find_version(library: str) -> str | None:
    """Returns the version of a library by the name that is imported, or None where it is not installed."""
    try:
        return metadata.version(DISTRIBUTIONS.get(library, library))
    except metadata.PackageNotFoundError:
        return None
