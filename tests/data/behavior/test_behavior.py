"""The behavior is found under the names that labs give it, and no value is made up where none was recorded."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgedistill.data.behavior.meaning import shorten_unit
from edgedistill.data.behavior.resampling import resample
from edgedistill.data.inspect import describe
from edgedistill.data.recording import SeriesNames, open_recording
from edgedistill.errors import RecordingError

from .. import nwb_files as make
from ..behavior_files import movement, read_behavior, times_at, write_behavior

ENDS = np.arange(1, 2001) / 100


@pytest.mark.parametrize(
    ("settings", "names"),
    [
        ({"container": "BehavioralTimeSeries", "name": "hand_vel"}, ("hand_vel_x", "hand_vel_y")),
        ({"module": "kinematics", "name": "CursorVelocity"}, ("cursor_vel_x", "cursor_vel_y")),
        ({"module": None, "name": "FingerVel", "unit": "m/s"}, ("finger_vel_x", "finger_vel_y")),
        ({"name": "hand", "unit": "meters/second"}, ("hand_vel_x", "hand_vel_y")),
        ({"description": "velocity of the cursor, columns x, y"}, ("cursor_vel_x", "cursor_vel_y")),
        ({"description": "left, right"}, ("cursor_vel_x", "cursor_vel_y")),
        ({"description": "Cursor velocity (vx, vy)."}, ("cursor_vel_vx", "cursor_vel_vy")),
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


def test_a_hand_is_preferred_to_eyes_and_velocity_to_position(tmp_path: Path) -> None:
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
    with open_recording(path, SeriesNames(behavior="HAND_POS")) as recording:
        assert recording.behavior is not None
        assert "hand_pos" in (recording.behavior.derived or "")
    with (
        open_recording(path, SeriesNames(behavior="hand_vell")) as recording,
        pytest.raises(RecordingError, match="did you mean 'hand_vel'"),
    ):
        _ = recording.behavior


def test_series_of_one_axis_each_are_joined(tmp_path: Path) -> None:
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
        got = recording.behavior.sample_at(ends)
        np.testing.assert_allclose(got[:-2], want[:-2], atol=1e-3)
        np.testing.assert_allclose(got[-2], want[-2], atol=1e-2)  # one-sided
        assert np.isnan(got[-1]).all()


def test_a_nan_sample_on_a_bin_end_voids_only_its_own_bin(tmp_path: Path) -> None:
    data = make.velocity()
    data[501] = np.nan
    nwb = make.new_nwb()
    make.add_behavior(nwb, data, starting_time=0.1)
    with open_recording(make.write(nwb, tmp_path / "a.nwb")) as recording:
        assert recording.behavior is not None
        got = recording.behavior.sample_at(np.arange(10, 12510) / 100)
    np.testing.assert_allclose(got, data, rtol=1e-6, atol=1e-6)


def test_short_trials_with_long_pauses_are_not_taken_for_a_coarse_clock(tmp_path: Path) -> None:
    times = np.concatenate([np.arange(20) / 100 + 30 * trial for trial in range(10)])
    nwb = make.new_nwb()
    make.add_behavior(nwb, np.stack([np.sin(times), np.cos(times)], axis=1), timestamps=times)
    with open_recording(make.write(nwb, tmp_path / "a.nwb")) as recording:
        assert recording.behavior is not None
        got = recording.behavior.sample_at(np.arange(1, 27_100) / 100)
    assert np.isfinite(got).all(axis=1).sum() == pytest.approx(200, abs=10)


def test_nan_samples_pauses_and_times_outside_void_only_their_own_bins(tmp_path: Path) -> None:
    times = np.concatenate([np.arange(1, 3, 0.01), np.arange(5, 7, 0.01)])
    data = np.stack([np.abs(times - 4), -np.abs(times - 4)], axis=1)
    data[50] = np.nan  # at 1.5 s
    nwb = make.new_nwb()
    make.add_behavior(nwb, data, timestamps=times)
    with open_recording(make.write(nwb, tmp_path / "a.nwb")) as recording:
        assert recording.behavior is not None
        at = np.array([0.5, 1.255, 1.495, 1.5, 1.505, 1.515, 4.0, 6.005, 7.5])
        got = recording.behavior.sample_at(at)[:, 0]
    void = [True, False, True, True, True, False, True, False, True]
    np.testing.assert_array_equal(np.isnan(got), void)
    np.testing.assert_allclose(got[~np.isnan(got)], np.abs(at[~np.array(void)] - 4), rtol=1e-6)


@pytest.mark.parametrize(("name", "rate"), [("hand_pos", 100.0), ("hand_vel", 90.0), ("hand_vel", 250.0)])
def test_a_trial_is_read_only_at_the_bins_it_reaches(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, rate: float
) -> None:
    clocks = [times_at(rate, 0.503 + 1.1 * trial, 1.0) for trial in range(12)]
    series = {f"trial_{n}/{name}": {"data": movement(at), "timestamps": at} for n, at in enumerate(clocks)}
    path = write_behavior(tmp_path / "a.nwb", series)
    asked = []

    def count(times_s: np.ndarray, values: np.ndarray, ends_s: np.ndarray, *rest: Any, **options: Any) -> np.ndarray:
        asked.append(len(ends_s))
        return resample(times_s, values, ends_s, *rest, **options)

    monkeypatch.setattr("edgedistill.data.behavior.behavior.resample", count)
    _, values = read_behavior(path, at=ENDS)
    assert len(asked) == 12
    assert sum(asked) < 12 * 110

    want = np.full((len(ENDS), 2), np.nan)
    for at in clocks:
        period = float(np.median(np.diff(at)))
        one = resample(at, movement(at), ENDS, period, positions=name == "hand_pos")
        want = np.where(np.isnan(want), one, want)
    assert np.isfinite(want).any(axis=1).sum() > 1000
    np.testing.assert_array_equal(values, want.astype(np.float32))


@pytest.mark.parametrize(
    ("times", "match"),
    [(np.arange(100) * 10.0, "coarse"), (np.concatenate([np.arange(50), np.arange(50)]) / 100, "backwards")],
)
def test_a_coarse_or_backward_clock_of_behavior_is_refused(tmp_path: Path, times: np.ndarray, match: str) -> None:
    nwb = make.new_nwb()
    make.add_behavior(nwb, np.zeros((100, 2)), timestamps=times)
    path = make.write(nwb, tmp_path / "a.nwb")
    with open_recording(path) as recording:
        assert recording.behavior is not None
        with pytest.raises(RecordingError, match=match):
            recording.behavior.sample_at(np.array([0.1]))
    assert match in describe(path).problems[0]


@pytest.mark.parametrize(
    ("unit", "short"),
    [
        ("meters/second", "m/s"),
        ("m per s", "m/s"),
        ("cm*s^-1", "cm/s"),
        ("centimeters / sec", "cm/s"),
        ("mm·s⁻¹", "mm/s"),
        ("m s**-1", "m/s"),
        ("", "a.u."),
    ],
)
def test_units_are_shortened(unit: str, short: str) -> None:
    assert shorten_unit(unit) == short
