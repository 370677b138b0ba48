"""Simulates the field potential that the spikes of a population make.

The inputs are the spikes of the whole population and the movement of the cursor. The output is the LFP in microvolts,
without the flaws of a recording.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import numpy.typing as npt
from scipy.signal import butter, fftconvolve, sosfilt

from edgedistill.data.simulation.animal import Population, measure_distances
from edgedistill.data.simulation.config import LATENT_HZ, LEAD_S, Array, SimulationConfig
from edgedistill.data.simulation.noise import draw_band_noise, draw_coloured_noise
from edgedistill.scratch import allocate, release_pages, split_rows

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
    field, activity = (part.T for part in sum_unit_fields(config, population, spikes, frames))  # (channels, frames)
    drive = np.stack([draw_coloured_noise(frames, config.rate_hz, rng, CHI) for _ in population.background])
    size = BACKGROUND_RATIO * FIELD_UV / find_deviation(drive, population.background)
    # beta says that a movement is under way, not where it goes: it shrinks with the speed to come
    coming = np.roll(speed, -round(LEAD_S * config.rate_hz))
    envelope = 1.2 / (1 + np.exp(2.5 * (sosfilt(butter(1, 2, fs=config.rate_hz, output="sos"), coming) - 0.8)))
    rhythm = draw_band_noise(len(population.beta), frames, (15, 30), config.rate_hz, rng) * envelope
    # the kernel of a unit is too smooth for high gamma, which is broadband noise that follows each site's activity
    for channel in range(config.channels):
        gamma = draw_band_noise(1, frames, (60, 200), config.rate_hz, rng)[0] * activity[channel]
        field[channel] += drive.T @ population.background[:, channel] * size
        field[channel] += BETA_RATIO * FIELD_UV * (rhythm.T @ population.beta[:, channel])
        field[channel] += GAMMA_RATIO * FIELD_UV * gamma
        release_pages()
    lfp: npt.NDArray[np.float32] = allocate((frames, config.channels), np.float32)
    for block in split_rows(slice(0, frames), 2 * config.channels):
        lfp[block] = field[:, block].T
    return lfp


def find_deviation(drive: Array, patterns: Array) -> float:
    """Returns the deviation over all channels and frames of sources (sources, frames) mixed by (sources, channels)."""
    total = squares = 0.0
    for pattern in patterns.T:
        mixed = drive.T @ pattern
        total, squares = total + float(mixed.mean()), squares + float((mixed**2).mean())
    count = patterns.shape[1]
    return float(np.sqrt(squares / count - (total / count) ** 2))


def sum_unit_fields(
    config: SimulationConfig, population: Population, spikes: list[Array], frames: int
) -> tuple[Array, Array]:
    """Sums the fields of single units (Telenczuk 2020).

    Returns the sum (frames, channels) in uV, and the activity around each electrode relative to its mean.
    """
    rate = config.rate_hz
    distance = measure_distances(population)  # (channels, population)
    field = allocate((config.channels, frames), np.float64)
    activity = allocate((config.channels, frames), np.float64)
    t = np.arange(-round(0.012 * rate), round(0.012 * rate) + 1) / rate
    slow = butter(1, 5, fs=rate, output="sos")
    for c in range(config.channels):
        field[c] = activity[c] = 0.0
        for kind, members in (("inhibitory", population.inhibitory), ("excitatory", ~population.inhibitory)):
            kernel = np.exp(-(t**2) / (2 * SIGMA_S[kind] ** 2))
            drive = np.zeros(frames)
            for u in np.flatnonzero(members & (distance[c] < 5 * LAMBDA_MM)):  # farther units add less than 1 % each
                delay = round((DELAY_S + distance[c, u] / VELOCITY_MM_S) * rate)
                at = np.floor(spikes[u] * rate).astype(np.int64) + delay
                np.add.at(drive, at[at < frames], np.exp(-distance[c, u] / LAMBDA_MM))
            field[c] += AMPLITUDE_UV[kind] * fftconvolve(drive, kernel, "same")
            activity[c] += drive
        smooth = sosfilt(slow, activity[c])
        activity[c] = smooth / smooth.mean()
        release_pages()
    size = FIELD_UV / np.mean([row.std() for row in walk(field)])
    for row in walk(field):
        row *= size
    return field.T, activity.T


def walk(field: Array) -> Iterator[Array]:
    """Yields the rows of an array that may lie in a file, and gives back the memory of each."""
    for row in field:
        yield row
        release_pages()
