"""Watches the running amplitude of a stream. Bins of the models' input go in; whether they have shifted comes out.

It is defined in docs/numerics.md, "Running amplitude", and `kernels/c/ed_shift.h` is the same in C. Each channel of the
input has a mean square of 1. A lost gain, another unit or another amplifier leaves that by far, and for good.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from edgedistill.errors import EngineError

RATE = np.float32(2**-9)  # of the running mean square: 512 bins
LEAST, MOST = np.float32(2**-60), np.float32(256)  # of one square: no denormal numbers, and no lasting artefact
LOW, HIGH = np.float32(0.0625), np.float32(16)  # a quarter and four times the expected amplitude, squared
SHIFTED_BINS = 1000  # bins in a row with most channels outside: 10 s


class RunningAmplitude:
    """Holds the running mean square of each channel of a stream."""

    def __init__(self, channels: int) -> None:
        self.power = np.ones(channels, np.float32)  # (C,)
        self.outside_bins = 0  # bins in a row in which most channels were outside

    @property
    def shifted(self) -> bool:
        """Tells whether most channels have been outside for 10 s."""
        return self.outside_bins >= SHIFTED_BINS

    def reset(self) -> None:
        """Starts again with the expected amplitude."""
        self.power[:] = 1
        self.outside_bins = 0

    def update(self, z: npt.NDArray[np.float32], usable: npt.NDArray[np.bool_]) -> None:
        """Takes a bin (C,) of the models' input, and which channels (C,) are there."""
        with np.errstate(over="ignore"):
            square = np.clip(z * z, LEAST, MOST)
        self.power[usable] = (self.power + (square - self.power) * RATE)[usable]
        n = int(np.count_nonzero(usable))
        outside = int(np.count_nonzero(usable & ((self.power < LOW) | (self.power > HIGH))))
        if n:
            self.outside_bins = min(self.outside_bins + 1, SHIFTED_BINS) if 2 * outside > n else 0

    def export_state(self) -> dict[str, npt.NDArray[Any]]:
        """Returns `power` float32 (C,) and `bins` int64 ()."""
        return {"power": self.power.copy(), "bins": np.array(self.outside_bins, np.int64)}

    def import_state(self, state: Mapping[str, npt.NDArray[Any]]) -> None:
        """Continues from an exported state. Raises EngineError, with nothing changed, if it cannot be one."""
        power, bins = state.get("power"), state.get("bins")
        if power is None or power.dtype != np.float32 or power.shape != self.power.shape:
            raise EngineError(
                "state 'shift_power' does not fit this engine",
                got="nothing of that name" if power is None else f"{power.dtype} {power.shape}",
                expected=f"float32 {self.power.shape}",
                causes=("it was exported from a decoder of another array",),
            )
        if not ((power >= LEAST) & (power <= MOST)).all():
            expected = f"numbers from {LEAST:g} to {MOST:g}"
            raise EngineError("state 'shift_power' is out of range", expected=expected)
        if bins is None or bins.dtype.kind not in "iu" or bins.shape != () or not 0 <= int(bins) <= SHIFTED_BINS:
            got = "nothing of that name" if bins is None else f"{bins.dtype} {bins.shape}, {bins}"
            raise EngineError("state 'shift_bins' is out of range", got=got, expected=f"one from 0 to {SHIFTED_BINS}")
        self.power, self.outside_bins = power.copy(), int(bins)
