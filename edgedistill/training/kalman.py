"""Fits Kalman filters in steady state: kinematics, and features that show them, go in, and a filter comes out.

Source: Wu 2003. The state is the kinematics of one bin or of the last few, and the features are what is observed. The
gain of such a filter converges, so it is computed once and then stays.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from edgedistill.training.evaluate import Array, stack_lagged_bins


@dataclass(frozen=True, eq=False)
class KalmanFilter:
    """Filters in steady state (Kalman). The state (S,) is the last kinematics, the observation (F,) the features."""

    transition: Array  # (S, S)
    gain: Array  # (S, F)
    observation: Array  # (F, S)
    mean_state: Array
    mean_features: Array
    outputs: int

    @property
    def keep(self) -> Array:
        """Returns how a state follows from the one before (S, S), beside what the gain adds."""
        return np.asarray(self.transition - self.gain @ self.observation @ self.transition)

    def __call__(self, features: Array) -> Array:
        """Filters features (T, F) from a zero state, and returns kinematics (T, K)."""
        innovation_gain = (features - self.mean_features) @ self.gain.T
        keep = self.keep
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
    """Fits transition and observation by least squares, and the covariances of their residuals.

    `features` is (T, F), and `behavior` (T, K) is NaN where it is unknown. A state is the behavior of `order` bins.
    """
    state = stack_lagged_bins(behavior, order - 1)
    state[: order - 1] = np.nan  # what was before the first bin is unknown; zeros would be a jump
    known = np.asarray(np.isfinite(state).all(1))
    pair = known[1:] & known[:-1]
    mean_state, mean_features = state[known].mean(0), features[known].mean(0)
    x, y = state - mean_state, features - mean_features
    a = np.linalg.lstsq(x[:-1][pair], x[1:][pair], rcond=None)[0].T
    w = np.cov((x[1:][pair] - x[:-1][pair] @ a.T).T).reshape(a.shape)
    h = np.linalg.lstsq(x[known], y[known], rcond=None)[0].T
    q = np.cov((y[known] - x[known] @ h.T).T).reshape(len(h), len(h))
    return LinearGaussian(a, w, h, q, mean_state, mean_features, behavior.shape[1])


def solve_steady_kalman(model: LinearGaussian, shrinkage: float, noise: float = 1.0) -> KalmanFilter:
    """Iterates the Riccati recursion to its fixed point.

    The observation noise is shrunk towards its diagonal by the share `shrinkage`, and multiplied by `noise`.
    """
    variance = np.maximum(np.diag(model.q), 1e-9)
    q = noise * ((1 - shrinkage) * model.q + shrinkage * np.diag(variance + variance.mean()))
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
