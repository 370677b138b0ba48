"""Judges engines of the near class, which fuse and reorder, by what they decode.

An engine whose state can be set goes in, and what differed from the oracle comes out. An engine belongs to the class
if none of its outputs is far from the oracle's when it is given the oracle's state before each step, and if its R² on
the holdout is that of the oracle when it runs freely. How many integers differ is measured and reported, but decides
nothing, because one integer that flips in an early layer moves those that follow it. The graphs of a bundle are judged
when the bundle is written, and a plan on the device that it was built on.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from edgedistill.numerics.oracle import Oracle
from edgedistill.numerics.state import State
from edgedistill.numerics.tensors import Int8Model

FARTHEST = 0.1  # standard deviations that an output may be off when each step starts from the oracle's state
R2_APART = 0.002  # difference of R² on the holdout that is allowed when engine and oracle run freely
ALLOWED = f"outputs off by at most {FARTHEST:g} standard deviations, R² by at most {R2_APART:g}"

STILL = 1e-14  # share of an output's mean square; a variance below it is only the rounding of float32
ROUNDINGS = 8  # roundings of a float32 output; no engine is held closer to another than these
EPSILON, SMALLEST = float(np.finfo(np.float32).eps), float(np.finfo(np.float32).tiny)


class Steppable(Protocol):
    """Describes an INT8 engine whose state can be set and read, whatever computes in it."""

    def step(self, bin: npt.NDArray[np.floating[Any]], /) -> npt.NDArray[np.float32]:
        """Returns the kinematics (K,) of one bin (C,)."""

    def import_state(self, state: State, /) -> None:
        """Continues from this state."""

    def export_state(self) -> dict[str, npt.NDArray[Any]]:
        """Returns the state, with the oracle's names."""


@dataclass(frozen=True)
class Nearness:
    """Holds what differed from the oracle over all steps."""

    integers_off: int  # integers that differ
    integers: int  # integers that were compared
    largest_integer: int  # the largest difference of an integer
    largest_output: float  # the largest difference of an output in standard deviations; NaN where it was not finite
    steps: int

    @property
    def share_off(self) -> float:
        """Returns the share of the integers that differ."""
        return self.integers_off / max(1, self.integers)

    def __str__(self) -> str:
        return (
            f"{self.integers_off} of {self.integers} integers differ ({self.share_off:.2%}),"
            f" by {self.largest_integer} at most; outputs by up to {self.largest_output:.2g} standard deviations"
        )


def nearness(
    model: Int8Model, engine: Steppable, state: State, bins: npt.NDArray[np.floating[Any]], spread: npt.NDArray[Any]
) -> Nearness:
    """Steps `engine` over bins (T, C), each from the oracle's state. `spread` (K,) comes from `output_spread`."""
    oracle = Oracle(model)
    oracle.import_state(state)
    differ, entries, largest, apart = 0, 0, 0, np.zeros(len(bins))
    for i, bin_ in enumerate(bins):
        before = oracle.export_state()
        engine.import_state(before)
        apart[i] = largest_deviation(engine.step(bin_)[None], oracle.step(bin_)[None], spread)
        slot, theirs = int(before["pos"][0]), engine.export_state()
        for name, ours in oracle.export_state().items():
            if name in ("pos", "live"):
                continue
            new = (
                (slice(None), slot) if name.startswith("ring") else slice(1)
            )  # the first row of lags is the bin itself
            off = np.abs(ours[new].astype(np.int64) - theirs[name][new])
            differ += int(np.count_nonzero(off))
            largest = max(largest, int(off.max(initial=0)))
            entries += off.size
    return Nearness(differ, entries, largest, float(np.max(apart, initial=0.0)), len(bins))


def largest_deviation(
    found: npt.NDArray[Any], expected: npt.NDArray[Any], spread: npt.NDArray[np.floating[Any]]
) -> float:
    """Returns the largest difference of outputs (T, K) in units of `spread` (K,); NaN where one is not finite."""
    with np.errstate(invalid="ignore", over="ignore"):
        apart = np.abs(found.astype(np.float64) - expected.astype(np.float64)) / spread
    return float(np.max(np.where(np.isfinite(apart), apart, np.nan), initial=0.0))


def output_spread(
    truth: npt.NDArray[Any], decoded: npt.NDArray[Any], limit: float = FARTHEST
) -> npt.NDArray[np.float64]:
    """Returns the standard deviation (K,) in which differences of each output are measured. It is never zero.

    It is the deviation of the true values (T, K), which are NaN where unknown, or of the decoded ones (T', K) where the
    truth stands still. It is large enough that `limit` times it holds a few roundings of a float32. An output that is
    constant, or small beside its own offset, is therefore not held closer than float32 can represent it.
    """
    moving = _deviation(truth)
    largest = np.max(np.abs(decoded.astype(np.float64)), axis=0, initial=0.0)
    rounding = ROUNDINGS * EPSILON * largest / limit
    spread = np.where(moving > 0, moving, _deviation(decoded))
    return np.asarray(np.maximum(np.maximum(spread, rounding), SMALLEST))


def why_not_near(largest_output: float, r2_difference: float | None, farthest: float = FARTHEST) -> str | None:
    """Returns why an engine decodes something else than it should; None where it belongs to the near class.

    `largest_output` and the bound `farthest` are in standard deviations. Where no R² could be measured, `r2_difference`
    is None and decides nothing.
    """
    if np.isnan(largest_output):
        return "it gave values that are not finite"
    if largest_output > farthest:
        return f"one of its outputs is off by {largest_output:.2g} standard deviations, at most {farthest:g} is allowed"
    if r2_difference is not None and not abs(r2_difference) <= R2_APART:
        return f"its R² on the holdout differs by {r2_difference:+.4f}, at most {R2_APART:g} is allowed"
    return None


def _deviation(values: npt.NDArray[Any]) -> npt.NDArray[np.float64]:
    """Returns the deviation (K,) over the rows that are known; 0 where a column stands still or nothing is known."""
    known = values[np.isfinite(values).all(axis=1)].astype(np.float64)
    if not len(known):
        return np.zeros(values.shape[1])
    variance = known.var(axis=0)
    return np.where(variance > STILL * (known**2).mean(axis=0), np.sqrt(variance), 0.0)
