"""Simulates sessions: a moving cursor, a population that follows it, and the field that the population makes.

The input is a `SimulationConfig`. The output is one `SimulatedSession` a day (spikes, LFP, behavior), which
`simulation.nwb` writes as NWB. All sessions of one seed share the array, the population and the latent dynamics. From
session to session other units are recorded and tuning drifts. The array ages with the days between them.

The simulator exists so that the published method can be reproduced on a machine with no data. The papers behind each
figure are named beside the constants in `simulation.field` and `simulation.population`, those of `simulation.aging` in
docs/accuracy.md, and
`benchmarks/accuracy/simulator.py` measures the signals against them. The constants were fixed before any model was
tuned on them.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from edgedistill.data.simulation.aging import array_on_day
from edgedistill.data.simulation.config import LATENT_HZ, Array, SimulationConfig
from edgedistill.data.simulation.field import lfp_from_population, spoil_channels
from edgedistill.data.simulation.population import (
    TUNING_MEAN,
    TUNING_SCALE,
    Population,
    draw_population,
    draw_recorded_units,
    draw_spikes,
)
from edgedistill.data.simulation.reaches import latents_from_behavior, simulate_reaches

__all__ = ["LATENT_HZ", "SimulatedSession", "SimulationConfig", "simulate_session", "simulate_sessions"]


@dataclass(frozen=True)
class SimulatedSession:
    """Holds one simulated day. Times are seconds from the start of the file. The LFP is in microvolts."""

    index: int
    spike_times_s: tuple[Array, ...]  # one sorted array a recorded unit
    unit_ids: npt.NDArray[np.int64]  # (units,) which members of the population
    lfp_uv: npt.NDArray[np.float32]  # (frames, channels)
    position_cm: Array  # (steps, 2) at LATENT_HZ
    velocity_cm_s: Array  # (steps, 2) at LATENT_HZ
    electrodes_mm: Array  # (channels, 2)
    dead: tuple[int, ...]
    noisy: tuple[int, ...]


def simulate_sessions(config: SimulationConfig) -> Iterator[SimulatedSession]:
    """Yields `config.sessions` days, oldest first, `config.days_apart` days apart. The same seed gives the same."""
    population = draw_population(config)
    tuning = population.tuning
    for day in range(config.sessions):
        rng = np.random.default_rng([config.seed, 1, day])
        # the tuning of a unit changes by about a tenth a session, around the mean of the population
        drift = np.random.default_rng([config.seed, 2, day]).normal(size=tuning.shape) * TUNING_SCALE
        tuning = TUNING_MEAN + np.sqrt(1 - 0.1**2) * (tuning - TUNING_MEAN) + 0.1 * drift
        yield simulate_session(config, population, tuning, day, rng)


def simulate_session(
    config: SimulationConfig, population: Population, tuning: Array, day: int, rng: np.random.Generator
) -> SimulatedSession:
    """Simulates one day of `config.minutes`."""
    steps = round(config.minutes * 60 * LATENT_HZ)
    position, velocity, goal = simulate_reaches(steps + 50, rng)
    latents = latents_from_behavior(position, velocity, goal, rng)[:steps]
    position, velocity = position[:steps], velocity[:steps]
    spikes = draw_spikes(population, tuning, latents, rng)
    lfp = lfp_from_population(config, population, spikes, velocity, rng)
    array = array_on_day(config, day * config.days_apart)
    lfp = spoil_channels(config, lfp, velocity, array, rng)
    dead, noisy = (tuple(np.flatnonzero(which).tolist()) for which in (array.dead, array.noisy))
    recorded = draw_recorded_units(config, population, rng)
    times = tuple(np.sort(spikes[u]) for u in recorded)
    return SimulatedSession(day, times, recorded, lfp, position, velocity, population.electrodes_mm, dead, noisy)
