"""The file of a holdout has the bytes that numpy gives it, and is written without being held in memory."""

from __future__ import annotations

import io
import os
from pathlib import Path

import numpy as np
import pytest

from edgedistill.pipeline.holdout_files import open_npz, pack_npz, write_npz
from edgedistill.scratch import allocate, release_pages, scratch_in

ARRAYS = {
    "bins": np.arange(3_000_000, dtype=np.float32).reshape(-1, 8),
    "slow": np.arange(60.0).reshape(-1, 6)[:, :2],
    "columns": np.asfortranarray(np.arange(60).reshape(-1, 6)),
    "there": np.array([[True, False]]),
    "score_from": np.array(12),
    "none": np.zeros((0, 3)),
}


def resident() -> int:
    """Returns the bytes of memory that this process uses."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def test_the_bytes_are_those_of_numpy(tmp_path: Path) -> None:
    expected = io.BytesIO()
    np.savez(expected, **ARRAYS)  # type: ignore[arg-type]
    assert pack_npz(ARRAYS) == expected.getvalue()
    with scratch_in(tmp_path), open_npz(ARRAYS) as file:
        assert file.read() == expected.getvalue()


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="tells memory from /proc")
def test_writing_a_large_array_takes_the_memory_of_a_few_blocks(tmp_path: Path) -> None:
    most = 0

    class Watched(io.FileIO):
        def write(self, data: object) -> int:
            nonlocal most
            most = max(most, resident())
            return super().write(data)  # type: ignore[arg-type]

    with scratch_in(tmp_path):
        array = allocate((1 << 25, 1), np.float64)  # 256 MB
        array[:] = 1.0
        release_pages()
        before = resident()
        with Watched(tmp_path / "one.npz", "w") as file:
            write_npz(file, {"array": array})  # type: ignore[arg-type]
    assert most - before < 100 << 20
    assert np.load(tmp_path / "one.npz")["array"].sum() == len(array)
