"""Fits a Kalman filter whose state is the kinematics and their past, as in Wu 2003, and solves it for its steady state.

The moments of lagged bins and of the kinematics go in. A causal filter over bins comes out, with constant gains.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.linalg import cho_factor, cho_solve

from edgedistill.training.bin_blocks import BinBlocks
from edgedistill.training.lagged_moments import (
    Array,
    LaggedFilter,
    LaggedMoments,
    Mask,
    compute_lagged_moments,
    run_filters,
)

LEAST_VARIANCE = 1e-9  # of features of unit variance, and as a share of the variance of the kinematics
DOUBLINGS = 40  # of the Riccati recursion, so 2^40 steps of it at most


@dataclass(frozen=True, eq=False)
class KalmanFilter:
    """Filters bins in steady state. The state (S,) is the last kinematics without their mean, the newest first."""

    drive: LaggedFilter  # what the bins add to the state (S,)
    mean_bins: Array  # (lags, I) bins that add nothing
    keep: Array  # (S, S) what stays of the state
    mean_state: Array  # (S,)
    outputs: int

    def __call__(self, bins: Array) -> Array:
        """Filters bins (T, I) from a zero state, and returns kinematics (T, K)."""
        return self.follow(self.drive(bins))

    def follow(self, drive: Array) -> Array:
        """Returns kinematics (T, K) from what the bins add to a zero state (T, S)."""
        states = accumulate(self.keep, drive)
        return np.asarray((states + self.mean_state)[:, : self.outputs])


def run_decoders(
    decoders: Sequence[LaggedFilter | KalmanFilter], bins: BinBlocks | Array, start: int = 0, stop: int | None = None
) -> list[Array]:
    """Returns what each decoder decodes (stop - start, K) from bin `start` on, in one pass, with zeros before it."""
    filters = [one.drive if isinstance(one, KalmanFilter) else one for one in decoders]
    driven = run_filters(filters, bins, start, stop)
    return [
        one.follow(found) if isinstance(one, KalmanFilter) else found
        for one, found in zip(decoders, driven, strict=True)
    ]


@dataclass(frozen=True, eq=False)
class LinearGaussian:
    """Holds what a Kalman filter assumes: x' = a x + noise (w) and y = h x + noise (q), both centred."""

    a: Array  # (S, S)
    w: Array  # (S, S)
    h: Array  # (F, S)
    q: Array  # (F, F)
    mean_state: Array
    moments: LaggedMoments  # of the observation
    outputs: int


def accumulate(keep: Array, drive: Array) -> Array:
    """Returns the states (T, S) of x' = keep x + drive from zero, by doubling the number of steps that are summed."""
    states, power, reach = drive.copy(), keep, 1
    while reach < len(states) and np.abs(power).max() > 0:
        states[reach:] += states[:-reach] @ power.T
        power, reach = power @ power, 2 * reach
        power[np.abs(power) < 1e-200] = 0.0
    return states


def stack_past(behavior: Array, order: int) -> Array:
    """Returns the kinematics of the last `order` bins (T, order * K), the newest first.

    Where the past is not known, the present stands in its place.
    """
    columns = [behavior]
    for _ in range(order - 1):
        past = np.vstack([columns[-1][:1], columns[-1][:-1]])
        columns.append(np.where(np.isfinite(past), past, columns[-1]))
    return np.hstack(columns)


def fit_linear_gaussian(moments: LaggedMoments, behavior: Array, rows: Mask, order: int) -> LinearGaussian:
    """Fits transition and observation by least squares, and the covariances of their residuals.

    The targets of `moments` are `stack_past` of the behavior (T, K), of this order or a higher one, and its rows are
    `rows` (T,).
    """
    size = order * behavior.shape[1]
    mean_state = moments.mean_target[:size]
    x = stack_past(behavior, order) - mean_state
    pair = rows[1:] & rows[:-1]
    before, after = x[:-1][pair], x[1:][pair]
    a = np.asarray(np.linalg.lstsq(before, after, rcond=None)[0].T, np.float64)
    w = np.asarray(np.cov((after - before @ a.T).T), np.float64).reshape(a.shape)
    cross = moments.flat_cross[:, :size]
    h = cross @ np.linalg.pinv(moments.target_gram[:size, :size], hermitian=True)
    q = (moments.flat_gram - h @ cross.T) / max(1, moments.count - 1)
    return LinearGaussian(a, w, h, q, mean_state, moments, behavior.shape[1])


def solve_steady_kalman(model: LinearGaussian, shrinkage: float, noise: float = 1.0) -> KalmanFilter:
    """Returns the filter in its steady state.

    The observation noise is shrunk towards its diagonal by the share `shrinkage`, and multiplied by `noise`.
    """
    variance = np.maximum(np.diag(model.q), LEAST_VARIANCE)
    q = (1 - shrinkage) * model.q
    q[np.diag_indices_from(q)] += shrinkage * (variance + variance.mean())
    q *= noise
    precision_h = cho_solve(cho_factor(q, overwrite_a=True, check_finite=False), model.h)
    information = model.h.T @ precision_h  # small, since the state is small and the observation wide
    prior = solve_prior(
        model.a, model.w + LEAST_VARIANCE * np.diag(model.moments.target_variance[: len(model.w)]), information
    )
    after = prior @ np.linalg.inv(np.eye(len(prior)) + information @ prior)
    gain = after @ precision_h.T  # (S, F)
    mean = model.moments.mean
    drive = LaggedFilter(model.moments.lags, gain.reshape(len(gain), *mean.shape), -gain @ mean.reshape(-1))
    return KalmanFilter(drive, mean, model.a - gain @ model.h @ model.a, model.mean_state, model.outputs)


def solve_prior(a: Array, w: Array, information: Array) -> Array:
    """Returns the covariance (S, S) before an observation, at the fixed point of the Riccati recursion.

    Each iteration doubles the steps of the recursion (structure-preserving doubling; Chu, Fan, Lin 2005).
    """
    forward, gained, prior = a.T, information, w
    for _ in range(DOUBLINGS):
        inverse = np.linalg.inv(np.eye(len(a)) + gained @ prior)
        step = forward.T @ prior @ inverse @ forward
        forward, gained = forward @ inverse @ forward, gained + forward @ inverse @ gained @ forward.T
        prior = prior + (step + step.T) / 2
        if np.abs(step).max() <= 1e-13 * np.abs(prior).max():
            break
    return np.asarray(prior)


def fit_kalman(bins: Array, behavior: Array, order: int, shrinkage: float) -> KalmanFilter:
    """Fits a Kalman filter on bins (T, I) without lags and behavior (T, K), with a state of `order` bins."""
    rows = np.asarray(np.isfinite(behavior).all(1))
    moments = compute_lagged_moments(bins, stack_past(behavior, order), rows, (0,))
    return solve_steady_kalman(fit_linear_gaussian(moments, behavior, rows, order), shrinkage)
