"""Says how far decoded values may be off. Kinematics and the number of lost channels come in, deviations go out.

The deviation was calibrated on data that no training saw, so that nine in ten true values lie within 1.645 of it,
whatever the shape of the error is. docs/numerics.md, "Standard deviation of an output", is the definition, and
`kernels/c/ed_deviation.h` is the same in C.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float32]

FASTEST = np.float32(64)  # speeds beyond it count as this, so that the variance has a limit and nothing can overflow


@dataclass(frozen=True, eq=False)
class DeviationModel:
    """Holds each output's variance by number of lost channels: `at_rest` plus `by_speed` times the speed."""

    at_rest: Floats  # (C + 1, K), in the squared unit of the output
    by_speed: Floats  # (C + 1, K), the same for a speed of 1
    center: Floats  # (K,) mean of the outputs
    weight: Floats  # (K,) what turns the distance from it into the root of a speed; 0 for an output that does not move

    def speed(self, kinematics: Floats) -> Floats:
        """Returns the speed (B,) of kinematics (B, K), a sum of squares from 0 to FASTEST."""
        with np.errstate(over="ignore", invalid="ignore"):
            speed: Floats = np.zeros(len(kinematics), np.float32)
            for k in range(kinematics.shape[1]):
                away = (kinematics[:, k] - self.center[k]) * self.weight[k]
                speed = speed + away * away
            return np.where(speed < FASTEST, speed, FASTEST)  # NaN becomes the largest

    def deviations(self, kinematics: Floats, lost: npt.NDArray[np.integer]) -> Floats:
        """Returns the standard deviation (B, K) of kinematics (B, K) in bins with `lost` channels (B,)."""
        speed = self.speed(kinematics)[:, None]
        return np.asarray(np.sqrt(self.at_rest[lost] + self.by_speed[lost] * speed), np.float32)
