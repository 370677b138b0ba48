"""Fits how large a decoder's errors are, from what it decoded with more and more channels lost.

Errors and decoded values go in, the tables of a `DeviationModel` come out. The variance of an error is a constant plus
a share of the speed that was decoded, and the speed counts up to a limit. Both are found by maximum likelihood, for
each number of lost channels and each output, and scaled so that nine in ten errors lie within 1.645 deviations. A
larger number of lost channels never has a smaller deviation.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from edgedistill.measure.intervals import QUANTILES
from edgedistill.numerics.deviation import FASTEST, DeviationModel
from edgedistill.training.evaluate import STILL

COVERED = 0.9  # share of the errors within QUANTILES[COVERED] deviations
LIMITS = (0.25, 0.5, 1.0, 2.0, 4.0, 8.0, 64.0)  # of the squared speed, in squared deviations of the outputs
FLOOR = 0.02  # least share of the mean square that is left at rest
OUTLIERS = 0.99  # a larger squared error counts as this quantile in the fit, so that an artefact does not decide it
ROUNDS = 20  # of the fit, which has converged by then

Array = npt.NDArray[np.float64]
Table = npt.NDArray[np.float32]


@dataclass(frozen=True, eq=False)
class Decoded:
    """Holds what a student decoded with some channels lost, in N bins with labels."""

    lost: float  # mean number of channels that were lost
    kinematics: Table  # (N, K) decoded
    errors: Array  # (N, K) decoded minus true


def fit_deviations(decoded: Sequence[Decoded], behavior: Array, channels: int) -> DeviationModel:
    """Returns the deviations of a decoder of `channels`, from what it decoded with fewer and fewer of them.

    The first of `decoded` has the fewest lost channels. `behavior` (T, K) is known in every bin, and its mean and
    deviation say what a speed is.
    """
    center, weight = scale_outputs(behavior)
    weight = weight * np.float32(np.sqrt(float(FASTEST) / choose_limit(decoded[0], center, weight)))
    fits = [fit_variances(one.errors, measure_speed(one.kinematics, center, weight)) for one in decoded]
    rest, top = (np.maximum.accumulate(np.stack(part), axis=0) for part in zip(*fits, strict=True))
    lost = [one.lost for one in decoded]
    at_rest = interpolate(lost, rest, channels)
    by_speed = interpolate(lost, (top - rest) / float(FASTEST), channels)
    return DeviationModel(at_rest, by_speed, center, weight)


def spread_as_deviations(behavior: Array, channels: int) -> DeviationModel:
    """Returns the deviations of a decoder that tells nothing: those of behavior (T, K) about its mean."""
    away = np.quantile(np.abs(behavior - behavior.mean(axis=0)), COVERED, axis=0) / QUANTILES[COVERED]
    at_rest = np.tile((away**2).astype(np.float32), (channels + 1, 1))
    zeros = np.zeros(behavior.shape[1], np.float32)
    return DeviationModel(at_rest, np.zeros_like(at_rest), zeros, zeros)


def scale_outputs(behavior: Array) -> tuple[Table, Table]:
    """Returns mean and 1 / deviation (K,) of behavior (T, K), with 0 for an output that does not move."""
    variance = behavior.var(axis=0)
    moves = variance > STILL * (behavior**2).mean(axis=0)
    weight = np.where(moves, 1 / np.sqrt(np.where(moves, variance, 1.0)), 0.0)
    return behavior.mean(axis=0).astype(np.float32), weight.astype(np.float32)


def measure_speed(kinematics: Table, center: Table, weight: Table) -> Array:
    """Returns the speed (N,) of kinematics (N, K), as a `DeviationModel` computes it."""
    nothing = np.zeros((1, len(center)), np.float32)
    return DeviationModel(nothing, nothing, center, weight).speed(kinematics).astype(np.float64)


def choose_limit(decoded: Decoded, center: Table, weight: Table) -> float:
    """Returns the limit of the squared speed, in squared deviations of the outputs, that makes the errors likeliest."""
    speed, squares = measure_speed(decoded.kinematics, center, weight), clip_outliers(decoded.errors**2)

    def unlikelihood(limit: float) -> float:
        counted = np.minimum(speed, limit)
        rest, by_speed = np.transpose([fit_line(square, counted) for square in squares.T])
        variance = rest + np.outer(counted, by_speed)
        return float((np.log(variance) + squares / variance).mean())

    return LIMITS[int(np.argmin([unlikelihood(limit) for limit in LIMITS]))]


def fit_variances(errors: Array, speed: Array) -> tuple[Array, Array]:
    """Returns the variance of errors (N, K) at rest and at FASTEST, (K,) each. `speed` is (N,), at most FASTEST."""
    rest, by_speed = np.transpose([fit_line(square, speed) for square in clip_outliers(errors**2).T])
    relative = np.abs(errors) / np.sqrt(rest + np.outer(speed, by_speed))
    scale = (np.quantile(relative, COVERED, axis=0) / QUANTILES[COVERED]) ** 2
    return rest * scale, (rest + float(FASTEST) * by_speed) * scale


def clip_outliers(squares: Array) -> Array:
    """Returns squared errors (N, K), of which none is above the quantile OUTLIERS."""
    return np.minimum(squares, np.quantile(squares, OUTLIERS, axis=0))


def fit_line(square: Array, speed: Array) -> tuple[float, float]:
    """Returns the likeliest variance at rest and by speed for squared errors (N,) at speeds (N,).

    Least squares with weights 1 / variance squared, again and again, is maximum likelihood for a variance that is
    linear in the speed.
    """
    mean, smallest = float(square.mean()), float(np.finfo(np.float32).tiny)
    if mean < smallest:
        return smallest, 0.0
    rest, by_speed = mean, 0.0
    for _ in range(ROUNDS):
        weight = (mean / (rest + by_speed * speed)) ** 2
        a, b, c = weight.sum(), weight @ speed, weight @ speed**2
        e, f = weight @ square, weight @ (speed * square)
        determinant = a * c - b * b
        by_speed = max(0.0, float(a * f - b * e) / float(determinant)) if determinant > STILL * a * c else 0.0
        rest = float(e - b * by_speed) / float(a)
        if rest < FLOOR * mean:
            rest, by_speed = FLOOR * mean, max(0.0, float(f - FLOOR * mean * b) / float(c))
    return rest, by_speed


def interpolate(lost: Sequence[float], rows: Array, channels: int) -> Table:
    """Returns the values (C + 1, K) for every number of lost channels, from `rows` (L, K) at some numbers."""
    counts = np.arange(channels + 1)
    return np.stack([np.interp(counts, lost, column) for column in rows.T], axis=1).astype(np.float32)
