"""The files of this checkout that git knows; a source archive has none, and a test that needs them is skipped."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest


def tracked_files(root: Path) -> list[str]:
    """Returns the files under `root` that git tracks or is about to, as paths relative to it; without deleted ones."""
    if _ask_git(root, "rev-parse", "--show-toplevel").strip() != str(root.resolve()):
        pytest.skip("this is a source archive, not a checkout of git")
    names = _ask_git(root, "ls-files", "-z", "--cached", "--others", "--exclude-standard").split("\0")
    return sorted({name for name in names if name and (root / name).is_file()})


def _ask_git(root: Path, *command: str) -> str:
    try:
        done = subprocess.run(["git", *command], cwd=root, capture_output=True, text=True, timeout=240, check=True)
    except (OSError, subprocess.SubprocessError) as error:
        pytest.skip(f"git does not answer here: {error}")
    return done.stdout
