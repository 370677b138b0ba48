"""Says what a simulated animal is, whichever variant draws it, and where its electrodes and units lie.

A variant is one folder beside this file. Its `animal.py` draws an `Animal` for a `SimulationConfig`, whose `live_day`
turns the tuning of one day into movement, spikes and a clean field. `simulation.sessions` does the rest, which all
variants share: tuning drifts, units are chosen, and the aging array spoils the field.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from edgedistill.data.simulation.config import Array, SimulationConfig


@dataclass(frozen=True)
class Population:
    """Holds what stays the same from day to day."""

    electrodes_mm: Array  # (channels, 2)
    positions_mm: Array  # (population, 3)
    inhibitory: npt.NDArray[np.bool_]  # (population,)
    log_rate: Array  # (population,)
    tuning: Array  # (population, weights) on the day before the first
    background: Array  # (sources, channels) spatial patterns of the shared 1/f drive
    beta: Array  # (2, channels)


@dataclass(frozen=True)
class Day:
    """Holds what an animal does on one day, before an array records it. Steps lie at LATENT_HZ."""

    position_cm: Array  # (steps, 2)
    velocity_cm_s: Array  # (steps, 2)
    spike_times_s: list[Array]  # one array a unit of the population, not sorted
    lfp_uv: npt.NDArray[np.float32]  # (frames, channels)


@dataclass(frozen=True)
class Animal:
    """Holds a population, the distribution its tuning keeps while it drifts, and how the animal spends a day."""

    population: Population
    tuning_mean: Array  # (weights,)
    tuning_scale: Array  # (weights,) deviation over the population
    live_day: Callable[[Array, np.random.Generator], Day]  # from the day's tuning (population, weights)


def place_array(config: SimulationConfig, rng: np.random.Generator) -> tuple[Array, Array]:
    """Places the electrodes of a Utah array (0.4 mm pitch), and a population spread over and around it.

    Returns the electrodes (channels, 2) and the units (population, 3), both in mm.
    """
    side = int(np.ceil(np.sqrt(config.channels)))
    grid = np.stack(np.meshgrid(np.arange(side), np.arange(side)), -1).reshape(-1, 2)[: config.channels]
    electrodes = 0.4 * grid.astype(np.float64)
    low, high = electrodes.min(0) - 0.5, electrodes.max(0) + 0.5
    positions = np.column_stack(
        [rng.uniform(low, high, (config.population, 2)), rng.uniform(-0.2, 0.2, config.population)]
    )
    return electrodes, positions


def draw_population(
    config: SimulationConfig, tuning_mean: Array, tuning_scale: Array, sources: int, rng: np.random.Generator
) -> Population:
    """Draws the array and a population on a background of `sources`.

    Weights of its tuning have the mean and the deviation `tuning_mean` and `tuning_scale` (weights,).
    """
    electrodes, positions = place_array(config, rng)
    return Population(
        electrodes_mm=electrodes,
        positions_mm=positions,
        inhibitory=rng.random(config.population) < 0.2,
        log_rate=rng.normal(np.log(6.0), 0.6, config.population),
        tuning=tuning_mean + rng.normal(size=(config.population, len(tuning_scale))) * tuning_scale,
        background=draw_smooth_patterns(rng, electrodes, sources),
        beta=draw_smooth_patterns(rng, electrodes, sources=2),
    )


def measure_distances(population: Population) -> Array:
    """Returns the distance of every unit from every electrode, (channels, population), in mm."""
    flat = np.zeros((len(population.electrodes_mm), 1))
    offset = np.concatenate([population.electrodes_mm, flat], 1)[:, None]
    return np.asarray(np.linalg.norm(offset - population.positions_mm[None], axis=-1))


def draw_smooth_patterns(rng: np.random.Generator, electrodes: Array, sources: int) -> Array:
    """Draws patterns (sources, channels) of sources that reach millimetres, so that neighbours nearly agree."""
    centres = rng.uniform(electrodes.min(0) - 1, electrodes.max(0) + 1, (sources, 2))
    distance = np.linalg.norm(electrodes[None] - centres[:, None], axis=-1)
    return np.asarray(np.exp(-distance / 2.0) * (1 + 0.15 * rng.normal(size=distance.shape)))


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
