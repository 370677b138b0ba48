"""Statistics follow the signal as the definition says, and stay where a channel is not there or they may not follow."""

from __future__ import annotations

import math

import numpy as np
import pytest

from edgedistill.errors import EngineError
from edgedistill.frontend import ChannelStatistics

CHANNELS = 5
RATE = 0.01 / 30  # a time constant of 30 s


def followed(mean: float, std: float, values: list[float], there: list[bool], rate: float) -> tuple[float, float]:
    """Returns mean and deviation of one channel after these bins, in plain Python."""
    for value, used in zip(values, there, strict=True):
        if not used:
            continue
        far = 4 * std
        away = min(max(value - mean, -far), far)
        square = std * std
        mean = mean + rate * away
        std = math.sqrt(square + rate * (away * away - square))
    return mean, std


def signal(bins: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Returns values (B, C) in uV with artefacts, and which channels are there (B, C)."""
    rng = np.random.default_rng(seed)
    values = rng.normal(size=(bins, CHANNELS)) * [1, 10, 50, 200, 1e-3] + [0, 5, -30, 2000, 0]
    values[rng.random(values.shape) < 0.01] = 1e6
    return values, rng.random(values.shape) < 0.8


def statistics(rate: float = RATE) -> ChannelStatistics:
    made = ChannelStatistics(CHANNELS, rate)
    made.set(np.array([0.5, 0, -30, 1900, 0.0]), np.array([1, 20, 25, 200, 0.0]))
    return made


def advance(followers: ChannelStatistics, values: np.ndarray, there: np.ndarray) -> None:
    for row, used in zip(values, there, strict=True):
        followers.update(row, used)


@pytest.mark.parametrize("rate", [0.001, RATE, 1e-6])
def test_they_follow_as_the_plain_definition_bit_for_bit(rate):
    values, there = signal(400)
    start, end = statistics(rate), statistics(rate)
    advance(end, values, there)
    for c in range(CHANNELS):
        columns = values[:, c].tolist(), there[:, c].tolist()
        assert (end.mean[c], end.std[c]) == followed(float(start.mean[c]), float(start.std[c]), *columns, rate)
    assert not np.array_equal(end.mean, start.mean)


def test_they_come_to_the_mean_and_deviation_of_the_signal():
    rng = np.random.default_rng(1)
    followers = ChannelStatistics(2, 0.01 / 10)
    followers.set(np.array([10.0, 0.0]), np.array([3.0, 0.5]))
    advance(followers, rng.normal(size=(20_000, 2)) * [6, 1] + [-5, 1], np.ones((20_000, 2), np.bool_))
    np.testing.assert_allclose(followers.mean, [-5, 1], atol=0.6)
    np.testing.assert_allclose(followers.std, [6, 1], rtol=0.1)


def test_an_artefact_counts_as_four_deviations():
    near, far = statistics(), statistics()
    near.update(near.mean + 4 * near.std, np.ones(CHANNELS, np.bool_))
    far.update(np.full(CHANNELS, 1e9), np.ones(CHANNELS, np.bool_))
    np.testing.assert_allclose(far.mean, near.mean, rtol=1e-12)
    np.testing.assert_allclose(far.std, near.std, rtol=1e-12)


@pytest.mark.parametrize("value", [0.0, np.nan, np.inf, 1e30])
def test_a_channel_that_is_not_there_keeps_its_statistics(value):
    values, there = signal(50)
    there[:, 2] = False
    values[:, 2] = value
    followers = statistics()
    advance(followers, values, there)
    assert (followers.mean[2], followers.std[2]) == (-30, 25)
    assert followers.mean[1] != 0


def test_without_a_rate_they_stay_and_are_no_state():
    followers = statistics(0)
    advance(followers, *signal(50))
    assert followers.mean.tobytes() == statistics(0).mean.tobytes()
    assert followers.std.tobytes() == statistics(0).std.tobytes()
    assert followers.export_state() == {}
    followers.import_state({})
    assert followers.mean.tobytes() == statistics(0).mean.tobytes()


def test_a_reset_goes_back_to_what_was_set_last():
    followers = statistics()
    mean, std = np.arange(5.0), np.arange(1.0, 6.0)
    followers.set(mean, std)
    advance(followers, *signal(50))
    assert not np.array_equal(followers.mean, np.arange(5.0))
    followers.reset()
    np.testing.assert_array_equal(followers.mean, np.arange(5.0))
    np.testing.assert_array_equal(followers.std, np.arange(1.0, 6.0))


def test_an_imported_state_goes_on_identically_and_shares_no_memory():
    values, there = signal(100)
    one, other = statistics(), ChannelStatistics(CHANNELS, RATE)
    advance(one, values[:40], there[:40])
    state = one.export_state()
    other.import_state(state)
    for followers in (one, other):
        advance(followers, values[40:], there[40:])
    assert one.mean.tobytes() == other.mean.tobytes()
    assert one.std.tobytes() == other.std.tobytes()
    state["mean"][:] = state["std"][:] = 7.0
    assert not np.any(other.mean == 7)
    assert not np.any(other.std == 7)


@pytest.mark.parametrize(
    ("name", "array", "message"),
    [
        ("mean", None, "statistics_mean.*does not fit"),
        ("std", None, "statistics_std.*does not fit"),
        ("mean", np.zeros(CHANNELS + 1), "statistics_mean.*does not fit"),
        ("std", np.ones(CHANNELS, np.float32), "statistics_std.*does not fit"),
        ("mean", np.array([0, 0, np.nan, 0, 0]), "statistics_mean.*out of range"),
        ("mean", np.array([0, 0, 0, 0, -np.inf]), "statistics_mean.*out of range"),
        ("std", np.array([1, 1, 1, -1e-9, 1]), "statistics_std.*out of range"),
        ("std", np.array([1, 1e100, 1, 1, 1]), "statistics_std.*out of range"),
    ],
)
def test_a_damaged_state_is_refused_and_changes_nothing(name, array, message):
    followers = statistics()
    before = followers.export_state()
    damaged = {"mean": np.ones(CHANNELS), "std": np.ones(CHANNELS), name: array}
    if array is None:
        del damaged[name]
    with pytest.raises(EngineError, match=message):
        followers.import_state(damaged)
    for kind, kept in before.items():
        assert followers.export_state()[kind].tobytes() == kept.tobytes()
