"""The LFP and the other parts of a session are read right, however a lab has stored them."""

from __future__ import annotations

import json
import shutil
from fractions import Fraction
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgedistill.data.inspect import describe
from edgedistill.data.lfp.lfp import Gap
from edgedistill.data.recording import Lfp, open_recording
from edgedistill.errors import RecordingError

from . import nwb_files as make


def require_lfp(recording: Any) -> Lfp:
    assert recording.lfp is not None
    return recording.lfp


def test_a_whole_session_is_read(whole: Path) -> None:
    with open_recording(whole) as recording:
        lfp = require_lfp(recording)
        assert (lfp.rate, lfp.channels, lfp.frames) == (250, 3, 31250)
        np.testing.assert_allclose(lfp.read(10, 20), make.lfp_volts()[10:20] * 1e6, rtol=1e-6)
        assert recording.units is not None
        assert [len(unit) for unit in recording.units] == [600] * 4
        assert recording.behavior is not None
        assert recording.behavior.names == ("cursor_vel_x", "cursor_vel_y")
        assert recording.behavior.units == ("cm/s", "cm/s")
        assert recording.session_id == "s1"
        assert recording.subject_id == "monkey"
        assert len(recording.electrodes) == 3
        json.dumps(recording.electrodes)


@settings(deadline=None, max_examples=20)
@given(frames=st.integers(50, 40_000))
def test_blocks_of_any_size_add_up_to_the_whole_lfp(whole: Path, frames: int) -> None:
    with open_recording(whole) as recording:
        blocks = list(require_lfp(recording).read_blocks(frames))
        assert {len(block) for block in blocks[:-1]} <= {frames}
        np.testing.assert_array_equal(np.concatenate(blocks), require_lfp(recording).read(0, 31250))


@pytest.mark.parametrize("where", ["LFP", "LFP/other", "ecephys", "acquisition", "acquisition/LFP"])
def test_lfp_is_found_wherever_it_lies(tmp_path: Path, where: str) -> None:
    nwb = make.new_nwb()
    make.add_lfp(nwb, make.lfp_volts(seconds=2), where=where)
    with open_recording(make.write(nwb, tmp_path / "a.nwb")) as recording:
        assert require_lfp(recording).channels == 3


def test_an_lfp_container_is_preferred_to_acquisition_and_to_slower_series(tmp_path: Path) -> None:
    nwb = make.new_nwb()
    make.add_lfp(nwb, make.lfp_volts(channels=6, seconds=2), where="acquisition", name="Raw")
    make.add_lfp(nwb, make.lfp_volts(channels=2, seconds=2), where="ecephys", name="probe_a")
    make.add_lfp(nwb, make.lfp_volts(channels=4, seconds=2), name="probe_b")
    make.add_lfp(nwb, make.lfp_volts(rate=100, channels=5, seconds=2), name="envelope", rate=100.0)
    path = make.write(nwb, tmp_path / "a.nwb")
    with open_recording(path) as recording:
        lfp = require_lfp(recording)
        assert lfp.series == "processing/ecephys/LFP/probe_b"
        assert lfp.channel_ids == ("8", "9", "10", "11")
    candidates = {str(one["series"]).rpartition("/")[2]: one["read"] for one in describe(path).candidates["lfp"]}
    assert candidates == {"Raw": False, "probe_a": False, "probe_b": True, "envelope": False}


def test_integers_become_microvolts_by_conversion_channel_conversion_and_offset(tmp_path: Path) -> None:
    bits = np.arange(-600, 600, dtype=np.int16).reshape(-1, 3)
    nwb = make.new_nwb()
    make.add_lfp(nwb, bits, conversion=2e-7, channel_conversion=[1.0, 2.0, 0.5], offset=1e-5)
    with open_recording(make.write(nwb, tmp_path / "a.nwb")) as recording:
        got = require_lfp(recording).read(0, 400)
        assert got.dtype == np.float32
        np.testing.assert_allclose(got, bits * [0.2, 0.4, 0.1] + 10, rtol=1e-6, atol=1e-5)


@pytest.mark.parametrize("kind", [np.int16, np.int32, np.float32, np.float64])
def test_every_number_type_is_read_and_nan_stays_nan(tmp_path: Path, kind: type) -> None:
    data = np.arange(1000).astype(kind)
    if np.issubdtype(kind, np.floating):
        data[5] = np.nan
    nwb = make.new_nwb()
    make.add_lfp(nwb, data, conversion=1e-6)
    with open_recording(make.write(nwb, tmp_path / "a.nwb")) as recording:
        np.testing.assert_allclose(require_lfp(recording).read(0, 1000)[:, 0], data.astype(float), rtol=1e-6)


@pytest.mark.filterwarnings("ignore:.*:UserWarning")  # pynwb warns of the layout, too
def test_an_lfp_stored_as_channels_by_time_is_transposed(tmp_path: Path) -> None:
    data = make.lfp_volts(seconds=2)
    nwb = make.new_nwb()
    make.add_lfp(nwb, np.ascontiguousarray(data.T), channels=3)
    path = make.write(nwb, tmp_path / "a.nwb")
    with open_recording(path) as recording:
        np.testing.assert_allclose(np.concatenate(list(require_lfp(recording).read_blocks(77))), data * 1e6, rtol=1e-6)
    assert any("channels, time" in note for note in describe(path).notes)


def test_the_unit_attribute_of_the_file_sets_the_scale(tmp_path: Path) -> None:
    nwb = make.new_nwb()
    make.add_lfp(nwb, np.ones((600, 2)))
    path = make.write(nwb, tmp_path / "a.nwb")
    with h5py.File(path, "a") as file:
        file["processing/ecephys/LFP/ElectricalSeries/data"].attrs["unit"] = "mV"
    with open_recording(path) as recording:
        assert (require_lfp(recording).read(0, 600) == 1000).all()


@pytest.mark.parametrize("decimals", [None, 6])
@pytest.mark.parametrize("rate", [Fraction(1000), Fraction(390625, 384)])
def test_regular_timestamps_give_the_exact_rate(tmp_path: Path, rate: Fraction, decimals: int | None) -> None:
    times = 3.5 + np.arange(20_000) / float(rate)
    nwb = make.new_nwb()
    make.add_lfp(nwb, np.ones((20_000, 1)), timestamps=times if decimals is None else times.round(decimals))
    with open_recording(make.write(nwb, tmp_path / "a.nwb")) as recording:
        assert require_lfp(recording).start_s == 3.5
        if decimals is None:
            assert require_lfp(recording).rate == rate
        assert float(require_lfp(recording).rate) == pytest.approx(float(rate), rel=1e-6)


def test_a_pause_in_the_timestamps_is_a_declared_gap(tmp_path: Path) -> None:
    times = np.arange(5000) / 250
    times[3000:] += 2
    nwb = make.new_nwb()
    make.add_lfp(nwb, np.arange(5000.0)[:, None], timestamps=times, conversion=1e-6)
    with open_recording(make.write(nwb, tmp_path / "a.nwb")) as recording:
        lfp = require_lfp(recording)
        assert (lfp.gaps, lfp.frames) == (((3000, 500),), 5500)
        assert any("declared as gaps" in note for note in lfp.notes)
        blocks = list(lfp.read_blocks(2000))
        assert [block if isinstance(block, Gap) else len(block) for block in blocks] == [2000, 1000, Gap(500), 2000]
        whole = lfp.read(0, lfp.frames)[:, 0]
        assert np.isnan(whole[3000:3500]).all()
        np.testing.assert_array_equal(np.delete(whole, np.s_[3000:3500]), np.arange(5000))


def test_clocks_that_are_none_are_refused_and_located(tmp_path: Path) -> None:
    times = np.arange(5000) / 250
    times[3000:] -= 12
    nwb = make.new_nwb()
    make.add_lfp(nwb, np.ones((5000, 1)), timestamps=times)
    path = make.write(nwb, tmp_path / "a.nwb")
    with open_recording(path) as recording, pytest.raises(RecordingError, match="run backwards") as caught:
        _ = recording.lfp
    message = str(caught.value)
    assert all(words in message for words in ("ElectricalSeries", "0.000000 s at frame 3000", "11.996000 s"))
    report = describe(path)
    assert "run backwards" in report.problems[0]
    assert report.missing["run"]


def test_chunked_and_compressed_data_are_read_like_plain_data(tmp_path: Path) -> None:
    from hdmf.backends.hdf5.h5_utils import H5DataIO

    data = make.lfp_volts(seconds=20)
    nwb = make.new_nwb()
    make.add_lfp(nwb, H5DataIO(data, chunks=(1024, 1), compression="gzip"), channels=3)
    with open_recording(make.write(nwb, tmp_path / "a.nwb")) as recording:
        blocks = list(require_lfp(recording).read_blocks(100))
        assert all(len(block) == 100 for block in blocks)
        np.testing.assert_allclose(np.concatenate(blocks), data * 1e6, rtol=1e-6)


def test_the_error_for_missing_parts_names_them_and_what_the_file_holds(tmp_path: Path) -> None:
    nwb = make.new_nwb()
    make.add_lfp(nwb, make.lfp_volts(seconds=2))
    with open_recording(make.write(nwb, tmp_path / "a.nwb")) as recording:
        with pytest.raises(RecordingError) as caught:
            recording.require(("units", "lfp", "behavior"))
        message = str(caught.value)
        assert "no units" in message
        assert "no behavior" in message
        assert "processing/ecephys/LFP/ElectricalSeries" in message
        recording.require(("lfp",))
        with pytest.raises(ValueError, match="did you mean 'units'"):
            recording.require(("unit",))


@pytest.mark.parametrize("dataset", ["data", "timestamps"])
def test_a_damaged_dataset_is_named(tmp_path: Path, dataset: str) -> None:
    from hdmf.backends.hdf5.h5_utils import H5DataIO

    nwb = make.new_nwb()
    packed = {"compression": "gzip"}
    make.add_lfp(
        nwb,
        H5DataIO(make.lfp_volts(seconds=4), chunks=(1000, 3), **packed),
        channels=3,
        timestamps=H5DataIO(np.arange(1000) / 250, chunks=(1000,), **packed),
    )
    path = make.write(nwb, tmp_path / "a.nwb")
    name = f"processing/ecephys/LFP/ElectricalSeries/{dataset}"
    with h5py.File(path, "a") as file:
        file[name].id.write_direct_chunk((0,) * file[name].ndim, b"no gzip")
    with open_recording(path) as recording, pytest.raises(RecordingError, match="cannot be read") as caught:
        require_lfp(recording).read(0, 10)
    assert name in str(caught.value)


def test_blocks_between_two_frames_hold_the_same_as_a_read(tmp_path: Path) -> None:
    times = np.arange(1000) / 250
    times[300:] += 0.2
    times[700:] += 4
    nwb = make.new_nwb()
    make.add_lfp(nwb, np.arange(1000.0)[:, None], timestamps=times, conversion=1e-6)
    with open_recording(make.write(nwb, tmp_path / "a.nwb")) as recording:
        lfp = require_lfp(recording)
        for start, stop in ((0, lfp.frames), (0, 310), (320, 900), (340, 345), (800, 1200), (5, 6)):
            blocks = list(lfp.read_blocks(64, start, stop))
            filled = [b if not isinstance(b, Gap) else np.full((b.frames, 1), np.nan) for b in blocks]
            np.testing.assert_array_equal(np.concatenate(filled), lfp.read(start, stop))


def test_an_lfp_that_claims_years_is_refused_before_it_is_read(tmp_path: Path, whole: Path) -> None:
    """A dataset without its chunks takes no room, whatever its shape."""
    path = Path(shutil.copy(whole, tmp_path / "long.nwb"))
    with h5py.File(path, "r+") as file:
        held = file["processing/ecephys/LFP/ElectricalSeries"]
        facts = dict(held["data"].attrs)
        del held["data"]
        held.create_dataset("data", (10**12, 3), "f4", chunks=(4096, 3)).attrs.update(facts)
    with open_recording(path) as recording, pytest.raises(RecordingError, match=r"(?s)longer than any.*46296 days"):
        _ = recording.lfp
    assert any("longer than any recording" in problem for problem in describe(path).problems)


@pytest.mark.parametrize("start", ["9999-12-31T23:59:59-12:00", "0001-01-01T00:00:00+14:00"])
def test_a_start_that_no_calendar_has_is_refused(tmp_path: Path, whole: Path, start: str) -> None:
    path = Path(shutil.copy(whole, tmp_path / "odd.nwb"))
    with h5py.File(path, "r+") as file:
        file["session_start_time"][()] = start
    with open_recording(path) as recording, pytest.raises(RecordingError, match="no date that can be"):
        _ = recording.session_start
