"""Draws the animal of the variant `reaches`, and simulates its day.

The input is a `SimulationConfig`. The output is an `Animal`, the same for the same seed.
"""

from __future__ import annotations

from functools import partial

import numpy as np

from edgedistill.data.simulation.animal import Animal, Day, Population, draw_population
from edgedistill.data.simulation.config import Array, SimulationConfig
from edgedistill.data.simulation.reaches.field import lfp_from_population
from edgedistill.data.simulation.reaches.movement import latents_from_behavior, simulate_reaches
from edgedistill.data.simulation.reaches.population import (
    BACKGROUND_SOURCES,
    TUNING_MEAN,
    TUNING_SCALE,
    draw_spikes,
)


def draw_reaching_animal(config: SimulationConfig) -> Animal:
    """Draws the animal of `config.seed`."""
    rng = np.random.default_rng([config.seed, 0])
    population = draw_population(config, TUNING_MEAN, TUNING_SCALE, BACKGROUND_SOURCES, rng)
    return Animal(population, TUNING_MEAN, TUNING_SCALE, partial(live_day, config, population))


def live_day(config: SimulationConfig, population: Population, tuning: Array, rng: np.random.Generator) -> Day:
    """Simulates one day of `config.minutes` with the `tuning` (population, LATENTS) of that day."""
    position, velocity, goal = simulate_reaches(config.steps + 50, rng)
    latents = latents_from_behavior(position, velocity, goal, rng)[: config.steps]
    position, velocity = position[: config.steps], velocity[: config.steps]
    spikes = draw_spikes(population, tuning, latents, rng)
    return Day(position, velocity, spikes, lfp_from_population(config, population, spikes, velocity, rng))
