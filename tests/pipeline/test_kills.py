"""Commands that are killed at any moment leave the old result or the new one, and can be run again."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

# The benchmark, with the short measures of the other tests of this folder
DRIVER = """
from benchmarks.cpu import kills
from tests.pipeline.conftest import quick_measures
with quick_measures():
    kills.main()
"""


def test_ten_kills_leave_the_old_or_the_new_result_and_the_same_command_ends_with_the_same_bytes(
    pretrained: Path, tmp_path: Path
) -> None:
    """The student is that of other tests, so that what is killed is what comes after its training."""
    words = ["--kills", "10", "--data", pretrained / "data", "--student", pretrained / "student"]
    words += ["--preset", pretrained / "tiny.toml", "--target", pretrained / "host.toml", "--out", tmp_path]
    program = [sys.executable, "-c", DRIVER, *map(str, words)]
    one_thread = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(program, env=one_thread, capture_output=True, text=True, check=False)
    result = json.loads((tmp_path / "kills.json").read_text())
    assert result["found"] == [], done.stderr
    assert done.returncode == 0
    assert result["kills"] == {"build": 4, "compile": 2, "run": 2, "adapt": 2}
