"""Data that need a filter or a file that is not there are found at once, and read where it is."""

from __future__ import annotations

from pathlib import Path

import h5py
import numpy as np
import pytest

from edgedistill.data.opening.hdf5_datasets import find_failing_filter, find_missing_file, require_readable
from edgedistill.data.recording import open_recording
from edgedistill.errors import RecordingError

from .. import nwb_files as make

BLOSC, SNAPPY = 32001, 32003
LFP = "processing/ecephys/LFP/ElectricalSeries/data"


def claim_filter(path: Path, dataset: str, code: int) -> None:
    """Stores a dataset as if filter `code` had compressed it."""
    with h5py.File(path, "a") as file:
        old = file[dataset]
        data, attributes, parent, name = old[:], dict(old.attrs), old.parent, dataset.rpartition("/")[2]
        del parent[name]
        settings = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
        settings.set_chunk(data.shape)
        settings.set_filter(code, h5py.h5z.FLAG_OPTIONAL, (2, 2, data.itemsize, data.nbytes, 5, 1, 0))
        space = h5py.h5s.create_simple(data.shape)
        made = h5py.h5d.create(parent.id, name.encode(), h5py.h5t.py_create(data.dtype), space, settings)
        made.write_direct_chunk((0,) * data.ndim, data.tobytes(), 0)
        parent[name].attrs.update(attributes)
        if dataset == "units/spike_times":
            file["units/spike_times_index"].attrs["target"] = parent[name].ref


@pytest.mark.parametrize(
    ("dataset", "part"),
    [
        (LFP, "lfp"),
        ("processing/behavior/cursor_vel/data", "behavior"),
        ("processing/behavior/cursor_vel/timestamps", "behavior"),
        ("units/spike_times", "units"),
        ("units/spike_times_index", "units"),
    ],
)
def test_a_missing_filter_is_named_with_its_dataset_and_the_package(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, dataset: str, part: str
) -> None:
    settings = {"timestamps": np.arange(12500) / 100} if "timestamps" in dataset else {}
    path = make.whole_session(tmp_path / "a.nwb", **settings)
    claim_filter(path, dataset, BLOSC)
    monkeypatch.setattr(h5py.h5z, "filter_avail", lambda code: code < 256)
    with open_recording(path) as recording:
        with pytest.raises(RecordingError) as caught:
            getattr(recording, part)
        assert caught.value.what == (
            f"{path}: {dataset} is compressed with Blosc (HDF5 filter 32001), which is not installed here"
        )
        assert caught.value.next_step == "pip install hdf5plugin"
        for other in {"lfp", "behavior", "units"} - {part}:
            assert getattr(recording, other) is not None


def test_a_filter_that_hdf5plugin_lacks_is_not_blamed_on_it(tmp_path: Path) -> None:
    path = make.whole_session(tmp_path / "a.nwb")
    claim_filter(path, LFP, SNAPPY)
    with open_recording(path) as recording, pytest.raises(RecordingError, match="Snappy") as caught:
        _ = recording.lfp
    assert "pip install" not in str(caught.value)
    assert "HDF5_PLUGIN_PATH" in str(caught.value)


def test_data_that_the_filter_cannot_unpack_are_named(tmp_path: Path) -> None:
    pytest.importorskip("hdf5plugin")
    path = make.whole_session(tmp_path / "a.nwb")
    claim_filter(path, LFP, BLOSC)
    with open_recording(path) as recording, pytest.raises(RecordingError, match="cannot be unpacked by Blosc"):
        _ = recording.lfp


def test_data_under_a_filter_of_hdf5plugin_are_read(tmp_path: Path) -> None:
    plugin = pytest.importorskip("hdf5plugin")
    path = make.whole_session(tmp_path / "a.nwb")
    with h5py.File(path, "a") as file:
        data, attributes = file[LFP][:], dict(file[LFP].attrs)
        del file[LFP]
        file.create_dataset(LFP, data=data, chunks=(1000, 3), **plugin.Zstd())
        file[LFP].attrs.update(attributes)
    with open_recording(path) as recording:
        assert recording.lfp is not None
        np.testing.assert_allclose(recording.lfp.read(0, 2000), make.lfp_volts()[:2000] * 1e6, rtol=1e-6)


def test_built_in_filters_need_nothing(tmp_path: Path) -> None:
    with h5py.File(tmp_path / "a.h5", "w") as file:
        packed = file.create_dataset("a", data=np.arange(99), compression="gzip", shuffle=True, fletcher32=True)
        assert find_failing_filter(packed) is None
        require_readable(packed, tmp_path / "a.h5", "a")
        require_readable(np.arange(3), tmp_path / "a.h5", "a")


def test_a_virtual_dataset_whose_file_is_gone_is_not_read_as_zeros(tmp_path: Path) -> None:
    path = make.whole_session(tmp_path / "a.nwb")
    with h5py.File(tmp_path / "raw.h5", "w") as raw:
        raw["data"] = make.lfp_volts()
    layout = h5py.VirtualLayout(shape=(31250, 3), dtype=np.float32)
    layout[:] = h5py.VirtualSource("raw.h5", "data", shape=(31250, 3))
    with h5py.File(path, "a") as file:
        attributes = dict(file[LFP].attrs)
        del file[LFP]
        file.create_virtual_dataset(LFP, layout)
        file[LFP].attrs.update(attributes)
    with open_recording(path) as recording:
        assert recording.lfp is not None
        np.testing.assert_allclose(recording.lfp.read(0, 50), make.lfp_volts()[:50] * 1e6, rtol=1e-6)
    (tmp_path / "raw.h5").rename(tmp_path / "moved.h5")
    with open_recording(path) as recording, pytest.raises(RecordingError, match=r"lie in raw\.h5, which is not there"):
        _ = recording.lfp


def test_values_in_a_raw_file_that_is_gone_are_named(tmp_path: Path) -> None:
    path = tmp_path / "a.h5"
    with h5py.File(path, "w") as file:
        file.create_dataset("a", shape=(4,), dtype=np.int16, external=[("values.bin", 0, 8)])
    with h5py.File(path, "r") as file:
        assert find_missing_file(file["a"]) == "values.bin"
        (tmp_path / "values.bin").write_bytes(bytes(8))
        assert find_missing_file(file["a"]) is None
