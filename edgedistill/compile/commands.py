"""Runs the programs of a toolchain. A command goes in, and its output comes out, or its first error."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable, Sequence
from pathlib import Path

from edgedistill.errors import EngineError
from edgedistill.files import WRITING_ERRORS
from edgedistill.machine.programs import english_environment

TIMEOUT_S = 900


def run_command(folder: Path, command: Sequence[str], failed: Callable[[str], EngineError], **environment: str) -> str:
    """Runs a command in `folder` and returns what it prints.

    `environment` is added to that of this process. If the command fails, `failed` turns the first error line that it
    printed into the error that is raised. Raises OSError instead where the disk is the reason.
    """
    env = english_environment() | environment
    try:
        done = subprocess.run(
            command, cwd=folder, env=env, capture_output=True, text=True, errors="replace", timeout=TIMEOUT_S
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise failed(str(error)) from error
    if done.returncode:
        _raise_if_disk_failed(folder, done.stderr)
        raise failed(_first_error(done.stderr or done.stdout, done.returncode))
    return done.stdout


def _raise_if_disk_failed(folder: Path, text: str) -> None:
    """Raises OSError where a compiler could not write, because then the bundle is not what failed."""
    for number in WRITING_ERRORS:
        if os.strerror(number) in text:
            raise OSError(number, os.strerror(number), str(folder))


def _first_error(text: str, code: int) -> str:
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    first = next((line for line in lines if "error" in line.lower()), lines[0] if lines else "")
    return first or f"exit code {code} without a message"
