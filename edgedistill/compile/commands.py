"""Programs of a toolchain, run: a command in, what it prints out, or its first error as an error of ours."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable, Sequence
from pathlib import Path

from edgedistill.errors import EngineError

TIMEOUT_S = 900


def run_command(folder: Path, command: Sequence[str], failed: Callable[[str], EngineError], **environment: str) -> str:
    """What a command prints; `failed` makes the error of its first line of complaint."""
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
    """The lines a program answers; none if it is missing, fails or hangs."""
    try:
        done = subprocess.run(command, env=_english(), capture_output=True, text=True, timeout=20, check=True)
    except (OSError, subprocess.SubprocessError, UnicodeDecodeError):
        return []
    return (done.stderr if on_stderr else done.stdout).strip().splitlines()


def _english() -> dict[str, str]:
    return {**os.environ, "LC_ALL": "C"}


def _first_error(text: str, code: int) -> str:
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    told = next((line for line in lines if "error" in line.lower()), lines[0] if lines else "")
    return told or f"exit code {code}, and not a word"
