"""Makes some calls of the C fuzzer on emulated boards; the fuzzing benchmark of firmware makes more."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.firmware.boards import PROGRAM
from benchmarks.firmware.fuzz import BOARDS, compare

from . import emulated
from .c_builds import ROOT


@pytest.mark.parametrize("board", [pytest.param("cortex-m7", marks=pytest.mark.variant), "cortex-m55"])
def test_no_input_breaks_the_firmware(tmp_path: Path, board: str) -> None:
    emulated.toolchain_of(BOARDS[board].target)
    emulated.require(PROGRAM, "qemu-system-arm")
    options = ("--board", board, "--array", "decimated", "--inputs", "50", "--out", str(tmp_path))
    command = [sys.executable, "-m", "benchmarks.firmware.fuzz", *options]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    result = json.loads((tmp_path / "firmware-fuzz.json").read_text())
    assert result["found"] == 0
    assert result["boards"][board]["inputs"] == 50


def test_an_input_that_differs_or_breaks_is_named() -> None:
    inputs = [b"\1", b"\2", b"\3"]
    same = ([5, 6, 7], "")
    assert compare(inputs, same, same) == []
    assert compare(inputs, same, ([5, 6, 8], "")) == [{"what": "the digests differ", "input": "03"}]
    assert compare(inputs, same, ([5], "line 3: not x")) == [
        {"what": "on the board: line 3: not x", "input": "02"},
    ]
