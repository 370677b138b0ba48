"""Lets a process keep the memory that a training step frees, because the next step needs as much again.

The C library of Linux gives freed memory back to the system, which then fills every page with zeros before it is used
again. For the many tensors of a step that is a fifth of its time.
"""

from __future__ import annotations

import ctypes
from collections.abc import Iterator
from contextlib import contextmanager

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # of mallopt in glibc
LARGEST = 32 << 20  # bytes of a single array that may lie in memory that is kept, the most that glibc allows
KEPT = 1 << 30  # bytes that are kept while a training runs
KEPT_AFTERWARDS = 64 << 20  # what glibc itself would keep by then


@contextmanager
def keep_freed_memory() -> Iterator[None]:
    """Keeps freed memory until the end of the block, and then gives it back. Without glibc it does nothing."""
    library = ctypes.CDLL(None)
    if not hasattr(library, "mallopt") or not hasattr(library, "malloc_trim"):
        yield
        return
    library.mallopt(M_MMAP_THRESHOLD, LARGEST)
    library.mallopt(M_TRIM_THRESHOLD, KEPT)
    try:
        yield
    finally:
        library.mallopt(M_TRIM_THRESHOLD, KEPT_AFTERWARDS)
        library.malloc_trim(0)
