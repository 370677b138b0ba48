"""A session is read once, and again when its samples change. A read that fails is no full disk."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
from dataclasses import fields
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

from edgedistill.config import NO_BANDS, BandPower
from edgedistill.data.candidates import SeriesNames
from edgedistill.data.opening import digest
from edgedistill.data.opening.catalogue import ReadingOptions
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


def read_all(data: list[Path], work: Path, jobs: int = 1, skip_bad: bool = False) -> inputs.Catalogue:
    options = ReadingOptions(jobs, skip_bad)
    return inputs.read_catalogue(Cache(work), data, SeriesNames(), 60.0, NO_BANDS, options, need=("lfp",))


def test_processes_read_what_one_reads_alone(tmp_path: Path) -> None:
    for day in (1, 2, 3):
        make.whole_session(tmp_path / f"{day}.nwb", day=day)
    alone, together = (read_all([tmp_path], tmp_path / f"work{jobs}", jobs).sessions for jobs in (1, 2))
    for one, other in zip(alone, together, strict=True):
        for field in fields(SessionBins):
            np.testing.assert_array_equal(getattr(other, field.name), getattr(one, field.name))
    kept = [path.name for path in (tmp_path / "work1").iterdir()]
    assert sorted(kept) == sorted(path.name for path in (tmp_path / "work2").iterdir())


def test_a_process_that_reads_never_imports_torch() -> None:
    """One for each session that is read at the same time would hold it for nothing."""
    code = f"import sys, {inputs.__name__}; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


@pytest.fixture
def forked(monkeypatch: pytest.MonkeyPatch) -> None:
    """Lets processes that read begin as copies of this one, with its functions and without seconds of imports."""
    context = get_context("fork")
    monkeypatch.setattr(inputs, "get_context", lambda kind: context)


@pytest.mark.usefixtures("forked")
@pytest.mark.parametrize("jobs", [1, 2])
def test_sessions_that_cannot_be_read_are_refused_by_name_or_left_out_with_the_reason(
    tmp_path: Path, jobs: int
) -> None:
    good = make.whole_session(tmp_path / "good.nwb")
    (tmp_path / "copy.nwb").write_bytes(good.read_bytes())
    (tmp_path / "bad.nwb").write_bytes(good.read_bytes()[:20_000])
    data, work = [tmp_path, tmp_path / "gone.nwb"], tmp_path / "work"
    with pytest.raises(RecordingError, match=r"gone\.nwb: there is no such file"):
        read_all(data, work, 1)
    with pytest.raises(RecordingError, match=r"bad\.nwb"):
        read_all([tmp_path], work, jobs)
    found = read_all(data, work, jobs, skip_bad=True)
    assert [Path(one.path).name for one in found.sessions] == ["copy.nwb"]  # the first by name
    left_out = {Path(one.path).name: str(one.to_json()["what"]) for one in found.skipped}
    assert sorted(left_out) == ["bad.nwb", "gone.nwb", "good.nwb"]
    assert "truncated" in left_out["bad.nwb"]
    assert f"a copy of {tmp_path / 'copy.nwb'}" in left_out["good.nwb"]
    with pytest.raises(RecordingError, match="none of the sessions can be used"):
        read_all([tmp_path / "bad.nwb"], work, 1, skip_bad=True)
    (tmp_path / "link.nwb").symlink_to(good)
    assert read_all([good, tmp_path / "link.nwb"], work, jobs, skip_bad=True).skipped == ()  # one file, and no copy


@pytest.mark.parametrize("name", ["x" * 251, 83 * "あ"])
def test_a_file_may_have_the_longest_name_that_a_disk_takes(tmp_path: Path, name: str) -> None:
    make.whole_session(tmp_path / f"{name}.nwb")
    (session,) = read_all([tmp_path], tmp_path / "work").sessions
    assert Path(session.path).stem == name


@pytest.mark.usefixtures("forked")
def test_a_process_that_dies_is_named_by_its_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for day in (1, 2):
        make.whole_session(tmp_path / f"{day}.nwb", day=day)
    read_one = inputs.read_file

    def read(reading: Any, path: Path) -> Any:
        if path.name == "2.nwb":
            os._exit(9)
        return read_one(reading, path)

    read.__module__, read.__qualname__ = inputs.__name__, "read_file"  # by which a process finds it
    monkeypatch.setattr(inputs, "read_file", read)
    found = read_all([tmp_path], tmp_path / "work", jobs=2, skip_bad=True)
    assert [Path(one.path).name for one in found.sessions] == ["1.nwb"]
    (one,) = found.skipped
    assert f"{tmp_path / '2.nwb'}: the process that read this file has died" in one.error.what
