"""Gives tests the wheels of NVIDIA's libraries, or skips them with the reason.

Where `EDGEDISTILL_REQUIRE_TENSORRT_WHEELS` is set, as in CI, a missing wheel fails the test.
"""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest

from benchmarks.tensorrt.wheels import find_wheel
from edgedistill.errors import EngineError

REQUIRED = "EDGEDISTILL_REQUIRE_TENSORRT_WHEELS"


def require_wheels(*names: str) -> list[Path]:
    """Returns the wheels with these names, for a test that also needs a C compiler."""
    try:
        found = [find_wheel(name) for name in names]
    except EngineError as error:
        give_up(f"{error.got}: `make setup` fetches it")
    if shutil.which("g++") is None:
        give_up("no g++: libraries that forward to NVIDIA's cannot be compiled")
    return found


def give_up(reason: str) -> None:
    """Skips the test, or fails it where wheels are required."""
    if os.environ.get(REQUIRED):
        pytest.fail(reason)
    pytest.skip(reason)
