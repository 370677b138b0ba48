"""Damages the input of a decoder as an array in use is damaged: channels are lost, noise is added, days pass.

A signal goes in, and the models' input on such a day comes out. LFP is damaged as standardized channels, before lost
channels are filled in and the common average is subtracted, because that is where an array is damaged. A lost unit is
masked to 0, the mean of its z-scored counts. Days are a model: LFP channels drift in gain while their statistics stay
frozen, and recorded units turn over at a published pace, where a new unit fires without relation to what the old one
did. Draws depend on their number alone, and a larger level contains the smaller ones.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from edgedistill.frontend import SpatialModel, Standardization

Bins = npt.NDArray[np.float32]
Mask = npt.NDArray[np.bool_]
Indices = npt.NDArray[np.intp]

# Share of units still recorded after so many days: Vaidya 2014 (PMC4482221). Dickey 2009 found fewer: 39 % after 15.
SURVIVAL = {0: 1.0, 15: 0.67, 47: 0.31, 106: 0.21, 270: 0.08}
GAIN_DRIFT = 0.1  # standard deviation of the log gain after 15 days, growing as the root of time: an assumption
GOLDEN = 0.618034  # multiples of it, modulo 1, lie evenly between 0 and 1 however many there are


class Signal(Protocol):
    """The input of a model over T bins, which can be damaged. Every method returns the models' input (T, I)."""

    @property
    def shape(self) -> tuple[int, ...]:
        """The bins and the numbers in a bin, (T, I)."""

    @property
    def channels(self) -> int:
        """The channels or units, which can be lost. A channel of an array has several numbers in a bin."""

    def find_live(self) -> Indices:
        """Returns the channels that carry something, so that they can be lost."""

    def intact(self) -> Bins:
        """Returns the input without any damage."""

    def without(self, lost: Indices) -> Bins:
        """Returns the input where the `lost` channels are lost in every bin."""

    def with_noise(self, noise: Bins) -> Bins:
        """Returns the input with `noise` (T, I), in standard deviations of each number of the models' input."""

    def after_days(self, days: float, random: np.random.Generator) -> Bins:
        """Returns the input as it might be so many days later, in the statistics of day 0."""


@dataclass(frozen=True, eq=False)
class LfpSignal:
    """Holds the standardized features of an array's channels, and how they become the models' input."""

    present: Bins  # (T, I), 0 where a channel is not there
    there: Mask  # (T, C)
    standardization: Standardization

    @property
    def spatial(self) -> SpatialModel:
        """The model of the array, which fills in lost channels."""
        return self.standardization.spatial

    @property
    def shape(self) -> tuple[int, ...]:
        """The bins and the numbers in a bin, (T, I)."""
        return self.present.shape

    @property
    def channels(self) -> int:
        """The channels, C."""
        return int(self.there.shape[1])

    def find_live(self) -> Indices:
        """Returns the channels that the array's model knows. The others are 0 in any case."""
        return np.flatnonzero(self.spatial.known)

    def intact(self) -> Bins:
        """Returns the models' input (T, I)."""
        return self.spatial.complete(self.present, self.there)

    def without(self, lost: Indices) -> Bins:
        """Returns the models' input (T, I) where the `lost` channels are filled in from the others."""
        there = self.there.copy()
        there[:, lost] = False
        return self.spatial.complete(self.present, there)

    def with_noise(self, noise: Bins) -> Bins:
        """Returns the models' input (T, I) with `noise` (T, I), in standard deviations of that input."""
        gain = self.spatial.gain
        unit = np.divide(1, gain, out=np.zeros_like(gain), where=gain > 0)
        return self.spatial.complete(np.asarray(self.present + noise * unit, np.float32), self.there)

    def after_days(self, days: float, random: np.random.Generator) -> Bins:
        """Returns the models' input (T, I) with channels whose gains have drifted.

        A gain multiplies the slow LFP. To the log power of a band it adds twice its logarithm.
        """
        log_gain = GAIN_DRIFT * np.sqrt(days / 15) * random.standard_normal(self.channels)
        slow, power = np.split(self.present, [self.channels], axis=1)
        more = self.standardization.loudness * np.tile(log_gain, self.spatial.features - 1)
        drifted = np.concatenate([slow * np.exp(log_gain), power + more], axis=1)
        return self.spatial.complete(np.asarray(drifted, np.float32), self.there)


@dataclass(frozen=True, eq=False)
class SpikeSignal:
    """Holds the z-scored spike counts (T, U) of the units of an array, which are the models' input themselves."""

    bins: Bins

    @property
    def shape(self) -> tuple[int, ...]:
        """The bins and the units, (T, U)."""
        return self.bins.shape

    @property
    def channels(self) -> int:
        """The units, U."""
        return int(self.bins.shape[1])

    def find_live(self) -> Indices:
        """Returns all units."""
        return np.arange(self.channels)

    def intact(self) -> Bins:
        """Returns the counts (T, U)."""
        return self.bins

    def without(self, lost: Indices) -> Bins:
        """Returns the counts (T, U) where the `lost` units are 0."""
        bins = self.bins.copy()
        bins[:, lost] = 0.0
        return bins

    def with_noise(self, noise: Bins) -> Bins:
        """Returns the counts (T, U) with `noise` (T, U), in standard deviations of each unit."""
        return np.asarray(self.bins + noise * self.bins.std(axis=0), np.float32)

    def after_days(self, days: float, random: np.random.Generator) -> Bins:
        """Returns the counts (T, U) where some units are others, as busy as some unit was, at other moments."""
        length, units = self.shape
        survives = random.uniform(size=units) <= np.interp(days, list(SURVIVAL), list(SURVIVAL.values()))
        others = random.permutation(np.arange(units))
        shifts = random.integers(length // 4, 3 * length // 4, size=units)
        bins = self.bins.copy()
        for unit in np.flatnonzero(~survives):
            bins[:, unit] = np.roll(self.bins[:, others[unit]], shifts[unit])
        return bins


def draw_channels(signal: Signal, share: float, draw: int) -> Indices:
    """Draws a `share` of the live channels at random."""
    live = signal.find_live()
    return np.asarray(np.random.default_rng([1, draw]).permutation(live)[: round(share * len(live))])


def draw_bank(signal: Signal, share: float, draw: int) -> Indices:
    """Returns a `share` of all channels that lie side by side, as on one connector. Draws spread over the array."""
    channels = signal.channels
    size = round(share * channels)
    start = int((draw * GOLDEN) % 1 * (channels - size + 1))
    return np.arange(start, start + size)


def lose_channels(signal: Signal, share: float, draw: int) -> Bins:
    """Returns the input with a `share` of the live channels lost at random."""
    return signal.without(draw_channels(signal, share, draw))


def lose_bank(signal: Signal, share: float, draw: int) -> Bins:
    """Returns the input with a bank of channels lost that is a `share` of the array."""
    return signal.without(draw_bank(signal, share, draw))


def add_noise(signal: Signal, size: float, draw: int) -> Bins:
    """Returns the input with white noise of `size` standard deviations."""
    noise: npt.NDArray[Any] = np.random.default_rng([2, draw]).standard_normal(signal.shape, np.float32)
    return signal.with_noise(np.asarray(np.float32(size) * noise, np.float32))


def pass_days(signal: Signal, days: float, draw: int) -> Bins:
    """Returns the input as it might be so many days later."""
    return signal.after_days(days, np.random.default_rng([3, draw]))
