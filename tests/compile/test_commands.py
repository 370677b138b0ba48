"""A program of a toolchain that fails says why, and a full disk is no fault of the bundle."""

from __future__ import annotations

import errno
import sys
from pathlib import Path

import pytest

from edgedistill.compile.commands import run_command
from edgedistill.errors import EngineError, OutputError
from edgedistill.files import atomic_write


def fail(folder: Path, text: str) -> None:
    program = f"import sys; sys.stderr.write({text!r}); sys.exit(1)"
    run_command(folder, [sys.executable, "-c", program], EngineError)


def test_the_first_error_is_told(tmp_path: Path) -> None:
    with pytest.raises(EngineError, match=r"a\.c:1: error: odd"):
        fail(tmp_path, "a.c: In function 'f':\na.c:1: error: odd\na.c:2: error: odder\n")


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("fatal error: error writing to /x/ccA.s: No space left on device\ncompilation terminated.\n", errno.ENOSPC),
        ("/usr/bin/ld: final link failed: Disk quota exceeded\n", errno.EDQUOT),
        ("Fatal error: can't create a.o: Read-only file system\n", errno.EROFS),
    ],
)
def test_a_disk_that_takes_nothing_is_told_as_such(tmp_path: Path, text: str, number: int) -> None:
    with pytest.raises(OSError, match=r"device|quota|Read-only") as caught:
        fail(tmp_path, text)
    assert caught.value.errno == number
    place = tmp_path / "host"
    with pytest.raises(OutputError, match="engine could not be written"), atomic_write(place, "the engine") as folder:
        fail(tmp_path, f"{folder}: {text}")
    assert not list(tmp_path.iterdir())
