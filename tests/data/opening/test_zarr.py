"""A session in Zarr is read like one in HDF5 where hdmf-zarr is installed, and never passed over without a word."""

from __future__ import annotations

import os
import pickle
import shutil
import sys
import warnings
from pathlib import Path

import numpy as np
import pytest

from edgedistill.data.bins import bins_from_recording, file_sha256
from edgedistill.data.opening.session_files import find_session_files
from edgedistill.data.opening.zarr import refuse_pickles
from edgedistill.data.recording import open_recording
from edgedistill.data.session import SessionBins
from edgedistill.errors import RecordingError

ATTRIBUTES = '{"nwb_version": "2.8.0"}'


def make_folder(path: Path, attributes: str = ATTRIBUTES) -> Path:
    path.mkdir(parents=True)
    (path / ".zgroup").write_text('{"zarr_format": 2}')
    (path / ".zattrs").write_text(attributes)
    return path


@pytest.mark.filterwarnings("ignore::Warning")
def test_bins_are_those_of_the_hdf5_file(tmp_path: Path, whole: Path, bins: SessionBins) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of packages below hdmf-zarr, when they are imported
        hdmf_zarr = pytest.importorskip("hdmf_zarr")
    from pynwb import NWBHDF5IO

    path = tmp_path / "a.nwb"
    with NWBHDF5IO(str(whole), "r", load_namespaces=False) as stored, hdmf_zarr.NWBZarrIO(str(path), mode="w") as out:
        out.export(src_io=stored, write_args={"link_data": False})
    assert find_session_files([tmp_path]) == [path]
    with open_recording(path) as recording:
        assert len(recording.electrodes) == 3
        assert recording.invalid_times == ()
        got = bins_from_recording(recording)
    for name in ("lfp", "counts", "behavior"):
        np.testing.assert_array_equal(getattr(got, name), getattr(bins, name))
    assert got.output_names == bins.output_names
    assert got.sha256 == file_sha256(path) != bins.sha256


def test_without_hdmf_zarr_one_message_names_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "hdmf_zarr", None)
    with pytest.raises(RecordingError, match="in Zarr") as caught:
        open_recording(make_folder(tmp_path / "a.nwb.zarr"))
    assert caught.value.next_step == "pip install hdmf-zarr"


def test_a_zarr_folder_is_a_session_and_nothing_inside_it_is(tmp_path: Path, whole: Path) -> None:
    first, second = make_folder(tmp_path / "sub-1" / "a.nwb.zarr"), make_folder(tmp_path / "b.nwb")
    (first / "inside").mkdir()
    (first / "inside" / "x.nwb").touch()
    shutil.copy(whole, tmp_path / "sub-1" / "c.nwb")
    found = find_session_files([tmp_path])
    assert sorted(found) == sorted([first, second, tmp_path / "sub-1" / "c.nwb"])
    assert find_session_files([first]) == [first]


def test_a_zarr_folder_that_is_not_nwb_2_is_refused(tmp_path: Path) -> None:
    with pytest.raises(RecordingError, match="not NWB 2"):
        open_recording(make_folder(tmp_path / "a.zarr", "{}"))


def test_the_hash_of_a_folder_changes_with_names_and_contents(tmp_path: Path) -> None:
    folder = make_folder(tmp_path / "a.nwb")
    first = file_sha256(folder)
    assert file_sha256(folder) == first
    (folder / ".zgroup").rename(folder / "other")
    renamed = file_sha256(folder)
    (folder / "other").write_text('{"zarr_format": 3}')
    assert len({first, renamed, file_sha256(folder)}) == 3


def test_an_array_that_is_stored_as_a_pickle_is_not_read(tmp_path: Path) -> None:
    """Old versions of numcodecs, and new ones that were told to, would run what such an array says."""
    numcodecs = pytest.importorskip("numcodecs")
    refuse_pickles()
    codec = numcodecs.get_codec({"id": "pickle", "protocol": 5})
    with pytest.raises(ValueError, match="may run any code"):
        codec.decode(pickle.dumps(tmp_path))


@pytest.mark.timeout(60)
@pytest.mark.parametrize("kind", ["pipe", "device"])
def test_a_zarr_folder_with_a_pipe_or_a_device_in_it_is_refused(tmp_path: Path, kind: str) -> None:
    pytest.importorskip("hdmf_zarr")
    folder = make_folder(tmp_path / "a.nwb")
    (folder / "lfp").mkdir()
    if kind == "pipe":
        os.mkfifo(folder / "lfp/0.0")
    else:
        (folder / "lfp/0.0").symlink_to("/dev/zero")
    with pytest.raises(RecordingError, match=r"lfp/0\.0, which is not a plain file"):
        open_recording(folder)
