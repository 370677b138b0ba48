"""Finds the folders of edgedistill that hold no Python: kernels, targets and calibration.

They lie at the top of the repository and are packed into the wheel. The name of a folder goes in, and its tree of files
comes out, for an installed edgedistill as well as for a checkout.
"""

from __future__ import annotations

import hashlib
import sys
from collections.abc import Iterator
from functools import lru_cache
from importlib import resources
from pathlib import Path
from typing import Literal

from edgedistill.errors import ConfigError

if sys.version_info >= (3, 11):
    from importlib.resources.abc import Traversable
else:
    from importlib.abc import Traversable


def asset_folder(name: Literal["kernels", "targets", "calibration"]) -> Traversable:
    """Returns the folder of that name. Raises ConfigError if neither the wheel nor a checkout holds it."""
    package = resources.files("edgedistill")
    if (packaged := package / "_assets" / name).is_dir():
        return packaged
    if isinstance(package, Path) and (checkout := package.parent / name).is_dir():
        return checkout
    raise ConfigError(
        f"the folder '{name}' of edgedistill is missing",
        causes=("the installation is damaged or incomplete",),
        next_step="pip install --force-reinstall .   (in the checkout of edgedistill)",
    )


@lru_cache(maxsize=1)
def engine_code_digest() -> str:
    """Returns the SHA-256 over all that turns a bundle into an engine: kernels, targets, and the code that reads both.

    An engine that an older edgedistill compiled is recognized by it.
    """
    package, digest = resources.files("edgedistill"), hashlib.sha256()
    folders = [asset_folder("kernels"), asset_folder("targets"), *(package / name for name in ENGINE_CODE)]
    files = [one for folder in folders for one in _read_sources(folder, folder.name)]
    for name, data in (*files, ("config.py", (package / "config.py").read_bytes())):
        digest.update(f"{name} {len(data)}\n".encode() + data)
    return digest.hexdigest()


ENGINE_CODE = ("bundle", "compile", "frontend", "numerics")  # the rooms that decide what is compiled
SOURCES = (".py", ".c", ".h", ".cpp", ".cu", ".cuh", ".txt", ".toml")


def _read_sources(folder: Traversable, name: str) -> Iterator[tuple[str, bytes]]:
    for entry in sorted(folder.iterdir(), key=lambda entry: entry.name):
        if entry.is_dir():
            yield from _read_sources(entry, f"{name}/{entry.name}")
        elif entry.name.endswith(SOURCES):
            yield f"{name}/{entry.name}", entry.read_bytes()
