"""A number that a tracker writes for a lost sample is told from a place at which a movement rests."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from edgedistill.data.behavior.fill import find_fill

from ..behavior_files import movement, read_behavior, times_at, write_behavior

TIMES = times_at(100)
PLACE = movement(TIMES) * 10 + 30
RNG = np.random.default_rng(4)
LOST = np.isin(np.arange(2000) // 40, RNG.integers(0, 50, 8))
SINGLE = RNG.random(2000) < 0.05


@pytest.mark.parametrize("lost", [LOST, SINGLE])
@pytest.mark.parametrize("fill", [-1.0, 0.0, -9999.0])
@pytest.mark.parametrize("columns", [1, 2])
def test_a_fill_value_is_found(lost: np.ndarray, fill: float, columns: int) -> None:
    values = np.where(lost[:, None], fill, PLACE[:, :columns])
    found = find_fill(values)
    assert found is not None
    np.testing.assert_array_equal(found, np.full(columns, fill))


def rest(places: np.ndarray) -> np.ndarray:
    return np.where(LOST[:, None], places, PLACE)


@pytest.mark.parametrize(
    "values",
    [
        PLACE,
        np.round(PLACE),  # pixels
        np.clip(PLACE, 25, 35),  # rests at the edge, and leaves it slowly
        np.where((np.arange(2000) % 200 < 50)[:, None], 30.0, 30 + 10 * np.sin((TIMES % 2 - 0.5) * 2)[:, None]),
        (TIMES * 20 % 100)[:, None],  # laps on a track
        np.where(LOST, 100.0, 0.0)[:, None],  # a lever, a target
        np.where((np.arange(2000) == 700)[:, None], 0.0, PLACE),  # one glitch
        np.full((2000, 2), np.nan),
        np.zeros((1, 2)),
    ],
)
def test_rest_laps_and_levers_are_no_fill_values(values: np.ndarray) -> None:
    assert find_fill(values) is None


def test_lost_samples_are_left_out_and_told_and_named_columns_are_read_as_they_are(tmp_path: Path) -> None:
    data = np.where(LOST[:, None], -1.0, PLACE)
    _, want = read_behavior(write_behavior(tmp_path / "nan.nwb", {"Position/paw": {"data": rest(np.full(2, np.nan))}}))
    path = write_behavior(tmp_path / "a.nwb", {"Position/paw": {"data": data}})
    behavior, values = read_behavior(path)
    np.testing.assert_array_equal(values, want)
    assert any(f"{LOST.sum()} samples are -1, -1" in note for note in behavior.notes)
    _, raw = read_behavior(path, "paw[0,1]")
    assert np.nanmax(np.abs(raw)) > 1000


def test_a_velocity_of_zero_is_rest(tmp_path: Path) -> None:
    path = write_behavior(tmp_path / "a.nwb", {"hand_vel": {"data": rest(np.zeros(2))}})
    assert np.isfinite(read_behavior(path)[1]).all()
