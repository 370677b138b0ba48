"""Two commands never write to the same place at once: the second waits, and says for whom."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from edgedistill import staging
from edgedistill.errors import OutputError
from edgedistill.reserved import reserve, reserving, work_folder

from .waiting import wait_until

HOLDS = """
import sys
from pathlib import Path
from edgedistill.reserved import reserve
with reserve(*map(Path, sys.argv[1:])):
    print("holds", flush=True)
    sys.stdin.read()
"""


def start(*places: Path) -> subprocess.Popen[str]:
    process = subprocess.Popen(
        [sys.executable, "-c", HOLDS, *map(str, places)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "holds\n"
    return process


def wait_for_line(caplog: pytest.LogCaptureFixture) -> None:
    wait_until(lambda: bool(caplog.messages))


@pytest.mark.parametrize("shared", ["out", "work"])
def test_the_second_waits_and_says_for_whom(tmp_path: Path, caplog: pytest.LogCaptureFixture, shared: str) -> None:
    first = start(tmp_path / "out", tmp_path / "work")
    places = {"out": tmp_path / "other-out", "work": tmp_path / "other-work"} | {shared: tmp_path / shared}
    order: list[str] = []

    def second() -> None:
        with reserve(*places.values()):
            order.append("second")

    thread = threading.Thread(target=second)
    thread.start()
    wait_for_line(caplog)
    order.append("first ends")
    first.communicate(input="")
    thread.join()
    assert order == ["first ends", "second"]
    (line,) = caplog.messages
    assert line.startswith(f"{tmp_path / shared}: waiting for process {first.pid} on ")
    assert not list(tmp_path.iterdir())


def test_a_command_that_was_killed_blocks_nobody_and_its_lock_is_taken_over(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    first = start(tmp_path / "out")
    first.send_signal(signal.SIGKILL)
    first.communicate()
    assert [path.name for path in tmp_path.iterdir()] == [".out.lock"]
    with reserve(tmp_path / "out"):
        assert (tmp_path / ".out.lock").read_text().startswith(f"process {os.getpid()} ")
    assert not list(tmp_path.iterdir())
    assert not caplog.messages


def test_other_places_are_not_waited_for_and_a_link_is_the_place_that_it_leads_to(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "latest").symlink_to("out")
    with reserve(tmp_path / "out", tmp_path / "out.work"), reserve(tmp_path / "another", tmp_path / "another.work"):
        thread = threading.Thread(target=lambda: reserve(tmp_path / "latest").__enter__(), daemon=True)
        thread.start()
        wait_for_line(caplog)
    thread.join()
    assert len(caplog.messages) == 1


def test_many_that_want_the_same_place_get_it_one_at_a_time(tmp_path: Path) -> None:
    """Each removes the file of its lock, while others wait for that very file."""
    inside, most, turns = [0], [0], [0]

    def work() -> None:
        for _ in range(25):
            with reserve(tmp_path / "out", tmp_path / "out.work"):
                inside[0] += 1
                most[0] = max(most[0], inside[0])
                turns[0] += 1
                inside[0] -= 1

    threads = [threading.Thread(target=work) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert (most[0], turns[0]) == (1, 150)
    assert not list(tmp_path.iterdir())


def test_a_result_and_a_work_folder_with_long_names_do_not_wait_for_each_other(tmp_path: Path) -> None:
    out = tmp_path / ("x" * 100)
    with reserve(out, work_folder(out)):
        assert len(list(tmp_path.iterdir())) == 1


def test_folders_that_a_refused_command_would_have_needed_do_not_stay(tmp_path: Path) -> None:
    @reserving(lambda out: (out, work_folder(out)))
    def refused(out: Path) -> None:
        assert out.parent.is_dir()
        raise ValueError("odd")

    with pytest.raises(ValueError, match="odd"):
        refused(tmp_path / "new/deep/out")
    assert not list(tmp_path.iterdir())


def test_where_no_lock_can_be_made_the_cause_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match="a file is in the way"), reserve(tmp_path / "file/out"):
        pass
    opened = os.open

    def refuses(path: object, *arguments: int) -> int:
        if Path(str(path)).name == ".work.lock":
            raise PermissionError(errno.EACCES, "Permission denied")
        return opened(str(path), *arguments)

    monkeypatch.setattr("os.open", refuses)
    with reserve(tmp_path / "out", tmp_path / "work"):  # a folder that the user may write to, in one that they may not
        assert (tmp_path / ".out.lock").exists()
    with pytest.raises(OutputError, match="not allowed to write"), reserve(tmp_path / "work"):
        pass


def test_a_disk_without_locks_is_used_and_a_line_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def no_locks(*_: object) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(staging.fcntl, "flock", no_locks)
    with reserve(tmp_path / "out"):
        assert "no locks" in caplog.text


def test_a_lock_that_is_another_file_as_well_is_not_written_to(tmp_path: Path) -> None:
    victim, lock = tmp_path / "precious", tmp_path / ".out.lock"
    victim.write_text("the only copy")
    for lead in (lock.hardlink_to, lock.symlink_to):
        lead(victim)
        with pytest.raises(OutputError, match=r"in the way|link"), reserve(tmp_path / "out"):
            pass
        lock.unlink()
    os.mkfifo(lock)
    with pytest.raises(OutputError, match="could not be written"), reserve(tmp_path / "out"):
        pass
    assert victim.read_text() == "the only copy"
