"""An array ages from day to day as docs/accuracy.md states, and a leak tilts the spectrum without moving the clock."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.signal import butter, sosfilt

from edgedistill.data.simulation.aging import LEAK_HZ, ArrayState, array_on_day, attenuate_low_frequencies
from edgedistill.data.simulation.flaws import spoil_channels
from edgedistill.data.simulation.sessions import SimulationConfig, simulate_sessions

TEN_WEEKS = 70
FIELDS = ("gain", "low_gain", "noise_uv", "dead", "noisy")
seeds = st.integers(0, 2**31)
days = st.integers(0, 1000)


def array_config(**settings: float) -> SimulationConfig:
    return SimulationConfig(**{"units": 1, "population": 4, **settings})  # type: ignore[arg-type]


def pool_arrays(day: int, **settings: float) -> list[ArrayState]:
    """Returns the arrays of 200 animals with 100 channels each on one day."""
    return [array_on_day(array_config(seed=seed, channels=100, **settings), day) for seed in range(200)]


def pool(arrays: list[ArrayState], field: str) -> npt.NDArray[np.float64]:
    return np.concatenate([getattr(array, field) for array in arrays]).astype(np.float64)


def assert_same(first: ArrayState, second: ArrayState) -> None:
    for field in FIELDS:
        np.testing.assert_array_equal(getattr(first, field), getattr(second, field))


# ---------------------------------------------------------------- the state of a day


@given(seeds, st.integers(4, 128))
def test_day_0_has_a_twentieth_of_the_channels_dead_and_as_many_noisy(seed: int, channels: int) -> None:
    array = array_on_day(array_config(seed=seed, channels=channels), 0)
    assert array.dead.sum() == array.noisy.sum() == max(1, channels // 20)
    assert not (array.dead & array.noisy).any()
    assert (array.low_gain == 1).all()
    np.testing.assert_allclose(array.noise_uv, np.where(array.noisy, 60.0, 9.0))


@settings(deadline=None)
@given(seeds, days, days)
def test_wear_is_never_undone(seed: int, one: int, other: int) -> None:
    earlier, later = (array_on_day(array_config(seed=seed), day) for day in sorted((one, other)))
    assert (later.dead >= earlier.dead).all()
    assert (later.noise_uv >= earlier.noise_uv).all()
    assert (later.low_gain <= earlier.low_gain).all()
    assert not (later.dead & later.noisy).any()


@settings(deadline=None)
@given(seeds, days, st.integers(1, 9), st.integers(1, 365))
def test_a_day_depends_neither_on_the_number_of_sessions_nor_on_the_days_between(
    seed: int, day: int, sessions: int, days_apart: int
) -> None:
    config = array_config(seed=seed)
    assert_same(array_on_day(config, day), array_on_day(replace(config, sessions=sessions, days_apart=days_apart), day))


@settings(deadline=None)
@given(seeds, days)
def test_an_array_that_does_not_age_is_that_of_day_0(seed: int, day: int) -> None:
    assert_same(array_on_day(array_config(seed=seed, aging=0), day), array_on_day(array_config(seed=seed), 0))


@settings(deadline=None)
@given(seeds, days, st.floats(0, 10), st.floats(0, 10))
def test_faster_aging_wears_every_channel_more(seed: int, day: int, one: float, other: float) -> None:
    slow, fast = (array_on_day(array_config(seed=seed, aging=aging), day) for aging in sorted((one, other)))
    assert (fast.dead >= slow.dead).all()
    assert (fast.noise_uv >= slow.noise_uv).all()
    assert (fast.low_gain <= slow.low_gain).all()


# ---------------------------------------------------------------- ten weeks against the stated figures


def test_gains_spread_by_a_tenth_on_day_0() -> None:
    gain = np.log(pool(pool_arrays(0), "gain"))
    assert gain.mean() == pytest.approx(0, abs=0.005)
    assert gain.std() == pytest.approx(0.1, abs=0.005)


def test_electrodes_die_with_a_mean_life_of_622_days() -> None:
    first, last = (pool(pool_arrays(day), "dead") for day in (0, TEN_WEEKS))
    assert last[first == 0].mean() == pytest.approx(1 - np.exp(-TEN_WEEKS / 622), abs=0.01)
    year = pool(pool_arrays(365), "dead")
    assert year[first == 0].mean() == pytest.approx(1 - np.exp(-365 / 622), abs=0.015)


def test_gains_fall_by_24_in_a_thousand_a_month_and_wander_by_0055_a_day() -> None:
    change = np.log(pool(pool_arrays(TEN_WEEKS), "gain") / pool(pool_arrays(0), "gain"))
    assert change.mean() == pytest.approx(-0.024 * TEN_WEEKS / (365.25 / 12), abs=0.006)
    remembered = np.exp(-2 * np.arange(TEN_WEEKS) / 30)  # variance that is left of each day's step
    assert change.std() == pytest.approx(0.055 * np.sqrt(remembered.sum()), rel=0.03)


def test_gains_do_not_wander_ever_farther() -> None:
    spread = [np.log(pool(pool_arrays(day), "gain") / pool(pool_arrays(0), "gain")).std() for day in (200, 400)]
    assert spread[0] == pytest.approx(spread[1], rel=0.03)


def test_gains_of_neighboring_days_are_alike() -> None:
    one, next_one, later = (np.log(pool(pool_arrays(day), "gain")) for day in (TEN_WEEKS, TEN_WEEKS + 1, 170))
    assert (next_one - one).std() == pytest.approx(0.055, rel=0.05)
    assert np.corrcoef(one, next_one)[0, 1] > 0.95 > 0.4 > np.corrcoef(one, later)[0, 1]


def test_noise_floors_end_between_one_and_a_half_and_three_times_the_first() -> None:
    first, ten_weeks, end = (pool(pool_arrays(day), "noise_uv") for day in (0, TEN_WEEKS, 1000))
    limit = end / first
    assert 1.49 < limit.min() < 1.55
    assert 2.9 < limit.max() <= 3
    assert np.median(limit) == pytest.approx(np.sqrt(1.5 * 3), rel=0.02)
    reached = (ten_weeks / first - 1) / (limit - 1)
    np.testing.assert_allclose(reached, 1 - np.exp(-TEN_WEEKS / 60), atol=1e-6)


def test_leaks_take_another_24_in_a_thousand_a_month_from_low_frequencies() -> None:
    loss = -np.log(pool(pool_arrays(TEN_WEEKS), "low_gain"))
    expected = 0.024 * TEN_WEEKS / (365.25 / 12)
    assert loss.mean() == pytest.approx(expected, rel=0.03)
    assert loss.std() == pytest.approx(expected, rel=0.05)  # exponential over channels: few leak much


# ---------------------------------------------------------------- the shelf of a leak


def shelf_response(low_gain: float, rate_hz: int) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """Returns frequencies in Hz and the magnitude there, from the response to one impulse."""
    impulse = np.zeros((1 << 14, 1), np.float32)
    impulse[1] = 1.0
    answer = attenuate_low_frequencies(impulse, np.array([low_gain]), rate_hz)[:, 0]
    return np.fft.rfftfreq(len(answer), 1 / rate_hz), np.abs(np.fft.rfft(answer))


@settings(max_examples=20, deadline=None)
@given(st.floats(0.2, 0.99), st.sampled_from([500, 1000, 2000]))
def test_a_leak_divides_the_voltage_below_ten_hertz(low_gain: float, rate_hz: int) -> None:
    hz, magnitude = shelf_response(low_gain, rate_hz)
    divider = abs((10 + 1j * hz) / (10 / low_gain + 1j * hz))
    below = hz < 0.1 * rate_hz
    np.testing.assert_allclose(magnitude[below], divider[below], rtol=0.02)
    assert magnitude[0] == pytest.approx(low_gain, rel=1e-3)
    assert magnitude[-1] == pytest.approx(1, rel=1e-3)
    corner = np.argmin(abs(hz - LEAK_HZ / np.sqrt(low_gain)))
    assert magnitude[corner] == pytest.approx(np.sqrt(low_gain), rel=0.01)


def test_a_leak_moves_nothing_in_time() -> None:
    rng = np.random.default_rng(0)
    lfp = rng.normal(size=(2000, 3)).astype(np.float32)
    passed = attenuate_low_frequencies(lfp, np.array([0.5, 0.9, 1.0]), 1000)
    assert passed.shape == lfp.shape
    assert passed.dtype == np.float32
    np.testing.assert_array_equal(passed[:, 2], lfp[:, 2])
    changed = lfp.copy()
    changed[1000:] += 1
    later = attenuate_low_frequencies(changed, np.array([0.5, 0.9, 1.0]), 1000)
    np.testing.assert_array_equal(later[:1000], passed[:1000])
    assert (later[1000] != passed[1000]).all()  # the answer comes with the frame, not after it
    for channel in range(2):
        lags = np.correlate(passed[:, channel], lfp[:, channel], "full")
        assert np.argmax(lags) == len(lfp) - 1


def test_a_leak_starts_settled() -> None:
    passed = attenuate_low_frequencies(np.full((500, 1), 80, np.float32), np.array([0.5]), 1000)
    np.testing.assert_allclose(passed, 40, rtol=1e-6)


# ---------------------------------------------------------------- what a session records


def record(lfp: npt.NDArray[np.float32], array: ArrayState) -> npt.NDArray[np.float32]:
    """Returns what the array records of an LFP at 1 kHz, in an animal that makes no artefact of note."""
    config = array_config(channels=lfp.shape[1], minutes=len(lfp) / 60_000)
    velocity = np.zeros((len(lfp) // 10, 2))
    velocity[:5] = 1.0  # artefacts come where the hand is fast
    return spoil_channels(config, lfp, velocity, array, np.random.default_rng(1))


def test_a_recording_has_the_gains_leaks_and_dead_channels_of_its_array() -> None:
    array = array_on_day(array_config(seed=5, channels=40, aging=5), TEN_WEEKS)
    t = np.arange(20_000) / 1000
    waves = (np.sin(2 * np.pi * 0.5 * t) + np.sin(2 * np.pi * 200 * t))[:, None] * np.full(40, 1e5)
    spectrum = abs(np.fft.rfft(record(waves.astype(np.float32), array)[10_000:], axis=0)) / 5e8
    dead = np.flatnonzero(array.dead)
    assert 2 < len(dead) < 38
    assert (spectrum[:, dead] == 0).all()
    alive = np.flatnonzero(~array.dead)
    np.testing.assert_allclose(spectrum[2000, alive], array.gain[alive], rtol=0.02)
    np.testing.assert_allclose(spectrum[5, alive], (array.gain * array.low_gain)[alive], rtol=0.02)


def test_a_recording_has_the_noise_floors_of_its_array() -> None:
    array = array_on_day(array_config(seed=5, channels=40), TEN_WEEKS)
    silence = record(np.zeros((40_000, 40), np.float32), array)
    fast = butter(4, 300, "highpass", fs=1000, output="sos")  # above line noise and artefacts
    unit = sosfilt(fast, np.random.default_rng(0).normal(size=40_000)).std()
    alive = ~array.dead
    measured = sosfilt(fast, silence, axis=0)[2000:].std(axis=0) / unit
    np.testing.assert_allclose(measured[alive], array.noise_uv[alive], rtol=0.05)


def test_sessions_name_the_dead_and_noisy_channels_of_their_day() -> None:
    config = array_config(sessions=3, minutes=0.05, seed=2, channels=30, population=40, days_apart=90)
    for session in simulate_sessions(config):
        array = array_on_day(config, 90 * session.index)
        assert session.dead == tuple(np.flatnonzero(array.dead))
        assert session.noisy == tuple(np.flatnonzero(array.noisy))
        assert np.flatnonzero(np.ptp(session.lfp_uv, axis=0) == 0).tolist() == list(session.dead)
    assert len(session.dead) > 3  # it has lost electrodes by then


def test_sessions_of_an_array_that_does_not_age_share_their_flaws() -> None:
    config = array_config(sessions=3, minutes=0.05, seed=2, channels=30, population=40, days_apart=90, aging=0)
    assert len({(session.dead, session.noisy) for session in simulate_sessions(config)}) == 1
