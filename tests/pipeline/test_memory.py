"""The memory of a training does not grow with the length of a session."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from edgedistill.data.session_store import save_session_bins

from ..training.sessions import T, session_bins
from . import memory_of_sessions

CHANNELS = 96
LONGER = 5


def measure(times: int, folder: Path) -> int:
    """Returns the megabytes that a session of `times` times T bins takes in a process of its own."""
    one = session_bins(channels=CHANNELS)
    parts = {name: np.concatenate([getattr(one, name)] * times) for name in ("lfp", "bad", "counts", "behavior")}
    valid = np.ones(times * T, np.bool_)
    valid[7000:7100] = False  # so that targets are not the inputs
    kept = folder / f"{times}.safetensors"
    save_session_bins(replace(one, bins=times * T, valid=valid, **parts), kept)
    command = [sys.executable, "-m", memory_of_sessions.__name__, str(kept), str(folder)]
    run = subprocess.run(command, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr
    return int(run.stdout)


@pytest.mark.skipif(sys.platform != "linux", reason="tells memory from /proc")
def test_memory_does_not_grow_with_the_length_of_a_session(tmp_path: Path) -> None:
    short, long = measure(1, tmp_path), measure(LONGER, tmp_path)
    longer_mb = (LONGER - 1) * T * CHANNELS * (8 + 4 + 4 + 4) / 2**20  # bins, what is present, inputs and targets
    assert longer_mb > 80
    assert long - short < 0.4 * longer_mb
