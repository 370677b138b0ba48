"""A file that HDF5 grows can be opened whatever happens to its writer."""

from __future__ import annotations

import hashlib
import os
import signal
import subprocess
import sys
import time
import tracemalloc
from contextlib import suppress
from pathlib import Path

import h5py
import numpy as np
import pytest

from edgedistill.data import rollback_file
from edgedistill.data.opening.opening import open_nwb
from edgedistill.data.rollback_file import RollbackFile, journal_of, recover
from edgedistill.errors import RecordingError

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


def grow_three_times(grown: Grown) -> None:
    for _ in range(3):
        grown.grow(1000)
        grown.raw.commit()


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
@pytest.mark.parametrize("allowed", range(5))
def test_a_full_disk_is_told_and_keeps_a_commit_whenever_it_comes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, allowed: int
) -> None:
    path = tmp_path / "x.h5"
    grown = Grown(path)
    grown.grow(100)
    grown.raw.commit()

    real, calls = getattr(os, name), []

    def fail_later(*arguments: object) -> object:
        calls.append(name)
        if len(calls) > allowed:
            raise OSError(28, "No space left on device")
        return real(*arguments)

    monkeypatch.setattr(rollback_file.os, name, fail_later)
    with pytest.raises(OSError, match="No space"):
        grow_three_times(grown)
    monkeypatch.undo()
    grown.grow(10)  # HDF5 goes on as if nothing had happened
    with pytest.raises(OSError, match="No space"):
        grown.raw.commit()
    grown.file.close()
    grown.raw.close()
    recover(path)
    assert rows_of(path) in (100, 1100, 2100)


# ---------------------------------------------------------------- a recording and a journal from a stranger


def plant_journal(path: Path, place: int, data: bytes, count: int | None = None) -> None:
    """Writes a journal beside a file as anybody can make it, with the right hash."""
    body = rollback_file.MAGIC + rollback_file.RECORD.pack(place, len(data) if count is None else count) + data
    journal_of(path).write_bytes(body + hashlib.sha256(body).digest())


def test_a_journal_changes_nothing_that_a_link_leads_to(tmp_path: Path) -> None:
    victim, recording = tmp_path / "settings", tmp_path / "a.nwb"
    victim.write_bytes(b"mine" * 100)
    for lead in (recording.symlink_to, recording.hardlink_to):
        lead(victim)
        plant_journal(recording, 0, b"theirs")
        with pytest.raises(OSError, match=r"link|not a plain file"):
            recover(recording)
        with pytest.raises(RecordingError):
            open_nwb(recording)
        assert victim.read_bytes() == b"mine" * 100
        recording.unlink()
    elsewhere = tmp_path / "elsewhere"
    plant_journal(elsewhere, 0, b"theirs")
    recording.write_bytes(b"whole")
    journal_of(recording).unlink()
    journal_of(recording).symlink_to(journal_of(elsewhere))
    assert not recover(recording)
    assert recording.read_bytes() == b"whole"


@pytest.mark.parametrize(("place", "count"), [(6, None), (1 << 40, None), (1 << 63, None), (0, 1 << 40), (0, 99)])
def test_a_journal_makes_a_file_no_longer(tmp_path: Path, place: int, count: int | None) -> None:
    recording = tmp_path / "a.nwb"
    recording.write_bytes(b"whole....")
    plant_journal(recording, place, b"other", count)
    with suppress(OSError):
        recover(recording)
    assert recording.read_bytes() == b"whole...."


def test_a_journal_that_claims_gigabytes_is_not_read(tmp_path: Path) -> None:
    recording = tmp_path / "a.nwb"
    recording.write_bytes(b"whole")
    journal_of(recording).write_bytes(rollback_file.MAGIC)
    os.truncate(journal_of(recording), 1 << 40)
    tracemalloc.start()
    assert not recover(recording)
    assert tracemalloc.get_traced_memory()[1] < 1 << 20
    tracemalloc.stop()


def test_a_recording_is_not_written_through_a_link_that_was_planted(tmp_path: Path) -> None:
    victim, recording = tmp_path / "settings", tmp_path / "a.nwb"
    victim.write_bytes(b"mine")
    journal, new = journal_of(recording), tmp_path / ".a.nwb.new"
    for lead, says in ((Path.symlink_to, "symbolic links"), (Path.hardlink_to, "not a plain file")):
        lead(journal, victim)
        with pytest.raises(OSError, match=says):
            RollbackFile(recording)
        journal.unlink()
        lead(new, victim)
        grown = Grown(recording)
        grown.grow(10)
        grown.raw.commit()
        grown.file.close()
        grown.raw.close()
        assert rows_of(recording) == 10
    assert victim.read_bytes() == b"mine"


def test_a_pipe_is_not_replaced_by_a_recording(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "a.nwb")
    with pytest.raises(FileExistsError, match="not replaced"):
        RollbackFile(tmp_path / "a.nwb")
    assert [path.name for path in tmp_path.iterdir()] == ["a.nwb"]
