"""What lies in a folder is read and replaced without following links, whatever somebody put there."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from edgedistill import contained, staging
from edgedistill.contained import list_files, read_file, replace_folder


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    inside = tmp_path / "inside"
    (inside / "a/b").mkdir(parents=True)
    (inside / "a/b/file").write_bytes(b"content")
    return inside


@pytest.fixture
def outside(tmp_path: Path) -> Path:
    (tmp_path / "outside/b").mkdir(parents=True)
    (tmp_path / "outside/b/file").write_bytes(b"secret")
    return tmp_path / "outside"


def everything(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_a_file_is_read_also_where_the_folder_itself_is_named_by_a_link(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "named").symlink_to(folder)
    assert read_file(folder, "a/b/file") == read_file(tmp_path / "named", "a/b/file") == b"content"


def link_file(folder: Path, outside: Path) -> None:
    (folder / "a/b/file").unlink()
    (folder / "a/b/file").symlink_to(outside / "b/file")


def link_file_inside(folder: Path, outside: Path) -> None:
    (folder / "a/b/file").rename(folder / "a/b/other")
    (folder / "a/b/file").symlink_to("other")


def link_folder(folder: Path, outside: Path) -> None:
    (folder / "a").rename(folder / "before")
    (folder / "a").symlink_to(outside)


def link_to_itself(folder: Path, outside: Path) -> None:
    (folder / "a/b/file").unlink()
    (folder / "a/b/file").symlink_to("file")


def link_to_device(folder: Path, outside: Path) -> None:
    (folder / "a/b/file").unlink()
    (folder / "a/b/file").symlink_to("/dev/zero")


def pipe(folder: Path, outside: Path) -> None:
    (folder / "a/b/file").unlink()
    os.mkfifo(folder / "a/b/file")


def another_folder(folder: Path, outside: Path) -> None:
    (folder / "a/b/file").unlink()
    (folder / "a/b/file").mkdir()


@pytest.mark.timeout(120)  # a pipe would wait for ever
@pytest.mark.parametrize(
    "harm", [link_file, link_file_inside, link_folder, link_to_itself, link_to_device, pipe, another_folder]
)
def test_links_pipes_and_devices_are_not_read(
    folder: Path, outside: Path, harm: Callable[[Path, Path], object]
) -> None:
    harm(folder, outside)
    with pytest.raises(OSError, match=r"link|plain file"):
        read_file(folder, "a/b/file")


@pytest.mark.parametrize(
    "name", ["../outside/b/file", "a/../../outside/b/file", "/etc/passwd", "a//b", ".", "a/./b", ""]
)
def test_a_name_that_leads_out_is_refused(folder: Path, outside: Path, name: str) -> None:
    with pytest.raises(OSError, match="not a name inside"):
        read_file(folder, name)
    with pytest.raises(OSError, match="not a name inside"):
        replace_folder(folder, name, {})
    with pytest.raises(OSError, match="not a name inside"):
        replace_folder(folder, "a", {name or "x//y": b""})
    assert everything(outside) == {"b/file": b"secret"}


def test_files_are_listed_without_hidden_ones_and_links_are_an_error(folder: Path, outside: Path) -> None:
    (folder / "a/.partial").mkdir()
    (folder / "a/.partial/file").write_bytes(b"")
    (folder / "a/z").write_bytes(b"")
    assert list_files(folder, "a") == ["a/b/file", "a/z"]
    assert list_files(folder, "nothing") == []
    (folder / "a/b/more").symlink_to(outside)
    with pytest.raises(OSError, match="link"):
        list_files(folder, "a")
    (folder / "linked").symlink_to(outside)
    with pytest.raises(OSError, match="link"):
        list_files(folder, "linked")


def test_a_folder_is_replaced_whole(folder: Path) -> None:
    replace_folder(folder, "a/b", {"new": b"1", "deep/er/new": b"2"})
    assert everything(folder) == {"a/b/new": b"1", "a/b/deep/er/new": b"2"}
    replace_folder(folder, "not/yet/there", {})
    assert (folder / "not/yet/there").is_dir()
    assert not list(folder.rglob(".*"))


def test_a_link_on_the_way_stops_the_writing_and_nothing_outside_changes(folder: Path, outside: Path) -> None:
    link_folder(folder, outside)
    with pytest.raises(OSError, match="link"):
        replace_folder(folder, "a/b", {"file": b"changed"})
    assert everything(outside) == {"b/file": b"secret"}


def test_a_link_in_the_place_of_the_folder_is_replaced_and_its_target_left_alone(folder: Path, outside: Path) -> None:
    (folder / "a/b/file").unlink()
    (folder / "a/b").rmdir()
    (folder / "a/b").symlink_to(outside)
    replace_folder(folder, "a/b", {"file": b"new"})
    assert not (folder / "a/b").is_symlink()
    assert everything(folder) == {"a/b/file": b"new"}
    assert everything(outside) == {"b/file": b"secret"}


def test_what_is_removed_is_not_what_its_links_lead_to(folder: Path, outside: Path) -> None:
    (folder / "a/b/out").symlink_to(outside)
    (folder / "a/b/file").unlink()
    os.link(outside / "b/file", folder / "a/b/file")  # a second name of a file outside
    replace_folder(folder, "a/b", {"file": b"new"})
    assert everything(outside) == {"b/file": b"secret"}


def test_a_link_that_appears_while_it_is_written_leads_nowhere(
    folder: Path, outside: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The folder on the way was opened before, and goes on under its new name."""
    write = contained._write

    def swap(*arguments: object) -> None:
        if not (folder / "before").exists():
            link_folder(folder, outside)
        write(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(contained, "_write", swap)
    replace_folder(folder, "a/b", {"file": b"new"})
    assert everything(outside) == {"b/file": b"secret"}
    assert (folder / "before/b/file").read_bytes() == b"new"


def test_a_failure_leaves_what_was_there(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(contained, "_write", full)
        with pytest.raises(OSError, match="No space"):
            replace_folder(folder, "a/b", {"file": b"new"})

    def fails(*_: object) -> None:
        raise OSError(5, "Input/output error")

    with monkeypatch.context() as patch:
        patch.setattr(staging, "_exchange", fails)
        with pytest.raises(OSError, match="Input/output"):
            replace_folder(folder, "a/b", {"file": b"new"})
    assert everything(folder) == {"a/b/file": b"content"}
