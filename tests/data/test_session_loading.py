"""Several sessions are sorted, told apart, and refused where one decoder cannot serve them all."""

from __future__ import annotations

from pathlib import Path

import pytest

from edgedistill.data.session_loading import load_sessions
from edgedistill.errors import RecordingError

from . import nwb_files as make


def test_sessions_are_sorted_by_start_and_equal_ids_become_file_names(tmp_path: Path) -> None:
    make.whole_session(tmp_path / "a.nwb", day=2)
    make.whole_session(tmp_path / "b.nwb", day=1)
    make.whole_session(tmp_path / "c.nwb", session_id="third", day=3)
    sessions = load_sessions([tmp_path], ("units", "behavior"))
    assert [session.session_id for session in sessions] == ["b", "a", "third"]


def test_equal_file_names_in_two_folders_become_paths(tmp_path: Path) -> None:
    for day, folder in ((1, "monday"), (2, "tuesday")):
        (tmp_path / folder).mkdir()
        make.whole_session(tmp_path / folder / "recording.nwb", session_id=None, day=day)
    first, second = load_sessions([tmp_path], ("units",))
    assert first.session_id.endswith("monday/recording")
    assert second.session_id.endswith("tuesday/recording")


def test_a_path_that_does_not_exist_is_named(tmp_path: Path) -> None:
    with pytest.raises(RecordingError, match=r"gone\.nwb: there is no such file"):
        load_sessions([tmp_path / "gone.nwb"])


def test_sessions_with_different_behavior_are_refused(tmp_path: Path) -> None:
    make.whole_session(tmp_path / "a.nwb")
    make.whole_session(tmp_path / "b.nwb", name="hand_vel", session_id="other")
    with pytest.raises(RecordingError, match="differ in their behavior") as caught:
        load_sessions([tmp_path], ("behavior",))
    for words in ("a.nwb", "b.nwb", "hand_vel_x", "cursor_vel_x"):
        assert words in str(caught.value)
    make.whole_session(tmp_path / "b.nwb", unit="m/s", session_id="other")
    with pytest.raises(RecordingError, match="differ in their behavior"):
        load_sessions([tmp_path], ("behavior",))
    assert len(load_sessions([tmp_path], ("units",))) == 2


def test_a_session_appears_once_whatever_its_files_are_called(tmp_path: Path) -> None:
    first = make.whole_session(tmp_path / "a.nwb")
    (tmp_path / "copy.nwb").write_bytes(first.read_bytes())
    make.whole_session(tmp_path / "stored_again.nwb")  # other bytes, but the same identifier, start and length
    make.whole_session(tmp_path / "other.nwb", day=2)
    assert [Path(one.path).name for one in load_sessions([tmp_path], ("units",))] == ["a.nwb", "other.nwb"]
