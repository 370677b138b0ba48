"""Measures how much of R² is left when channels or banks die, noise is added and days pass.

Decoders with their signals and the true kinematics go in, curves come out. The damage itself is that of
`measure.damage`. Decoders of one signal decode the very same damaged input, and every level but 0 is drawn several
times.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from edgedistill.measure.damage import Bins, Signal, add_noise, lose_bank, lose_channels, pass_days
from edgedistill.measure.score import r2_per_output

LOST = (0.0, 0.05, 0.1, 0.2, 0.25, 0.3, 0.4, 0.5)  # share of the channels
BANK, CONNECTORS = 0.25, (16, 32)  # share of the array; channels on one connector
NOISE = (0.0, 0.1, 0.25, 0.5, 1.0)  # in standard deviations of each number of the input
DAYS = (0, 1, 3, 7, 15, 30, 47, 106)
DRAWS = 5

LOST_CHANNELS, LOST_BANK, ADDED_NOISE, DRIFT = "lost channels", "lost bank", "added noise", "drift, simulated"
NO_LIMITS: Mapping[float, float] = MappingProxyType({})
# Least share of the intact R² that the LFP student must keep, by level.
LIMITS: Mapping[str, Mapping[float, float]] = {
    LOST_CHANNELS: {0.05: 0.97, 0.25: 0.9, 0.5: 0.75},
    LOST_BANK: {BANK: 0.85},
    ADDED_NOISE: {0.5: 0.85},
}


class Engine(Protocol):
    """Anything that decodes bin by bin."""

    def reset(self) -> None:
        """Starts a fresh stream."""

    def step(self, bin: npt.NDArray[np.floating[Any]]) -> npt.NDArray[np.float32]:
        """Returns the kinematics (K,) of one bin (I,) of the models' input."""


@dataclass(frozen=True, eq=False)
class Subject:
    """A decoder and the signal that it decodes."""

    engine: Engine
    signal: Signal


@dataclass(frozen=True, eq=False)
class Truth:
    """What was to be decoded. Bins before `score_from` are decoded but not scored."""

    kinematics: npt.NDArray[Any]  # (T, K), NaN where unknown
    score_from: int = 0


@dataclass(frozen=True)
class Harm:
    """One kind of damage at several levels, of which 0 is none."""

    kind: str
    unit: str
    levels: tuple[float, ...]
    damage: Callable[[Signal, float, int], Bins]  # of a signal, by level and draw


@dataclass(frozen=True)
class Verdict:
    """Compares the share of the intact R² that is kept at one level with its limit."""

    level: float
    kept_share: float | None
    limit: float

    @property
    def ok(self) -> bool | None:
        """Whether the limit is met, or None where nothing was to keep."""
        return None if self.kept_share is None else self.kept_share >= self.limit


@dataclass(frozen=True)
class Curve:
    """R² of each subject at each level of one kind of damage: the mean over the draws and its extremes."""

    kind: str
    unit: str
    levels: tuple[float, ...]
    r2: dict[str, tuple[tuple[float, float, float], ...]]  # subject -> (mean, lowest, highest) by level
    draws: int  # of each level but 0
    judged: str | None = None  # the subject that the limits are set on

    def kept_share(self, subject: str) -> tuple[float | None, ...]:
        """Returns R² at each level over that at level 0, or None at all levels where that is not above 0."""
        means = [mean for mean, _, _ in self.r2[subject]]
        return tuple(mean / means[0] if means[0] > 0 else None for mean in means)

    def judge(self) -> tuple[Verdict, ...]:
        """Returns a verdict for each level that has a limit."""
        if self.judged is None:
            return ()
        kept, limits = self.kept_share(self.judged), LIMITS.get(self.kind, NO_LIMITS)
        return tuple(
            Verdict(level, share, limits[level])
            for level, share in zip(self.levels, kept, strict=True)
            if level in limits
        )

    def to_json(self) -> dict[str, object]:
        """Returns the curve as `bench --json` has it."""
        rows = {name: [dict(zip(("mean", "min", "max"), r, strict=True)) for r in r2] for name, r2 in self.r2.items()}
        return {
            "kind": self.kind,
            "unit": self.unit,
            "levels": list(self.levels),
            "r2": rows,
            "kept_share": {name: list(self.kept_share(name)) for name in self.r2},
            "limits": [
                {"subject": self.judged, "level": v.level, "kept_share": v.kept_share, "limit": v.limit, "ok": v.ok}
                for v in self.judge()
            ],
            "draws": self.draws,
        }


def list_harms(channels: int) -> tuple[Harm, ...]:
    """Returns every kind of damage that a bench measures, for an array of so many channels."""
    banks = (0.0, *sorted({BANK, *(size / channels for size in CONNECTORS if 2 * size <= channels)}))
    share = "share of the channels"
    return (
        Harm(LOST_CHANNELS, share, LOST, lose_channels),
        Harm(LOST_BANK, f"{share}, side by side", banks, lose_bank),
        Harm(ADDED_NOISE, "standard deviations", NOISE, add_noise),
        Harm(DRIFT, "days", tuple(map(float, DAYS)), pass_days),
    )


def measure_curves(
    subjects: Mapping[str, Subject],
    truth: Truth,
    harms: Sequence[Harm],
    judged: str | None = None,
    draws: int | None = None,
) -> tuple[Curve, ...]:
    """Measures the curve of every harm. The limits are set on the subject `judged`."""
    intact = {name: [stream_r2(subject.engine, subject.signal.intact(), truth)] for name, subject in subjects.items()}
    drawn = DRAWS if draws is None else draws
    curves = []
    for harm in harms:
        r2 = [measure_level(harm, level, subjects, truth, drawn) if level else intact for level in harm.levels]
        rows = {name: tuple(_summarize(level[name]) for level in r2) for name in subjects}
        curves.append(Curve(harm.kind, harm.unit, harm.levels, rows, drawn, judged))
    return tuple(curves)


def _summarize(r2: Sequence[float]) -> tuple[float, float, float]:
    return float(np.mean(r2)), min(r2), max(r2)


def measure_level(
    harm: Harm, level: float, subjects: Mapping[str, Subject], truth: Truth, draws: int
) -> dict[str, list[float]]:
    """Returns the R² of each subject for every draw of one level. Each signal is damaged once for all its subjects."""
    found: dict[str, list[float]] = {name: [] for name in subjects}
    signals = {id(subject.signal): subject.signal for subject in subjects.values()}
    for draw in range(draws):
        for key, signal in signals.items():
            damaged = harm.damage(signal, level, draw)
            for name, subject in subjects.items():
                if id(subject.signal) == key:
                    found[name].append(stream_r2(subject.engine, damaged, truth))
    return found


def stream_r2(engine: Engine, bins: Bins, truth: Truth) -> float:
    """Streams bins (T, I) from a fresh state, and returns the mean R² over the outputs that vary."""
    engine.reset()
    guess = np.stack([engine.step(bin) for bin in bins])[truth.score_from :]
    kinematics = truth.kinematics[truth.score_from :]
    known = np.isfinite(kinematics).all(axis=1)
    found = r2_per_output(guess[known].astype(np.float64), kinematics[known].astype(np.float64))
    return float(np.mean([r2 for r2 in found if r2 is not None]))
