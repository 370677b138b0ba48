"""Units of a pursuing animal lead by their own times, fire regularly, and share dynamics that stay from day to day."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import numpy.typing as npt
import pytest

from edgedistill.data.simulation.animal import Population, draw_population
from edgedistill.data.simulation.config import LATENT_HZ, SimulationConfig
from edgedistill.data.simulation.pursuit.movement import simulate_pursuit
from edgedistill.data.simulation.pursuit.population import (
    BACKGROUND_SOURCES,
    TUNING_MEAN,
    TUNING_SCALE,
    Traits,
    draw_latents,
    draw_regular_spikes,
    draw_spikes,
    draw_traits,
)

CONFIG = SimulationConfig(channels=9, units=20, variant="pursuit")


def population_of(config: SimulationConfig, rng: np.random.Generator) -> Population:
    return draw_population(config, TUNING_MEAN, TUNING_SCALE, BACKGROUND_SOURCES, rng)


def traits_of(seed: int) -> Traits:
    rng = np.random.default_rng(seed)
    return draw_traits(CONFIG, population_of(CONFIG, rng).electrodes_mm, rng)


def test_preferred_directions_are_not_uniform() -> None:
    tuning = population_of(CONFIG, np.random.default_rng(0)).tuning
    angle = np.arctan2(tuning[:, 1], tuning[:, 0])
    assert abs(np.exp(2j * angle).mean()) > 0.15  # along an axis; 0.02 if uniform
    assert abs(np.exp(1j * angle).mean()) > 0.1  # and to one side


def test_each_unit_leads_the_hand_by_a_time_of_its_own() -> None:
    leads = np.array([0, 5, 12, 20])
    rng = np.random.default_rng(2)
    population = population_of(replace(CONFIG, population=4, units=1), rng)
    population = replace(population, log_rate=np.full(4, np.log(30.0)))
    traits = replace(traits_of(0), lead_steps=leads, width=np.full(4, 0.5))
    tuning = np.zeros((4, len(TUNING_SCALE)))
    tuning[:, 0] = 2.0  # all prefer +x
    _, velocity = simulate_pursuit(300 * LATENT_HZ + 20, rng)
    movement = np.zeros((len(velocity), len(TUNING_SCALE)))
    movement[:, :2], movement[:, 2] = velocity / 10, np.linalg.norm(velocity, axis=1) / 10
    found = []
    for times in draw_spikes(population, traits, tuning, movement, rng):
        counts = np.bincount((times * LATENT_HZ).astype(int), minlength=300 * LATENT_HZ)
        alike = [np.corrcoef(counts[50:-50], velocity[50 + k : len(counts) - 50 + k, 0])[0, 1] for k in range(-20, 41)]
        found.append(int(np.argmax(alike)) - 20)
    np.testing.assert_allclose(found, leads, atol=2)
    spread = traits_of(1).lead_steps
    assert (spread.min(), spread.max()) == (0, 20)
    assert spread.std() == pytest.approx(21 / np.sqrt(12), rel=0.1)


@pytest.mark.parametrize("hz", [3.0, 40.0])
def test_spikes_keep_their_rate_and_are_more_regular_than_poisson(hz: float) -> None:
    times = draw_regular_spikes(np.full(1000 * LATENT_HZ, hz), np.random.default_rng(0))
    assert len(times) == pytest.approx(1000 * hz, rel=0.05)
    assert (np.diff(times) >= 0).all()
    assert 0 <= times[0] <= times[-1] < 1000
    intervals = np.diff(times)
    assert intervals.std() / intervals.mean() == pytest.approx(1 / np.sqrt(2), rel=0.05)


def test_spikes_follow_a_rate_that_changes() -> None:
    rate_hz = np.repeat([5.0, 50.0, 0.0, 20.0], 100 * LATENT_HZ)
    times = draw_regular_spikes(rate_hz, np.random.default_rng(1))
    counts = np.histogram(times, [0, 100, 200, 300, 400])[0]
    np.testing.assert_allclose(counts, [500, 5000, 0, 2000], rtol=0.1, atol=1)


def measure_decay(traits: Traits, day: int) -> tuple[npt.NDArray[np.complex128], npt.NDArray[np.float64]]:
    """Returns what each plane does in one step, as it is found in the latents of one day, and these latents."""
    rng = np.random.default_rng(day)
    _, velocity = simulate_pursuit(600 * LATENT_HZ, rng)
    speed = np.linalg.norm(velocity, axis=1) / 10
    latents = draw_latents(traits, speed, rng)
    found = []
    for plane in (latents[:, ::2] + 1j * latents[:, 1::2]).T:
        x = np.column_stack([plane[:-1], np.gradient(speed)[1:]])
        found.append(np.linalg.lstsq(x, plane[1:], rcond=None)[0][0])
    return np.array(found), latents


def test_days_share_the_latent_dynamics_and_other_animals_have_others() -> None:
    traits = traits_of(3)
    (first, one), (second, other) = (measure_decay(traits, day) for day in (1, 2))
    np.testing.assert_allclose(first, traits.decay, atol=0.005)
    np.testing.assert_allclose(second, traits.decay, atol=0.005)
    assert abs(np.corrcoef(one[:, 0], other[:, 0])[0, 1]) < 0.2  # the same dynamics on another path
    assert abs(traits_of(4).decay - traits.decay).max() > 0.02


def test_latents_have_about_unit_variance() -> None:
    _, latents = measure_decay(traits_of(5), 1)
    np.testing.assert_allclose(latents.std(0), 1, atol=0.3)
