"""Draws a population of units that are tuned to a reach, and their spikes.

The inputs are a `SimulationConfig` and latents. The outputs are a `Population` and the spikes of all its units.
"""

from __future__ import annotations

import numpy as np

from edgedistill.data.simulation.animal import Population, draw_smooth_patterns, place_array
from edgedistill.data.simulation.config import LATENT_HZ, Array, SimulationConfig

LATENTS = 13
# deviation of each latent's weight in a unit's log rate; most of what a unit does is independent of the hand
TUNING_SCALE = np.array([0.22, 0.22, 0.11, 0.09, 0.09, 0.09, 0.09, 0.25, 0.25, 0.25, 0.25, 0.25, 0.25])
TUNING_MEAN = np.zeros(LATENTS)
TUNING_MEAN[2] = 0.1  # movement raises the rate of motor cortex as a whole


def draw_population(config: SimulationConfig) -> Population:
    """Draws the array and a population, with its tuning to the latents."""
    rng = np.random.default_rng([config.seed, 0])
    electrodes, positions = place_array(config, rng)
    return Population(
        electrodes_mm=electrodes,
        positions_mm=positions,
        inhibitory=rng.random(config.population) < 0.2,
        log_rate=rng.normal(np.log(6.0), 0.6, config.population),
        tuning=TUNING_MEAN + rng.normal(size=(config.population, LATENTS)) * TUNING_SCALE,
        background=draw_smooth_patterns(rng, electrodes, sources=8),
        beta=draw_smooth_patterns(rng, electrodes, sources=2),
    )


def draw_spikes(population: Population, tuning: Array, latents: Array, rng: np.random.Generator) -> list[Array]:
    """Draws Poisson spikes of every unit, in seconds, unsorted within a latent step."""
    spikes = []
    for weights, base in zip(tuning, population.log_rate, strict=True):
        rate_hz = np.minimum(np.exp(base + latents @ weights), 120.0)
        counts = rng.poisson(rate_hz / LATENT_HZ)
        at = np.repeat(np.arange(len(counts)), counts)
        spikes.append((at + rng.random(len(at))) / LATENT_HZ)
    return spikes
