"""Resampling follows a smooth movement within the bound of interpolation, and makes up nothing where nothing was."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgedistill.data.behavior.resampling import (
    BIN_S,
    average_over_bins,
    find_spans,
    intersect_spans,
    longest_step,
    resample,
)

WIDE = 7.0  # rad/s of the fastest movement
ENDS = np.arange(1, 3001) / 100


def sine(times: np.ndarray, speed: float) -> np.ndarray:
    return np.stack([np.sin(speed * times), np.cos(speed * times)], axis=1)


def slope(times: np.ndarray, speed: float) -> np.ndarray:
    return speed * np.stack([np.cos(speed * times), -np.sin(speed * times)], axis=1)


@settings(deadline=None, max_examples=80)
@given(
    start=st.floats(-3, 12),
    rate=st.floats(10, 2000),
    seconds=st.floats(1, 15),
    gap=st.tuples(st.floats(0, 1), st.floats(0, 3)),
    jitter=st.floats(0, 0.4),
    speed=st.floats(0.1, WIDE),
    positions=st.booleans(),
    lost=st.integers(0, 3),
    seed=st.integers(0, 99),
)
def test_a_smooth_movement_is_recovered_and_nothing_is_made_up(
    start: float, rate: float, seconds: float, gap: tuple[float, float], jitter: float, speed: float,
    positions: bool, lost: int, seed: int,
) -> None:  # fmt: skip
    rng = np.random.default_rng(seed)
    times = (
        start + (np.arange(max(12, int(seconds * rate))) + rng.uniform(0, jitter, max(12, int(seconds * rate)))) / rate
    )
    cut = start + gap[0] * seconds
    kept = (times < cut) | (times > cut + gap[1])
    kept[:3] = True
    times = times[kept]
    values = sine(times, speed)
    values[rng.choice(len(times), min(lost, len(times)), replace=False)] = np.nan
    period = float(np.median(np.diff(times)))
    got = resample(times, values, ENDS, period, positions=positions)

    good = times[np.isfinite(values[:, 0])]
    step = longest_step(period)  # a line may span this much
    want = slope(ENDS, speed) if positions else sine(ENDS, speed)
    averaged = not positions and period < 0.99 * BIN_S
    if averaged:
        want = sine(ENDS - BIN_S / 2, speed)
    widest = np.diff(times)
    widest = max(period, widest[widest <= step].max(initial=period))
    line = speed**2 * widest**2 / 8
    bound = 2 * line / BIN_S + speed**2 * BIN_S if positions else line + speed * period + speed**2 * BIN_S**2
    known = np.isfinite(got)
    assert np.abs(got - want)[known].max(initial=0) <= bound + 1e-9

    reach = BIN_S * (1 if positions or averaged else 0) + step + 1e-9
    for end in ENDS[known.any(axis=1)]:
        assert np.abs(good - end).min(initial=np.inf) <= reach

    spans = find_spans(times, period)
    away = np.all((ENDS[:, None] < spans[:, 0] - BIN_S) | (ENDS[:, None] > spans[:, 1] + BIN_S), axis=1)
    assert not known[away].any()
    if not lost:
        inside = np.any((ENDS[:, None] > spans[:, 0] + BIN_S + period) & (ENDS[:, None] < spans[:, 1] - period), axis=1)
        assert known[inside].all()


@pytest.mark.parametrize("rate", [200.0, 250.0, 1000.0, 997.0])
def test_a_fast_velocity_is_the_average_over_its_bin(rate: float) -> None:
    times = np.arange(int(3 * rate)) / rate
    values = np.random.default_rng(1).standard_normal((len(times), 1)).cumsum(axis=0)
    got = resample(times, values, ENDS[:300], 1 / rate, positions=False)
    fine = np.arange(300 * 500) / 50_000 + 1e-5  # the middles of steps of 20 us
    line = np.interp(fine, times, values[:, 0]).reshape(300, 500).mean(axis=1)
    np.testing.assert_allclose(got[:299, 0], line[:299], atol=2e-3)


def test_a_velocity_at_100_hz_keeps_its_values() -> None:
    times = np.arange(301) / 100
    values = np.random.default_rng(1).standard_normal((301, 2))
    got = resample(times, values, ENDS[:302], float(np.median(np.diff(times))), positions=False)
    np.testing.assert_array_equal(got[:300], values[1:])
    np.testing.assert_array_equal(got[300], values[300])  # the last sample holds for one period
    assert np.isnan(got[301]).all()


@pytest.mark.parametrize(
    ("rate", "lost", "void"),
    [(100, 50, [49]), (1000, 500, [49]), (1000, 505, [50]), (50, 25, [48, 49, 50])],
)
def test_a_lost_position_voids_the_bins_that_touch_it_and_no_others(rate: int, lost: int, void: list[int]) -> None:
    times = np.arange(2 * rate) / rate
    values = np.stack([3 * times, times], axis=1)
    values[lost, 0] = np.nan
    got = resample(times, values, ENDS[:100], 1 / rate, positions=True)
    assert np.flatnonzero(np.isnan(got[:, 0])).tolist() == void
    np.testing.assert_allclose(got[np.isfinite(got[:, 0]), 0], 3)
    np.testing.assert_allclose(got[:, 1], 1)


def test_an_average_touches_neither_a_nan_nor_a_pause_and_the_last_sample_holds() -> None:
    times = np.concatenate([np.arange(1000), np.arange(1200, 2000)]) / 1000
    values = np.ones((len(times), 2))
    values[505, 1] = np.nan
    got = average_over_bins(times, values, ENDS[:210], 0.001)
    void = np.isnan(got)
    assert np.flatnonzero(void[:, 0]).tolist() == [99, *range(100, 120), *range(200, 210)]
    assert np.flatnonzero(void[:, 1] & ~void[:, 0]).tolist() == [50]
    np.testing.assert_allclose(got[~void], 1)


def test_a_first_bin_that_lacks_less_than_a_period_has_a_value_and_one_that_lacks_more_has_none() -> None:
    for start, bins in ((0.0004, 1), (0.0016, 0)):
        times = start + np.arange(20) / 1000
        got = average_over_bins(times, times[:, None], ENDS[:1], 0.001)
        np.testing.assert_allclose(got[np.isfinite(got)], [(start + 0.01) / 2] * bins)


def test_spans_are_intersected() -> None:
    one, other = np.array([[0.0, 4.0], [6.0, 9.0]]), np.array([[1.0, 2.0], [3.0, 7.0], [8.5, 20.0]])
    np.testing.assert_array_equal(intersect_spans(one, other), [[1, 2], [3, 4], [6, 7], [8.5, 9]])
    assert intersect_spans(one, np.empty((0, 2))).shape == (0, 2)
