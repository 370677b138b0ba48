"""Measures how much of R² is left when channels die, noise is added and days pass.

A decoder and its holdout go in, curves come out. The damage is done to z-scored bins, after the front end. A lost
channel is masked to 0, as the front end masks a bad one, for spikes and LFP alike. Days are a model: LFP channels drift
in gain while their statistics stay frozen, and recorded units turn over at a published pace, where a new unit fires
without relation to what the old one did. The same draws serve all subjects, a larger level contains the smaller ones,
and every level is drawn several times.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from edgedistill.measure.score import r2_per_output

Bins = npt.NDArray[np.float32]

LOST = (0.0, 0.05, 0.1, 0.2, 0.3, 0.4, 0.5)  # share of the channels
NOISE = (0.0, 0.1, 0.25, 0.5, 1.0)  # in standard deviations of the channel
DAYS = (0, 1, 3, 7, 15, 30, 47, 106)
# Share of units still recorded after so many days: Vaidya 2014 (PMC4482221). Dickey 2009 found fewer: 39 % after 15.
SURVIVAL = {0: 1.0, 15: 0.67, 47: 0.31, 106: 0.21, 270: 0.08}
GAIN_DRIFT = 0.1  # standard deviation of the log gain after 15 days, growing as the root of time: an assumption
DRAWS = 3


class Engine(Protocol):
    """Anything that decodes bin by bin."""

    def reset(self) -> None:
        """Starts a fresh stream."""

    def step(self, bin: npt.NDArray[np.floating[Any]]) -> npt.NDArray[np.float32]:
        """Returns the kinematics (K,) of one z-scored bin (C,)."""


@dataclass(frozen=True, eq=False)
class Stream:
    """A decoder and the holdout it is scored on. Bins before `score_from` are decoded but not scored."""

    engine: Engine
    bins: Bins  # (T, C) z-scored
    truth: npt.NDArray[Any]  # (T, K)
    score_from: int
    spikes: bool = False


@dataclass(frozen=True)
class Curve:
    """R² of each subject at each level of one kind of damage: the mean over the draws and its extremes."""

    kind: str
    unit: str
    levels: tuple[float, ...]
    r2: dict[str, tuple[tuple[float, float, float], ...]]  # subject -> (mean, lowest, highest) by level
    draws: int  # of each level but 0

    def to_json(self) -> dict[str, object]:
        """Returns the curve as `bench --json` has it."""
        rows = {name: [dict(zip(("mean", "min", "max"), r, strict=True)) for r in r2] for name, r2 in self.r2.items()}
        return {"kind": self.kind, "unit": self.unit, "levels": list(self.levels), "r2": rows, "draws": self.draws}


Spoil = Callable[[Stream, float, int], Bins]


def measure_curves(streams: Mapping[str, Stream]) -> tuple[Curve, ...]:
    """Measures the curves of lost channels, added noise and days of drift."""
    return (
        _measure_curve("lost channels", "share of the channels", LOST, lose_channels, streams),
        _measure_curve("added noise", "standard deviations", NOISE, add_noise, streams),
        _measure_curve("drift, simulated", "days", DAYS, pass_days, streams),
    )


def _measure_curve(
    kind: str, unit: str, levels: tuple[float, ...], spoil: Spoil, streams: Mapping[str, Stream]
) -> Curve:
    found = {}
    for name, stream in streams.items():
        rows = []
        for level in levels:
            draws = range(DRAWS if level else 1)
            r2 = [stream_r2(stream, spoil(stream, level, draw)) for draw in draws]
            rows.append((float(np.mean(r2)), min(r2), max(r2)))
        found[name] = tuple(rows)
    return Curve(kind, unit, tuple(map(float, levels)), found, DRAWS)


def stream_r2(stream: Stream, bins: Bins) -> float:
    """Streams bins (T, C) from a fresh state and returns the mean R² over the outputs that vary."""
    stream.engine.reset()
    guess = np.stack([stream.engine.step(bin) for bin in bins])[stream.score_from :]
    truth = stream.truth[stream.score_from :]
    known = np.isfinite(truth).all(axis=1)
    found = r2_per_output(guess[known].astype(np.float64), truth[known].astype(np.float64))
    return float(np.mean([r2 for r2 in found if r2 is not None]))


# ---------------------------------------------------------------- what is done to the bins


def lose_channels(stream: Stream, share: float, draw: int) -> Bins:
    """Returns the bins with a `share` of the channels masked throughout."""
    channels = stream.bins.shape[1]
    lost = np.random.default_rng([1, draw]).permutation(channels)[: round(share * channels)]
    spoiled = stream.bins.copy()
    spoiled[:, lost] = 0.0
    return spoiled


def add_noise(stream: Stream, size: float, draw: int) -> Bins:
    """Returns the bins with white noise of `size` standard deviations. Masked bins of the LFP stay 0."""
    noise = np.random.default_rng([2, draw]).standard_normal(stream.bins.shape, np.float32)
    noisy = stream.bins + np.float32(size) * noise * stream.bins.std(axis=0)
    return np.asarray(np.where(stream.bins == 0, 0.0, noisy) if not stream.spikes else noisy, np.float32)


def pass_days(stream: Stream, days: float, draw: int) -> Bins:
    """Returns the bins as they might be so many days later, in the statistics of day 0."""
    rng, channels = np.random.default_rng([3, draw]), stream.bins.shape[1]
    if not stream.spikes:
        gain = np.exp(GAIN_DRIFT * np.sqrt(days / 15) * rng.standard_normal(channels))
        return np.asarray(stream.bins * gain, np.float32)
    survives = rng.uniform(size=channels) <= np.interp(days, list(SURVIVAL), list(SURVIVAL.values()))
    others = rng.permutation(np.arange(channels))
    shifts = rng.integers(len(stream.bins) // 4, 3 * len(stream.bins) // 4, size=(channels,))
    spoiled = stream.bins.copy()
    for unit in np.flatnonzero(~survives):  # a new neuron is as busy as some unit, at other moments
        spoiled[:, unit] = np.roll(stream.bins[:, others[unit]], shifts[unit])
    return spoiled
