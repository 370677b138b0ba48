"""Scores decoded kinematics: decoded and true values go in, and R² comes out, or the reason why there is none."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

BINS_PER_S = 100
MIN_SCORED_S = 10
STILL = 1e-14  # share of an output's mean square; below it, variation is the rounding of float32


@dataclass(frozen=True)
class Fit:
    """The mean R² over the outputs, and the R² of each. Where `r2` is None, `source` says why."""

    r2: float | None
    per_output: tuple[float | None, ...]
    source: str


def score_kinematics(guess: npt.NDArray[Any], truth: npt.NDArray[Any], source: str) -> Fit:
    """Returns R² of decoded against true values, both (T, K). Bins of unknown truth (NaN) do not count."""
    known = np.isfinite(truth).all(axis=1) if len(truth) else np.zeros(0, np.bool_)
    if known.sum() < MIN_SCORED_S * BINS_PER_S:
        seconds = f"{known.sum() / BINS_PER_S:g} s"
        why = f"not measured: {seconds} of {source} count, at least {MIN_SCORED_S} s are needed"
        return Fit(None, (), why)
    per_output = r2_per_output(guess[known].astype(np.float64), truth[known].astype(np.float64))
    varying = [r2 for r2 in per_output if r2 is not None]
    if len(varying) < len(per_output):
        return Fit(None, per_output, f"not measured: an output does not vary in {source}")
    return Fit(float(np.mean(varying)), per_output, source)


def r2_difference(found: Fit, expected: Fit) -> float | None:
    """R² of `found` minus that of `expected`, a mean over the outputs in which both have one; None where none has."""
    pairs = zip(found.per_output, expected.per_output, strict=False)  # a fit that was not measured has no outputs
    apart = [ours - theirs for ours, theirs in pairs if ours is not None and theirs is not None]
    return float(np.mean(apart)) if apart else None


def r2_per_output(guess: npt.NDArray[np.float64], truth: npt.NDArray[np.float64]) -> tuple[float | None, ...]:
    """Returns the coefficient of determination of each column of (T, K), or None where `truth` is constant."""
    error = ((truth - guess) ** 2).sum(axis=0)
    spread = ((truth - truth.mean(axis=0)) ** 2).sum(axis=0)
    moves = spread > STILL * (truth**2).sum(axis=0)
    return tuple(float(1 - e / s) if m else None for e, s, m in zip(error, spread, moves, strict=True))
