"""Numbers frames by their time stamps: stamps with jitter and drift come in, running numbers go out.

A loop of second order follows the steady rate behind the stamps, as a phase-locked loop does: it predicts the next
stamp, and takes a small part of the error into its phase and its rate. Errors within the tolerance are jitter. A larger
one is a gap, or frames that come late or twice. A step that the receiver's own clock does not confirm is neither: the
clock of the source was set anew. A loss within the jitter is seen a second later by the mean error.
"""

from __future__ import annotations

from fractions import Fraction

import numpy as np
import numpy.typing as npt

LEAST_TOLERANCE = 1.5  # frames
FIRST_TOLERANCE_S, MOST_TOLERANCE_S = 0.02, 0.05
DEVIATIONS = 6.0  # of the jitter that the tolerance allows
LEARNING_S = 2.0  # until the jitter is known
SETTLED_S = 10.0  # until the rate is known well enough to see small losses
SLOWEST_S = 20.0  # time constant of the loop
MEAN_S = 1.0  # over which the mean error shows a small loss
SMALL_LOSS_S = 0.001
CONFIRMED_S = 1.0  # a step of the stamps that is this much longer than the time that passed is no gap

Stamps = npt.NDArray[np.float64]
Numbers = npt.NDArray[np.int64]


class StampClock:
    """Follows the clock of one source."""

    def __init__(self, rate: Fraction) -> None:
        self.jumps = 0  # times that the clock was set anew
        self._rate, self._period = float(rate), float(1 / rate)
        self._next = 0  # number of the next frame
        self._stamp: float | None = None  # that is expected of it
        self._stretch = 0.0  # share by which a frame takes longer than the period
        self._followed_s = 0.0
        self._variance = 0.0  # of the stamps around the steady rate, frames squared
        self._mean = 0.0  # error of late, frames
        self._arrived_s = 0.0

    @property
    def drift_ppm(self) -> float | None:
        """Returns how much faster than its nominal rate the source runs, in parts per million, once it is known."""
        return -self._stretch * 1e6 if self._followed_s > SETTLED_S else None

    @property
    def jitter_ms(self) -> float | None:
        """Returns the standard deviation of the stamps around the steady rate."""
        return 1000 * self._period * float(np.sqrt(self._variance)) if self._followed_s > LEARNING_S else None

    def number(self, stamps_s: Stamps, arrived_s: float) -> Numbers:
        """Returns the numbers (n,) of frames with these stamps (n,) that arrived together.

        A number that jumps says that frames are missing, and one of before that a frame comes late or twice.
        """
        if self._stamp is None:
            self._stamp, self._arrived_s = float(stamps_s[0]), arrived_s
        elapsed_s, self._arrived_s = arrived_s - self._arrived_s, arrived_s
        found, at = np.empty(len(stamps_s), np.int64), 0
        while at < len(stamps_s):
            rest = stamps_s[at:]
            errors = (rest - self._expect(len(rest))) * self._rate
            outside = np.abs(errors) > self._tolerance
            steady = int(outside.argmax()) if outside.any() else len(rest)
            if steady:
                found[at : at + steady] = self._next + np.arange(steady)
                self._follow(errors[:steady])
            elif errors[0] > 0:
                self._step_forward(float(rest[0]), float(errors[0]), len(rest), elapsed_s)
            elif errors[0] < -CONFIRMED_S * self._rate:
                self._set_anew(float(rest[0]), len(rest), elapsed_s)
            else:  # late, or twice
                away = np.abs(errors - errors[0]) > self._tolerance
                steady = int(away.argmax()) if away.any() else len(rest)
                found[at : at + steady] = self._next + round(float(errors[0])) + np.arange(steady)
            at += steady
        return found

    @property
    def _tolerance(self) -> float:
        if self._followed_s < LEARNING_S:
            return max(LEAST_TOLERANCE, FIRST_TOLERANCE_S * self._rate)
        most = max(LEAST_TOLERANCE, MOST_TOLERANCE_S * self._rate)
        return min(most, max(LEAST_TOLERANCE, DEVIATIONS * float(np.sqrt(self._variance))))

    def _expect(self, count: int) -> Stamps:
        assert self._stamp is not None
        steps: Stamps = np.arange(count, dtype=np.float64)
        return self._stamp + steps * (self._period * (1 + self._stretch))

    def _advance(self, frames: int) -> None:
        assert self._stamp is not None
        self._next += frames
        self._stamp += frames * self._period * (1 + self._stretch)

    def _follow(self, errors: Stamps) -> None:
        """Takes in the errors of frames that follow the last ones."""
        assert self._stamp is not None
        count = len(errors)
        self._advance(count)
        passed_s = count * self._period
        self._followed_s += passed_s
        slowness_s = min(SLOWEST_S, max(0.5, self._followed_s / 2))
        share, mean = min(1.0, passed_s / slowness_s), float(errors.mean())
        self._stamp += min(1.0, 2 * share) * mean * self._period
        self._stretch += share * share * mean / count
        weight = min(1.0, passed_s / min(max(self._followed_s, passed_s), SLOWEST_S))
        self._variance += weight * (float(np.mean(errors * errors)) - self._variance)
        self._mean += min(1.0, passed_s / MEAN_S) * (mean - self._mean)
        if self._followed_s > SETTLED_S and abs(self._mean) > max(LEAST_TOLERANCE, SMALL_LOSS_S * self._rate):
            self._correct(round(self._mean))

    def _correct(self, frames: int) -> None:
        """Counts a small loss that only the mean error shows. A loss that was none cannot be taken back."""
        assert self._stamp is not None
        if frames > 0:
            self._next += frames
        else:
            self.jumps += 1
        self._stamp += frames * self._period
        self._mean = 0.0

    def _step_forward(self, stamp_s: float, error: float, waiting: int, elapsed_s: float) -> None:
        if error * self._period > elapsed_s + CONFIRMED_S:
            self._set_anew(stamp_s, waiting, elapsed_s)
        else:
            self._advance(round(error))

    def _set_anew(self, stamp_s: float, waiting: int, elapsed_s: float) -> None:
        """Begins anew at this stamp. Only the receiver's clock says how many frames are missing before it."""
        self.jumps += 1
        self._next += max(0, round(elapsed_s * self._rate) - waiting)
        self._stamp = stamp_s
        self._mean = 0.0
