"""A result is made in a hidden folder, which a living process keeps and a dead one leaves to the next."""

from __future__ import annotations

import errno
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from edgedistill import staging
from edgedistill.files import atomic_write, atomic_write_text
from edgedistill.staging import opened_folder, remove_leftovers, stage

SYNC, SYNC_WHOLE_DISK = staging._sync, staging._sync_whole_disk  # before the tests switch them off

WRITES_AND_WAITS = """
import sys
from pathlib import Path
from edgedistill.files import atomic_write
with atomic_write(Path(sys.argv[1]), "the bundle") as hidden:
    hidden.mkdir()
    (hidden / "half").write_text("half")
    print(hidden, flush=True)
    sys.stdin.read()
"""


def start(path: Path, program: str = WRITES_AND_WAITS) -> tuple[subprocess.Popen[str], Path]:
    """Starts a process that writes to `path`, and returns it with its hidden path once it is in the middle of it."""
    process = subprocess.Popen(
        [sys.executable, "-c", program, str(path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    return process, Path(process.stdout.readline().strip())


def end(process: subprocess.Popen[str], number: int) -> None:
    process.send_signal(number)
    process.communicate()


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_what_a_killed_process_left_is_removed_by_the_next_and_what_a_living_one_writes_stays(tmp_path: Path) -> None:
    killed, of_killed = start(tmp_path / "a.edge")
    living, of_living = start(tmp_path / "b.edge")
    end(killed, signal.SIGKILL)
    assert of_killed.is_dir()
    atomic_write_text(tmp_path / "another.json", "text", "the ranges")
    assert not of_killed.exists()
    assert (of_living / "half").exists()
    living.communicate(input="")
    assert names(tmp_path) == ["another.json", "b.edge"]
    assert (tmp_path / "b.edge/half").read_text() == "half"


def test_a_signal_that_python_turns_into_an_exception_leaves_nothing(tmp_path: Path) -> None:
    process, _ = start(tmp_path / "a.edge")
    end(process, signal.SIGINT)
    assert names(tmp_path) == []


@pytest.mark.parametrize("exchanges", [True, False])
def test_a_kill_before_any_call_of_the_system_leaves_the_old_one_or_the_new_one(
    tmp_path: Path, exchanges: bool
) -> None:
    """A process is killed before its first change of a folder, another before its second, until one lives to the end.

    Where folders cannot be exchanged, the old one may be away in between. The next process brings it back.
    """
    done = subprocess.run(
        [sys.executable, "-c", KILLS, str(tmp_path / "a.edge"), "exchanges" * exchanges],
        capture_output=True,
        text=True,
        check=True,
    )
    found = done.stdout.split()
    assert len(found) > 8
    assert set(found) == {"old", "new"}
    assert found == sorted(found, reverse=True), "once the new one is in place, it stays"


KILLS = """
import errno, os, signal, sys
from pathlib import Path
from edgedistill import staging
from edgedistill.files import atomic_write
from edgedistill.staging import opened_folder, remove_leftovers

path = Path(sys.argv[1])
staging._sync_whole_disk = lambda descriptor: True
exchange = staging._exchange

def write(text):
    with atomic_write(path, "the bundle") as hidden:
        hidden.mkdir()
        (hidden / "file").write_text(text)

def killed_before(number):
    left = [number]
    def before(call):
        def wrapped(*arguments, **named):
            left[0] -= 1
            if left[0] == 0:
                os.kill(os.getpid(), signal.SIGKILL)
            return call(*arguments, **named)
        return wrapped
    for name in ("mkdir", "open", "rename", "unlink", "rmdir", "fsync", "close"):
        setattr(os, name, before(getattr(os, name)))
    staging._exchange = before(staging._exchange)

def cannot(*arguments):
    raise OSError(errno.EINVAL, "Invalid argument")

if not sys.argv[2]:
    staging._exchange = cannot
number, status = 0, -1
while status != 0:
    number += 1
    write("old")
    if (child := os.fork()) == 0:
        killed_before(number)
        write("new")
        os._exit(0)
    status = os.waitpid(child, 0)[1]
    assert status in (0, signal.SIGKILL), status
    if sys.argv[2]:
        assert (path / "file").read_text() in ("old", "new")
    with opened_folder(path.parent) as inside:
        remove_leftovers(inside)
    assert os.listdir(path.parent) == ["a.edge"], os.listdir(path.parent)
    print((path / "file").read_text())
"""


def atomic_write_folder(path: Path, text: str) -> None:
    with atomic_write(path, "the bundle") as hidden:
        hidden.mkdir()
        (hidden / "file").write_text(text)


def read(path: Path) -> str:
    return (path / "file").read_text()


def test_a_folder_that_another_process_has_just_made_is_replaced(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "a.edge").mkdir()
    (tmp_path / "a.edge" / "old").touch()
    monkeypatch.setattr(staging, "_is_folder_or_link", lambda inside, name: False)  # as it was a moment before
    with atomic_write(tmp_path / "a.edge", "the bundle") as hidden:
        hidden.mkdir()
        (hidden / "new").touch()
    assert [path.name for path in tmp_path.rglob("*")] == ["a.edge", "new"]


def test_many_processes_that_write_and_tidy_at_once_do_not_disturb_each_other(tmp_path: Path) -> None:
    program = """
import sys
from pathlib import Path
from edgedistill import staging
from edgedistill.files import atomic_write
staging._sync_whole_disk = lambda descriptor: True
staging._sync = lambda descriptor: None
for turn in range(60):
    for name in ("shared.edge", sys.argv[2]):
        with atomic_write(Path(sys.argv[1]) / name, "the bundle") as hidden:
            hidden.mkdir()
            (hidden / "file").write_text(sys.argv[2])
"""
    own = [f"{number}.edge" for number in range(3)]
    processes = [subprocess.Popen([sys.executable, "-c", program, str(tmp_path), name]) for name in own]
    assert [process.wait() for process in processes] == [0, 0, 0]
    assert names(tmp_path) == [*own, "shared.edge"]
    assert read(tmp_path / "shared.edge") in own


def test_what_another_machine_or_user_left_stays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """On a network disk whose locks reach one machine only, its process may be alive."""
    killed, hidden = start(tmp_path / "a.edge")
    end(killed, signal.SIGKILL)
    left = hidden.parent.parent
    with monkeypatch.context() as patch, opened_folder(tmp_path) as inside:
        patch.setattr(staging, "_identify_machine", lambda: "00000000")
        patch.setattr(staging, "_identify_boot", lambda: "00000000")
        remove_leftovers(inside)
        assert left.exists()
        patch.setattr(staging, "_identify_boot", lambda: staging._hash(staging._read(BOOT)))
        patch.setattr("os.geteuid", lambda: left.stat().st_uid + 1)
        remove_leftovers(inside)
        assert left.exists()
        patch.setattr("os.geteuid", lambda: left.stat().st_uid)
        remove_leftovers(inside)  # of a container of this machine, which has another name
        assert not left.exists()


BOOT = "/proc/sys/kernel/random/boot_id"


def test_files_of_other_programs_are_not_taken_for_leftovers(tmp_path: Path) -> None:
    machine = staging._identify_machine()
    others = {
        f".a.{machine}.partial",
        ".a.12345678-12345678-12345678.partial",
        f"a.{machine}-{machine}-{machine}.partial",
    }
    for name in others:
        (tmp_path / name).mkdir()
        (tmp_path / name / "lock").touch()
    with_content = f".b.{machine}-{machine}-{machine}.partial"  # without a lock, nobody knows whose it is
    (tmp_path / with_content / "mine").mkdir(parents=True)
    atomic_write_text(tmp_path / "a", "text", "the page")
    assert set(names(tmp_path)) == {"a", with_content, *others}


def test_on_a_disk_without_locks_results_are_written_and_nothing_is_removed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    killed, hidden = start(tmp_path / "a.edge")
    end(killed, signal.SIGKILL)

    def no_locks(*_: object) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(staging.fcntl, "flock", no_locks)
    atomic_write_text(tmp_path / "b", "text", "the page")
    assert (tmp_path / "b").read_text() == "text"
    assert hidden.exists()


def test_links_in_what_was_left_are_not_followed(tmp_path: Path) -> None:
    (tmp_path / "outside").mkdir()
    (tmp_path / "outside/file").write_text("mine")
    (tmp_path / "out").mkdir()
    killed, hidden = start(tmp_path / "out/a.edge")
    end(killed, signal.SIGKILL)
    (hidden / "link").symlink_to(tmp_path / "outside")
    (hidden.parent.parent / "old").symlink_to(tmp_path / "outside")
    (tmp_path / "out" / f".c.{hidden.parent.parent.name.split('.', 3)[-1]}").symlink_to(tmp_path / "outside")
    atomic_write_text(tmp_path / "out/b", "text", "the page")
    assert (tmp_path / "outside/file").read_text() == "mine"


@pytest.mark.parametrize("whole_disk", [True, False])
def test_everything_is_on_the_disk_before_it_gets_its_name_and_the_folder_after(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, whole_disk: bool
) -> None:
    happened: list[str] = []
    path = tmp_path / "a.edge"

    def note(call: Callable[..., object], what: str) -> Callable[..., object]:
        def noted(*arguments: object) -> object:
            target = Path(f"/proc/self/fd/{arguments[0]}").readlink() if isinstance(arguments[0], int) else ""
            happened.append(f"{what} {Path(target).name}")
            return call(*arguments)

        return noted

    monkeypatch.setattr(staging, "_sync", note(SYNC, "sync"))
    monkeypatch.setattr(staging, "_sync_whole_disk", note(SYNC_WHOLE_DISK if whole_disk else lambda _: False, "all"))
    monkeypatch.setattr(staging, "_exchange", note(staging._exchange, "move"))
    path.mkdir()
    with atomic_write(path, "the bundle") as hidden:
        (hidden / "deep").mkdir(parents=True)
        (hidden / "deep/file").write_text("new")
        happened.append("written")
    each = [] if whole_disk else ["sync file", "sync deep", "sync a.edge"]
    assert happened == ["written", "all a.edge", *each, "move new", f"sync {tmp_path.name}"]


def test_a_disk_that_fills_up_when_it_is_synced_leaves_the_old_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Network disks tell of a quota only then."""
    atomic_write_folder(tmp_path / "a.edge", "old")

    def full(_: int) -> bool:
        raise OSError(errno.EDQUOT, "Disk quota exceeded")

    monkeypatch.setattr(staging, "_sync_whole_disk", full)
    with pytest.raises(Exception, match="your quota on this disk is used up"):
        atomic_write_folder(tmp_path / "a.edge", "new")
    assert read(tmp_path / "a.edge") == "old"
    assert names(tmp_path) == ["a.edge"]


def test_the_calls_of_the_system_are_there_on_linux(tmp_path: Path) -> None:
    if not sys.platform.startswith("linux"):
        pytest.skip("only Linux exchanges two folders in one call")
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "x").mkdir()
        (tmp_path / name / "x" / name).touch()
    with opened_folder(tmp_path / "one") as one, opened_folder(tmp_path / "two") as two:
        staging._exchange(one, two, "x")
        assert SYNC_WHOLE_DISK(one)
    assert names(tmp_path / "one/x") == ["two"]
    assert names(tmp_path / "two/x") == ["one"]


def test_no_descriptor_stays_open(tmp_path: Path) -> None:
    before = len(names(Path("/proc/self/fd")))
    for _ in range(20):
        atomic_write_text(tmp_path / "a", "text", "the page")
        with pytest.raises(FileNotFoundError), opened_folder(tmp_path) as inside, stage(inside, "no/name"):
            pass
    assert len(names(Path("/proc/self/fd"))) == before
    assert names(tmp_path) == ["a"]


def test_clocks_play_no_part(tmp_path: Path) -> None:
    killed, hidden = start(tmp_path / "a.edge")
    end(killed, signal.SIGKILL)
    later = time.time() + 10**9
    for path in (hidden / "half", hidden.parent.parent / "lock", hidden.parent.parent):
        os.utime(path, (later, later))
    atomic_write_text(tmp_path / "b", "text", "the page")
    assert names(tmp_path) == ["b"]
    assert re.fullmatch(r"\.a\.edge\.[0-9a-f-]{26}\.partial", hidden.parent.parent.name)
