"""Waits for what another thread or process does, for as long as a busy machine may take."""

from __future__ import annotations

import time
from collections.abc import Callable

LONGEST_S = 240.0


def wait_until(is_so: Callable[[], bool], longest_s: float = LONGEST_S) -> None:
    """Waits until something is so. Fails only where it never seems to happen."""
    until = time.monotonic() + longest_s
    while not is_so():
        assert time.monotonic() < until, "it did not happen in time"
        time.sleep(0.01)
