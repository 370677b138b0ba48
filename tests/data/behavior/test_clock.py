"""A clock of behavior that cannot be used is refused with index and times, and samples that are dropped are counted."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgedistill.errors import RecordingError

from ..behavior_files import movement, read_behavior, replace, times_at, write_behavior

TIMES = times_at(100)


def write(path: Path, **settings: Any) -> Path:
    return write_behavior(path / "a.nwb", {"cursor_vel": settings})


def test_times_that_restart_are_refused_with_index_and_both_times(tmp_path: Path) -> None:
    times = np.concatenate([TIMES[:900], TIMES[:1100]])
    with pytest.raises(RecordingError, match=r"sample 900 at 0 s after 8.99 s") as caught:
        read_behavior(write(tmp_path, timestamps=times))
    assert "start of each trial" in str(caught.value)


def test_samples_with_a_repeated_or_missing_time_are_dropped_and_counted(tmp_path: Path) -> None:
    times, data = TIMES.copy(), movement(TIMES)
    times[500], data[500] = times[499], 99
    times[[700, 701]], data[[700, 701]] = np.nan, 99
    behavior, values = read_behavior(write(tmp_path, timestamps=times, data=data))
    notes = " ".join(behavior.notes)
    assert "1 samples whose time is not later" in notes
    assert "2 samples without a time" in notes
    np.testing.assert_allclose(values[:-1], movement(TIMES)[1:], atol=1e-3)


def test_times_that_jitter_backwards_by_less_than_a_millisecond_are_dropped(tmp_path: Path) -> None:
    times, data = TIMES.copy(), movement(TIMES)
    times[500], data[500] = times[499] - 5e-4, 99
    behavior, values = read_behavior(write(tmp_path, timestamps=times, data=data))
    assert any("1 samples whose time is not later" in note for note in behavior.notes)
    np.testing.assert_allclose(values[:-1], movement(TIMES)[1:], atol=1e-3)


def test_infinite_values_count_as_missing_and_a_conversion_that_is_no_number_is_refused(tmp_path: Path) -> None:
    data = movement(TIMES)
    data[900] = np.inf
    _, values = read_behavior(write(tmp_path, data=data))
    assert not np.isinf(values).any()
    assert np.isnan(values[899]).all()
    for factor in (np.nan, 0.0):
        with pytest.raises(RecordingError, match=f"the conversion of behavior .*cursor_vel is {factor:g}"):
            read_behavior(write(tmp_path, conversion=factor))


def test_samples_of_a_fast_clock_are_checked_between_those_that_are_read(tmp_path: Path) -> None:
    times = times_at(8000, seconds=5)
    times[20_001] = times[19_000]
    with pytest.raises(RecordingError, match=r"sample 20001 at 2.375 s after 2.5 s"):
        read_behavior(write(tmp_path, timestamps=times, data=movement(times)))


def test_of_a_fast_clock_only_the_samples_that_are_read_are_counted_as_dropped(tmp_path: Path) -> None:
    times = times_at(8500, seconds=5)
    times[[801, 1600]] = times[[800, 1599]]  # every eighth is read: 1600 is, and 801 is not
    times[[2400, 2401, 2402]] = np.nan
    behavior, _ = read_behavior(write(tmp_path, timestamps=times, data=movement(times)))
    notes = " ".join(behavior.notes)
    assert "1 samples whose time is not later" in notes
    assert "1 samples without a time" in notes


@pytest.mark.parametrize(
    ("settings", "got"),
    [
        ({"timestamps": TIMES * 1000}, "0.1 Hz, one every 10 s"),  # milliseconds
        ({"timestamps": np.arange(2000.0)}, "1 Hz, one every 1 s"),  # sample numbers
        ({"rate": 0.1}, "0.1 Hz"),  # kHz
    ],
)
def test_times_in_other_units_are_refused_with_what_was_found(
    tmp_path: Path, settings: dict[str, Any], got: str
) -> None:
    with pytest.raises(RecordingError, match="too coarse") as caught:
        read_behavior(write(tmp_path, **settings))
    assert got in str(caught.value)


def test_a_wrong_number_of_timestamps_is_refused(tmp_path: Path) -> None:
    with pytest.raises(RecordingError, match="1990 timestamps for 2000 samples"):
        read_behavior(replace(write(tmp_path, timestamps=TIMES), "cursor_vel/timestamps", TIMES[:1990]))


def test_a_missing_starting_time_is_zero(tmp_path: Path) -> None:
    behavior, _ = read_behavior(write(tmp_path, rate=100.0))
    assert behavior.start_s == 0.0


def test_nan_between_trials_stays_nan_and_is_counted_in_seconds(tmp_path: Path) -> None:
    data = movement(TIMES)
    data[400:650] = np.nan
    behavior, values = read_behavior(write(tmp_path, data=data))
    assert np.isnan(values[399:649]).all()
    assert np.isfinite(np.delete(values, np.s_[399:649], axis=0)).all()
    (note,) = behavior.notes
    assert "12.5% of the samples are NaN (2.50 s)" in note


def test_pauses_are_counted_in_seconds(tmp_path: Path) -> None:
    keep = np.r_[0:500, 700:2000]
    behavior, values = read_behavior(write(tmp_path, timestamps=TIMES[keep], data=movement(TIMES[keep])))
    assert np.isnan(values[500:698]).all()
    assert any("2.00 s are pauses" in note for note in behavior.notes)
    np.testing.assert_allclose(behavior.spans(), [[0, 5], [7, 20]])


@pytest.mark.parametrize("columns", [2, 12])
def test_transposed_data_are_recognized_by_their_timestamps(tmp_path: Path, columns: int) -> None:
    data = movement(TIMES, columns)
    path = write(tmp_path, data=data, timestamps=TIMES)
    behavior, values = read_behavior(replace(path, "cursor_vel/data", data.T))
    np.testing.assert_allclose(values[:-1], data[1:], atol=1e-6)
    assert any("stored (columns, time)" in note for note in behavior.notes)


def test_transposed_data_without_timestamps_are_recognized_or_refused(tmp_path: Path) -> None:
    data = movement(TIMES, 12)
    few, values = read_behavior(write(tmp_path, data=data[:, :2].T))
    assert any("stored (columns, time)" in note for note in few.notes)
    assert values.shape == (2000, 2)
    with pytest.raises(RecordingError, match="nothing tells which dimension"):
        read_behavior(write(tmp_path, data=data.T))
    beside = {"joint_vel": {"data": data.T}, "cursor_acc": {}}
    told, values = read_behavior(write_behavior(tmp_path / "b.nwb", beside), "joint_vel")
    assert values.shape == (2000, 12)
    assert told.samples == 2000
