"""Sessions are found in folders, and a file that is no whole NWB 2 file is refused with the reason."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

from edgedistill.data.opening.session_files import find_session_files
from edgedistill.data.recording import open_recording
from edgedistill.errors import RecordingError


def test_a_file_that_is_not_nwb_2_is_refused(tmp_path: Path, whole: Path) -> None:
    text = tmp_path / "pointer.nwb"
    text.write_text("version https://git-lfs.github.com/spec/v1")
    empty = tmp_path / "empty.nwb"
    empty.touch()
    hdf5 = tmp_path / "matlab.nwb"
    with h5py.File(hdf5, "w") as file:
        file["lfp"] = np.zeros(3)
    old = tmp_path / "old.nwb"
    with h5py.File(old, "w") as file:
        file.attrs["nwb_version"] = "NWB-1.0.6"
    bare = tmp_path / "bare.nwb"
    with h5py.File(bare, "w") as file:
        file.attrs["nwb_version"] = "2.7.0"
    annex = tmp_path / "annex.nwb"
    annex.write_text("/annex/objects/MD5E-s25--1b.nwb")
    for path, words in (
        (text, "git lfs pull --include pointer.nwb"),
        (annex, "datalad get annex.nwb"),
        (empty, "empty file"),
        (hdf5, "it holds lfp"),
        (old, "NWB-1.0.6"),
        (bare, "pynwb"),
        (tmp_path / "absent.nwb", "No such file"),
        (tmp_path, "a folder"),
    ):
        with pytest.raises(RecordingError) as caught:
            open_recording(path)
        assert str(path) in str(caught.value)
        assert words in str(caught.value)


@pytest.mark.parametrize("share", [0.01, 0.3, 0.9])
def test_a_truncated_file_is_refused(tmp_path: Path, whole: Path, share: float) -> None:
    data = whole.read_bytes()
    cut = tmp_path / "cut.nwb"
    cut.write_bytes(data[: int(len(data) * share)])
    with pytest.raises(RecordingError, match="truncated"):
        open_recording(cut)


def test_a_file_with_a_block_of_the_user_before_it_is_read(tmp_path: Path, whole: Path) -> None:
    path = tmp_path / "block.nwb"
    path.write_bytes(bytes(512) + whole.read_bytes())
    with open_recording(path) as recording:
        assert recording.units is not None


def test_folders_are_searched_and_repeated_files_are_dropped(tmp_path: Path, whole: Path) -> None:
    (tmp_path / "sub-1").mkdir()
    inside = tmp_path / "sub-1" / "a.nwb"
    inside.write_bytes(whole.read_bytes())
    assert find_session_files([tmp_path, inside]) == [inside]
    (tmp_path / "none").mkdir()
    (tmp_path / "sub-1" / "circle.nwb").symlink_to("circle.nwb")
    (tmp_path / "stopped.nwb" / "acquisition").mkdir(parents=True)  # a Zarr session without its hidden files
    assert {path.name for path in find_session_files([tmp_path])} == {"a.nwb", "circle.nwb", "stopped.nwb"}
    with pytest.raises(RecordingError, match=r"neither .zgroup nor zarr.json"):
        open_recording(tmp_path / "stopped.nwb")
    with pytest.raises(RecordingError, match="no NWB files"):
        find_session_files([tmp_path / "none"])
    with pytest.raises(RecordingError, match="no sessions"):
        find_session_files([])


def test_a_folder_that_nobody_may_look_into_is_listed_and_named(
    tmp_path: Path, whole: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "tree" / "closed").mkdir(parents=True)
    (tmp_path / "tree" / "open.nwb").write_bytes(whole.read_bytes())

    def refusing(call: Callable[..., Any]) -> Callable[..., Any]:
        def refused(path: Any, *rest: Any, **named: Any) -> Any:
            if Path(path).name == "closed":
                raise PermissionError(errno.EACCES, "Permission denied", str(path))
            return call(path, *rest, **named)

        return refused

    for name in ("scandir", "listdir"):
        monkeypatch.setattr(os, name, refusing(getattr(os, name)))
    assert [path.name for path in find_session_files([tmp_path / "tree"])] == ["closed", "open.nwb"]
    with pytest.raises(RecordingError, match=r"closed: cannot be opened(.|\n)*Permission denied"):
        open_recording(tmp_path / "tree" / "closed")
