"""A file that HDF5 grows can be opened whatever happens to its writer."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from pathlib import Path

import h5py
import numpy as np
import pytest

from edgedistill.data import rollback_file
from edgedistill.data.rollback_file import RollbackFile, journal_of, recover

WRITER = """
import sys, h5py
from pathlib import Path
from edgedistill.data.rollback_file import RollbackFile
raw = RollbackFile(Path(sys.argv[1]))
file = h5py.File(raw, "w")
data = file.create_dataset("a", (0, 3), maxshape=(None, 3), chunks=(50, 3), dtype="i8")
while True:
    at = len(data)
    data.resize(at + 17, axis=0)
    data[at:] = at
    file.flush()
    raw.commit()
    print(len(data), flush=True)
"""


class Grown:
    """A file with one dataset whose rows are their own numbers."""

    def __init__(self, path: Path) -> None:
        self.raw = RollbackFile(path)
        self.file = h5py.File(self.raw, "w")
        self.data = self.file.create_dataset("a", (0,), maxshape=(None,), chunks=(50,), dtype="i8")

    def grow(self, rows: int) -> None:
        at = len(self.data)
        self.data.resize(at + rows, axis=0)
        self.data[at:] = np.arange(at, at + rows)
        self.file.flush()


def rows_of(path: Path) -> int:
    with h5py.File(path) as file:
        assert np.array_equal(file["a"][:], np.arange(len(file["a"])))
        return len(file["a"])


def test_a_reader_finds_the_last_commit_whatever_was_written_since(tmp_path: Path) -> None:
    path = tmp_path / "x.h5"
    grown = Grown(path)
    assert not path.exists()
    committed = 0
    for rows in (7, 60, 500, 1, 3000):
        grown.grow(rows)
        if committed:
            assert rows_of(path) == committed
        grown.raw.commit()
        committed += rows
        assert rows_of(path) == committed
    grown.grow(9)
    grown.file.close()
    grown.raw.close()
    assert rows_of(path) == committed  # what was not committed is not there
    assert list(tmp_path.iterdir()) == [path]


def test_a_writer_that_is_killed_leaves_a_file_that_opens(tmp_path: Path) -> None:
    for run in range(3):
        path = tmp_path / f"{run}.h5"
        with subprocess.Popen([sys.executable, "-c", WRITER, str(path)], stdout=subprocess.PIPE, text=True) as writer:
            assert writer.stdout is not None
            told = [int(writer.stdout.readline()) for _ in range(5 + 7 * run)]
            time.sleep(0.003 * run)
            writer.send_signal(signal.SIGKILL)
            told += [int(one) for one in writer.stdout.read().split()]
        recover(path)
        with h5py.File(path) as file:
            assert len(file["a"]) in (told[-1], told[-1] + 17)
            assert np.array_equal(file["a"][:, 0] // 17 * 17, file["a"][:, 0])
        assert not journal_of(path).exists()


def test_a_commit_that_was_cut_is_finished_from_its_journal(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, cut = tmp_path / "x.h5", tmp_path / "cut.h5"
    grown = Grown(path)
    grown.grow(100)
    grown.raw.commit()
    apply = rollback_file._apply

    def apply_some(file: int, pages: list[tuple[int, bytes]]) -> None:
        apply(file, pages[:1])
        cut.write_bytes(path.read_bytes())  # what a kill would leave now
        journal_of(cut).write_bytes(journal_of(path).read_bytes())
        apply(file, pages)

    monkeypatch.setattr(rollback_file, "_apply", apply_some)
    grown.grow(5000)
    grown.raw.commit()
    monkeypatch.undo()
    assert recover(cut)
    assert rows_of(cut) == 5100
    assert not recover(cut)


def test_a_journal_that_was_cut_changes_nothing(tmp_path: Path) -> None:
    path = tmp_path / "x.h5"
    grown = Grown(path)
    grown.grow(100)
    grown.raw.commit()
    grown.file.close()
    grown.raw.close()
    journal_of(path).write_bytes(rollback_file.MAGIC + bytes(1000))
    assert not recover(path)
    assert rows_of(path) == 100


def test_a_journal_of_a_living_writer_is_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "x.h5"
    grown = Grown(path)
    grown.grow(10)
    grown.raw.commit()
    assert not recover(path)
    assert journal_of(path).exists()
    with pytest.raises(OSError, match="unavailable"):
        RollbackFile(path)  # two writers of one file


@pytest.mark.parametrize("name", ["pwrite", "fsync"])
def test_a_full_disk_is_told_and_keeps_the_last_commit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    path = tmp_path / "x.h5"
    grown = Grown(path)
    grown.grow(100)
    grown.raw.commit()

    def fail(*arguments: object) -> int:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(rollback_file.os, name, fail)
    grown.grow(5000)
    with pytest.raises(OSError, match="No space"):
        grown.raw.commit()
    monkeypatch.undo()
    grown.grow(10)  # HDF5 goes on as if nothing had happened
    with pytest.raises(OSError, match="No space"):
        grown.raw.commit()
    grown.file.close()
    grown.raw.close()
    assert rows_of(path) == 100
