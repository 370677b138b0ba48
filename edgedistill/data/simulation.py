"""Simulated sessions: a moving cursor, a population that follows it, and the field that population makes.

Comes in: a `SimulationConfig`. Goes out: one `SimulatedSession` a day (spikes, LFP, behavior), which
`data/simulated_nwb.py` writes as NWB. All sessions of one seed share the array, the population and the
latent dynamics; from day to day the recorded units change, tuning and channel gains drift.

Why it exists: the published method must be reproducible on a machine with no data. What the signals
must satisfy, and the papers behind each figure, stand beside the constants; `benchmarks/accuracy/simulator.py`
measures them on the result. The constants were fixed before any model was tuned on them.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy.signal import butter, fftconvolve, sosfilt

from edgedistill.errors import ConfigError

Array = npt.NDArray[np.float64]

LATENT_HZ = 100  # rates change on this clock; spikes are spread within a step
LAMBDA_MM, VELOCITY_MM_S = 0.2, 200.0  # unitary field: reach and conduction speed (Telenczuk 2020)
DELAY_S = 0.0104
SIGMA_S = {"inhibitory": 0.0021, "excitatory": 0.00315}
AMPLITUDE_UV = {"inhibitory": 3.0, "excitatory": 0.48}
FIELD_UV = 30.0  # size of the informative field; one simulated unit stands for many real ones
BACKGROUND_RATIO = 3.0  # shared 1/f background against the informative field
PRIVATE_RATIO = 0.3  # each channel's own noise against the informative field: a tenth of the background
BETA_RATIO, GAMMA_RATIO = 2.0, 0.3  # rhythm at rest and broadband, against the informative field
CHI = 2.0  # power of the background falls as f^-CHI
LEAD_S = 0.1  # motor cortex leads movement


@dataclass(frozen=True)
class SimulationConfig:
    """`minutes` a session, `channels` on a 0.4 mm grid, `units` of `population`; LFP at `rate_hz`."""

    sessions: int = 5
    minutes: float = 10.0
    seed: int = 0
    channels: int = 32
    units: int = 64
    population: int = 2000
    rate_hz: int = 1000
    line_hz: float = 60.0

    def __post_init__(self) -> None:
        if self.rate_hz < 500 or self.rate_hz % LATENT_HZ:
            raise ConfigError(
                "cannot simulate at this LFP rate",
                got=f"{self.rate_hz} Hz",
                expected=f"a multiple of {LATENT_HZ} Hz, at least 500 Hz",
            )
        if self.population < 4 * self.units:
            raise ConfigError(
                "the population is too small to record another subset of units every day",
                got=f"{self.units} units of {self.population}",
                expected=f"a population of at least {4 * self.units}",
            )
        if self.sessions < 1 or not 0 < self.minutes < 1e4 or self.channels < 4 or not 1 <= self.units <= 500:
            raise ConfigError(
                "cannot simulate this",
                got=f"{self.sessions} x {self.minutes} min, {self.channels} channels, {self.units} units",
                expected="at least 1 session of more than 0 min, 4 channels and 1 to 500 units",
            )


@dataclass(frozen=True)
class SimulatedSession:
    """One day. Times in seconds from the start of the file; LFP in microvolts."""

    index: int
    spike_times_s: tuple[Array, ...]  # one sorted array a recorded unit
    unit_ids: npt.NDArray[np.int64]  # (units,) which members of the population
    lfp_uv: npt.NDArray[np.float32]  # (frames, channels)
    position_cm: Array  # (steps, 2) at LATENT_HZ
    velocity_cm_s: Array  # (steps, 2) at LATENT_HZ
    electrodes_mm: Array  # (channels, 2)
    dead: tuple[int, ...]
    noisy: tuple[int, ...]


@dataclass(frozen=True)
class Population:
    """What stays the same from day to day."""

    electrodes_mm: Array  # (channels, 2)
    positions_mm: Array  # (population, 3)
    inhibitory: npt.NDArray[np.bool_]  # (population,)
    log_rate: Array  # (population,)
    tuning: Array  # (population, latents)
    background: Array  # (sources, channels) spatial patterns of the shared 1/f drive
    beta: Array  # (2, channels)


LATENTS = 13
# a unit's log rate per unit latent: most of what a unit does has nothing to do with the hand
TUNING_SCALE = np.array([0.22, 0.22, 0.11, 0.09, 0.09, 0.09, 0.09, 0.25, 0.25, 0.25, 0.25, 0.25, 0.25])
TUNING_MEAN = np.zeros(LATENTS)
TUNING_MEAN[2] = 0.1  # movement raises the rate of motor cortex as a whole


def simulate_sessions(config: SimulationConfig) -> Iterator[SimulatedSession]:
    """Yields `config.sessions` days, oldest first; the same seed gives the same numbers."""
    population = draw_population(config)
    tuning = population.tuning
    for day in range(config.sessions):
        rng = np.random.default_rng([config.seed, 1, day])
        # a unit's tuning wanders by about a tenth a day around the population's dynamics
        drift = np.random.default_rng([config.seed, 2, day]).normal(size=tuning.shape) * TUNING_SCALE
        tuning = TUNING_MEAN + np.sqrt(1 - 0.1**2) * (tuning - TUNING_MEAN) + 0.1 * drift
        yield simulate_session(config, population, tuning, day, rng)


def draw_population(config: SimulationConfig) -> Population:
    """The array (Utah pitch, 0.4 mm) and a population spread over and around it."""
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
        background=smooth_patterns(rng, electrodes, sources=8),
        beta=smooth_patterns(rng, electrodes, sources=2),
    )


def smooth_patterns(rng: np.random.Generator, electrodes: Array, sources: int) -> Array:
    """(sources, channels): correlated sources reach millimetres, so neighbours nearly agree."""
    centres = rng.uniform(electrodes.min(0) - 1, electrodes.max(0) + 1, (sources, 2))
    distance = np.linalg.norm(electrodes[None] - centres[:, None], axis=-1)
    return np.asarray(np.exp(-distance / 2.0) * (1 + 0.15 * rng.normal(size=distance.shape)))


def simulate_session(
    config: SimulationConfig, population: Population, tuning: Array, day: int, rng: np.random.Generator
) -> SimulatedSession:
    """One day of `config.minutes`."""
    steps = round(config.minutes * 60 * LATENT_HZ)
    position, velocity, goal = simulate_reaches(steps + 50, rng)
    latents = latents_from_behavior(position, velocity, goal, rng)[:steps]
    position, velocity = position[:steps], velocity[:steps]
    spikes = draw_spikes(population, tuning, latents, rng)
    lfp = lfp_from_population(config, population, spikes, velocity, rng)
    lfp, dead, noisy = spoil_channels(config, lfp, velocity, rng)
    recorded = draw_recorded_units(config, population, rng)
    times = tuple(np.sort(spikes[u]) for u in recorded)
    return SimulatedSession(day, times, recorded, lfp, position, velocity, population.electrodes_mm, dead, noisy)


def simulate_reaches(steps: int, rng: np.random.Generator) -> tuple[Array, Array, Array]:
    """Self-paced reaches to random targets in a 20 cm square: position, velocity, vector to the goal (cm)."""
    position, goal = np.zeros((steps, 2)), np.zeros((steps, 2))
    here, t = np.zeros(2), 0
    while t < steps:
        target = rng.uniform(-10, 10, 2)
        reach = target - here
        distance = float(np.linalg.norm(reach))
        moving = max(25, int(LATENT_HZ * (0.3 + 0.035 * distance) * rng.lognormal(0, 0.15)))
        holding = int(LATENT_HZ * (0.1 + rng.exponential(0.25)))
        s = np.arange(1, moving + 1) / moving
        along = 10 * s**3 - 15 * s**4 + 6 * s**5  # minimum jerk
        bow = rng.normal(0, 0.08) * np.sin(np.pi * along)
        path = here + along[:, None] * reach + bow[:, None] * np.array([-reach[1], reach[0]])
        path = np.concatenate([path, np.repeat(target[None], holding, 0)])[: steps - t]
        position[t : t + len(path)] = path
        goal[t : t + len(path)] = target - path
        here, t = target, t + len(path)
    smooth = butter(2, 8, fs=LATENT_HZ, output="sos")
    position = position + sosfilt(smooth, rng.normal(0, 0.05, position.shape), axis=0)  # tremor
    return position, np.gradient(position, 1 / LATENT_HZ, axis=0), goal


def latents_from_behavior(position: Array, velocity: Array, goal: Array, rng: np.random.Generator) -> Array:
    """(steps, LATENTS) of about unit variance: velocity, speed, position, goal, three private rotations."""
    lead = round(LEAD_S * LATENT_HZ)
    ahead = np.roll(velocity, -lead, axis=0)
    speed = np.linalg.norm(ahead, axis=1)
    behavior = np.column_stack(
        [ahead / 12.0, (speed - speed.mean()) / 12.0, np.roll(position, -lead, axis=0) / 6.0, goal / 6.0]
    )
    return np.concatenate([behavior, private_rotations(len(position), rng)], axis=1)


def private_rotations(steps: int, rng: np.random.Generator) -> Array:
    """(steps, 6): three noisy planar rotations at 0.5, 1.2 and 2.5 Hz, with nothing to do with the hand."""
    columns = []
    for hz, tau_s in ((0.5, 0.6), (1.2, 0.4), (2.5, 0.25)):
        decay = np.exp(-1 / (tau_s * LATENT_HZ) + 2j * np.pi * hz / LATENT_HZ)
        noise = rng.normal(size=steps) + 1j * rng.normal(size=steps)
        path = np.empty(steps, np.complex128)
        state = 0j
        for i in range(steps):
            state = decay * state + noise[i]
            path[i] = state
        path *= np.sqrt(1 - abs(decay) ** 2)
        columns += [path.real, path.imag]
    return np.column_stack(columns)


def draw_spikes(population: Population, tuning: Array, latents: Array, rng: np.random.Generator) -> list[Array]:
    """Poisson spikes of every unit, in seconds, unsorted within a latent step."""
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
    """Another subset each day: near an electrode (0.15 mm), and rather the busy ones, as sorting finds them."""
    offset = population.positions_mm[:, None, :2] - population.electrodes_mm[None]
    nearest = np.linalg.norm(offset, axis=-1).min(1)
    chance = np.exp(-((nearest / 0.15) ** 2)) * np.exp(1.5 * population.log_rate)
    return np.sort(rng.choice(config.population, config.units, replace=False, p=chance / chance.sum()))


def lfp_from_population(
    config: SimulationConfig,
    population: Population,
    spikes: list[Array],
    velocity: Array,
    rng: np.random.Generator,
) -> npt.NDArray[np.float32]:
    """(frames, channels) in uV: informative field + shared 1/f + beta + high gamma + private noise."""
    frames = len(velocity) * config.rate_hz // LATENT_HZ
    speed = np.repeat(np.linalg.norm(velocity, axis=1), config.rate_hz // LATENT_HZ) / 12.0
    field, activity = unit_field(config, population, spikes, frames)
    drive = np.stack([coloured_noise(frames, config.rate_hz, rng) for _ in population.background])
    shared = drive.T @ population.background
    shared *= BACKGROUND_RATIO * FIELD_UV / shared.std()
    # beta marks that a movement is on, not where it goes: it shrinks with the speed that is to come
    coming = np.roll(speed, -round(LEAD_S * config.rate_hz))
    envelope = 1.2 / (1 + np.exp(2.5 * (sosfilt(butter(1, 2, fs=config.rate_hz, output="sos"), coming) - 0.8)))
    rhythm = band_noise(len(population.beta), frames, (15, 30), config.rate_hz, rng) * envelope
    beta = BETA_RATIO * FIELD_UV * rhythm.T @ population.beta
    # the unitary kernel is too smooth for high gamma: broadband that follows each site's own activity
    gamma = band_noise(config.channels, frames, (60, 200), config.rate_hz, rng).T * activity
    private = rng.normal(size=(frames, config.channels))
    total = field + shared + beta + GAMMA_RATIO * FIELD_UV * gamma + PRIVATE_RATIO * FIELD_UV * private
    return np.asarray(total, np.float32)


def unit_field(
    config: SimulationConfig, population: Population, spikes: list[Array], frames: int
) -> tuple[Array, Array]:
    """Sum of unitary fields (Telenczuk 2020), (frames, channels) in uV, and each site's relative activity."""
    rate = config.rate_hz
    offset = np.concatenate([population.electrodes_mm, np.zeros((config.channels, 1))], 1)[:, None]
    distance = np.linalg.norm(offset - population.positions_mm[None], axis=-1)  # (channels, population)
    field = np.zeros((config.channels, frames))
    activity = np.zeros((config.channels, frames))
    t = np.arange(-round(0.012 * rate), round(0.012 * rate) + 1) / rate
    for kind, members in (("inhibitory", population.inhibitory), ("excitatory", ~population.inhibitory)):
        kernel = np.exp(-(t**2) / (2 * SIGMA_S[kind] ** 2))
        units = np.flatnonzero(members)
        frame = [np.floor(spikes[u] * rate).astype(np.int64) for u in units]
        for c in range(config.channels):
            near = np.flatnonzero(distance[c, units] < 5 * LAMBDA_MM)  # beyond: under 1 % each
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


def coloured_noise(frames: int, rate_hz: int, rng: np.random.Generator) -> Array:
    """Unit-variance noise whose power falls as f^-CHI above 0.5 Hz and is flat below."""
    padded = 1 << (frames - 1).bit_length()
    spectrum = rng.normal(size=padded // 2 + 1) + 1j * rng.normal(size=padded // 2 + 1)
    hz = np.fft.rfftfreq(padded, 1 / rate_hz)
    spectrum *= np.maximum(hz, 0.5) ** (-CHI / 2)
    noise = np.fft.irfft(spectrum, padded)[:frames]
    return np.asarray(noise / noise.std())


def band_noise(rows: int, frames: int, band_hz: tuple[float, float], rate_hz: int, rng: np.random.Generator) -> Array:
    """(rows, frames) of unit variance within the band."""
    noise = sosfilt(butter(2, band_hz, "bandpass", fs=rate_hz, output="sos"), rng.normal(size=(rows, frames)))
    return np.asarray(noise / noise.std(axis=1, keepdims=True))


def spoil_channels(
    config: SimulationConfig,
    lfp: npt.NDArray[np.float32],
    velocity: Array,
    rng: np.random.Generator,
) -> tuple[npt.NDArray[np.float32], tuple[int, ...], tuple[int, ...]]:
    """What every real recording has: gain drift, line noise, movement artefacts, noisy and dead channels."""
    frames, channels = lfp.shape
    t = np.arange(frames) / config.rate_hz
    gain = rng.lognormal(0, 0.1, channels) + np.outer(t / 3600, rng.normal(0, 0.2, channels))
    lfp = lfp * gain.astype(np.float32)
    for harmonic, uv in ((1, 15.0), (2, 4.0), (3, 5.0)):
        wave = np.sin(2 * np.pi * harmonic * config.line_hz * t + rng.uniform(0, 2 * np.pi))
        lfp += np.outer(wave, uv * rng.lognormal(0, 0.3, channels)).astype(np.float32)
    for at in artefact_frames(config, velocity, rng):
        width = int(config.rate_hz * rng.uniform(0.05, 0.15))
        pulse = np.hanning(width)[: frames - at] * rng.uniform(200, 500) * rng.choice([-1, 1])
        lfp[at : at + width] += np.outer(pulse, rng.lognormal(0, 0.3, channels)).astype(np.float32)
    few = max(1, channels // 20)
    spoiled = rng.choice(channels, 2 * few, replace=False)
    noisy, dead = np.sort(spoiled[:few]), np.sort(spoiled[few:])
    lfp[:, noisy] += rng.normal(0, 2 * FIELD_UV, (frames, few)).astype(np.float32)
    lfp[:, dead] = 0.0
    return lfp, tuple(int(c) for c in dead), tuple(int(c) for c in noisy)


def artefact_frames(config: SimulationConfig, velocity: Array, rng: np.random.Generator) -> npt.NDArray[np.int64]:
    """About one movement artefact a minute, at moments of fast movement."""
    speed = np.linalg.norm(velocity, axis=1)
    fast = np.flatnonzero(speed > np.quantile(speed, 0.9))
    chosen = rng.choice(fast, max(1, round(config.minutes)))
    return np.sort(chosen * (config.rate_hz // LATENT_HZ))
