"""Arrays in files hold what was written to them, leave nothing behind, and their memory is given back."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import numpy as np
import pytest

from edgedistill import scratch
from edgedistill.errors import OutputError
from edgedistill.scratch import (
    LEAST_BYTES,
    POOL_BYTES,
    allocate,
    fill_file,
    keep,
    map_file,
    move,
    release_pages,
    scratch_in,
    split_rows,
)


def resident(path: str = "/proc/self/statm") -> int:
    """Returns the bytes of memory that this process uses."""
    return int(Path(path).read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def is_in_file(array: np.ndarray) -> bool:
    base: object = array
    while isinstance(base, np.ndarray):
        base = base.base
    return isinstance(base, memoryview) or base in scratch._Scratch.maps


@pytest.mark.parametrize("bytes_", [LEAST_BYTES, 3 * LEAST_BYTES + 8, POOL_BYTES + 4096])
def test_what_was_written_is_there_after_its_memory_was_given_back(tmp_path: Path, bytes_: int) -> None:
    with scratch_in(tmp_path / "not" / "there"):
        arrays = [allocate((bytes_ // 8, 1), np.float64) for _ in range(2)]
        for value, array in enumerate(arrays):
            array[:] = value + np.arange(len(array))[:, None]
        release_pages()
        for value, array in enumerate(arrays):
            assert is_in_file(array)
            np.testing.assert_array_equal(array[:, 0], value + np.arange(len(array)))
        assert list(tmp_path.iterdir()) == []


def test_arrays_are_in_memory_without_a_folder_and_where_they_are_small(tmp_path: Path) -> None:
    assert not is_in_file(allocate((1 << 20,), np.float64))
    with scratch_in(tmp_path):
        assert not is_in_file(allocate((3, 0), np.float32))
        assert is_in_file(allocate((1 << 20,), np.float64))
    assert not is_in_file(allocate((1 << 20,), np.float64))


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="tells memory from /proc")
def test_going_over_an_array_in_blocks_takes_no_more_memory_than_a_block(tmp_path: Path) -> None:
    with scratch_in(tmp_path):
        array = allocate((1 << 15, 512), np.float64)  # 128 MB
        array[:] = 1.0
        whole = resident()
        release_pages()
        assert resident() < whole - (100 << 20)
        before, most = resident(), 0
        for rows in split_rows(slice(0, len(array)), 4096):
            assert array[rows].sum() == 512 * (rows.stop - rows.start)
            most = max(most, resident() - before)
        assert most < 16 << 20


def test_a_copy_is_another_array(tmp_path: Path) -> None:
    with scratch_in(tmp_path):
        values = np.arange(200_000.0).reshape(-1, 4)
        copy = keep(values)
        values[:] = 0
        assert is_in_file(copy)
        np.testing.assert_array_equal(copy.ravel(), np.arange(200_000.0))


def test_an_array_moves_only_where_a_command_named_a_folder(tmp_path: Path) -> None:
    values = np.arange(200_000.0)
    assert move(values) is values
    with scratch_in(tmp_path):
        assert is_in_file(move(values))
        np.testing.assert_array_equal(move(values), values)


def test_a_file_is_filled_in_memory_or_without_a_name(tmp_path: Path) -> None:
    with fill_file(lambda file: file.write(b"in memory")) as file:
        assert file.read() == b"in memory"
    with scratch_in(tmp_path / "not there"), fill_file(lambda file: file.write(b"on disk")) as file:
        assert (file.read(), list(tmp_path.iterdir())) == (b"on disk", [])
        assert os.fstat(file.fileno()).st_size == 7


def test_a_file_that_is_mapped_cannot_be_written_to(tmp_path: Path) -> None:
    path = tmp_path / "numbers"
    path.write_bytes(np.arange(100.0).tobytes())
    array = np.frombuffer(map_file(path))
    with pytest.raises(ValueError, match="read-only"):
        array[0] = 1


def test_a_full_disk_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*args: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "posix_fallocate", full)
    with scratch_in(tmp_path), pytest.raises(OutputError, match="the disk is full"):
        allocate((1 << 20,), np.float64)
    with scratch_in(tmp_path), pytest.raises(OutputError, match="the disk is full"):
        fill_file(full)


@pytest.mark.parametrize("width", [1, 7, 10**9])
def test_blocks_cover_all_rows_once(width: int) -> None:
    parts = list(split_rows(slice(5, 300_000), width))
    assert [one.stop for one in parts[:-1]] == [one.start for one in parts[1:]]
    assert (parts[0].start, parts[-1].stop) == (5, 300_000)
