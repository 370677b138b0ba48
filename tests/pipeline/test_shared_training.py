"""Two processes that torchrun starts write the teacher and the student that one process writes, and print as one."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from edgedistill.training.run_log import list_runs

ROOT = Path(__file__).parents[2]
TWO = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2")

pytestmark = pytest.mark.variant


def train(home: Path, words: tuple[object, ...], launcher: tuple[str, ...] = ()) -> dict[str, object]:
    """Runs a command with the tiny preset. Returns its JSON."""
    settings = ("--preset", home / "tiny.toml", "--steps", 6, "--json")
    done = subprocess.run(
        [sys.executable, *launcher, "-m", "edgedistill", *map(str, (*words, *settings))],
        env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=400,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("sim00-day01: ") == 1
    found = json.loads(done.stdout)
    assert isinstance(found, dict)
    return found


def test_two_processes_write_what_one_writes(home: Path, tmp_path: Path) -> None:
    data = home / "data"
    pytest.importorskip("optuna")
    for name, launcher in (("one", ()), ("two", TWO)):
        train(home, ("pretrain", data, "--out", tmp_path / f"teacher-{name}"), launcher)
        distill = ("distill", data, "--teacher", tmp_path / "teacher-one", "--supervised", "--trials", 2)
        train(home, (*distill, "--out", tmp_path / f"student-{name}"), launcher)
    for model in ("teacher", "student"):
        one, two = (load_file(tmp_path / f"{model}-{name}" / "model.safetensors") for name in ("one", "two"))
        assert one.keys() == two.keys()
        for name, weight in one.items():
            torch.testing.assert_close(two[name], weight, rtol=0, atol=1e-3, msg=name)
    assert {run.processes for run in list_runs(tmp_path / "student-two.work")} == {2}
    assert not [path for path in tmp_path.rglob("*") if "partial" in path.name]
