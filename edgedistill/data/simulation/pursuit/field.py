"""Simulates the field potential of a pursuing animal: synaptic currents, distant inputs, background, beta, high gamma.

The inputs are the spikes of the whole population and the movement of the cursor. The output is the LFP in microvolts,
without the flaws of a recording. Unlike the field of `reaches`, currents last long after a spike, fall off with the
square of distance and have either sign; distant inputs that know the movement drive frequencies below 4 Hz directly;
background and beta travel over the array; and high gamma is made of the spikes themselves.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
from scipy.signal import butter, lfilter, sosfilt
from scipy.sparse import csr_array

from edgedistill.data.simulation.animal import Population, measure_distances
from edgedistill.data.simulation.config import LATENT_HZ, LEAD_S, Array, SimulationConfig
from edgedistill.data.simulation.noise import draw_band_noise, draw_coloured_noise
from edgedistill.data.simulation.pursuit.population import Traits

REACH_MM = 0.2  # a unit's currents make half the field at this distance, and a dipole's beyond it (Linden 2011)
RISE_S = 0.001  # of a synaptic current
DECAY_S = {"excitatory": 0.02, "inhibitory": 0.05}  # with what dendrites add to it
SIGN = {"excitatory": -1.0, "inhibitory": 2.0}  # a sink and a source; four in five units are excitatory
SYNAPTIC_UV = 20.0  # one simulated unit stands for many real ones
INPUT_UV, INPUT_HZ = 20.0, 4.0  # distant inputs: size, and nothing faster (Rickert 2005)
INPUT_NOISE = 2.0  # what they carry beside the movement, against the movement
BACKGROUND_UV = 90.0  # three times synaptic currents and distant inputs together
PRIVATE_UV = 6.0  # the same kind of noise, of each channel alone; the array adds white noise to it
CHI = 3.0  # power of both falls as f^-CHI above the knee of each source
KNEES_HZ = (0.5, 1.5)  # of the slowest and of the fastest source
AROUSAL, AROUSAL_HZ = 0.3, 0.05  # deviation of the log size of the background and of beta, and how fast it wanders
BETA_UV, BETA_HZ = 25.0, (16.0, 25.0)
BURST_HZ = 2.0  # bursts come and go this fast (Feingold 2015)
LEAK_MM = 0.12  # spikes leak into the LFP from units this near
GAMMA_UV, GAMMA_HZ = 10.0, (70.0, 300.0)


def lfp_from_population(
    config: SimulationConfig,
    population: Population,
    traits: Traits,
    spikes: list[Array],
    movement: Array,
    rng: np.random.Generator,
) -> npt.NDArray[np.float32]:
    """Returns the LFP (frames, channels) in uV of the spikes and the `movement` (steps + lead, weights)."""
    raster = raster_from_spikes(spikes, config.steps * config.rate_hz // LATENT_HZ, config.rate_hz)
    lfp = sum_synaptic_fields(config, population, raster)
    lfp += sum_distant_inputs(config, traits, movement, rng)
    arousal = np.exp(AROUSAL * draw_coloured_noise(raster.shape[0], config.rate_hz, rng, chi=4, knee_hz=AROUSAL_HZ))
    lfp += draw_background(config, population, traits, arousal, rng)
    lfp += draw_beta(config, population, traits, movement[:, 2], arousal, rng)
    lfp += leak_spikes(config, population, traits, raster)
    return lfp.astype(np.float32)


def raster_from_spikes(spikes: list[Array], frames: int, rate_hz: int) -> csr_array:
    """Returns the spikes as counts (frames, population)."""
    frame = np.concatenate([np.floor(times * rate_hz).astype(np.int64) for times in spikes])
    unit = np.repeat(np.arange(len(spikes)), [len(times) for times in spikes])
    return csr_array((np.ones(len(frame)), (frame, unit)), shape=(frames, len(spikes)))


def sum_synaptic_fields(config: SimulationConfig, population: Population, raster: csr_array) -> Array:
    """Sums the fields (frames, channels) in uV of the currents that spikes set off around them."""
    near = 1 / (1 + (measure_distances(population) / REACH_MM) ** 2).T  # (population, channels)
    field = np.zeros((raster.shape[0], config.channels))
    for kind, members in (("excitatory", ~population.inhibitory), ("inhibitory", population.inhibitory)):
        poles = [np.exp(-1 / (tau_s * config.rate_hz)) for tau_s in (RISE_S, DECAY_S[kind])]
        current = lfilter([1 - poles[0]], [1, -poles[0]], raster @ (near * members[:, None]), axis=0)
        field += SIGN[kind] * lfilter([1 - poles[1]], [1, -poles[1]], current, axis=0)
    field -= field.mean(0)
    return np.asarray(field * (SYNAPTIC_UV / max(field.std(axis=0).mean(), 1e-9)))


def sum_distant_inputs(config: SimulationConfig, traits: Traits, movement: Array, rng: np.random.Generator) -> Array:
    """Sums the inputs (frames, channels) in uV from other areas: what the hand will do and the latents, below INPUT_HZ.

    Each carries noise of its own through the same pattern, which no average over channels takes away.
    """
    per_step = config.rate_hz // LATENT_HZ
    lead = round(LEAD_S * LATENT_HZ)
    carried = np.delete(movement, (3, 4), axis=1)[lead : lead + config.steps]  # all but the position
    carried = (carried - carried.mean(0)) / carried.std(0)
    noise = [draw_coloured_noise(config.steps, LATENT_HZ, rng, chi=2, knee_hz=1) for _ in traits.inputs]
    slow = butter(2, INPUT_HZ, fs=config.rate_hz, output="sos")
    drive = sosfilt(slow, np.repeat(carried + INPUT_NOISE * np.stack(noise, 1), per_step, axis=0), axis=0)
    field = drive @ traits.inputs
    return np.asarray(field * (INPUT_UV / field.std(axis=0).mean()))


def draw_background(
    config: SimulationConfig, population: Population, traits: Traits, arousal: Array, rng: np.random.Generator
) -> Array:
    """Draws the 1/f background (frames, channels) in uV: few sources that travel, and what each channel has alone."""
    frames = len(arousal)
    late = np.rint(traits.wave_s * config.rate_hz).astype(int)
    field = np.zeros((frames, config.channels))
    sources = len(population.background)
    knees_hz = np.geomspace(*KNEES_HZ, sources)
    for pattern, delay, knee_hz in zip(population.background, late[:sources], knees_hz, strict=True):
        wave = draw_coloured_noise(frames + int(delay.max()), config.rate_hz, rng, CHI, knee_hz)
        field += travel(wave, pattern, delay, frames)
    field *= arousal[:, None]
    field *= BACKGROUND_UV / field.std()
    for channel in range(config.channels):
        field[:, channel] += PRIVATE_UV * draw_coloured_noise(frames, config.rate_hz, rng, CHI)
    return field


def draw_beta(
    config: SimulationConfig,
    population: Population,
    traits: Traits,
    speed: Array,
    arousal: Array,
    rng: np.random.Generator,
) -> Array:
    """Draws bursts of beta (frames, channels) in uV that travel, fall with the speed to come and rebound after it.

    They say that a movement is under way and when it starts, not where it goes.
    """
    frames, lead = len(arousal), round(LEAD_S * LATENT_HZ)
    coming = np.repeat(np.minimum(speed[lead : lead + config.steps], 1.5), config.rate_hz // LATENT_HZ)
    fast, slow = (sosfilt(butter(1, hz, fs=config.rate_hz, output="sos"), coming) for hz in (2.0, 0.4))
    envelope = arousal * np.exp(-2.0 * fast + 1.5 * np.maximum(slow - fast, 0))
    late = np.rint(traits.wave_s[-len(population.beta) :] * config.rate_hz).astype(int)
    field = np.zeros((frames, config.channels))
    for pattern, delay in zip(population.beta, late, strict=True):
        burst = np.exp(0.7 * draw_coloured_noise(frames, config.rate_hz, rng, chi=4, knee_hz=BURST_HZ))
        (wave,) = draw_band_noise(1, frames + int(delay.max()), BETA_HZ, config.rate_hz, rng)
        field += (envelope * burst)[:, None] * travel(wave, pattern, delay, frames)
    return np.asarray(field * (BETA_UV / field.std()))


def leak_spikes(config: SimulationConfig, population: Population, traits: Traits, raster: csr_array) -> Array:
    """Sums what spikes leak into the LFP (frames, channels) in uV, as broadband high gamma.

    Each unit has a size and a sign at each electrode, so the sum is noise whose power follows the rate of the units
    near the electrode. It is what the slow currents cannot carry (Ray 2011).
    """
    near = np.exp(-measure_distances(population) / LEAK_MM).T  # (population, channels)
    low, high = GAMMA_HZ
    band = butter(2, (low, min(high, 0.45 * config.rate_hz)), "bandpass", fs=config.rate_hz, output="sos")
    field = sosfilt(band, raster @ (near * traits.leak), axis=0)
    return np.asarray(field * (GAMMA_UV / max(field.std(axis=0).mean(), 1e-9)))


def travel(wave: Array, pattern: Array, delay: npt.NDArray[np.int64], frames: int) -> Array:
    """Returns `wave` (at least frames + the longest delay,) as it reaches each channel, (frames, channels)."""
    arrived = [size * wave[delay.max() - late :][:frames] for size, late in zip(pattern, delay, strict=True)]
    return np.stack(arrived, axis=1)
