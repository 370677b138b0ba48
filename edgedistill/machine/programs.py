"""Runs programs of this machine to ask for facts, and returns the lines that they print.

No error is raised here. A compiler, a package manager or a board tool that is missing, fails or hangs gives no lines,
and the caller decides what that means. `edgedistill.compile.commands` runs the programs whose failure is an error.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

TIMEOUT_S = 20


def ask_program(*command: str, on_stderr: bool = False) -> list[str]:
    """Returns the lines that a program prints on stdout, or on stderr if asked for.

    The list is empty if the program is missing, ends with an error, prints no text or takes longer than TIMEOUT_S.
    """
    try:
        done = subprocess.run(
            command, env=english_environment(), capture_output=True, text=True, timeout=TIMEOUT_S, check=True
        )
    except (OSError, subprocess.SubprocessError, UnicodeDecodeError):
        return []
    return (done.stderr if on_stderr else done.stdout).strip().splitlines()


def english_environment() -> dict[str, str]:
    """Returns this process's environment with English messages, because callers search them for words."""
    return {**os.environ, "LC_ALL": "C"}


def identify_program(command: str) -> str:
    """Returns the path, size and time of a program's file, which change when it is updated, or "" if it is missing.

    The program is not run.
    """
    place = shutil.which(command)
    if place is None:
        return ""
    path = Path(place).resolve()
    found = path.stat()
    return f"{path} {found.st_size} {found.st_mtime_ns}"
