"""Runs the programs of a toolchain: a command comes in; what it prints, or its first error, goes out."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable, Sequence
from pathlib import Path

from edgedistill.errors import EngineError

TIMEOUT_S = 900


def run_command(folder: Path, command: Sequence[str], failed: Callable[[str], EngineError], **environment: str) -> str:
    """Runs a command in `folder` and returns what it prints.

    `environment` is added to that of this process. Where the command fails, `failed` makes the error that is raised
    from the first error line that the command printed.
    """
    env = _english() | environment
    try:
        done = subprocess.run(
            command, cwd=folder, env=env, capture_output=True, text=True, errors="replace", timeout=TIMEOUT_S
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise failed(str(error)) from error
    if done.returncode:
        raise failed(_first_error(done.stderr or done.stdout, done.returncode))
    return done.stdout


def answer(*command: str, on_stderr: bool = False) -> list[str]:
    """Returns the lines that a program prints; an empty list if it is missing, fails or hangs."""
    try:
        done = subprocess.run(command, env=_english(), capture_output=True, text=True, timeout=20, check=True)
    except (OSError, subprocess.SubprocessError, UnicodeDecodeError):
        return []
    return (done.stderr if on_stderr else done.stdout).strip().splitlines()


def _english() -> dict[str, str]:
    """Returns this process's environment with messages in English, in which error lines are recognised."""
    return {**os.environ, "LC_ALL": "C"}


def _first_error(text: str, code: int) -> str:
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    first = next((line for line in lines if "error" in line.lower()), lines[0] if lines else "")
    return first or f"exit code {code} without a message"
