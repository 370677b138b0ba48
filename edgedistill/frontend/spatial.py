"""Fills in lost channels and subtracts the common average: standardized channels come in, the models' input goes out.

What a lost channel would have shown is known from the others as far as they go together. The conditional mean of lost
channels m given the others o of a Gaussian with precision matrix P solves P_mm x_m = -P_mo x_o. It is computed by a
fixed number of steps of conjugate gradients, so that every bin takes the same time, whatever is lost. The average over
all channels is then the conditional mean of the average over all channels. docs/numerics.md, "Fill-in and common
average", is the definition, and `kernels/c/ed_spatial.h` is the same in C.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
import numpy.typing as npt

from edgedistill.numerics.arithmetic import lane_sum

Floats = npt.NDArray[np.float32]
Mask = npt.NDArray[np.bool_]
Array = npt.NDArray[np.float64]

WILD = np.float32(2**20)  # deviations; a channel beyond it is lost in that bin, so that no sum can overflow
SPATIAL_TENSORS = ("coupling", "scale", "inverse_scale", "gain")  # of a SpatialModel, as files hold them
ROWS = 4  # rows of the precision matrix that are added at a time
BLOCK = 256  # bins that are filled in at a time, so that they stay in the cache of the processor


@dataclass(frozen=True, eq=False)
class SpatialModel:
    """Holds how the channels of an array go together, for numbers of mean 0 and deviation 1.

    Each of the F features of a channel (its slow LFP and the log power of each band) is filled in from the same feature
    of the other channels. A bin has I = F · C numbers, feature by feature.
    """

    coupling: (
        Floats  # (F, C, C) precision matrices, scaled to a diagonal of 1; 0 in rows and columns of unknown numbers
    )
    scale: Floats  # (I,) root of the diagonal of the precision matrix
    inverse_scale: Floats  # (I,) 1 / scale
    gain: Floats  # (I,) 1 / deviation of the number after the common average; 0 for numbers that are not known
    sweeps: int  # steps of conjugate gradients
    common_average: bool  # of the slow LFP

    @property
    def channels(self) -> int:
        """Returns C."""
        return int(self.coupling.shape[1])

    @property
    def features(self) -> int:
        """Returns F."""
        return len(self.coupling)

    @property
    def known(self) -> Mask:
        """Returns the channels (C,) whose slow LFP the training block has shown. The others are 0 in every bin."""
        return np.asarray(self.gain[: self.channels] > 0)

    @cached_property
    def parts(self) -> tuple[FeatureModel, ...]:
        """Returns the model of each feature."""
        columns = [slice(f * self.channels, (f + 1) * self.channels) for f in range(self.features)]
        return tuple(
            FeatureModel(
                self.coupling[f],
                self.scale[at],
                self.inverse_scale[at],
                self.gain[at],
                self.sweeps,
                self.common_average and f == 0,
            )
            for f, at in enumerate(columns)
        )

    def complete(self, standardized: Floats, there: Mask) -> Floats:
        """Returns the models' input (B, I) for standardized numbers (B, I) of the channels that are `there` (B, C).

        Channels that are not known are never there. A bin without any channel is 0, which is the mean.
        """
        at = np.arange(0, self.features * self.channels, self.channels)
        done = [m.complete(standardized[:, i : i + self.channels], there) for m, i in zip(self.parts, at, strict=True)]
        return done[0] if len(done) == 1 else np.concatenate(done, axis=1)


@dataclass(frozen=True, eq=False)
class FeatureModel:
    """Holds how one feature of the channels goes together. Its fields are those of a SpatialModel with one feature."""

    coupling: Floats  # (C, C)
    scale: Floats  # (C,)
    inverse_scale: Floats  # (C,)
    gain: Floats  # (C,)
    sweeps: int
    common_average: bool

    @property
    def known(self) -> Mask:
        """Returns the channels (C,) in which the training block has shown this feature."""
        return np.asarray(self.gain > 0)

    @cached_property
    def _rows(self) -> Floats:
        """Returns the coupling with rows of zeros after the last one, up to a multiple of ROWS."""
        return np.pad(self.coupling, ((0, -len(self.coupling) % ROWS), (0, 0)))

    def complete(self, standardized: Floats, there: Mask) -> Floats:
        """Returns the models' input (B, C) for standardized numbers (B, C), of which those `there` (B, C) are used."""
        there = there & self.known
        filled = np.where(there, standardized, np.float32(0))
        some = np.flatnonzero((self.known & ~there).any(axis=1))
        for at in range(0, len(some), BLOCK):
            bins = some[at : at + BLOCK]
            filled[bins] = self._fill_in(filled[bins], there[bins])
        return self._reference(filled)

    def _fill_in(self, present: Floats, there: Mask) -> Floats:
        """Returns present (B, C), which is 0 where a channel is lost, with the lost channels filled in."""
        lost = self.known & ~there
        y = np.where(lost, _mean(present, there)[:, None], present) * self.scale
        r = np.where(lost, -self._times(y), np.float32(0))
        p, power = r, lane_sum(r * r)
        for _ in range(self.sweeps):
            q = self._times(p)
            alpha = _ratio(power, lane_sum(p * q))[:, None]
            y = y + alpha * p
            r = np.where(lost, r - alpha * q, np.float32(0))
            before, power = power, lane_sum(r * r)
            going = (power > TINY)[:, None]  # a solution that is exact is left alone, so that nothing becomes denormal
            p = np.where(going, r + _ratio(power, before)[:, None] * p, np.float32(0))
            r = np.where(going, r, np.float32(0))
        return np.asarray(np.where(lost, y * self.inverse_scale, present), np.float32)

    def _times(self, x: Floats) -> Floats:
        """Multiplies x (B, C) by the coupling. Four products are added at a time, in the order of the channels."""
        rows = self._rows
        x = np.pad(x, ((0, 0), (0, len(rows) - x.shape[1])))
        total: Floats = np.zeros((len(x), len(self.coupling)), np.float32)
        for j in range(0, len(rows), ROWS):
            a, b, c, d = (x[:, j + k, None] * rows[j + k] for k in range(ROWS))
            total = total + ((a + b) + (c + d))
        return total

    def _reference(self, filled: Floats) -> Floats:
        """Returns (filled - mean over the known channels) * gain."""
        known = self.known
        if self.common_average and np.count_nonzero(known) > 1:  # one channel alone is its own average
            filled = filled - _mean(filled, np.broadcast_to(known, filled.shape))[:, None]
        return np.asarray(np.where(known, filled * self.gain, np.float32(0)), np.float32)


@dataclass(frozen=True, eq=False)
class Standardization:
    """Holds mean and deviation (I,) and the array's model, which turn what the front end gives into the models' input.

    They are in uV for the slow LFP, and in units of the logarithm for the power of bands.
    """

    mean: Array
    std: Array
    spatial: SpatialModel

    @property
    def loudness(self) -> Array:
        """Returns what the standardized log power (I - C,) of bands gains for each unit of a channel's log gain."""
        std = self.std[self.spatial.channels :]
        return np.divide(2, std, out=np.zeros_like(std), where=std > 0)

    def slow(self) -> Standardization:
        """Returns the same for the slow LFP alone, without the log power of bands."""
        spatial, own = self.spatial, slice(self.spatial.channels)
        vectors = (spatial.scale[own], spatial.inverse_scale[own], spatial.gain[own])
        slow = SpatialModel(spatial.coupling[:1], *vectors, spatial.sweeps, spatial.common_average)
        return Standardization(self.mean[own], self.std[own], slow)

    def standardize(self, values: Array, bad: Mask) -> tuple[Floats, Mask]:
        """Returns standardized numbers (B, I) for values (B, I) and bad channels (B, C), and those there (B, C)."""
        return standardize(values, bad, (self.mean, self.std), self.spatial.known)[:2]

    def inputs(self, values: Array, bad: Mask) -> Floats:
        """Returns the models' input (B, I) for values (B, I) and bad channels (B, C)."""
        return self.spatial.complete(*self.standardize(values, bad))


def standardize(values: Array, bad: Mask, statistics: tuple[Array, Array], known: Mask) -> tuple[Floats, Mask, Mask]:
    """Returns standardized numbers (B, I), 0 where not there, and the channels that are there and the bad ones (B, C).

    `values` (B, I) come from the front end, and `statistics` are their mean and deviation (I,). `bad` is (B, C), and
    `known` (C,). A channel with a number far beyond every signal is bad in that bin too.
    """
    mean, std = statistics
    channels = bad.shape[1]
    features = values.shape[1] // channels
    standardized = zscore(values, np.tile(bad, features), mean, std)
    tame = np.abs(standardized) <= WILD
    bad = bad | ~tame.reshape(len(values), features, channels).all(axis=1)
    there = ~bad & (std[:channels] > 0) & known
    return np.where(np.tile(there, features), standardized, np.float32(0)), there, bad


def zscore(values: Array, bad: Mask, mean: Array, std: Array) -> Floats:
    """Turns values (B, C) into (x - mean) / std in float64, rounded to float32. It is 0 where bad or where std is 0."""
    usable = ~bad & (std > 0)
    z = np.divide(values - mean, std, out=np.zeros_like(values, dtype=np.float64), where=usable)
    with np.errstate(over="ignore"):  # a value beyond float32 becomes infinite
        return z.astype(np.float32)


def _mean(x: Floats, used: Mask) -> Floats:
    """Returns the mean (B,) over the used channels of x (B, C), which is 0 elsewhere; 0 where no channel is used."""
    count = np.count_nonzero(used, axis=1).astype(np.float32)
    return np.asarray(lane_sum(x) / np.maximum(count, np.float32(1)), np.float32)


def _ratio(top: Floats, bottom: Floats) -> Floats:
    """Returns top / bottom (B,), and 0 where bottom is too small for that."""
    fine = bottom > TINY
    return np.asarray(np.where(fine, top / np.where(fine, bottom, np.float32(1)), np.float32(0)), np.float32)


TINY = np.float32(2**-100)  # a smaller square is that of a solution which is already exact
