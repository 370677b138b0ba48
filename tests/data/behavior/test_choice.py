"""The behavior is the movement of a limb, read whole: all of its axes, fingers and epochs. What is not read is said."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgedistill.data.behavior.choice import find_behavior_like, find_behavior_series
from edgedistill.data.behavior.report import list_candidates
from edgedistill.data.recording import SeriesNames, open_recording
from edgedistill.errors import RecordingError

from .. import nwb_files as make
from ..behavior_files import movement, read_behavior, times_at, write_behavior

ENDS = np.arange(1, 2001) / 100


@pytest.mark.parametrize(
    ("place", "settings", "derived"),
    [
        ("BehavioralTimeSeries/hand_vel", {"unit": "m/s"}, False),
        ("BehavioralTimeSeries/hand", {"unit": "m s-1"}, False),
        ("BehavioralTimeSeries/hand", {"unit": "pixels/sec"}, False),
        ("BehavioralTimeSeries/joint", {"unit": "deg/s"}, False),
        ("Velocity/cursor", {"unit": "cm/s"}, False),
        ("Velocity/cursor", {"kind": "TimeSeries", "unit": "a.u."}, False),
        ("Position/velocity", {"unit": "cm"}, False),
        ("Position/hand", {"unit": "cm/s"}, False),
        ("Position/hand", {"unit": "meters"}, True),
        ("hand_pos", {"unit": "cm"}, True),
        ("Hand", {"unit": "cm"}, True),
    ],
)
def test_names_units_and_containers_tell_a_velocity_from_a_position(
    tmp_path: Path, place: str, settings: dict[str, Any], derived: bool
) -> None:
    behavior, _ = read_behavior(write_behavior(tmp_path / "a.nwb", {place: settings}))
    assert (behavior.derived is not None) == derived
    assert all("vel" in name for name in behavior.names)


@pytest.mark.parametrize(
    ("place", "unit", "units", "kind"),
    [("Position/velocity", "cm", "cm", "velocity"), ("hand_pos", "cm/s", "cm/s", "position"),
     ("Position/hand", "cm/s", "cm/s", "velocity")],
)  # fmt: skip
def test_a_name_that_contradicts_its_unit_is_told(tmp_path: Path, place: str, unit: str, units: str, kind: str) -> None:
    behavior, _ = read_behavior(write_behavior(tmp_path / "a.nwb", {place: {"unit": unit}}))
    assert behavior.units == (units, units)
    assert any(f"It is read as a {kind}" in note for note in behavior.notes)
    agreed, _ = read_behavior(write_behavior(tmp_path / "b.nwb", {"Position/hand": {"unit": "cm"}}))
    assert agreed.notes == ()


@pytest.mark.parametrize(
    "place",
    ["speed_times", "cursor_acc", "hand_force", "wrist_torque", "Acceleration/cursor", "arm_emg", "pupil_size", "licks",
     "Position/Eye", "Position/DecodePos", "target_vel", "EyeTracking/data"],
)  # fmt: skip
def test_what_is_no_limb_is_read_only_where_it_is_named(tmp_path: Path, place: str) -> None:
    path = write_behavior(tmp_path / "a.nwb", {place: {"unit": "seconds"} if place == "speed_times" else {}})
    with open_recording(path) as recording:
        assert recording.behavior is None
        (candidate,) = list_candidates(find_behavior_series(recording.series), None)
    assert not candidate.read
    assert f"--behavior {place.rpartition('/')[2]} reads it" in candidate.why
    behavior, values = read_behavior(path, place)
    assert behavior.candidates[0].read
    assert np.isfinite(values[10:-10]).all()


def test_a_limb_is_read_before_a_head_and_a_movement_before_a_speed(tmp_path: Path) -> None:
    series: dict[str, dict[str, Any]] = {
        "head_vel": {}, "running_speed": {"data": movement(times_at(100), 1)[:, 0]},
        "Position/Eye": {}, "Position/Hand": {}, "Position/DecodePos": {},
    }  # fmt: skip
    behavior, _ = read_behavior(write_behavior(tmp_path / "a.nwb", series))
    assert behavior.series == "processing/behavior/Position/Hand"
    assert [c.series for c in behavior.candidates if c.read] == [behavior.series]
    assert len(behavior.candidates) == 5
    alone, _ = read_behavior(write_behavior(tmp_path / "b.nwb", {"running_speed": series["running_speed"]}))
    assert alone.names == ("running_speed_vel",)


def test_equals_are_told_with_the_option_for_each(tmp_path: Path) -> None:
    path = write_behavior(tmp_path / "a.nwb", {"Position/led_0": {}, "Position/led_1": {}, "Position/led_10": {}})
    behavior, _ = read_behavior(path)
    assert behavior.series.endswith("led_0")
    (note,) = behavior.notes
    assert "first of 3 equals" in note
    assert "--behavior led_1 or --behavior led_10" in note
    assert read_behavior(path, "led_1")[0].notes == ()


@pytest.mark.parametrize(
    ("places", "names"),
    [
        (("cursor_vel_x", "cursor_vel_y"), ("cursor_vel_x", "cursor_vel_y")),
        (("velX", "velY", "velZ"), ("vel_x", "vel_y", "vel_z")),
        (("vx", "vy"), ("vel_x", "vel_y")),
        (("hand_velx", "hand_vely"), ("hand_vel_x", "hand_vel_y")),
        (("vel_horizontal", "vel_vertical"), ("vel_horizontal", "vel_vertical")),
        (("Velocity/X", "Velocity/Y"), ("vel_x", "vel_y")),
        (("cursor_x/vel", "cursor_y/vel"), ("cursor_vel_x", "cursor_vel_y")),
        (("Fingers/thumb", "Fingers/index", "Fingers/middle"), ("thumb_vel", "index_vel", "middle_vel")),
        (("Fingers/finger1", "Fingers/finger2", "Fingers/finger10"), ("finger1_vel", "finger2_vel", "finger10_vel")),
        (("index_x", "index_y", "ring_x", "ring_y"), ("index_vel_x", "index_vel_y", "ring_vel_x", "ring_vel_y")),
    ],
)
def test_axes_and_fingers_in_series_of_their_own_are_read_together(
    tmp_path: Path, places: tuple[str, ...], names: tuple[str, ...]
) -> None:
    truth = movement(times_at(100), len(places))
    series = {place: {"data": column} for place, column in zip(places, truth.T, strict=True)}
    behavior, values = read_behavior(write_behavior(tmp_path / "a.nwb", dict(reversed(series.items()))))
    assert behavior.names == names
    assert behavior.notes == ()
    np.testing.assert_allclose(values[:-1], truth[1:], rtol=1e-6, atol=1e-6)


def test_one_axis_that_is_named_brings_the_others_and_one_finger_does_not(tmp_path: Path) -> None:
    one = {"data": movement(times_at(100), 1)[:, 0]}
    path = write_behavior(tmp_path / "a.nwb", dict.fromkeys(("vel_x", "vel_y", "index_vel", "ring_vel"), one))
    assert read_behavior(path, "vel_y")[0].names == ("vel_x", "vel_y")
    assert read_behavior(path, "vel_y[0]")[0].names == ("vel_y",)
    assert read_behavior(path, "index_vel")[0].names == ("index_vel",)


def test_axes_keep_their_own_clocks_and_it_is_told(tmp_path: Path) -> None:
    slow, fast = times_at(50, 0.503, 15), times_at(240, 0.1, 18)
    path = write_behavior(
        tmp_path / "a.nwb",
        {
            "Position/x": {"data": np.sin(slow), "rate": 50.0, "starting_time": 0.503},
            "Position/y": {"data": np.cos(fast), "timestamps": fast},
        },
    )
    behavior, values = read_behavior(path)
    first, last = 52, 1548  # within both axes by more than a bin
    np.testing.assert_allclose(values[first:last, 0], np.cos(ENDS[first:last]), atol=1.1e-2)
    np.testing.assert_allclose(values[first:last, 1], -np.sin(ENDS[first:last]), atol=1e-3)
    assert np.isnan(values[:49, 0]).all()
    assert np.isfinite(values[11:1800, 1]).all()
    assert (behavior.start_s, behavior.stop_s) == pytest.approx((0.503, 15.503))
    np.testing.assert_allclose(behavior.spans(), [[0.503, 15.503]])
    (note,) = behavior.notes
    assert "50 Hz from 0.503 to 15.483 s, 750 samples" in note
    assert "3.02 s at the ends" in note
    assert behavior.values.shape == (750, 2)
    np.testing.assert_allclose(behavior.values[:, 1], np.cos(slow), atol=1e-4)


EPOCHS = {
    "series": ("Position/led_0_series_1", "Position/led_0_series_2"),
    "trials": ("Position/trial_9", "Position/trial_10"),
    "names": ("Position/hand_baseline", "Position/hand_washout"),
    "containers": ("epoch_1/hand_vel", "epoch_2/hand_vel"),
    "axes": ("Position/x_1", "Position/x_2"),
    "padded": ("Position/trial001_hand_pos", "Position/trial012_hand_pos"),
}


@pytest.mark.parametrize("places", EPOCHS.values(), ids=EPOCHS.keys())
def test_epochs_are_put_together_with_the_pause_left_out(tmp_path: Path, places: tuple[str, str]) -> None:
    times = times_at(100)
    whole = movement(times)
    clock = {"timestamps": times, "data": whole}
    rows = slice(0, 800), slice(1000, 2000)
    tidy = {places[0]: clock}
    cut = {place: {key: column[at] for key, column in clock.items()} for place, at in zip(places, rows, strict=True)}
    _, want = read_behavior(write_behavior(tmp_path / "tidy.nwb", tidy))
    behavior, values = read_behavior(write_behavior(tmp_path / "cut.nwb", dict(reversed(cut.items()))))
    inside = np.r_[0:798, 1000:1998]
    np.testing.assert_allclose(values[inside], want[inside], atol=1e-6)
    assert np.isnan(values[801:998]).all()
    np.testing.assert_allclose(behavior.spans(), [[0, 8], [10, 20]])
    assert behavior.series == f"processing/behavior/{places[0]} + processing/behavior/{places[1]}"
    assert any("2 epochs" in note and "2.01 s between them" in note for note in behavior.notes)


def test_epochs_of_two_markers_are_not_mixed_and_each_can_be_named(tmp_path: Path) -> None:
    times = times_at(100)
    place = movement(times)
    path = write_behavior(
        tmp_path / "a.nwb",
        {
            f"Position/led_{led}_series_{epoch}": {"data": place[rows] + led, "timestamps": times[rows]}
            for led in (0, 1)
            for epoch, rows in ((1, slice(0, 900)), (2, slice(1000, 2000)))
        },
    )
    behavior, values = read_behavior(path)
    assert behavior.names == ("led_0_vel_x", "led_0_vel_y")
    assert any("--behavior led_1" in note for note in behavior.notes)
    other, same = read_behavior(path, "led_1")
    assert other.names == ("led_1_vel_x", "led_1_vel_y")
    np.testing.assert_allclose(values, same, atol=1e-4)
    assert read_behavior(path, "led_1_series_2")[0].start_s == 10.0


def test_many_trials_are_one_behavior_with_a_short_name(tmp_path: Path) -> None:
    clocks = [times_at(100, 1.5 * trial, 1.2) for trial in range(12)]
    path = write_behavior(
        tmp_path / "a.nwb",
        {
            f"trial_{trial}/vel_{axis}": {"data": movement(clock)[:, "xy".index(axis)], "timestamps": clock}
            for trial, clock in enumerate(clocks)
            for axis in "xy"
        },
    )
    behavior, values = read_behavior(path)
    assert behavior.series == "processing/behavior/vel (24 series)"
    assert behavior.names == ("vel_x", "vel_y")
    known = np.isfinite(values).all(axis=1)
    assert known.sum() == pytest.approx(12 * 120, abs=24)
    np.testing.assert_allclose(values[known], movement(ENDS)[known], atol=2e-2)
    assert len(behavior.spans()) == 12
    assert sum(c.read for c in behavior.candidates) == 24


def test_trials_that_run_at_the_same_time_are_refused(tmp_path: Path) -> None:
    one = {"data": movement(times_at(100)[:200]), "rate": 100.0}
    path = write_behavior(tmp_path / "a.nwb", {"trial_1": one, "trial_2": one, "trial_3": one})
    with pytest.raises(RecordingError, match=r"trial_1 from 0 to 1.99 s.*trial_2 from 0") as caught:
        read_behavior(path)
    assert "--behavior" in str(caught.value)
    assert read_behavior(path, "trial_2")[0].samples == 200


def test_a_container_and_a_path_name_the_behavior(tmp_path: Path) -> None:
    path = write_behavior(tmp_path / "a.nwb", {"left/hand_vel": {}, "right/hand_vel": {}, "right/acc": {}})
    assert read_behavior(path, "right")[0].series == "processing/behavior/right/hand_vel"
    assert read_behavior(path, "left/hand_vel")[0].series == "processing/behavior/left/hand_vel"
    with open_recording(path) as recording:
        assert any("--behavior processing/behavior/right/hand_vel" in n for n in recording.behavior.notes)  # type: ignore[union-attr]
    with pytest.raises(RecordingError, match="--behavior middle is not in this file"):
        read_behavior(path, "middle")


@pytest.mark.filterwarnings("ignore:.*deprecated")
def test_voltages_images_and_annotations_are_no_behavior(tmp_path: Path) -> None:
    from pynwb.misc import AbstractFeatureSeries, AnnotationSeries, IntervalSeries

    nwb = make.new_nwb()
    make.add_lfp(nwb, make.lfp_volts(seconds=2), name="hand_vel", where="acquisition")
    nwb.add_acquisition(AnnotationSeries(name="cursor_vel", data=["go"], timestamps=[1.0]))
    nwb.add_acquisition(IntervalSeries(name="vel", data=np.array([1, -1], np.int8), timestamps=[1.0, 2.0]))
    features = AbstractFeatureSeries(name="pos", data=np.zeros((9, 1)), rate=100.0, feature_units=["m"], features=["x"])
    nwb.add_acquisition(features)
    with open_recording(make.write(nwb, tmp_path / "a.nwb")) as recording:
        assert recording.behavior is None
        assert find_behavior_series(recording.series) == []


def test_a_class_of_a_cached_extension_is_read_as_the_class_it_extends(tmp_path: Path) -> None:
    """The extension is written by another process, so that reading relies on what the file itself carries."""
    import subprocess
    import sys

    script = tmp_path / "extend.py"
    script.write_text(EXTENSION)
    path = tmp_path / "a.nwb"
    subprocess.run([sys.executable, "-W", "ignore", str(script), str(tmp_path), str(path)], check=True)
    with open_recording(path, SeriesNames()) as recording:
        behavior = recording.behavior
        assert behavior is not None
        assert type(behavior._tracks[0].parts[0].node).__name__ == "TrackedSeries"
        assert behavior.derived is not None
        assert behavior.names == ("wrist_vel_x", "wrist_vel_y")
        assert [c.series for c in behavior.candidates] == [
            "processing/behavior/Wheel",
            "processing/behavior/wrist",
        ]
        values = behavior.sample_at(ENDS[:100])
    np.testing.assert_allclose(values[:, 0], np.cos(ENDS[:100]), atol=1e-3)


EXTENSION = """
import os, sys
from datetime import datetime, timezone
import numpy as np
from pynwb import NWBHDF5IO, NWBFile, get_class, load_namespaces
from pynwb.spec import NWBAttributeSpec, NWBGroupSpec, NWBNamespaceBuilder

os.chdir(sys.argv[1])
builder = NWBNamespaceBuilder(doc="tracking", name="ndx-lab", version="0.1.0", author="a", contact="a@b.c")
builder.include_namespace("core")
likely = NWBAttributeSpec("likelihood", "how sure the tracker is", "float")
builder.add_spec("lab.extensions.yaml", NWBGroupSpec("a marker", neurodata_type_def="TrackedSeries",
                 neurodata_type_inc="SpatialSeries", attributes=[likely]))
builder.add_spec("lab.extensions.yaml", NWBGroupSpec("a wheel", neurodata_type_def="WheelSeries",
                 neurodata_type_inc="TimeSeries"))
builder.export("lab.namespace.yaml")
load_namespaces("lab.namespace.yaml")
t = np.arange(500) / 100
nwb = NWBFile("test", "ext", datetime(2024, 5, 1, tzinfo=timezone.utc))
module = nwb.create_processing_module("behavior", "test")
module.add(get_class("TrackedSeries", "ndx-lab")(name="wrist", data=np.c_[np.sin(t), np.cos(t)], unit="cm",
           reference_frame="desk", rate=100.0, likelihood=0.9))
module.add(get_class("WheelSeries", "ndx-lab")(name="Wheel", data=np.sin(t), unit="a.u.", rate=100.0))
with NWBHDF5IO(sys.argv[2], "w") as io:
    io.write(nwb)
"""


def test_series_are_read_together_where_the_user_names_them_with_a_plus(tmp_path: Path) -> None:
    x, y = movement(times_at(100)).T
    axes = {"Position/hand_x": {"data": x}, "Position/hand_y": {"data": y}, "Position/hand_z": {"data": 0 * x}}
    path = write_behavior(tmp_path / "a.nwb", axes)
    with pytest.raises(RecordingError, match="hand_z are no movement") as caught:
        read_behavior(path)
    option = '--behavior "processing/behavior/Position/hand_x + processing/behavior/Position/hand_y"'
    assert f"{option} reads the others" in str(caught.value)
    behavior, values = read_behavior(path, option.partition('"')[2].rstrip('"'))
    assert behavior.names == ("hand_vel_x", "hand_vel_y")
    assert read_behavior(path, behavior.series)[0].names == behavior.names  # what is recorded can be named again
    del axes["Position/hand_z"]
    np.testing.assert_array_equal(values, read_behavior(write_behavior(tmp_path / "b.nwb", axes))[1])


def test_markers_that_are_named_together_are_one_behavior_and_unlike_things_are_refused(tmp_path: Path) -> None:
    path = write_behavior(tmp_path / "a.nwb", {"Position/paw": {}, "Position/nose": {}, "hand_vel": {}})
    assert read_behavior(path, "paw + nose")[0].names == ("paw_vel_x", "paw_vel_y", "nose_vel_x", "nose_vel_y")
    with pytest.raises(RecordingError, match=r"unlike things(?s:.*)hand_vel \(velocity\)"):
        read_behavior(path, "paw + hand_vel")


def test_the_movement_of_a_bundle_is_found_again_with_its_axes_and_columns(tmp_path: Path) -> None:
    x, y = movement(times_at(100)).T
    axes = {"Position/hand_x": {"data": x}, "Position/hand_y": {"data": y}, "Position/hand_z": {"data": x}}
    folder = "processing/behavior/Position"
    with open_recording(write_behavior(tmp_path / "a.nwb", {**axes, "Position/rat": {}})) as recording:
        for stated, named in (
            (f"{folder}/hand_x + {folder}/hand_y", f"{folder}/hand_x + {folder}/hand_y"),
            (f"{folder}/hand_x + {folder}/hand_y + {folder}/hand_z", f"{folder}/hand"),
            (f"{folder}/rat[1,0]", f"{folder}/rat[1,0]"),
            ("acquisition/rat", f"{folder}/rat"),
            (f"{folder}/paw", None),
        ):
            assert find_behavior_like(recording.series, stated) == named


@pytest.mark.parametrize(
    ("settings", "why"),
    [({"data": np.zeros((0, 2))}, "no samples"), ({"data": np.zeros((200, 2, 2))}, "3 dimensions"),
     ({"data": np.zeros((200, 2), dtype=bool)}, "values of type bool")],
)  # fmt: skip
def test_a_series_that_holds_no_numbers_over_time_is_named_with_the_reason(
    tmp_path: Path, settings: dict[str, Any], why: str
) -> None:
    path = write_behavior(tmp_path / "a.nwb", {"cursor_vel": settings})
    with pytest.raises(RecordingError, match="cursor_vel cannot be read as behavior") as caught:
        read_behavior(path, "cursor_vel")
    assert why in str(caught.value)
    with open_recording(path) as recording, pytest.raises(RecordingError, match=f"cursor_vel: {why}"):
        recording.require(["behavior"])


def test_of_equals_a_processed_series_comes_before_a_raw_one(tmp_path: Path) -> None:
    nwb = make.new_nwb()
    make.add_behavior(nwb, name="raw_cursor_vel", module=None)
    make.add_behavior(nwb)
    with open_recording(make.write(nwb, tmp_path / "a.nwb")) as recording:
        assert recording.behavior is not None
        assert recording.behavior.series == "processing/behavior/cursor_vel"
        assert "--behavior raw_cursor_vel reads another" in recording.behavior.notes[0]


def test_names_with_accents_keep_their_letters(tmp_path: Path) -> None:
    path = write_behavior(tmp_path / "a.nwb", {"Position/hånd": {}, "Position/main gauche é": {}})
    assert read_behavior(path)[0].names == ("hand_vel_x", "hand_vel_y")
    assert read_behavior(path, "main gauche é")[0].names[0] == "main_gauche_e_vel_x"


@pytest.mark.parametrize("name", ["vel x + y", "vel[0,1]", "hand vel (cm per s)"])
def test_a_name_that_looks_like_an_option_is_a_name(tmp_path: Path, name: str) -> None:
    path = write_behavior(tmp_path / "a.nwb", {name: {}, "paw_vel": {}})
    assert read_behavior(path, name)[0].series == f"processing/behavior/{name}"
