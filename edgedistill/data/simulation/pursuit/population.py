"""Says how units are tuned to pursuit, and draws the latent dynamics that they share, and their spikes.

A `SimulationConfig`, a `Population` and the movement of the cursor go in. `Traits`, and the spikes of all units, come
out. Unlike the units of `reaches`, these prefer a direction in a curve of their own width, lead the
hand by a time of their own, are rectified, and fire more regularly than Poisson.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy.signal import lfilter

from edgedistill.data.simulation.animal import Population
from edgedistill.data.simulation.config import LATENT_HZ, Array, SimulationConfig

MODES = 3  # planes of the latent dynamics, two latents each
BACKGROUND_SOURCES = 6
MOST_LEAD_S = 0.2  # leads are uniform from 0 to this
SPEED_CM_S, POSITION_CM = 10.0, 5.0  # one unit of the movement that drives a unit
# deviation of a unit's weights: preferred direction (x, y), speed, position (x, y), latents; more units prefer x than y
TUNING_SCALE = np.array([1.1, 0.7, 0.3, 0.2, 0.2, *[0.4] * (2 * MODES)])
TUNING_MEAN = np.zeros(len(TUNING_SCALE))
TUNING_MEAN[:3] = 0.2, 0.1, 0.25  # directions lean to one side, and movement raises the rate of most
OFFSET = 1.0  # drive at rest; the farther above 0, the less rectified
MOST_HZ = 120.0
REGULARITY = 2.0  # shape of the gamma-distributed intervals; 1 would be Poisson


@dataclass(frozen=True)
class Traits:
    """Holds what belongs to this variant alone and stays the same from day to day."""

    lead_steps: npt.NDArray[np.int64]  # (population,) by how much a unit leads the hand
    width: Array  # (population,) concentration of the directional curve
    decay: npt.NDArray[np.complex128]  # (MODES,) what a latent plane does in one step: it turns and shrinks
    push: npt.NDArray[np.complex128]  # (MODES,) how a change of speed moves each plane
    inputs: Array  # (inputs, channels) signed patterns of the distant inputs
    leak: Array  # (population, channels) size and sign of each unit's spike at each electrode, against its distance
    wave_s: Array  # (BACKGROUND_SOURCES + 2, channels) when each background source and rhythm arrives


def draw_traits(config: SimulationConfig, electrodes_mm: Array, rng: np.random.Generator) -> Traits:
    """Draws leads, widths, dynamics, and the patterns and waves of what comes from afar."""
    turn_hz, memory_s = rng.uniform(0.5, 3.0, MODES), rng.uniform(0.2, 0.6, MODES)
    return Traits(
        lead_steps=rng.integers(0, round(MOST_LEAD_S * LATENT_HZ) + 1, config.population),
        width=rng.uniform(0.5, 2.5, config.population),
        decay=np.exp((-1 / memory_s + 2j * np.pi * turn_hz) / LATENT_HZ),
        push=np.exp(2j * np.pi * rng.random(MODES)),
        inputs=draw_signed_patterns(rng, electrodes_mm, 3 + 2 * MODES),
        leak=rng.normal(size=(config.population, config.channels)),
        wave_s=draw_wave_delays(rng, electrodes_mm, BACKGROUND_SOURCES + 2),
    )


def draw_signed_patterns(rng: np.random.Generator, electrodes_mm: Array, inputs: int) -> Array:
    """Draws patterns (inputs, channels) that are alike within about a millimetre, and change sign beyond it."""
    squared = ((electrodes_mm[:, None] - electrodes_mm[None]) ** 2).sum(-1)
    covariance = np.exp(-squared / 2) + 0.02 * np.eye(len(electrodes_mm))
    return np.asarray(rng.normal(size=(inputs, len(electrodes_mm))) @ np.linalg.cholesky(covariance).T)


def draw_wave_delays(rng: np.random.Generator, electrodes_mm: Array, waves: int) -> Array:
    """Draws when plane waves at 150 to 350 mm/s (Rubino 2006) reach the channels: (waves, channels) in s."""
    angle, speed_mm_s = rng.uniform(0, 2 * np.pi, waves), rng.uniform(150, 350, waves)
    delay = np.column_stack([np.cos(angle), np.sin(angle)]) @ electrodes_mm.T / speed_mm_s[:, None]
    return np.asarray(delay - delay.min(1, keepdims=True))


def draw_latents(traits: Traits, speed: Array, rng: np.random.Generator) -> Array:
    """Draws the latents (steps, 2 * MODES) of about unit variance: planes that turn, driven by noise and by the speed.

    `speed` (steps,) is relative to SPEED_CM_S. Changes of speed account for about a third of the variance.
    """
    change = np.gradient(speed)
    columns = []
    for decay, push in zip(traits.decay, traits.push, strict=True):
        noise = rng.normal(size=len(speed)) + 1j * rng.normal(size=len(speed))
        own = lfilter([1], [1, -decay], noise) * np.sqrt(1 - abs(decay) ** 2)
        driven = lfilter([push], [1, -decay], change)
        plane = np.sqrt(2 / 3) * own + np.sqrt(2 / 3) * driven / driven.std()
        columns += [plane.real, plane.imag]
    return np.column_stack(columns)


def draw_spikes(
    population: Population, traits: Traits, tuning: Array, movement: Array, rng: np.random.Generator
) -> list[Array]:
    """Draws the spikes of every unit, in seconds.

    `tuning` (population, weights) is that of the day. `movement` (steps + the longest lead, weights) holds velocity and
    position in units of SPEED_CM_S and POSITION_CM with the speed between them, then the latents.
    """
    steps = len(movement) - round(MOST_LEAD_S * LATENT_HZ)
    speed = movement[:, 2]
    turned = movement[:, :2] / np.maximum(speed, 1e-9)[:, None]  # unit vectors
    strength = speed / (1 + 0.3 * speed)  # saturates
    spikes = []
    for weights, base, lead, width in zip(tuning, population.log_rate, traits.lead_steps, traits.width, strict=True):
        now = slice(lead, lead + steps)
        depth = np.hypot(weights[0], weights[1])
        curve = np.exp(width * (turned[now] @ weights[:2] / depth - 1))
        curve = (curve - np.exp(-width) * np.i0(width)) / (0.5 * (1 - np.exp(-2 * width)))  # mean 0, swing 2
        drive = depth * strength[now] * curve + movement[now, 2:5] @ weights[2:5] + movement[:steps, 5:] @ weights[5:]
        rate_hz = np.exp(base) * np.logaddexp(0, OFFSET + drive) / np.logaddexp(0, OFFSET)
        spikes.append(draw_regular_spikes(np.minimum(rate_hz, MOST_HZ), rng))
    return spikes


def draw_regular_spikes(rate_hz: Array, rng: np.random.Generator) -> Array:
    """Draws spike times in seconds for a rate (steps,), with gamma-distributed intervals in rescaled time."""
    passed = np.concatenate([[0], np.cumsum(rate_hz)]) / LATENT_HZ  # expected spikes until each edge of a step
    room = int(1.2 * passed[-1]) + 50
    at = np.cumsum(rng.gamma(REGULARITY, 1 / REGULARITY, room)) - rng.random()
    at = at[(at >= 0) & (at < passed[-1])]
    times = np.interp(at, passed, np.arange(len(passed)) / LATENT_HZ)
    return np.asarray(times[times < len(rate_hz) / LATENT_HZ])
