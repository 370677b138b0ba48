"""Simulates a population of units: where they lie, how they are tuned, when they fire and which are recorded.

The inputs are a `SimulationConfig` and latents. The outputs are a `Population`, the spikes of all its units, and the
units that are recorded on one day.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from edgedistill.data.simulation.config import LATENT_HZ, Array, SimulationConfig

LATENTS = 13
# deviation of each latent's weight in a unit's log rate; most of what a unit does is independent of the hand
TUNING_SCALE = np.array([0.22, 0.22, 0.11, 0.09, 0.09, 0.09, 0.09, 0.25, 0.25, 0.25, 0.25, 0.25, 0.25])
TUNING_MEAN = np.zeros(LATENTS)
TUNING_MEAN[2] = 0.1  # movement raises the rate of motor cortex as a whole


@dataclass(frozen=True)
class Population:
    """Holds what stays the same from day to day."""

    electrodes_mm: Array  # (channels, 2)
    positions_mm: Array  # (population, 3)
    inhibitory: npt.NDArray[np.bool_]  # (population,)
    log_rate: Array  # (population,)
    tuning: Array  # (population, latents)
    background: Array  # (sources, channels) spatial patterns of the shared 1/f drive
    beta: Array  # (2, channels)


def draw_population(config: SimulationConfig) -> Population:
    """Draws the electrodes of a Utah array (0.4 mm pitch) and a population spread over and around it."""
    rng = np.random.default_rng([config.seed, 0])
    side = int(np.ceil(np.sqrt(config.channels)))
    grid = np.stack(np.meshgrid(np.arange(side), np.arange(side)), -1).reshape(-1, 2)[: config.channels]
    electrodes = 0.4 * grid.astype(np.float64)
    low, high = electrodes.min(0) - 0.5, electrodes.max(0) + 0.5
    positions = np.column_stack(
        [rng.uniform(low, high, (config.population, 2)), rng.uniform(-0.2, 0.2, config.population)]
    )
    return Population(
        electrodes_mm=electrodes,
        positions_mm=positions,
        inhibitory=rng.random(config.population) < 0.2,
        log_rate=rng.normal(np.log(6.0), 0.6, config.population),
        tuning=TUNING_MEAN + rng.normal(size=(config.population, LATENTS)) * TUNING_SCALE,
        background=draw_smooth_patterns(rng, electrodes, sources=8),
        beta=draw_smooth_patterns(rng, electrodes, sources=2),
    )


def draw_smooth_patterns(rng: np.random.Generator, electrodes: Array, sources: int) -> Array:
    """Draws patterns (sources, channels) of sources that reach millimetres, so that neighbours nearly agree."""
    centres = rng.uniform(electrodes.min(0) - 1, electrodes.max(0) + 1, (sources, 2))
    distance = np.linalg.norm(electrodes[None] - centres[:, None], axis=-1)
    return np.asarray(np.exp(-distance / 2.0) * (1 + 0.15 * rng.normal(size=distance.shape)))


def draw_spikes(population: Population, tuning: Array, latents: Array, rng: np.random.Generator) -> list[Array]:
    """Draws Poisson spikes of every unit, in seconds, unsorted within a latent step."""
    spikes = []
    for weights, base in zip(tuning, population.log_rate, strict=True):
        rate_hz = np.minimum(np.exp(base + latents @ weights), 120.0)
        counts = rng.poisson(rate_hz / LATENT_HZ)
        at = np.repeat(np.arange(len(counts)), counts)
        spikes.append((at + rng.random(len(at))) / LATENT_HZ)
    return spikes


def draw_recorded_units(
    config: SimulationConfig, population: Population, rng: np.random.Generator
) -> npt.NDArray[np.int64]:
    """Draws the units recorded on one day.

    They are units within about 0.15 mm of an electrode, and busy ones more often, as spike sorting finds them.
    """
    offset = population.positions_mm[:, None, :2] - population.electrodes_mm[None]
    nearest = np.linalg.norm(offset, axis=-1).min(1)
    chance = np.exp(-((nearest / 0.15) ** 2)) * np.exp(1.5 * population.log_rate)
    return np.sort(rng.choice(config.population, config.units, replace=False, p=chance / chance.sum()))
