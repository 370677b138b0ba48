"""The file of a holdout has the bytes that numpy gives it, and is written block by block."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgedistill.pipeline import holdout_files
from edgedistill.pipeline.holdout_files import open_npz, pack_npz, write_npz
from edgedistill.scratch import scratch_in

ARRAYS = {
    "bins": np.arange(3_000_000, dtype=np.float32).reshape(-1, 8),
    "slow": np.arange(60.0).reshape(-1, 6)[:, :2],
    "columns": np.asfortranarray(np.arange(60).reshape(-1, 6)),
    "there": np.array([[True, False]]),
    "score_from": np.array(12),
    "none": np.zeros((0, 3)),
}


def test_the_bytes_are_those_of_numpy(tmp_path: Path) -> None:
    expected = io.BytesIO()
    np.savez(expected, **ARRAYS)  # type: ignore[arg-type]
    assert pack_npz(ARRAYS) == expected.getvalue()
    with scratch_in(tmp_path), open_npz(ARRAYS) as file:
        assert file.read() == expected.getvalue()


def test_a_large_array_is_written_in_blocks_whose_pages_are_given_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    written, released = [], []

    class Watched(io.BytesIO):
        def write(self, data: Any) -> int:
            written.append(memoryview(data).nbytes)
            return super().write(data)

    monkeypatch.setattr(holdout_files, "release_pages", lambda: released.append(sum(written)))
    array = np.ones((1 << 23, 1))  # 64 MB
    write_npz(Watched(), {"array": array})
    assert max(written) <= 16 << 20
    assert len(released) >= array.nbytes >> 24
    assert max(np.diff([0, *released])) <= 16 << 20
