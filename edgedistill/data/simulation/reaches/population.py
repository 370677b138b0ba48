"""Says how units are tuned to a reach, and draws their spikes.

A `Population` and latents go in, and the spikes of all its units come out.
"""

from __future__ import annotations

import numpy as np

from edgedistill.data.simulation.animal import Population
from edgedistill.data.simulation.config import LATENT_HZ, Array
from edgedistill.scratch import keep, release_pages

LATENTS = 13
BACKGROUND_SOURCES = 8
# deviation of each latent's weight in a unit's log rate; most of what a unit does is independent of the hand
TUNING_SCALE = np.array([0.22, 0.22, 0.11, 0.09, 0.09, 0.09, 0.09, 0.25, 0.25, 0.25, 0.25, 0.25, 0.25])
TUNING_MEAN = np.zeros(LATENTS)
TUNING_MEAN[2] = 0.1  # movement raises the rate of motor cortex as a whole


def draw_spikes(population: Population, tuning: Array, latents: Array, rng: np.random.Generator) -> list[Array]:
    """Draws Poisson spikes of every unit, in seconds, unsorted within a latent step."""
    spikes = []
    for weights, base in zip(tuning, population.log_rate, strict=True):
        rate_hz = np.minimum(np.exp(base + latents @ weights), 120.0)
        counts = rng.poisson(rate_hz / LATENT_HZ)
        at = np.repeat(np.arange(len(counts)), counts)
        spikes.append(keep((at + rng.random(len(at))) / LATENT_HZ))  # of an hour they take half a gigabyte
        release_pages()
    return spikes
