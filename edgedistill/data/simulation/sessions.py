"""Simulates sessions: what an animal does on each day, and what an array that ages records of it.

The input is a `SimulationConfig`. The output is one `SimulatedSession` a day (spikes, LFP, behavior), which
`simulation.nwb` writes as NWB. All sessions of one seed share the array, the population and the latent dynamics. From
session to session other units are recorded and tuning drifts. The array ages with the days between them.

The simulator exists so that the published method can be reproduced on a machine with no data. It has variants that
differ in kind (`reaches/` and `pursuit/`), so that no recipe is tuned on one of them alone. The papers behind each
figure are named beside the constants of a variant, those of `simulation.aging` in docs/accuracy.md, and
`benchmarks/accuracy/simulator.py` measures the signals against them. The constants were fixed before any model was
tuned on them.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from edgedistill.data.simulation.aging import array_on_day
from edgedistill.data.simulation.animal import Animal, Day, Population, draw_recorded_units
from edgedistill.data.simulation.config import LATENT_HZ, Array, SimulationConfig
from edgedistill.data.simulation.flaws import spoil_channels
from edgedistill.data.simulation.pursuit.animal import draw_pursuing_animal
from edgedistill.data.simulation.reaches.animal import draw_reaching_animal

__all__ = ["LATENT_HZ", "SimulatedSession", "SimulationConfig", "simulate_sessions"]

DRIFT = 0.1  # share of a unit's tuning that is drawn anew from session to session


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


def draw_animal(config: SimulationConfig) -> Animal:
    """Draws the animal that the variant and the seed name."""
    return draw_pursuing_animal(config) if config.variant == "pursuit" else draw_reaching_animal(config)


def simulate_sessions(config: SimulationConfig) -> Iterator[SimulatedSession]:
    """Yields `config.sessions` days, oldest first, `config.days_apart` days apart. The same seed gives the same."""
    animal = draw_animal(config)
    tuning, mean = animal.population.tuning, animal.tuning_mean
    for index in range(config.sessions):
        rng = np.random.default_rng([config.seed, 1, index])
        step = np.random.default_rng([config.seed, 2, index]).normal(size=tuning.shape) * animal.tuning_scale
        tuning = mean + np.sqrt(1 - DRIFT**2) * (tuning - mean) + DRIFT * step  # around the mean of the population
        yield record_day(config, animal.population, animal.live_day(tuning, rng), index, rng)


def record_day(
    config: SimulationConfig, population: Population, day: Day, index: int, rng: np.random.Generator
) -> SimulatedSession:
    """Returns what the array records of one day: a few units, and the field with its flaws."""
    array = array_on_day(config, index * config.days_apart)
    lfp = spoil_channels(config, day.lfp_uv, day.velocity_cm_s, array, rng)
    recorded = draw_recorded_units(config, population, rng)
    return SimulatedSession(
        index=index,
        spike_times_s=tuple(np.sort(day.spike_times_s[u]) for u in recorded),
        unit_ids=recorded,
        lfp_uv=lfp,
        position_cm=day.position_cm,
        velocity_cm_s=day.velocity_cm_s,
        electrodes_mm=population.electrodes_mm,
        dead=tuple(np.flatnonzero(array.dead).tolist()),
        noisy=tuple(np.flatnonzero(array.noisy).tolist()),
    )
