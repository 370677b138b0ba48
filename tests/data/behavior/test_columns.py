"""A frame counter, a clock or a column that never moves is not decoded: it is left out by its name, or refused."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from edgedistill.data.behavior.columns import describe_odd_column
from edgedistill.data.inspect import describe
from edgedistill.errors import RecordingError

from ..behavior_files import movement, read_behavior, times_at, write_behavior

TIMES = times_at(100)
COUNT = np.arange(len(TIMES), dtype=np.float64)
PLACE = movement(TIMES)
TRACKED = np.c_[COUNT, COUNT * 1e7 + 1.6e18, COUNT, COUNT * 0, PLACE, PLACE + 1]
NAMES = "HWframeCount, HWTimestamp, video_frame_ind, non_repeat_timestamp_labels, xloc, yloc, xloc2, yloc2"


def test_columns_that_a_description_names_as_clocks_are_left_out(tmp_path: Path) -> None:
    tidy = write_behavior(tmp_path / "tidy.nwb", {"Position/series_0": {"data": PLACE}})
    _, want = read_behavior(tidy)
    path = write_behavior(tmp_path / "a.nwb", {"Position/series_0": {"data": TRACKED, "description": NAMES}})
    behavior, values = read_behavior(path)
    assert behavior.names == ("vel_x", "vel_y")
    np.testing.assert_array_equal(values, want)
    (note,) = behavior.notes
    assert "hwframe_count" in note
    assert '--behavior "series_0[6,7]" reads others' in note
    second, same = read_behavior(path, "series_0[6,7]")
    assert second.names == ("vel_x2", "vel_y2")
    np.testing.assert_allclose(same, want, atol=1e-5)


def test_columns_without_names_are_refused_with_what_they_look_like(tmp_path: Path) -> None:
    path = write_behavior(tmp_path / "a.nwb", {"Position/series_0": {"data": TRACKED}})
    with pytest.raises(RecordingError) as caught:
        read_behavior(path)
    text = str(caught.value)
    assert "column 0 a counter, by 1 each sample from 0 to 1999" in text
    assert "column 1 a clock" in text
    assert "column 3 never moves, always 0" in text
    assert "column 4 moves" in text
    assert '--behavior "processing/behavior/Position/series_0[4,5,6,7]"' in text
    (problem,) = describe(path).problems
    assert "no movement" in problem
    assert '; next: --behavior "processing/behavior/Position/series_0[4,5,6,7]" reads the others' in problem
    behavior, values = read_behavior(path, "processing/behavior/Position/series_0[4,5]")
    assert behavior.names == ("vel_4", "vel_5")
    assert np.isfinite(values[:-1]).all()


def test_a_movement_of_constants_alone_is_refused_even_where_its_columns_are_named(tmp_path: Path) -> None:
    path = write_behavior(tmp_path / "a.nwb", {"cursor_vel": {"data": np.full((2000, 2), 3.0)}})
    for named in (None, "cursor_vel", "cursor_vel[0,1]"):
        with pytest.raises(RecordingError, match="never moves, always 3"):
            read_behavior(path, named)


def test_a_counter_that_is_named_by_its_column_is_read(tmp_path: Path) -> None:
    path = write_behavior(tmp_path / "a.nwb", {"wheel_vel": {"data": np.c_[COUNT, PLACE]}})
    with pytest.raises(RecordingError, match=r"wheel_vel\[1,2\]"):
        read_behavior(path)
    assert read_behavior(path, "wheel_vel[0]")[1].shape == (2000, 1)


@pytest.mark.parametrize("named", ["cursor_vel[2]", "cursor_vel[0,0]"])
def test_a_column_that_does_not_exist_is_refused(tmp_path: Path, named: str) -> None:
    path = write_behavior(tmp_path / "a.nwb", {"cursor_vel": {}})
    with pytest.raises(RecordingError, match="columns 0 to 1 of one series"):
        read_behavior(path, named)


def test_two_markers_without_clocks_are_both_read(tmp_path: Path) -> None:
    data = np.c_[PLACE, PLACE + 1]
    path = write_behavior(
        tmp_path / "a.nwb", {"Position/rat": {"data": data, "description": "xloc, yloc, xloc2, yloc2"}}
    )
    assert read_behavior(path)[0].names == ("rat_vel_x", "rat_vel_y", "rat_vel_x2", "rat_vel_y2")


def test_a_finger_that_is_named_index_is_no_counter(tmp_path: Path) -> None:
    data = {"data": PLACE, "description": "flexion (index, middle)"}
    assert read_behavior(write_behavior(tmp_path / "a.nwb", {"flexion_vel": data}))[0].names == (
        "flexion_vel_index",
        "flexion_vel_middle",
    )


def test_the_way_along_a_track_in_whole_ticks_can_be_read_by_its_column(tmp_path: Path) -> None:
    ticks = np.cumsum(np.random.default_rng(0).poisson(3, 2000)).astype(np.float64)
    path = write_behavior(tmp_path / "a.nwb", {"wheel_pos": {"data": ticks}})
    with pytest.raises(RecordingError, match=r"wheel_pos\[0\]. where this is a movement after all"):
        read_behavior(path)
    assert np.nanmean(read_behavior(path, "wheel_pos[0]")[1]) == pytest.approx(300, rel=0.05)


RNG = np.random.default_rng(3)


@pytest.mark.parametrize(
    ("column", "looks"),
    [
        (COUNT, "counter"),
        (COUNT % 500, "counter"),  # restarts with every trial
        (np.cumsum(RNG.random(2000) < 0.9) + 100.0, "counter"),  # frames that were dropped
        (np.cumsum(RNG.random(2000) < 0.01), "counter"),  # trial numbers
        (TIMES + RNG.normal(0, 1e-3, 2000).cumsum() * 1e-3, "clock"),
        (1.6e15 + np.sort(RNG.random(2000)) * 2e7, "clock"),  # microseconds since 1970
        (-TIMES, "clock"),
        (np.where(COUNT == 50, np.nan, 7.0), "never moves"),
        (PLACE[:, 0], None),
        (np.round(PLACE[:, 0] * 100), None),  # pixels
        (np.cumsum(RNG.random(2000) ** 4) * 0.3, None),  # the way along a treadmill
        (np.clip(PLACE[:, 0], 0, None), None),
        (np.full(2000, np.nan), None),
    ],
)
def test_counters_and_clocks_are_told_from_movement(column: np.ndarray, looks: str | None) -> None:
    found = describe_odd_column(column.astype(np.float64), TIMES)
    assert (found is None) if looks is None else (found is not None and looks in found), found


def test_how_sure_the_tracker_was_is_no_movement(tmp_path: Path) -> None:
    data = np.c_[PLACE, 0.9 + 0.1 * np.sin(TIMES)]
    path = write_behavior(tmp_path / "a.nwb", {"Position/paw": {"data": data, "description": "(x, y, likelihood)"}})
    assert read_behavior(path)[0].names == ("paw_vel_x", "paw_vel_y")


def test_labels_of_states_in_time_are_no_names_of_columns(tmp_path: Path) -> None:
    states = {"control": np.zeros(2000, dtype=np.uint8), "control_description": ["go", "stop"]}
    path = write_behavior(tmp_path / "a.nwb", {"hand_vel": states})
    assert read_behavior(path)[0].names == ("hand_vel_x", "hand_vel_y")
    path = write_behavior(tmp_path / "b.nwb", {"hand_vel": {"control_description": ["u", "v"]}})
    assert read_behavior(path)[0].names == ("hand_vel_u", "hand_vel_v")


def test_columns_after_a_counter_are_not_called_y_and_z(tmp_path: Path) -> None:
    path = write_behavior(tmp_path / "a.nwb", {"Position/rat": {"data": np.c_[COUNT, PLACE]}})
    assert read_behavior(path, "rat[1,2]")[0].names == ("rat_vel_1", "rat_vel_2")
    path = write_behavior(tmp_path / "b.nwb", {"Position/rat": {"data": np.c_[PLACE, COUNT * 0]}})
    assert read_behavior(path, "rat[0,1]")[0].names == ("rat_vel_x", "rat_vel_y")
