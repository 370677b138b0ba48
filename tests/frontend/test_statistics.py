"""Statistics that follow the signal have the bits of docs/numerics.md, written out value by value."""

from __future__ import annotations

import math
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgedistill.errors import EngineError
from edgedistill.frontend import ChannelStatistics, FrontEndConfig

CHANNELS = 4
finite = st.floats(-1e39, 1e39)


def follow(mean: float, std: float, value: float, rate: float) -> tuple[float, float]:
    """Writes docs/numerics.md, "Statistics that follow", out for one channel that is there."""
    far = 4.0 * std
    away = min(max(value - mean, -far), far)
    square = std * std
    return mean + rate * away, math.sqrt(square + rate * (away * away - square))


def started(mean: float = 1.5, std: float = 20.0, follow_s: float = 60) -> ChannelStatistics:
    statistics = ChannelStatistics(CHANNELS, FrontEndConfig(Fraction(1000), CHANNELS, follow_s=follow_s).follow_rate)
    statistics.set(np.full(CHANNELS, mean), np.full(CHANNELS, std))
    return statistics


@settings(deadline=None, max_examples=100)
@given(
    st.lists(st.tuples(st.lists(finite, min_size=4, max_size=4), st.integers(0, 15)), max_size=30),
    st.floats(-100, 100),
    st.sampled_from([0.0, 1e-160, 1e-3, 20.0, 1e38]),
    st.sampled_from([10.0, 60.0, 3600.0]),
)
def test_mean_and_deviation_have_the_bits_of_the_definition(
    bins: list[tuple[list[float], int]], mean: float, std: float, follow_s: float
) -> None:
    statistics, rate = started(mean, std, follow_s), 10 / (1000 * follow_s)
    expected = [(mean, std)] * CHANNELS
    for values, there in bins:
        mask = [bool(there >> c & 1) for c in range(CHANNELS)]
        statistics.update(np.array(values), np.array(mask))
        expected = [follow(*expected[c], values[c], rate) if mask[c] else expected[c] for c in range(CHANNELS)]
        assert statistics.mean.tolist() == [m for m, _ in expected]
        assert statistics.std.tolist() == [d for _, d in expected]
        assert all(d >= 0 for _, d in expected)


def test_they_come_to_the_signal_and_an_artefact_moves_them_little() -> None:
    statistics, rng = started(mean=0, std=60, follow_s=10), np.random.default_rng(0)
    everywhere = np.ones(CHANNELS, np.bool_)
    for _ in range(8000):
        statistics.update(rng.normal(7, 25, CHANNELS), everywhere)
    np.testing.assert_allclose(statistics.mean, 7, atol=3)
    np.testing.assert_allclose(statistics.std, 25, rtol=0.1)
    before = statistics.std.copy()
    statistics.update(np.full(CHANNELS, 1e30), everywhere)
    assert (statistics.std < 1.01 * before).all()


def test_statistics_that_stay_are_no_part_of_a_state() -> None:
    statistics = started(follow_s=0)
    statistics.update(np.full(CHANNELS, 100.0), np.ones(CHANNELS, np.bool_))
    assert statistics.mean.tolist() == [1.5] * CHANNELS
    assert statistics.export_state() == {}
    statistics.import_state({"mean": np.full(CHANNELS, 9.0), "std": np.full(CHANNELS, 9.0)})
    assert statistics.mean.tolist() == [1.5] * CHANNELS


def test_a_state_goes_on_and_a_reset_goes_back_to_what_was_set() -> None:
    first, second, everywhere = started(), started(0, 1), np.ones(CHANNELS, np.bool_)
    first.update(np.full(CHANNELS, 100.0), everywhere)
    second.import_state(first.export_state())
    for statistics in (first, second):
        statistics.update(np.full(CHANNELS, -30.0), everywhere)
    assert first.mean.tobytes() == second.mean.tobytes()
    assert first.std.tobytes() == second.std.tobytes()
    first.reset()
    second.reset()
    assert (first.mean[0], first.std[0]) == (1.5, 20)
    assert (second.mean[0], second.std[0]) == (0, 1)


@pytest.mark.parametrize(
    ("name", "wrong"),
    [
        ("mean", np.full(CHANNELS, np.nan)),
        ("mean", np.full(CHANNELS, -1e90)),
        ("std", np.full(CHANNELS, -1.0)),
        ("std", np.full(CHANNELS, np.inf)),
        ("std", np.ones(CHANNELS, np.float32)),
        ("std", np.ones(CHANNELS - 1)),
    ],
)
def test_a_state_that_cannot_be_is_refused_and_changes_nothing(name: str, wrong: np.ndarray) -> None:
    statistics = started()
    state = statistics.export_state()
    with pytest.raises(EngineError, match=f"statistics_{name}"):
        statistics.import_state(state | {name: wrong})
    assert (statistics.mean[0], statistics.std[0]) == (1.5, 20)
