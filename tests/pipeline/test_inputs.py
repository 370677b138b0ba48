"""A session is read once, and again when its samples change. A read that fails is no full disk."""

from __future__ import annotations

import errno
from pathlib import Path
from typing import Any

import h5py
import pytest

from edgedistill.config import NO_BANDS, BandPower
from edgedistill.data.candidates import SeriesNames
from edgedistill.data.opening import digest
from edgedistill.data.session import SessionBins
from edgedistill.errors import RecordingError
from edgedistill.pipeline import inputs
from edgedistill.pipeline.cache import Cache

from ..data import nwb_files as make

LFP = "processing/ecephys/LFP/ElectricalSeries"


def read(path: Path, bands: BandPower = NO_BANDS) -> tuple[SessionBins, bool]:
    """Returns the bins of a session, and whether they came from the cache."""
    cache = Cache(path.parent / "work")
    (bins,) = inputs.read_sessions(cache, [path], SeriesNames(), 60.0, bands, need=("lfp",))
    return bins, cache.stages[0].cached


def test_a_session_is_read_again_with_other_bands_and_says_which_its_rate_does_not_hold(tmp_path: Path) -> None:
    path, bands = make.whole_session(tmp_path / "a.nwb"), BandPower(((12, 30), (70, 150), (150, 300)), 100)
    plain, _ = read(path)
    found, cached = read(path, bands)
    assert not cached
    assert read(path, bands)[1]
    assert read(path)[1]
    assert plain.lfp is not None
    assert found.lfp is not None
    assert found.frontend is not None
    assert found.frontend.bands == ((12, 30),)  # at 250 Hz
    assert found.lfp.shape[1] == 2 * plain.lfp.shape[1]
    (note,) = [note for note in found.notes if note.startswith("band power")]
    assert "70-150 Hz is left out, 150-300 Hz is left out, because LFP at 250 Hz" in note
    assert not any(note.startswith("band power") for note in plain.notes)


def test_a_session_whose_linked_samples_change_is_read_again(tmp_path: Path) -> None:
    raw, path = make.whole_session(tmp_path / "raw.nwb"), make.whole_session(tmp_path / "a.nwb")
    with h5py.File(path, "a") as file:
        del file[LFP]["data"]
        file[LFP]["data"] = h5py.ExternalLink(raw.name, f"/{LFP}/data")
    first, cached = read(path)
    assert not cached
    assert read(path)[1]
    with h5py.File(raw, "a") as file:
        file[LFP]["data"][:] = file[LFP]["data"][:][::-1]
    second, cached = read(path)
    assert not cached
    assert first.sha256 != second.sha256 == digest.file_sha256(path)
    assert first.lfp is not None
    assert second.lfp is not None
    assert (first.lfp != second.lfp).any()


def test_a_session_is_hashed_before_and_after_it_is_read_and_once_where_it_is_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hashed: list[Path] = []
    hash_file = digest._hash_file
    monkeypatch.setattr(digest, "_hash_file", lambda path: hashed.append(path) or hash_file(path))
    path = make.whole_session(tmp_path / "a.nwb")
    read(path)
    assert hashed == [path, path]
    read(path)
    assert hashed == [path] * 3


@pytest.mark.parametrize("when", ["before", "after"])
def test_a_session_that_is_replaced_while_it_is_read_is_refused_and_not_kept(
    when: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, other = make.whole_session(tmp_path / "a.nwb"), make.whole_session(tmp_path / "b.nwb")
    with h5py.File(other, "a") as file:
        file[LFP]["data"][:] = file[LFP]["data"][:][::-1]
    content, opened = path.read_bytes(), inputs.open_recording

    def replace_and_open(*args: Any) -> Any:
        if when == "before":
            other.rename(path)
        recording = opened(*args)
        if when == "after":
            other.rename(path)
        return recording

    with monkeypatch.context() as patched:
        patched.setattr(inputs, "open_recording", replace_and_open)
        with pytest.raises(RecordingError, match=r"a\.nwb: the session changed while it was used"):
            read(path)
    path.write_bytes(content)
    assert not read(path)[1]


def test_a_read_that_fails_names_the_session_and_not_the_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*args: Any, **settings: Any) -> Any:
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(inputs, "bins_from_recording", fail)
    with pytest.raises(RecordingError, match=r"a\.nwb: the drive failed while the file was read"):
        read(make.whole_session(tmp_path / "a.nwb"))
