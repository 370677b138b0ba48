"""Sessions as other labs write them are read right; what cannot be read is refused with the reason."""

from __future__ import annotations

import json
from fractions import Fraction
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgedistill.data.behavior_choice import short_unit
from edgedistill.data.inspect import NEEDS, describe
from edgedistill.data.recording import Lfp, open_recording, session_files
from edgedistill.data.series import exact_rate
from edgedistill.errors import RecordingError

from . import nwb_files as make


@pytest.fixture(scope="session")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make.whole_session(tmp_path_factory.mktemp("whole") / "whole.nwb")


def lfp_of(recording: Any) -> Lfp:
    assert recording.lfp is not None
    return recording.lfp


# ---------------------------------------------------------------- rates


@pytest.mark.parametrize(
    ("hz", "rate"),
    [
        (1000.0, Fraction(1000)),
        (24414.0625, Fraction(390625, 16)),
        (24414.0625 / 24, Fraction(390625, 384)),
        (24414.0625 / 32, Fraction(390625, 512)),
        (2034.5052083333335, Fraction(390625, 192)),
        (30000 / 7, Fraction(30000, 7)),
    ],
)
def test_rates_of_known_hardware_are_exact(hz: float, rate: Fraction) -> None:
    assert exact_rate(hz) == rate


@given(st.floats(200, 50_000))
def test_any_rate_is_kept_to_a_billionth_with_small_terms(hz: float) -> None:
    rate = exact_rate(hz)
    assert abs(rate - Fraction(hz)) <= Fraction(hz) / 10**9
    assert rate.denominator <= 10**6


# ---------------------------------------------------------------- LFP


def test_a_whole_session_is_read(whole: Path) -> None:
    with open_recording(whole) as recording:
        lfp = lfp_of(recording)
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
def test_blocks_of_any_size_are_the_whole(whole: Path, frames: int) -> None:
    with open_recording(whole) as recording:
        blocks = list(lfp_of(recording).blocks(frames))
        assert {len(block) for block in blocks[:-1]} <= {frames}
        np.testing.assert_array_equal(np.concatenate(blocks), lfp_of(recording).read(0, 31250))


@pytest.mark.parametrize("where", ["LFP", "LFP/other", "ecephys", "acquisition", "acquisition/LFP"])
def test_lfp_is_found_wherever_it_lies(tmp_path: Path, where: str) -> None:
    nwb = make.new_nwb()
    make.add_lfp(nwb, make.lfp_volts(seconds=2), where=where)
    with open_recording(make.write(nwb, tmp_path / "a.nwb")) as recording:
        assert lfp_of(recording).channels == 3


def test_lfp_container_before_acquisition_and_wider_before_narrower(tmp_path: Path) -> None:
    nwb = make.new_nwb()
    make.add_lfp(nwb, make.lfp_volts(channels=6, seconds=2), where="acquisition", name="Raw")
    make.add_lfp(nwb, make.lfp_volts(channels=2, seconds=2), name="probe_a")
    make.add_lfp(nwb, make.lfp_volts(channels=4, seconds=2), name="probe_b")
    make.add_lfp(nwb, make.lfp_volts(rate=100, channels=5, seconds=2), name="envelope", rate=100.0)
    path = make.write(nwb, tmp_path / "a.nwb")
    with open_recording(path) as recording:
        lfp = lfp_of(recording)
        assert lfp.series == "processing/ecephys/LFP/probe_b"
        assert lfp.channel_ids == ("8", "9", "10", "11")
    notes = " ".join(describe(path).notes)
    assert "probe_b" in notes
    assert "probe_a" in notes


def test_integers_become_microvolts_by_all_three_factors(tmp_path: Path) -> None:
    bits = np.arange(-600, 600, dtype=np.int16).reshape(-1, 3)
    nwb = make.new_nwb()
    make.add_lfp(nwb, bits, conversion=2e-7, channel_conversion=[1.0, 2.0, 0.5], offset=1e-5)
    with open_recording(make.write(nwb, tmp_path / "a.nwb")) as recording:
        got = lfp_of(recording).read(0, 400)
        assert got.dtype == np.float32
        np.testing.assert_allclose(got, bits * [0.2, 0.4, 0.1] + 10, rtol=1e-6, atol=1e-5)


@pytest.mark.parametrize("kind", [np.int16, np.int32, np.float32, np.float64])
def test_types_shapes_and_nan_survive(tmp_path: Path, kind: type) -> None:
    data = np.arange(1000).astype(kind)
    if np.issubdtype(kind, np.floating):
        data[5] = np.nan
    nwb = make.new_nwb()
    make.add_lfp(nwb, data, conversion=1e-6)
    with open_recording(make.write(nwb, tmp_path / "a.nwb")) as recording:
        np.testing.assert_allclose(lfp_of(recording).read(0, 1000)[:, 0], data.astype(float), rtol=1e-6)


@pytest.mark.filterwarnings("ignore:.*:UserWarning")  # pynwb warns of the layout, too
def test_channels_before_time_is_understood(tmp_path: Path) -> None:
    data = make.lfp_volts(seconds=2)
    nwb = make.new_nwb()
    make.add_lfp(nwb, np.ascontiguousarray(data.T), channels=3)
    path = make.write(nwb, tmp_path / "a.nwb")
    with open_recording(path) as recording:
        np.testing.assert_allclose(np.concatenate(list(lfp_of(recording).blocks(77))), data * 1e6, rtol=1e-6)
    assert any("channels, time" in note for note in describe(path).notes)


def test_the_unit_written_in_the_file_counts(tmp_path: Path) -> None:
    nwb = make.new_nwb()
    make.add_lfp(nwb, np.ones((600, 2)))
    path = make.write(nwb, tmp_path / "a.nwb")
    with h5py.File(path, "a") as file:
        file["processing/ecephys/LFP/ElectricalSeries/data"].attrs["unit"] = "mV"
    with open_recording(path) as recording:
        assert (lfp_of(recording).read(0, 600) == 1000).all()


@pytest.mark.parametrize("decimals", [None, 6])
@pytest.mark.parametrize("rate", [Fraction(1000), Fraction(390625, 384)])
def test_regular_timestamps_give_the_exact_rate(tmp_path: Path, rate: Fraction, decimals: int | None) -> None:
    times = 3.5 + np.arange(20_000) / float(rate)
    nwb = make.new_nwb()
    make.add_lfp(nwb, np.ones((20_000, 1)), timestamps=times if decimals is None else times.round(decimals))
    with open_recording(make.write(nwb, tmp_path / "a.nwb")) as recording:
        assert lfp_of(recording).start_s == 3.5
        if decimals is None:
            assert lfp_of(recording).rate == rate
        assert float(lfp_of(recording).rate) == pytest.approx(float(rate), rel=1e-6)


def test_a_pause_between_timestamps_is_named(tmp_path: Path) -> None:
    times = np.arange(5000) / 250
    times[3000:] += 2
    nwb = make.new_nwb()
    make.add_lfp(nwb, np.ones((5000, 1)), timestamps=times)
    path = make.write(nwb, tmp_path / "a.nwb")
    with open_recording(path) as recording, pytest.raises(RecordingError, match="irregular") as caught:
        _ = recording.lfp
    assert "frame 2999" in str(caught.value)
    report = describe(path)
    assert "irregular" in report.problems[0]
    assert report.missing["run"]


def test_chunked_and_compressed_data_read_the_same(tmp_path: Path) -> None:
    from hdmf.backends.hdf5.h5_utils import H5DataIO

    data = make.lfp_volts(seconds=20)
    nwb = make.new_nwb()
    make.add_lfp(nwb, H5DataIO(data, chunks=(1024, 1), compression="gzip"), channels=3)
    with open_recording(make.write(nwb, tmp_path / "a.nwb")) as recording:
        blocks = list(lfp_of(recording).blocks(100))
        assert all(len(block) == 100 for block in blocks)
        np.testing.assert_allclose(np.concatenate(blocks), data * 1e6, rtol=1e-6)


# ---------------------------------------------------------------- behavior


@pytest.mark.parametrize(
    ("settings", "names"),
    [
        ({"container": "BehavioralTimeSeries", "name": "hand_vel"}, ("hand_vel_x", "hand_vel_y")),
        ({"module": "kinematics", "name": "CursorVelocity"}, ("cursor_vel_x", "cursor_vel_y")),
        ({"module": None, "name": "FingerVel", "unit": "m/s"}, ("finger_vel_x", "finger_vel_y")),
        ({"name": "hand", "unit": "meters/second"}, ("hand_vel_x", "hand_vel_y")),
        ({"name": "velocity", "description": "wheel (left, right)"}, ("vel_left", "vel_right")),
        (
            {"kind": "SpatialSeries", "container": "Position", "name": "cursor_pos", "unit": "cm"},
            ("cursor_vel_x", "cursor_vel_y"),
        ),
        ({"kind": "SpatialSeries", "container": "Position", "name": "SpatialSeries"}, ("vel_x", "vel_y")),
        ({"name": "cursor_pos", "unit": "cm"}, ("cursor_vel_x", "cursor_vel_y")),
    ],
)
def test_behavior_is_found_and_named(tmp_path: Path, settings: dict[str, Any], names: tuple[str, ...]) -> None:
    nwb = make.new_nwb()
    make.add_behavior(nwb, **settings)
    with open_recording(make.write(nwb, tmp_path / "a.nwb")) as recording:
        assert recording.behavior is not None
        assert recording.behavior.names == names
        assert all(unit.endswith("/s") for unit in recording.behavior.units)


def test_a_hand_before_eyes_and_velocity_before_position(tmp_path: Path) -> None:
    nwb = make.new_nwb()
    make.add_behavior(nwb, name="a_eye_vel")
    make.add_behavior(nwb, kind="SpatialSeries", container="Position", name="hand_pos")
    make.add_behavior(nwb, name="joint_vel", data=np.zeros((200, 7)))
    make.add_behavior(nwb, name="hand_vel")
    path = make.write(nwb, tmp_path / "a.nwb")
    with open_recording(path) as recording:
        assert recording.behavior is not None
        assert recording.behavior.name == "hand_vel"
        assert recording.behavior.derived is None
        assert len(recording.behavior.others) == 3
    with open_recording(path, behavior="HAND_POS") as recording:
        assert recording.behavior is not None
        assert "hand_pos" in (recording.behavior.derived or "")
    with (
        open_recording(path, behavior="hand_vell") as recording,
        pytest.raises(RecordingError, match="did you mean 'hand_vel'"),
    ):
        _ = recording.behavior


def test_one_series_an_axis_is_put_together(tmp_path: Path) -> None:
    nwb = make.new_nwb()
    for axis, column in (("y", 1), ("x", 0)):
        make.add_behavior(nwb, name=f"cursor_vel_{axis}", data=make.velocity()[:, column])
    with open_recording(make.write(nwb, tmp_path / "a.nwb")) as recording:
        assert recording.behavior is not None
        assert recording.behavior.names == ("cursor_vel_x", "cursor_vel_y")
        np.testing.assert_array_equal(recording.behavior.values, make.velocity())


def test_velocity_derived_from_position_is_the_derivative(tmp_path: Path) -> None:
    t = np.arange(2000) / 200
    nwb = make.new_nwb()
    make.add_behavior(
        nwb,
        np.stack([np.sin(t), np.cos(t)], axis=1) * 100,
        kind="SpatialSeries",
        name="cursor",
        unit="meters",
        conversion=0.01,
        rate=200.0,
    )
    with open_recording(make.write(nwb, tmp_path / "a.nwb")) as recording:
        assert recording.behavior is not None
        assert recording.behavior.units == ("m/s", "m/s")
        ends = np.arange(1, 1001) / 100  # up to one sample after the last
        want = np.stack([np.cos(ends), -np.sin(ends)], axis=1)
        got = recording.behavior.at(ends)
        np.testing.assert_allclose(got[:-2], want[:-2], atol=1e-3)
        np.testing.assert_allclose(got[-2], want[-2], atol=1e-2)  # one-sided
        assert np.isnan(got[-1]).all()


def test_nan_voids_its_own_bin_only_where_samples_lie_on_bin_ends(tmp_path: Path) -> None:
    data = make.velocity()
    data[501] = np.nan
    nwb = make.new_nwb()
    make.add_behavior(nwb, data, starting_time=0.1)
    with open_recording(make.write(nwb, tmp_path / "a.nwb")) as recording:
        assert recording.behavior is not None
        got = recording.behavior.at(np.arange(10, 12510) / 100)
    np.testing.assert_allclose(got, data, rtol=1e-6, atol=1e-6)


def test_short_trials_far_apart_are_no_coarse_clock(tmp_path: Path) -> None:
    times = np.concatenate([np.arange(20) / 100 + 30 * trial for trial in range(10)])
    nwb = make.new_nwb()
    make.add_behavior(nwb, np.stack([times, times], axis=1), timestamps=times)
    with open_recording(make.write(nwb, tmp_path / "a.nwb")) as recording:
        assert recording.behavior is not None
        got = recording.behavior.at(np.arange(1, 27_100) / 100)
    assert np.isfinite(got).all(axis=1).sum() == pytest.approx(200, abs=10)


def test_nan_pauses_and_edges_void_their_bins_only(tmp_path: Path) -> None:
    times = np.concatenate([np.arange(1, 3, 0.01), np.arange(5, 7, 0.01)])
    data = np.stack([times, -times], axis=1)
    data[50] = np.nan  # at 1.5 s
    nwb = make.new_nwb()
    make.add_behavior(nwb, data, timestamps=times)
    with open_recording(make.write(nwb, tmp_path / "a.nwb")) as recording:
        assert recording.behavior is not None
        at = np.array([0.5, 1.255, 1.495, 1.5, 1.505, 1.515, 4.0, 6.005, 7.5])
        got = recording.behavior.at(at)[:, 0]
    void = [True, False, True, True, True, False, True, False, True]
    np.testing.assert_array_equal(np.isnan(got), void)
    np.testing.assert_allclose(got[~np.isnan(got)], at[~np.array(void)], rtol=1e-6)


@pytest.mark.parametrize(
    ("times", "match"),
    [(np.arange(100) * 10.0, "coarse"), (np.concatenate([np.arange(50), np.arange(50)]) / 100, "backwards")],
)
def test_behavior_clocks_that_make_no_sense_are_refused(tmp_path: Path, times: np.ndarray, match: str) -> None:
    nwb = make.new_nwb()
    make.add_behavior(nwb, np.zeros((100, 2)), timestamps=times)
    path = make.write(nwb, tmp_path / "a.nwb")
    with open_recording(path) as recording:
        assert recording.behavior is not None
        with pytest.raises(RecordingError, match=match):
            recording.behavior.at(np.array([0.1]))
    assert match in describe(path).problems[0]


@pytest.mark.parametrize(
    ("unit", "short"),
    [
        ("meters/second", "m/s"),
        ("m per s", "m/s"),
        ("cm*s^-1", "cm/s"),
        ("centimeters / sec", "cm/s"),
        ("", "a.u."),
    ],
)
def test_units_are_shortened(unit: str, short: str) -> None:
    assert short_unit(unit) == short


# ---------------------------------------------------------------- what cannot be read


def test_what_is_no_nwb_file_is_refused(tmp_path: Path, whole: Path) -> None:
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
    for path, words in (
        (text, "git-lfs"),
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


def test_missing_parts_are_named_with_what_is_there(tmp_path: Path) -> None:
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


def test_folders_are_searched_and_repeats_dropped(tmp_path: Path, whole: Path) -> None:
    (tmp_path / "sub-1").mkdir()
    inside = tmp_path / "sub-1" / "a.nwb"
    inside.write_bytes(whole.read_bytes())
    assert session_files([tmp_path, inside]) == [inside]
    (tmp_path / "none").mkdir()
    with pytest.raises(RecordingError, match="no NWB files"):
        session_files([tmp_path / "none"])
    with pytest.raises(RecordingError, match="no sessions"):
        session_files([])


# ---------------------------------------------------------------- inspect


def test_inspect_says_what_is_there_and_what_is_missing(whole: Path, tmp_path: Path) -> None:
    report = describe(whole)
    assert all(not lacks for lacks in report.missing.values())
    assert json.loads(json.dumps(report.to_json()))["lfp"]["rate"] == "250/1"
    assert set(report.to_json()["commands"]) == set(NEEDS)  # type: ignore[call-overload]
    assert "cursor_vel_x (cm/s)" in report.to_text()

    nwb = make.new_nwb(session_id=None)
    data = make.lfp_volts(seconds=30)
    data[:, 1] = 0
    make.add_lfp(nwb, data, conversion=1e-6)
    make.add_behavior(nwb, name="force", unit="N")
    report = describe(make.write(nwb, tmp_path / "short.nwb"))
    assert report.session_id == "short"
    assert not report.missing["run"]
    assert report.missing["calibrate"] == ("two minutes of LFP",)
    assert report.missing["distill"] == (
        "units (spike times) or the latents of a teacher",
        "two minutes of LFP",
    )
    assert "behavior" in report.missing["probe"]
    notes = " ".join(report.notes)
    assert "without signal" in notes
    assert "conversion" in notes
    assert "processing/behavior/force" in notes
    assert "needs units" in report.to_text()
