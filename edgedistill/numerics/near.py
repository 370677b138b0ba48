"""The near class: how close an engine that fuses and reorders has to stay to the definition.

In comes an engine whose state can be set, out goes a count of what differed, and whether that is within bounds. The
graphs of a bundle are held to it when it is written, a plan on the device that it was built on.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from edgedistill.numerics.oracle import Oracle
from edgedistill.numerics.state import State
from edgedistill.numerics.tensors import Int8Model

NEAR = 1e-2  # of an output's standard deviation: a flipped integer here and there
NEAR_SHARE = 1e-3  # of the integers may differ
FARTHEST = 0.1  # and none further than this
FAR_SHARE = 1e-2  # of the outputs may be further off than NEAR: a flip in an early layer moves later ones

ALLOWED = f"{NEAR_SHARE:.1%} of the integers, {FAR_SHARE:.0%} of the outputs by over {NEAR:g}, none by {FARTHEST:g}"


class Steppable(Protocol):
    """An engine in INT8, whatever computes in it."""

    def step(self, bin: npt.NDArray[np.floating[Any]], /) -> npt.NDArray[np.float32]:
        """Kinematics (K,) of one bin (C,)."""

    def import_state(self, state: State, /) -> None:
        """Go on from this state."""

    def export_state(self) -> dict[str, npt.NDArray[Any]]:
        """The state, named as the oracle's."""


@dataclass(frozen=True)
class Nearness:
    """What differed, over all steps."""

    differ: int  # integers
    entries: int  # that were compared
    far: int  # steps with an output further off than NEAR
    steps: int
    worst: float  # deviations

    @property
    def ok(self) -> bool:
        """Whether the engine belongs to the near class; an output that is not a number does not."""
        few = self.differ <= max(1, NEAR_SHARE * self.entries) and self.far <= FAR_SHARE * self.steps
        return few and self.worst <= FARTHEST

    def __str__(self) -> str:
        return (
            f"{self.differ} of {self.entries} integers, {self.far} of {self.steps} outputs,"
            f" worst by {self.worst:.2g} deviations"
        )


def nearness(
    model: Int8Model, engine: Steppable, state: State, bins: npt.NDArray[np.floating[Any]], spread: npt.NDArray[Any]
) -> Nearness:
    """Step `engine` over bins (T, C), fed the oracle's state at each; `spread` is each output's deviation (K,)."""
    oracle = Oracle(model)
    oracle.import_state(state)
    differ, entries, apart = 0, 0, np.zeros(len(bins))
    for i, bin_ in enumerate(bins):
        before = oracle.export_state()
        engine.import_state(before)
        apart[i] = np.max(np.abs(oracle.step(bin_) - engine.step(bin_)) / spread)
        slot, theirs = int(before["pos"][0]), engine.export_state()
        for name, ours in oracle.export_state().items():
            if name in ("pos", "live"):
                continue
            new = (slice(None), slot) if name.startswith("ring") else slice(1)  # of lags: the bin itself
            differ += int(np.count_nonzero(ours[new] != theirs[name][new]))
            entries += ours[new].size
    far = int(np.count_nonzero(~(apart <= NEAR)))
    return Nearness(differ, entries, far, len(bins), float(np.max(apart, initial=0.0)))
