"""Runs a compiler once for the same sources and options in one run of the tests, whichever worker asks.

What was compiled lies in a folder that all workers of a run share. It is found by a digest of the command and of all
that it reads outside the checkout, which does not change in a run. A copy is handed out, because a library that is
loaded twice from the same file shares its variables.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

SHARED = "EDGEDISTILL_TESTS_COMPILED"  # names the folder that workers share
ROOT = Path(__file__).parents[1]
SOURCES = (".h", ".c", ".cpp", ".cu", ".inc")


def run_compiler(
    command: Sequence[str], output: Path, reads: Sequence[Path], cwd: Path | None = None
) -> subprocess.CompletedProcess[str]:
    """Runs `command`, which makes `output` of the files and folders `reads` and of `cwd`, or copies what was made.

    Commands that only differ in the names of these folders and of `output` make the same.
    """
    shared = os.environ.get(SHARED)
    if shared is None:
        return _run(command, cwd)
    found = Path(shared) / _digest(command, output, [path for path in (*reads, cwd) if path is not None])
    if found.exists():
        shutil.copy(found, output)
        return subprocess.CompletedProcess(list(command), 0, "", "")
    done = _run(command, cwd)
    if done.returncode == 0:
        hidden = tempfile.mkdtemp(dir=shared)
        Path(shutil.copy(output, hidden)).replace(found)  # at once, as others may look for it
    return done


def _run(command: Sequence[str], cwd: Path | None) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command, cwd=cwd, capture_output=True, text=True, check=False)


def _digest(command: Sequence[str], output: Path, reads: Sequence[Path]) -> str:
    changing = sorted({path for path in reads if ROOT not in path.parents}, key=lambda path: -len(str(path)))
    whole = hashlib.sha256()
    for word in command:
        if not word.startswith("-D"):  # a path in a macro becomes part of what is compiled
            for i, path in enumerate((output, *changing)):
                word = word.replace(str(path), f"<{i}>")
        whole.update(f"{word}\0".encode())
    for path in changing:
        for file in _list_files(path):
            whole.update(f"{file.relative_to(path)}\0{file.stat().st_size}\0".encode())
            whole.update(file.read_bytes())
    return whole.hexdigest()


def _list_files(path: Path) -> Iterator[Path]:
    """Yields a file, or the sources in a folder."""
    if path.is_dir():
        yield from sorted(one for one in path.rglob("*") if one.suffix in SOURCES and one.is_file())
    else:
        yield path
