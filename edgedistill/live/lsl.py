"""Imports pylsl, which holds the library of Lab Streaming Layer, and says how to get it where it is missing."""

from __future__ import annotations

from types import ModuleType
from typing import cast

from edgedistill.errors import EngineError


def import_lsl() -> ModuleType:
    """Returns the module `pylsl`. Raises EngineError where it or its library is not installed."""
    try:
        import pylsl
    except (ImportError, OSError, RuntimeError) as error:  # the last two where there is no library for this system
        raise EngineError(
            "Lab Streaming Layer cannot be used here",
            got=error,
            causes=("the extra `stream` is not installed", "pylsl brings no library for this system: install liblsl"),
            next_step="pip install 'edgedistill[stream]'",
        ) from error
    return cast(ModuleType, pylsl)
