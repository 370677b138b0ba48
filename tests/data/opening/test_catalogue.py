"""Patterns and lists of paths stand for what they name, in order, and say what is wrong with them."""

from __future__ import annotations

from pathlib import Path

import pytest

from edgedistill.data.opening import catalogue
from edgedistill.data.opening.session_files import find_session_files
from edgedistill.errors import RecordingError


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    for name in ("a/one.nwb", "a/two.nwb", "b/deep/three.nwb", "b/other.mat"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    return tmp_path


def names(*paths: Path) -> list[str]:
    return [path.name for path in find_session_files(paths)]


def test_a_pattern_stands_for_what_fits_it(tree: Path) -> None:
    assert names(tree / "a" / "*.nwb") == ["one.nwb", "two.nwb"]
    assert names(tree / "**" / "t*.nwb") == ["two.nwb", "three.nwb"]
    assert names(tree / "[ab]") == ["one.nwb", "two.nwb", "three.nwb"]


def test_a_file_whose_name_looks_like_a_pattern_is_itself(tree: Path) -> None:
    odd = tree / "a" / "[1]*.nwb"
    odd.touch()
    assert names(odd) == ["[1]*.nwb"]


def test_a_list_holds_paths_relative_to_itself_patterns_and_comments(tree: Path) -> None:
    listed = tree / "b" / "sessions.txt"
    listed.write_text(f"\ufeff# these\n\n  deep/three.nwb  \n../a/t*.nwb\n{tree / 'a' / 'one.nwb'}\n", encoding="utf-8")
    assert names(listed) == ["three.nwb", "two.nwb", "one.nwb"]
    assert names(listed, tree) == ["three.nwb", "two.nwb", "one.nwb"]  # each once


def test_the_folder_of_a_list_is_no_pattern(tree: Path) -> None:
    (tree / "day[1]").mkdir()
    (tree / "day[1]" / "four.nwb").touch()
    listed = tree / "day[1]" / "sessions.txt"
    listed.write_text("*.nwb\n../[ab]/t*.nwb\n")
    assert names(listed) == ["four.nwb", "two.nwb"]


def test_a_pattern_over_links_in_a_circle_ends(tree: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in "cd":
        (tree / name).symlink_to(tree)
    monkeypatch.setattr(catalogue, "MOST_FOUND", 50)
    with pytest.raises(RecordingError, match="links to folders lead in a circle"):
        names(tree / "**" / "*.nwb")
    assert names(tree) == ["one.nwb", "two.nwb", "three.nwb"]


@pytest.mark.parametrize(
    ("text", "words"),
    [("# nothing\n", "not a list of sessions"), ("gone.nwb", "there is no such file"), ("no*.nwb", "nothing fits")],
)
def test_a_list_that_names_nothing_is_refused(tree: Path, text: str, words: str) -> None:
    listed = tree / "sessions.txt"
    listed.write_text(text)
    with pytest.raises(RecordingError, match=words):
        find_session_files([listed])


def test_a_list_that_is_no_text_is_refused(tree: Path) -> None:
    listed = tree / "sessions.txt"
    listed.write_bytes(b"\x89HDF\r\n\xff\xfe")
    with pytest.raises(RecordingError, match="cannot be read"):
        find_session_files([listed])
