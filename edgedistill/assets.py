"""Finds the folders of edgedistill that hold no Python: kernels, targets and calibration.

They lie at the top of the repository and are packed into the wheel. The name of a folder goes in, and its tree of files
comes out, for an installed edgedistill as well as for a checkout.
"""

from __future__ import annotations

import sys
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
