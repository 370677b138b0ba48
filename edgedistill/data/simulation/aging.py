"""Says what an array of electrodes has become by one day: gains, leaks, noise floors and dead channels.

The input is a `SimulationConfig` and a number of days since the first recording. The output is an `ArrayState`, which
`simulation.field` applies to the LFP. A day follows from the seed alone, so it does not matter which days are simulated
besides it. docs/accuracy.md gives the source of each constant and says which are assumptions. They were fixed before
any decoder was run on an aged array.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy.signal import bilinear, lfilter, lfilter_zi

from edgedistill.data.session import copy_columns, split_columns
from edgedistill.data.simulation.config import Array, SimulationConfig
from edgedistill.scratch import allocate, split_rows

DAYS_A_MONTH = 365.25 / 12
LIFE_DAYS = 622.0  # mean life of an electrode; lives are exponential
GAIN_SPREAD = 0.1  # deviation of log gain over the channels on day 0
GAIN_LOSS = 0.024  # log gain lost in a month
GAIN_STEP = 0.055  # deviation of what a day adds to log gain
GAIN_MEMORY_DAYS = 30.0  # after so long, a step is down to 1/e
NOISE_UV = 9.0  # noise floor on day 0: a tenth of the shared background
NOISY_UV = 60.0  # the same of a noisy channel
NOISE_RISE = (1.5, 3.0)  # a channel's last noise floor against its first, log-uniform
NOISE_RISE_DAYS = 60.0  # time constant of that rise
LEAK_LOSS = 0.024  # log amplitude that low frequencies lose in a month, mean over channels; exponential
LEAK_HZ = 10.0  # where an electrode's impedance turns from resistive to capacitive


@dataclass(frozen=True)
class ArrayState:
    """Holds what an array is on one day, one value a channel. `noisy` never holds a dead channel."""

    gain: Array  # (channels,) around 1 on day 0
    low_gain: Array  # (channels,) amplitude far below LEAK_HZ against that far above, 1 or less
    noise_uv: Array  # (channels,) deviation of the white noise floor
    dead: npt.NDArray[np.bool_]  # (channels,)
    noisy: npt.NDArray[np.bool_]  # (channels,)


def array_on_day(config: SimulationConfig, day: int) -> ArrayState:
    """Returns the array `day` days after the first recording.

    `config.aging` multiplies every rate of wear. With 0 the array stays as it was on day 0.
    """
    channels = config.channels
    rng = np.random.default_rng([config.seed, 3])  # what is settled on day 0
    few = max(1, channels // 20)
    noisy, dead = rng.choice(channels, 2 * few, replace=False).reshape(2, few)
    first_gain = rng.normal(0, GAIN_SPREAD, channels)
    life_days = rng.exponential(LIFE_DAYS, channels)
    life_days[dead] = 0.0
    least, most = np.log(NOISE_RISE)
    rise = np.exp(rng.uniform(least, most, channels))
    leak = rng.exponential(LEAK_LOSS, channels)
    worn_days = config.aging * day
    worn_months = worn_days / DAYS_A_MONTH
    is_dead = life_days <= worn_days
    is_noisy = np.isin(np.arange(channels), noisy)
    floor_uv = np.where(is_noisy, NOISY_UV, NOISE_UV)
    return ArrayState(
        gain=np.exp(first_gain + sum_gain_steps(config, day) - GAIN_LOSS * worn_months),
        low_gain=np.exp(-leak * worn_months),
        noise_uv=floor_uv * (1 + (rise - 1) * (1 - np.exp(-worn_days / NOISE_RISE_DAYS))),
        dead=is_dead,
        noisy=is_noisy & ~is_dead,
    )


def sum_gain_steps(config: SimulationConfig, day: int) -> Array:
    """Returns how far log gain (channels,) has wandered by `day`: a random walk that returns to 0."""
    steps = np.random.default_rng([config.seed, 4]).normal(0, config.aging * GAIN_STEP, (day, config.channels))
    weights = np.exp(-np.arange(day)[::-1] / GAIN_MEMORY_DAYS)
    return np.asarray(weights @ steps)


def attenuate_low_frequencies(lfp: npt.NDArray[np.float32], low_gain: Array, rate_hz: float) -> npt.NDArray[np.float32]:
    """Returns the LFP (frames, channels) as leaking electrodes pass it on: each channel through a causal shelf.

    The tip of an electrode is a resistance in parallel with a capacitance, and the leak shunts the amplifier. Together
    they divide the voltage. The gain is `low_gain` (channels,) far below LEAK_HZ and 1 far above it. The filter starts
    settled at the first frame.
    """
    passed: npt.NDArray[np.float32] = allocate(lfp.shape, np.float32)
    corner = 2 * np.pi * LEAK_HZ
    for columns in split_columns(lfp):
        some = copy_columns(lfp, columns)
        for channel, row in enumerate(some, columns.start):
            if low_gain[channel] < 1:
                b, a = bilinear([1, corner], [1, corner / low_gain[channel]], fs=rate_hz)
                row[:] = lfilter(b, a, row, zi=lfilter_zi(b, a) * row[0])[0]
        for frames in split_rows(slice(0, len(lfp)), lfp.shape[1]):
            passed[frames, columns] = some[:, frames].T
    return passed
