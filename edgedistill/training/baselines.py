"""Fits the causal decoders that a neural engineer would try first: lagged ridge (Wiener filter) and Kalman filter.

Each is tuned on the validation block over at least as many settings as any network is.
Sources: Wiener filter as in Glaser 2020; Kalman filter as in Wu 2003 (the state is the kinematics and their past).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from edgedistill.training.batches import TrainingSession
from edgedistill.training.evaluate import (
    Array,
    Readout,
    Score,
    compute_mean_r2,
    fit_readout,
    r2_score,
    score,
    stack_lagged_bins,
    unscale_behavior,
)

RIDGE_LAGS = (5, 10, 20, 40)
KALMAN_LAGS = (0, 5, 10, 20)
KALMAN_ORDERS = (1, 2)
SHRINKAGES = (0.01, 0.1)  # share by which the observation noise is shrunk towards its diagonal


@dataclass(frozen=True, eq=False)
class LaggedRidge:
    """Reads kinematics from the newest bin and the last `lags` before it, as `stack_lagged_bins` puts them together."""

    readout: Readout
    lags: int
    score: Score


def score_ridge(bins: Array, session: TrainingSession, bidirectional: bool = False) -> Score:
    """Returns the score of the best lagged ridge on bins (T, C)."""
    return fit_ridge(bins, session, bidirectional).score


def fit_ridge(
    bins: Array, session: TrainingSession, bidirectional: bool = False, lags: Sequence[int] | None = None
) -> LaggedRidge:
    """Returns the best lagged ridge on bins (T, C). Lags and penalty are chosen on validation.

    `bidirectional` puts half of the lags into the future, which shows what the same filter would do offline. `lags` are
    those to choose from, RIDGE_LAGS by default.
    """
    behavior = unscale_behavior(session)
    best: LaggedRidge | None = None
    for length in RIDGE_LAGS if lags is None else lags:
        ahead = length // 2 if bidirectional else 0
        features = np.roll(stack_lagged_bins(np.vstack([bins, np.zeros((ahead, bins.shape[1]))]), length), -ahead, 0)
        features = features[: len(bins)]
        readout = fit_readout(features, behavior, session.split, session.settled)
        if best is None or readout.validation_r2 > best.readout.validation_r2:  # NaN where no output moves
            best = LaggedRidge(readout, length, score(readout, features, behavior, session.split))
    assert best is not None
    return best


@dataclass(frozen=True, eq=False)
class KalmanFilter:
    """Filters in steady state (Kalman). The state (S,) is the last kinematics, the observation (F,) the features."""

    transition: Array  # (S, S)
    gain: Array  # (S, F)
    observation: Array  # (F, S)
    mean_state: Array
    mean_features: Array
    outputs: int

    def __call__(self, features: Array) -> Array:
        """Filters features (T, F) from a zero state, and returns kinematics (T, K)."""
        innovation_gain = (features - self.mean_features) @ self.gain.T
        keep = self.transition - self.gain @ self.observation @ self.transition
        state, states = np.zeros(len(keep)), np.empty((len(features), len(keep)))
        for t, drive in enumerate(innovation_gain):
            state = keep @ state + drive
            states[t] = state
        return np.asarray((states + self.mean_state)[:, : self.outputs])


@dataclass(frozen=True, eq=False)
class LinearGaussian:
    """Holds what a Kalman filter assumes: x' = a x + noise (w) and y = h x + noise (q), both centred."""

    a: Array  # (S, S)
    w: Array  # (S, S)
    h: Array  # (F, S)
    q: Array  # (F, F)
    mean_state: Array
    mean_features: Array
    outputs: int


def fit_linear_gaussian(features: Array, behavior: Array, order: int) -> LinearGaussian:
    """Fits transition and observation by least squares, and the covariances of their residuals."""
    state = stack_lagged_bins(behavior, order - 1)
    known = np.asarray(np.isfinite(state).all(1))
    pair = known[1:] & known[:-1]
    mean_state, mean_features = state[known].mean(0), features[known].mean(0)
    x, y = state - mean_state, features - mean_features
    a = np.linalg.lstsq(x[:-1][pair], x[1:][pair], rcond=None)[0].T
    w = np.cov((x[1:][pair] - x[:-1][pair] @ a.T).T).reshape(a.shape)
    h = np.linalg.lstsq(x[known], y[known], rcond=None)[0].T
    q = np.cov((y[known] - x[known] @ h.T).T).reshape(len(h), len(h))
    return LinearGaussian(a, w, h, q, mean_state, mean_features, behavior.shape[1])


def solve_steady_kalman(model: LinearGaussian, shrinkage: float) -> KalmanFilter:
    """Iterates the Riccati recursion to its fixed point, with the observation noise shrunk towards its diagonal."""
    variance = np.maximum(np.diag(model.q), 1e-9)
    q = (1 - shrinkage) * model.q + shrinkage * np.diag(variance + variance.mean())
    precision_h = np.linalg.solve(q, model.h)  # information form, since the state is small and the observation wide
    information = model.h.T @ precision_h
    p = np.eye(len(model.a))
    for _ in range(2000):
        prior = model.a @ p @ model.a.T + model.w + 1e-9 * np.eye(len(p))
        after = np.linalg.inv(np.linalg.inv(prior) + information)
        done, p = np.allclose(after, p, rtol=1e-9, atol=1e-12), after
        if done:
            break
    gain = p @ precision_h.T
    return KalmanFilter(model.a, gain, model.h, model.mean_state, model.mean_features, model.outputs)


def fit_kalman(features: Array, behavior: Array, order: int, shrinkage: float) -> KalmanFilter:
    """Fits a Kalman filter to features (T, F) and behavior (T, K) with a state of `order` bins."""
    return solve_steady_kalman(fit_linear_gaussian(features, behavior, order), shrinkage)


def score_kalman(bins: Array, session: TrainingSession) -> Score:
    """Returns the score of the best Kalman filter on bins (T, C) with lags. Settings are chosen on validation."""
    behavior, split = unscale_behavior(session), session.split
    train = slice(session.settled, split.train.stop)
    best, chosen = -np.inf, None
    for lags in KALMAN_LAGS:
        features = stack_lagged_bins(bins, lags)
        for order in KALMAN_ORDERS:
            model = fit_linear_gaussian(features[train], behavior[train], order)
            for shrinkage in SHRINKAGES:
                kalman = solve_steady_kalman(model, shrinkage)
                validation = r2_score(kalman(features[split.validation]), behavior[split.validation])
                if chosen is None or compute_mean_r2(validation) > best:
                    test = r2_score(kalman(features[split.test]), behavior[split.test])
                    best = compute_mean_r2(validation)
                    chosen = Score(float(np.mean(test)), test, best)
    assert chosen is not None
    return chosen
