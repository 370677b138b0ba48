"""Tests that kernels/ travels in the wheel as it is in git, and that emulation/ does not."""

from __future__ import annotations

import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from .c_builds import ROOT


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Builds the wheel of this checkout; returns the names of its files."""
    pytest.importorskip("hatchling", reason="the wheel's builder comes with the extra dev")
    folder = tmp_path_factory.mktemp("wheel")
    command = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(folder)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    (path,) = folder.glob("*.whl")
    return zipfile.ZipFile(path).namelist()


def files_of(folder: Path) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}


def test_every_file_of_kernels_is_in_the_wheel(wheel: list[str]) -> None:
    prefix = "edgedistill/_assets/kernels/"
    assert {name.removeprefix(prefix) for name in wheel if name.startswith(prefix)} == files_of(ROOT / "kernels")


def test_nothing_of_emulation_is_in_the_wheel(wheel: list[str]) -> None:
    names = {Path(name).name for name in files_of(ROOT / "emulation")} - {"README.md"}
    assert {"driver.cpp", "mps2.ld", "fuzz_decoder.c"} <= names  # they are where this test looks for them
    assert not [name for name in wheel if "emulation" in name or Path(name).name in names]


@pytest.mark.parametrize("folder", ["include", "c", "gpu", "cuda", "tensorrt", "examples"])
def test_kernels_do_not_need_emulation(folder: str) -> None:
    """Only exact.cuh, in emulation, includes a header of emulation/."""
    names = {path.name for path in (ROOT / "emulation").rglob("*.h")}
    users = {
        path.name
        for path in (ROOT / "kernels" / folder).iterdir()
        if any(f'#include "{name}"' in path.read_text() for name in names)
    }
    assert users <= {"exact.cuh"}
