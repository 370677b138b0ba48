"""Spoils a simulated field potential as the array and the amplifier of a real recording do.

The inputs are the LFP, the movement of the cursor and the state of the array. The output is the LFP as it is recorded.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import numpy.typing as npt

from edgedistill.data.simulation.aging import ArrayState, attenuate_low_frequencies
from edgedistill.data.simulation.config import LATENT_HZ, Array, SimulationConfig
from edgedistill.scratch import release_pages

BLOCK_FRAMES = 1 << 14  # that are spoiled at a time; the numbers are the same for any


def spoil_channels(
    config: SimulationConfig,
    lfp: npt.NDArray[np.float32],
    velocity: Array,
    array: ArrayState,
    rng: np.random.Generator,
) -> npt.NDArray[np.float32]:
    """Returns the LFP (frames, channels) as the array records it.

    That is with its leaks, gains, noise floors and dead channels. The gain of each channel also drifts within the day.
    Line noise and movement artefacts are added.
    """
    frames, channels = lfp.shape
    t = np.arange(frames) / config.rate_hz
    lfp = attenuate_low_frequencies(lfp, array.low_gain, config.rate_hz)
    for block in split_frames(frames):
        lfp[block] *= array.gain.astype(np.float32)
        lfp[block] += rng.normal(0, array.noise_uv, (len(t[block]), channels)).astype(np.float32)
    drift = rng.normal(0, 0.2, channels)
    for block in split_frames(frames):
        lfp[block] *= 1 + np.outer(t[block] / 3600, drift).astype(np.float32)
    for harmonic, uv in ((1, 15.0), (2, 4.0), (3, 5.0)):
        wave = np.sin(2 * np.pi * harmonic * config.line_hz * t + rng.uniform(0, 2 * np.pi))
        amplitude = uv * rng.lognormal(0, 0.3, channels)
        for block in split_frames(frames):
            lfp[block] += np.outer(wave[block], amplitude).astype(np.float32)
    for at in draw_artefact_frames(config, velocity, rng):
        width = int(config.rate_hz * rng.uniform(0.05, 0.15))
        pulse = np.hanning(width)[: frames - at] * rng.uniform(200, 500) * rng.choice([-1, 1])
        lfp[at : at + width] += np.outer(pulse, rng.lognormal(0, 0.3, channels)).astype(np.float32)
    for block in split_frames(frames):
        lfp[block, array.dead] = 0.0
    return lfp


def split_frames(frames: int) -> Iterator[slice]:
    """Yields blocks of BLOCK_FRAMES that cover all frames, so that the whole LFP is never in memory."""
    for start in range(0, frames, BLOCK_FRAMES):
        yield slice(start, min(start + BLOCK_FRAMES, frames))
        release_pages()


def draw_artefact_frames(config: SimulationConfig, velocity: Array, rng: np.random.Generator) -> npt.NDArray[np.int64]:
    """Draws about one movement artefact a minute, at moments of fast movement, and returns their frames."""
    speed = np.linalg.norm(velocity, axis=1)
    fast = np.flatnonzero(speed > np.quantile(speed, 0.9))
    chosen = rng.choice(fast, max(1, round(config.minutes)))
    return np.sort(chosen * (config.rate_hz // LATENT_HZ))
