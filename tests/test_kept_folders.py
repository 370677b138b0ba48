"""What was not used for long is removed, and nothing that edgedistill did not keep."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from edgedistill.errors import EdgeDistillError, OutputError
from edgedistill.kept_folders import (
    COMPILED,
    STAGE,
    UNFINISHED,
    KeptFolder,
    list_compiled,
    list_stages,
    note_use,
    remove_unused,
)

KEY, BUNDLE, DAY = "0123456789abcdef", "0123456789abcdef" * 2, 86400
NOW = 1_000_000_000.0


def keep(folder: Path, file: str, days_ago: float = 0, size: int = 10) -> Path:
    folder.mkdir(parents=True)
    (folder / file).write_bytes(bytes(size))
    os.utime(folder, (NOW - days_ago * DAY,) * 2)
    return folder


def facts(found: list[KeptFolder]) -> list[tuple[str, str, int]]:
    return [(folder.path.name, folder.kind, folder.bytes) for folder in found]


def test_stages_are_listed_with_their_sizes_and_the_last_used_first(tmp_path: Path) -> None:
    old = keep(tmp_path / f"teacher-{KEY}", "record.json", 3)
    keep(old / "inner", "more", size=5)
    os.utime(old, (NOW - 3 * DAY,) * 2)
    keep(tmp_path / f"deployed-{KEY}.partial", "checkpoint.safetensors", 1)
    keep(tmp_path / f"read-a-{KEY}", "bins.npz", 2)  # of version 0.1, which kept no records
    assert facts(list_stages(tmp_path)) == [
        (f"deployed-{KEY}.partial", UNFINISHED, 10),
        (f"read-a-{KEY}", STAGE, 10),
        (f"teacher-{KEY}", STAGE, 15),
    ]


def test_only_what_was_not_used_for_long_is_removed(tmp_path: Path) -> None:
    ages = {"a": 0.0, "b": 29.9, "c": 30.0, "d": 400.0, "e": -3.0}  # the last one after a clock was set back
    for name, days in ages.items():
        keep(tmp_path / f"{name}-{KEY}", "record.json", days)
    used = keep(tmp_path / f"used-{KEY}", "record.json", 400)
    note_use(used)
    removed = remove_unused(list_stages(tmp_path), 30, NOW)
    assert {folder.path.name[0] for folder in removed} == {"c", "d"}
    assert {path.name[0] for path in tmp_path.iterdir()} == {"a", "b", "e", "u"}
    remove_unused(list_stages(tmp_path), 0, NOW)
    assert not list(tmp_path.iterdir())


def test_nothing_else_in_a_work_folder_is_touched_and_no_link_is_followed(tmp_path: Path) -> None:
    work, outside = tmp_path / "work", keep(tmp_path / f"outside-{KEY}", "record.json", 99)
    keep(work / f"teacher-{KEY}", "record.json", 99)
    (work / f"teacher-{KEY}" / "link").symlink_to(outside, target_is_directory=True)
    os.utime(work / f"teacher-{KEY}", (0, 0))
    (work / f"linked-{KEY}").symlink_to(outside, target_is_directory=True)
    keep(work / f"photos-{KEY}", "holiday.jpg", 99)
    keep(work / "teacher", "record.json", 99)
    (work / f"file-{KEY}").write_text("mine")
    assert len(remove_unused(list_stages(work), 0, NOW)) == 1
    assert {path.name for path in work.iterdir()} == {
        *(f"linked-{KEY}", f"photos-{KEY}", "teacher", f"file-{KEY}"),
    }
    assert (outside / "record.json").exists()


@pytest.mark.parametrize("name", ["missing", "empty", "file"])
def test_a_folder_without_stages_is_refused_by_name(name: str, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "file").write_text("")
    with pytest.raises(EdgeDistillError, match=rf"{name}: no stages are kept here"):
        list_stages(tmp_path / name)


def test_in_a_cache_only_folders_of_bundles_are_listed(tmp_path: Path) -> None:
    keep(tmp_path / BUNDLE / "host", "build.json")
    keep(tmp_path / "notes", "mine")
    keep(tmp_path / ".temporary-x", "half")
    assert facts(list_compiled(tmp_path)) == [(BUNDLE, COMPILED, 10)]


@pytest.mark.skipif(os.geteuid() == 0, reason="root may remove everything")
def test_what_cannot_be_removed_is_an_error(tmp_path: Path) -> None:
    keep(tmp_path / f"teacher-{KEY}", "record.json", 99)
    tmp_path.chmod(0o500)
    try:
        with pytest.raises(OutputError, match="could not be removed"):
            remove_unused(list_stages(tmp_path), 0, NOW)
    finally:
        tmp_path.chmod(0o700)
