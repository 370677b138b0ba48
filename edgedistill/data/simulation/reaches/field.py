"""Simulates the field potential that the spikes of a population make.

The inputs are the spikes of the whole population and the movement of the cursor. The output is the LFP in microvolts,
without the flaws of a recording.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
from scipy.signal import butter, fftconvolve, sosfilt

from edgedistill.data.simulation.animal import Population, measure_distances
from edgedistill.data.simulation.config import LATENT_HZ, LEAD_S, Array, SimulationConfig
from edgedistill.data.simulation.noise import draw_band_noise, draw_coloured_noise

LAMBDA_MM, VELOCITY_MM_S = 0.2, 200.0  # unitary field: reach and conduction speed (Telenczuk 2020)
DELAY_S = 0.0104
SIGMA_S = {"inhibitory": 0.0021, "excitatory": 0.00315}
AMPLITUDE_UV = {"inhibitory": 3.0, "excitatory": 0.48}
FIELD_UV = 30.0  # size of the informative field; one simulated unit stands for many real ones
BACKGROUND_RATIO = 3.0  # shared 1/f background against the informative field
BETA_RATIO, GAMMA_RATIO = 2.0, 0.3  # rhythm at rest and broadband, against the informative field
CHI = 2.0  # power of the background falls as f^-CHI


def lfp_from_population(
    config: SimulationConfig,
    population: Population,
    spikes: list[Array],
    velocity: Array,
    rng: np.random.Generator,
) -> npt.NDArray[np.float32]:
    """Returns the LFP (frames, channels) in uV: informative field, shared 1/f, beta and high gamma."""
    frames = len(velocity) * config.rate_hz // LATENT_HZ
    speed = np.repeat(np.linalg.norm(velocity, axis=1), config.rate_hz // LATENT_HZ) / 12.0
    field, activity = sum_unit_fields(config, population, spikes, frames)
    drive = np.stack([draw_coloured_noise(frames, config.rate_hz, rng, CHI) for _ in population.background])
    shared = drive.T @ population.background
    shared *= BACKGROUND_RATIO * FIELD_UV / shared.std()
    field += shared
    del drive, shared  # an hour of one of these arrays takes gigabytes
    # beta says that a movement is under way, not where it goes: it shrinks with the speed to come
    coming = np.roll(speed, -round(LEAD_S * config.rate_hz))
    envelope = 1.2 / (1 + np.exp(2.5 * (sosfilt(butter(1, 2, fs=config.rate_hz, output="sos"), coming) - 0.8)))
    rhythm = draw_band_noise(len(population.beta), frames, (15, 30), config.rate_hz, rng) * envelope
    field += BETA_RATIO * FIELD_UV * rhythm.T @ population.beta
    del rhythm
    # the kernel of a unit is too smooth for high gamma, which is broadband noise that follows each site's activity
    for channel in range(config.channels):
        gamma = draw_band_noise(1, frames, (60, 200), config.rate_hz, rng)[0] * activity[:, channel]
        field[:, channel] += GAMMA_RATIO * FIELD_UV * gamma
    return np.asarray(field, np.float32)


def sum_unit_fields(
    config: SimulationConfig, population: Population, spikes: list[Array], frames: int
) -> tuple[Array, Array]:
    """Sums the fields of single units (Telenczuk 2020).

    Returns the sum (frames, channels) in uV, and the activity around each electrode relative to its mean.
    """
    rate = config.rate_hz
    distance = measure_distances(population)  # (channels, population)
    field = np.zeros((config.channels, frames))
    activity = np.zeros((config.channels, frames))
    t = np.arange(-round(0.012 * rate), round(0.012 * rate) + 1) / rate
    for kind, members in (("inhibitory", population.inhibitory), ("excitatory", ~population.inhibitory)):
        kernel = np.exp(-(t**2) / (2 * SIGMA_S[kind] ** 2))
        units = np.flatnonzero(members)
        frame = [np.floor(spikes[u] * rate).astype(np.int64) for u in units]
        for c in range(config.channels):
            near = np.flatnonzero(distance[c, units] < 5 * LAMBDA_MM)  # farther units add less than 1 % each
            at, weight = [np.zeros(0, np.int64)], [np.zeros(0)]
            for i in near:
                d = distance[c, units[i]]
                delay = round((DELAY_S + d / VELOCITY_MM_S) * rate)
                at.append(frame[i] + delay)
                weight.append(np.full(len(frame[i]), np.exp(-d / LAMBDA_MM)))
            where = np.concatenate(at)
            drive = np.bincount(where, np.concatenate(weight), minlength=frames)[:frames]
            field[c] += AMPLITUDE_UV[kind] * fftconvolve(drive, kernel, "same")
            activity[c] += drive
    field *= FIELD_UV / field.std(axis=1).mean()
    smooth = sosfilt(butter(1, 5, fs=rate, output="sos"), activity, axis=1)
    return field.T, (smooth / smooth.mean(1, keepdims=True)).T
