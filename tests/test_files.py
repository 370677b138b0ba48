"""What edgedistill writes appears whole or not at all, and a failure names its cause."""

from __future__ import annotations

import errno
import os
import stat
from pathlib import Path

import pytest

from edgedistill import staging
from edgedistill.errors import EdgeDistillError, OutputError, RecordingError
from edgedistill.files import atomic_write, atomic_write_text


def test_a_file_appears_whole_in_a_folder_that_did_not_exist(tmp_path: Path) -> None:
    path = tmp_path / "new" / "ranges.json"
    atomic_write_text(path, "µV", "the ranges")
    assert path.read_text(encoding="utf-8") == "µV"
    assert list(path.parent.iterdir()) == [path]


def test_the_hidden_path_ends_in_the_name(tmp_path: Path) -> None:
    with atomic_write(tmp_path / "a.nwb", "the predictions") as partial:
        partial.write_bytes(b"1")
        assert partial.name == "a.nwb"


@pytest.mark.parametrize("failure", [OSError(errno.ENOSPC, "No space left"), KeyboardInterrupt(), ValueError("odd")])
def test_a_failure_leaves_the_old_file_and_nothing_else(tmp_path: Path, failure: BaseException) -> None:
    path = tmp_path / "a.csv"
    path.write_text("old")

    def write() -> None:
        with atomic_write(path, "the predictions") as partial:
            partial.write_text("half")
            raise failure

    expected = OutputError if isinstance(failure, OSError) else type(failure)
    with pytest.raises(expected):
        write()
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_a_folder_replaces_a_folder_with_all_that_was_in_it(tmp_path: Path) -> None:
    path = tmp_path / "a.edge"
    path.mkdir()
    (path / "old").write_text("old")
    with atomic_write(path, "the bundle") as partial:
        partial.mkdir()
        (partial / "new").write_text("new")
    assert [file.name for file in path.iterdir()] == ["new"]
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize(
    ("failure", "raised"),
    [(OSError(errno.EIO, "Input/output error"), OutputError), (KeyboardInterrupt(), KeyboardInterrupt)],
)
@pytest.mark.parametrize("failing_move", ["exchange", 1, 2])
def test_an_old_folder_comes_back_when_a_move_fails(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    failure: BaseException,
    raised: type[BaseException],
    failing_move: str | int,
) -> None:
    """The two moves are made where the disk cannot exchange two folders."""
    path = tmp_path / "a.edge"
    path.mkdir()
    (path / "old").write_text("old")
    rename, calls = os.rename, []

    def fails_once(source: str, target: str, **folders: int) -> None:
        calls.append(source)
        if len(calls) == failing_move:
            raise failure
        rename(source, target, **folders)

    def exchange(*_: object) -> None:
        raise failure if failing_move == "exchange" else OSError(errno.ENOSYS, "Function not implemented")

    monkeypatch.setattr(staging, "_exchange", exchange)
    monkeypatch.setattr(staging.os, "rename", fails_once)
    with pytest.raises(raised), atomic_write(path, "the bundle") as new:
        new.mkdir()
    assert (path / "old").read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_an_error_of_the_caller_names_the_final_path(tmp_path: Path) -> None:
    path = tmp_path / "a.edge"
    with pytest.raises(EdgeDistillError) as caught, atomic_write(path, "the bundle") as new:
        raise EdgeDistillError(
            f"{new}: odd", got=OSError(2, "gone", str(new)), causes=[f"{new}"], next_step=f"rm {new}"
        )
    assert ".partial" not in str(caught.value)
    assert caught.value.what == f"{path}: odd"
    assert caught.value.next_step == f"rm {path}"


@pytest.mark.parametrize(
    ("number", "cause"),
    [
        (errno.ENOSPC, "disk is full"),
        (errno.EROFS, "read-only"),
        (errno.EDQUOT, "quota"),
        (errno.EFBIG, "limit on the size"),
    ],
)
def test_the_cause_is_the_one_that_the_system_names(tmp_path: Path, number: int, cause: str) -> None:
    with pytest.raises(OutputError) as caught, atomic_write(tmp_path / "a", "the page"):
        raise OSError(number, "reason")
    assert len(caught.value.causes) == 1
    assert cause in caught.value.causes[0]


def test_a_link_stays_and_what_it_points_to_is_replaced(tmp_path: Path) -> None:
    (tmp_path / "disk").mkdir()
    real, link = tmp_path / "disk" / "today.json", tmp_path / "latest.json"
    real.write_text("old")
    link.symlink_to(real)
    atomic_write_text(link, "new", "the ranges")
    assert link.is_symlink()
    assert real.read_text() == "new"
    assert list(real.parent.iterdir()) == [real]


@pytest.mark.parametrize("path", [".", "/", "folder"])
def test_a_folder_is_never_replaced_by_a_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, path: str) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "folder").mkdir()
    with pytest.raises(OutputError, match="a folder is in the way"):
        atomic_write_text(Path(path), "text", "the page")
    assert [file.name for file in tmp_path.iterdir()] == ["folder"]


def test_a_file_in_the_way_is_named_as_the_cause(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    for path in (tmp_path / "file" / "page.html", tmp_path / "file" / "deep" / "page.html"):
        with pytest.raises(OutputError, match="a file is in the way"):
            atomic_write_text(path, "text", "the page")
    with pytest.raises(OutputError, match="a file is in the way"), atomic_write(tmp_path / "file", "the bundle") as new:
        new.mkdir()
    assert (tmp_path / "file").is_file()


def test_the_longest_name_a_disk_allows_can_be_written(tmp_path: Path) -> None:
    path = tmp_path / f"{'µ' * 125}.json"
    atomic_write_text(path, "text", "the ranges")
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize(
    "failure",
    [
        OSError("Can't synchronously read data (inflate() failed)"),
        OSError("Can't synchronously read data (file read failed: errno = 5, error message = 'Input/output error')"),
        OSError("Unable to synchronously open object (bad object header version number)"),
    ],
)
def test_a_failure_to_read_an_input_is_no_full_disk(tmp_path: Path, failure: OSError) -> None:
    with pytest.raises(RecordingError, match="could not be read") as caught, atomic_write(tmp_path / "a", "the bins"):
        raise failure
    assert "full" not in str(caught.value)


def test_hdf5_that_cannot_write_is_an_output_error(tmp_path: Path) -> None:
    failure = OSError("Can't synchronously write data (file write failed: errno = 28, 'No space left on device')")
    with pytest.raises(OutputError, match="the disk is full") as caught, atomic_write(tmp_path / "a", "the bins"):
        raise failure
    assert len(caught.value.causes) == 1


def test_a_drive_that_fails_is_not_called_full(tmp_path: Path) -> None:
    with pytest.raises(OutputError, match="drive failed") as caught, atomic_write(tmp_path / "a", "the bins"):
        raise OSError(errno.EIO, "Input/output error")
    assert "full" not in str(caught.value)


def test_another_disk_that_is_full_is_named(tmp_path: Path) -> None:
    says = "No space left on device: /cache/file"
    with pytest.raises(OutputError, match=says), atomic_write(tmp_path / "a.edge", "the bundle"):
        raise OSError(errno.ENOSPC, "No space left on device", "/cache/file")


@pytest.mark.parametrize("linked", [False, True])
def test_a_device_or_a_pipe_is_never_replaced(tmp_path: Path, linked: bool) -> None:
    """The administrator of a machine could else replace /dev/null by a file, and break all programs on it."""
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    if linked:
        (tmp_path / "link").symlink_to(pipe)
    place = tmp_path / "link" if linked else pipe
    with pytest.raises(OutputError, match=r"(?s)a device, a pipe or a socket, which is not replaced.*in the way"):
        atomic_write_text(place, "x", "the page")
    assert stat.S_ISFIFO(pipe.stat().st_mode)
    assert len(list(tmp_path.iterdir())) == 1 + linked
