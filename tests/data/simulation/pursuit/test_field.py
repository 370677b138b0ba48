"""The field of a pursuing animal has a 1/f spectrum, beta that falls and high gamma that rises with movement."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import numpy.typing as npt
import pytest
from scipy.signal import butter, sosfiltfilt, welch
from scipy.sparse import csr_array

from edgedistill.data.simulation.animal import Animal, Day, measure_distances
from edgedistill.data.simulation.config import LATENT_HZ, SimulationConfig
from edgedistill.data.simulation.pursuit.animal import draw_pursuing_animal
from edgedistill.data.simulation.pursuit.field import sum_synaptic_fields, travel

CONFIG = SimulationConfig(minutes=3, seed=7, channels=16, units=20, population=1000, variant="pursuit")
STEP = CONFIG.rate_hz // LATENT_HZ


@pytest.fixture(scope="module")
def animal() -> Animal:
    return draw_pursuing_animal(CONFIG)


@pytest.fixture(scope="module")
def day(animal: Animal) -> Day:
    return animal.live_day(animal.population.tuning, np.random.default_rng(0))


def band_power(day: Day, low: float, high: float) -> npt.NDArray[np.float64]:
    """Returns the power (steps, channels) of one band, smoothed over 0.2 s."""
    band = butter(2, (low, high), "bandpass", fs=CONFIG.rate_hz, output="sos")
    power = (sosfiltfilt(band, day.lfp_uv.astype(np.float64), axis=0) ** 2).reshape(-1, STEP, CONFIG.channels).mean(1)
    return np.stack([np.convolve(column, np.ones(20) / 20, "same") for column in power.T], axis=1)


def rest_and_movement(day: Day) -> tuple[npt.NDArray[np.bool_], npt.NDArray[np.bool_]]:
    """Returns steps at least 0.2 s within rest, and at least 0.2 s within movement."""
    speed = np.linalg.norm(day.velocity_cm_s, axis=1)
    still, moving = (np.convolve(state, np.ones(41), "same") == 41 for state in (speed < 3, speed > 3))
    return still, moving


def change_in_db(day: Day, low: float, high: float) -> npt.NDArray[np.float64]:
    """Returns by how much movement changes the power of a band on each channel."""
    power = band_power(day, low, high)
    still, moving = rest_and_movement(day)
    return 10 * np.log10(power[moving].mean(0) / power[still].mean(0))


def test_power_falls_with_frequency_as_in_sensorimotor_cortex(day: Day) -> None:
    hz, power = welch(day.lfp_uv, CONFIG.rate_hz, nperseg=4 * CONFIG.rate_hz, axis=0)
    fitted = (hz >= 2) & (hz <= 45) & ~((hz > 12) & (hz < 33))
    chi = -np.polyfit(np.log(hz[fitted]), np.log(power[fitted]), 1)[0]
    assert 1.6 < np.median(chi) < 4


def test_beta_falls_with_movement_on_every_channel(day: Day) -> None:
    assert change_in_db(day, 17, 24).max() < -3


def test_high_gamma_rises_with_movement(day: Day) -> None:
    assert np.median(change_in_db(day, 80, 250)) > 0.3


def test_high_gamma_follows_the_rate_of_the_units_at_its_electrode(animal: Animal, day: Day) -> None:
    near = np.exp(-measure_distances(animal.population) / 0.12)
    counts = [np.bincount((t * LATENT_HZ).astype(int), minlength=CONFIG.steps) for t in day.spike_times_s]
    rate = (near**2) @ np.stack(counts)
    rate = np.stack([np.convolve(row, np.ones(20) / 20, "same") for row in rate])
    power = np.log(band_power(day, 80, 250)).T
    alike = np.corrcoef(rate, power)[: CONFIG.channels, CONFIG.channels :]
    assert np.diag(alike).mean() > 0.3
    others = alike[~np.eye(CONFIG.channels, dtype=bool)]
    assert np.diag(alike).mean() > others.mean() + 0.1


def test_voltage_below_4_hz_tells_where_the_hand_goes(day: Day) -> None:
    """A regression on all channels explains it on a half of the day that it was not fitted on."""
    slow = sosfiltfilt(butter(2, 4, fs=CONFIG.rate_hz, output="sos"), day.lfp_uv.astype(np.float64), axis=0)[::STEP]
    x, y = np.column_stack([slow, np.ones(len(slow))]), day.velocity_cm_s
    half = len(x) // 2
    left = y[half:] - x[half:] @ np.linalg.lstsq(x[:half], y[:half], rcond=None)[0]
    r2 = 1 - (left**2).sum(0) / ((y[half:] - y[half:].mean(0)) ** 2).sum(0)
    assert r2.mean() > 0.1


@pytest.mark.parametrize("inhibitory", [False, True])
def test_a_current_falls_off_with_the_square_of_distance_and_outlasts_its_spike(inhibitory: bool) -> None:
    config = replace(CONFIG, channels=4, population=4, units=1)
    population = draw_pursuing_animal(config).population
    population = replace(
        population,
        electrodes_mm=np.array([[0.0, 0.0], [0.2, 0.0], [0.6, 0.0], [0.2, 0.6]]),
        positions_mm=np.zeros((4, 3)),
        inhibitory=np.full(4, inhibitory),
    )
    raster = csr_array(([1.0], ([100], [0])), shape=(2000, 4))
    field = sum_synaptic_fields(config, population, raster)
    field -= field[50]
    assert abs(field[:100]).max() < 1e-9  # nothing before the spike
    peak = field[np.abs(field[:, 0]).argmax()]
    assert (np.sign(peak) == (1 if inhibitory else -1)).all()
    np.testing.assert_allclose(peak / peak[0], [1, 1 / 2, 1 / 10, 1 / 11], rtol=0.01)
    tau = 0.05 if inhibitory else 0.02
    assert field[250, 0] / field[150, 0] == pytest.approx(np.exp(-0.1 / tau), rel=0.02)


def test_a_wave_reaches_each_channel_at_its_time() -> None:
    wave = np.arange(20.0)
    arrived = travel(wave, np.array([1.0, 2.0]), np.array([0, 3]), 10)
    np.testing.assert_array_equal(arrived[:, 0], np.arange(3.0, 13.0))
    np.testing.assert_array_equal(arrived[:, 1], 2 * np.arange(10.0))  # three frames later


def test_the_same_animal_lives_another_day_otherwise(animal: Animal) -> None:
    config = replace(CONFIG, minutes=0.1)
    short = draw_pursuing_animal(config)
    np.testing.assert_array_equal(short.population.positions_mm, animal.population.positions_mm)
    one, again, other = (short.live_day(short.population.tuning, np.random.default_rng(day)) for day in (0, 0, 1))
    np.testing.assert_array_equal(one.lfp_uv, again.lfp_uv)
    assert not np.array_equal(one.lfp_uv, other.lfp_uv)
