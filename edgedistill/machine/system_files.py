"""Reads the small files in which Linux describes the machine, in /proc, /sys and /etc."""

from __future__ import annotations

from pathlib import Path


def read_system_file(path: Path | str) -> str | None:
    """Returns the text of a file without surrounding blanks and NULs, or None if it is missing, unreadable or empty.

    Files of the device tree end with a NUL, as strings in C do.
    """
    try:
        return Path(path).read_text(encoding="utf-8", errors="replace").strip().strip("\0") or None
    except OSError:
        return None
