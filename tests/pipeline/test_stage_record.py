"""Whatever changes in the folder of a kept stage is noticed, and the stage is made again."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from edgedistill.pipeline import stage_record
from edgedistill.pipeline.cache import Cache, Stage
from edgedistill.pipeline.stage_record import RECORD, find_damage, write_record

CONTENT = bytes(range(256)) * 20
KEY = "k" * 64


def fill(folder: Path) -> None:
    (folder / "inner").mkdir(exist_ok=True)
    (folder / "numbers").write_bytes(CONTENT)
    (folder / "inner" / "more").write_bytes(b"more")


fill.__module__ = "edgedistill.pipeline.teacher"  # as if this function were defined in that module


def flip(path: Path, at: int = 1000) -> None:
    content = bytearray(path.read_bytes())
    content[at] ^= 1
    path.write_bytes(content)


def link(path: Path) -> None:
    elsewhere = path.parents[2] / f"elsewhere-{path.name}"
    path.rename(elsewhere)
    path.symlink_to(elsewhere, target_is_directory=elsewhere.is_dir())


DAMAGES: dict[str, tuple[Callable[[Path], object], str]] = {
    "flipped": (lambda folder: flip(folder / "numbers"), "'numbers' was changed"),
    "flipped below": (lambda folder: flip(folder / "inner" / "more", 1), "'inner/more' was changed"),
    "cut": (lambda folder: os.truncate(folder / "numbers", 100), "'numbers' has 100 bytes instead of 5120"),
    "empty": (lambda folder: os.truncate(folder / "numbers", 0), "'numbers' has 0 bytes"),
    "missing": (lambda folder: (folder / "inner" / "more").unlink(), "'inner/more' is missing"),
    "added": (lambda folder: (folder / "extra").write_text(""), "'extra' was added"),
    "added hidden": (lambda folder: (folder / ".extra").write_text(""), "'.extra' was added"),
    "link": (lambda folder: link(folder / "numbers"), "'numbers' cannot be used: it is a link"),
    "linked folder": (lambda folder: link(folder / "inner"), "'inner' cannot be used: it is a link"),
    "pipe": (lambda folder: os.mkfifo(folder / "pipe"), "'pipe' cannot be used"),
    "link to the stage": (lambda folder: link(folder), "it is a link"),
    "no record": (lambda folder: (folder / RECORD).unlink(), f"'{RECORD}' cannot be used"),
    "cut record": (lambda folder: os.truncate(folder / RECORD, 100), f"its {RECORD} is damaged"),
    "record of a list": (lambda folder: (folder / RECORD).write_text("[]"), f"its {RECORD} is damaged"),
    "deep record": (lambda folder: (folder / RECORD).write_text("[" * 5000), f"its {RECORD} is damaged"),
    "other key": (lambda folder: write_record(folder, KEY), "of another stage"),
    "file": (lambda folder: (folder.rename(folder.with_name("away")), folder.write_text("")), "cannot be used"),
}


@pytest.mark.parametrize("name", DAMAGES)
def test_every_damage_is_named_and_the_stage_is_made_again(
    name: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    damage, says = DAMAGES[name]
    work = tmp_path / "work"
    folder = Cache(work).stage("teacher", [1], fill)
    damage(folder)
    outside = {path: path.read_bytes() for path in tmp_path.glob("elsewhere-*") if path.is_file()}
    cache = Cache(work)
    assert cache.stage("teacher", [1], fill) == folder
    (stage,) = cache.stages
    assert not stage.cached
    assert stage.damage is not None
    assert says in stage.damage
    (line,) = caplog.messages
    assert str(folder) in line
    assert says in line
    assert {path.name for path in folder.iterdir()} == {"numbers", "inner", RECORD}
    assert not folder.is_symlink()
    assert (folder / "numbers").read_bytes() == CONTENT
    assert (folder / "inner" / "more").read_bytes() == b"more"
    assert {path: path.read_bytes() for path in outside} == outside
    assert cache.stage("teacher", [1], fill) == folder
    assert (cache.stages[1].cached, cache.stages[1].damage) == (True, None)


def test_every_flipped_byte_of_a_record_is_noticed_or_means_the_same(tmp_path: Path) -> None:
    fill(tmp_path)
    write_record(tmp_path, KEY)
    whole = (tmp_path / RECORD).read_bytes()
    for at in range(len(whole)):
        flip(tmp_path / RECORD, at)
        changed = (tmp_path / RECORD).read_bytes()
        if find_damage(tmp_path, KEY) is None:
            assert whole[at : at + 1].isspace(), whole[at - 10 : at + 10]
        assert changed != whole
        (tmp_path / RECORD).write_bytes(whole)
    assert find_damage(tmp_path, KEY) is None


def test_a_file_of_another_length_is_found_without_reading_any(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fill(tmp_path)
    write_record(tmp_path, KEY)
    (tmp_path / "numbers").write_bytes(CONTENT + b"x")
    monkeypatch.setattr(stage_record, "_describe", lambda *_: pytest.fail("a file was read"))
    assert find_damage(tmp_path, KEY) == "'numbers' has 5121 bytes instead of 5120"


def test_a_stage_that_was_just_made_is_hashed_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hashed: list[str] = []
    describe = stage_record._describe
    monkeypatch.setattr(
        stage_record, "_describe", lambda at, name, size: hashed.append(name) or describe(at, name, size)
    )
    cache = Cache(tmp_path)
    cache.stage("teacher", [1], fill)
    assert hashed == ["inner/more", "numbers"]
    cache.stage("teacher", [1], fill)
    assert len(hashed) == 4


# ---------------------------------------------------------------- a stage that was interrupted


class Killed(BaseException):
    """Stands for Ctrl-C, as an exception that no code catches."""


def interrupted(work: Path) -> Path:
    """Returns the folder in which a stage was interrupted after it had written half of its result."""

    def half(folder: Path) -> None:
        (folder / "numbers").write_bytes(CONTENT[:100])
        raise Killed

    half.__module__ = fill.__module__
    with pytest.raises(Killed):
        Cache(work).stage("teacher", [1], half)
    (partial,) = work.glob("*.partial")
    return partial


def go_on(work: Path) -> tuple[set[str], Stage]:
    """Returns what the stage finds when it goes on, and the stage."""
    found: set[str] = set()

    def note_and_fill(folder: Path) -> None:
        found.update(path.name for path in folder.iterdir())
        fill(folder)

    note_and_fill.__module__ = fill.__module__
    cache = Cache(work)
    folder = cache.stage("teacher", [1], note_and_fill)
    assert (folder / "numbers").read_bytes() == CONTENT
    assert not list(work.glob("*.partial"))
    return found, cache.stages[0]


def test_an_interrupted_stage_finds_what_it_had_written(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    interrupted(tmp_path)
    found, stage = go_on(tmp_path)
    assert found == {"numbers", RECORD}
    assert (stage.cached, stage.damage) == (False, None)
    assert not caplog.messages


@pytest.mark.parametrize("damage", ["other key", "no record", "cut record", "link", "file"])
def test_what_another_stage_left_is_not_continued(
    damage: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    work = tmp_path / "work"
    partial = interrupted(work)
    if damage == "other key":
        stage_record.begin_record(partial, KEY)
    elif damage == "no record":
        (partial / RECORD).unlink()
    elif damage == "cut record":
        os.truncate(partial / RECORD, 10)
    elif damage == "link":
        partial.rename(tmp_path / "elsewhere")
        partial.symlink_to(tmp_path / "elsewhere", target_is_directory=True)
    else:
        partial.rename(tmp_path / "elsewhere")
        partial.write_text("in the way")
    found, _ = go_on(work)
    assert found == {RECORD}
    (line,) = caplog.messages
    assert "not of this stage" in line
    if (tmp_path / "elsewhere").exists():
        assert (tmp_path / "elsewhere" / "numbers").read_bytes() == CONTENT[:100]


def test_a_stage_that_goes_on_does_not_write_through_links_and_drops_torn_files(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    work, elsewhere = tmp_path / "work", tmp_path / "elsewhere"
    partial = interrupted(work)
    (partial / ".numbers.0123abcd.partial").write_bytes(b"torn")
    elsewhere.write_bytes(b"not yours")
    (partial / "numbers").unlink()
    (partial / "numbers").symlink_to(elsewhere)
    found, _ = go_on(work)
    assert found == {RECORD}
    assert elsewhere.read_bytes() == b"not yours"
    (line,) = caplog.messages
    assert "numbers is a link" in line


def test_a_stage_that_fails_before_it_writes_leaves_nothing(tmp_path: Path) -> None:
    def fail(folder: Path) -> None:
        raise RuntimeError

    fail.__module__ = fill.__module__
    with pytest.raises(RuntimeError):
        Cache(tmp_path / "work").stage("teacher", [1], fail)
    assert not list(tmp_path.iterdir())
