"""Draws the animal of the variant `pursuit`, and simulates its day.

The input is a `SimulationConfig`. The output is an `Animal`, the same for the same seed.
"""

from __future__ import annotations

from functools import partial

import numpy as np

from edgedistill.data.simulation.animal import Animal, Day, Population, draw_population
from edgedistill.data.simulation.config import LATENT_HZ, Array, SimulationConfig
from edgedistill.data.simulation.pursuit.field import lfp_from_population
from edgedistill.data.simulation.pursuit.movement import simulate_pursuit
from edgedistill.data.simulation.pursuit.population import (
    BACKGROUND_SOURCES,
    MOST_LEAD_S,
    POSITION_CM,
    SPEED_CM_S,
    TUNING_MEAN,
    TUNING_SCALE,
    Traits,
    draw_latents,
    draw_spikes,
    draw_traits,
)


def draw_pursuing_animal(config: SimulationConfig) -> Animal:
    """Draws the animal of `config.seed`."""
    rng = np.random.default_rng([config.seed, 0])
    population = draw_population(config, TUNING_MEAN, TUNING_SCALE, BACKGROUND_SOURCES, rng)
    traits = draw_traits(config, population.electrodes_mm, rng)
    return Animal(population, TUNING_MEAN, TUNING_SCALE, partial(live_day, config, population, traits))


def live_day(
    config: SimulationConfig, population: Population, traits: Traits, tuning: Array, rng: np.random.Generator
) -> Day:
    """Simulates one day of `config.minutes` with the `tuning` (population, weights) of that day."""
    position, velocity = simulate_pursuit(config.steps + round(MOST_LEAD_S * LATENT_HZ), rng)
    speed = np.linalg.norm(velocity, axis=1) / SPEED_CM_S
    latents = draw_latents(traits, speed, rng)
    movement = np.column_stack([velocity / SPEED_CM_S, speed, position / POSITION_CM, latents])
    spikes = draw_spikes(population, traits, tuning, movement, rng)
    lfp = lfp_from_population(config, population, traits, spikes, movement, rng)
    return Day(position[: config.steps], velocity[: config.steps], spikes, lfp)
