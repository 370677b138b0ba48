"""Keeps the mean and deviation by which channels are standardized, and lets them follow the signal if wanted.

Values of one bin in microvolts come in, standardized channels go out. docs/numerics.md, "Statistics that follow", is
the definition, and `kernels/c/ed_statistics.h` is the same in C.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from edgedistill.errors import EngineError

Array = npt.NDArray[np.float64]
Mask = npt.NDArray[np.bool_]

LARGEST_UV = 2.0**256  # no stream comes near it, and below it no square overflows
FARTHEST = 4.0  # deviations; a value beyond counts as this far, so that an artefact moves the statistics little


class ChannelStatistics:
    """Holds mean and deviation (C,) in uV. `rate` is the weight of a new bin, and 0 lets them stay as they are."""

    def __init__(self, channels: int, rate: float) -> None:
        self.rate = rate
        self.mean: Array = np.zeros(channels)
        self.std: Array = np.ones(channels)
        self._set = self.mean, self.std

    def set(self, mean: Array, std: Array) -> None:
        """Sets the statistics (C,), from which a stream also starts."""
        self._set = self.mean, self.std = mean, std

    def reset(self) -> None:
        """Goes back to the statistics that were set."""
        self.mean, self.std = self._set

    def update(self, values: Array, there: Mask) -> None:
        """Lets the statistics of the channels that are there (C,) follow their values (C,) in uV."""
        if not self.rate:
            return
        farthest = FARTHEST * self.std
        away = np.clip(values - self.mean, -farthest, farthest)
        square = self.std * self.std
        mean = self.mean + self.rate * away
        std = np.sqrt(square + self.rate * (away * away - square))
        self.mean, self.std = np.where(there, mean, self.mean), np.where(there, std, self.std)

    def export_state(self) -> dict[str, npt.NDArray[Any]]:
        """Returns `mean` and `std` (C,) where they follow the signal, and nothing where they stay."""
        return {"mean": self.mean.copy(), "std": self.std.copy()} if self.rate else {}

    def import_state(self, state: Mapping[str, npt.NDArray[Any]]) -> None:
        """Continues from an exported state. Raises EngineError, with nothing changed, if it cannot be one."""
        if not self.rate:
            return
        found = {name: np.asarray(state.get(name)) for name in ("mean", "std")}
        for name, array in found.items():
            if array.dtype != np.float64 or array.shape != self.mean.shape:
                raise EngineError(
                    f"state 'statistics_{name}' does not fit this engine",
                    got=f"{array.dtype} {array.shape}",
                    expected=f"float64 {self.mean.shape}",
                    causes=("it was exported from a decoder of another array",),
                )
            least = 0.0 if name == "std" else -LARGEST_UV
            if not ((array >= least) & (array <= LARGEST_UV)).all():
                expected = f"numbers from {least:g} to {LARGEST_UV:g}"
                raise EngineError(f"state 'statistics_{name}' is out of range", expected=expected)
        self.mean, self.std = found["mean"].copy(), found["std"].copy()
