"""Commands that are killed at any moment leave the old result or the new one, and can be run again."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from edgedistill.pipeline import BuildResult

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize(
    ("kills", "also_build"),
    [(6, False), pytest.param(12, False, marks=pytest.mark.variant), pytest.param(10, True, marks=pytest.mark.slow)],
)
def test_kills_leave_the_old_or_the_new_result_and_the_same_command_ends_with_the_same_bytes(
    home: Path, first: BuildResult, tmp_path: Path, kills: int, also_build: bool
) -> None:
    """`adapt` writes its bundle as `build` does. The training that is killed in a build is that of `test_loop.py`."""
    words: list[object] = ["--data", home / "data", "--out", tmp_path, "--kills", kills]
    words += ["--preset", home / "tiny.toml", "--target", home / "host.toml"]
    words += [] if also_build else ["--bundle", first.bundle]
    program = [sys.executable, "-m", "benchmarks.cpu.kills", *map(str, words)]
    one_thread = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(program, cwd=ROOT, env=one_thread, capture_output=True, text=True, check=False)
    result = json.loads((tmp_path / "kills.json").read_text())
    assert result["found"] == [], done.stderr
    assert done.returncode == 0
    others = dict.fromkeys(("compile", "run", "adapt"), 2 if also_build else kills // 3)
    assert result["kills"] == ({"build": 4} if also_build else {}) | others
