"""The Kalman filter recovers a system whose answer is known, and never looks ahead."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.linalg import solve_discrete_are

from edgedistill.data.bins import Split
from edgedistill.training.evaluate import Array, fit_readout, r2_score
from edgedistill.training.kalman import accumulate, fit_kalman, solve_prior, stack_past


def linear_system(n: int = 6000, features: int = 8, seed: int = 0) -> tuple[Array, Array, Array]:
    """Returns behavior and features of a linear Gaussian system, and the best possible estimate."""
    rng = np.random.default_rng(seed)
    a = 0.97 * np.array([[np.cos(0.1), -np.sin(0.1)], [np.sin(0.1), np.cos(0.1)]])
    w, h, q = 0.1 * np.eye(2), rng.normal(size=(features, 2)), 6 * np.eye(features)
    x, state = np.empty((n, 2)), np.zeros(2)
    for t in range(n):
        state = a @ state + rng.multivariate_normal(np.zeros(2), w)
        x[t] = state
    y = x @ h.T + rng.normal(size=(n, features)) * np.sqrt(6)
    prior = solve_discrete_are(a.T, h.T, w, q)
    gain = prior @ h.T @ np.linalg.inv(h @ prior @ h.T + q)
    best, estimate = np.empty((n, 2)), np.zeros(2)
    for t in range(n):
        estimate = a @ estimate
        estimate = estimate + gain @ (y[t] - h @ estimate)
        best[t] = estimate
    away = np.array([20.0, -5.0])
    return x + away, y + 3, best + away


def test_the_kalman_filter_recovers_a_linear_gaussian_system() -> None:
    behavior, features, best = linear_system()
    kalman = fit_kalman(features[:4500], behavior[:4500], order=1, shrinkage=0.0)
    test = slice(4500, 6000)
    found = np.mean(r2_score(kalman(features)[test], behavior[test]))
    possible = np.mean(r2_score(best[test], behavior[test]))
    linear = fit_readout(features, behavior, Split(slice(0, 4000), slice(4000, 4500), test))
    assert possible - 0.01 < found <= possible + 0.01
    assert found > np.mean(r2_score(linear(features)[test], behavior[test])) + 0.05
    np.testing.assert_allclose(kalman(features)[test], best[test], atol=0.25)


@pytest.mark.parametrize("order", [1, 2])
def test_the_kalman_filter_is_causal_and_forgets_its_start(order: int) -> None:
    behavior, features, _ = linear_system(1500)
    kalman = fit_kalman(features, behavior, order, 0.01)
    other = features.copy()
    other[700:800] += 1e3
    mine, its = kalman(features), kalman(other)
    assert mine[:700].tobytes() == its[:700].tobytes()
    assert not np.allclose(mine[700:800], its[700:800])
    np.testing.assert_allclose(mine[1400:], its[1400:], atol=1e-3)


def test_the_kalman_fit_skips_unknown_behavior() -> None:
    behavior, features, best = linear_system()
    behavior[1000:1500] = np.nan
    kalman = fit_kalman(features[:4500], behavior[:4500], 1, 0.01)
    found, possible = (np.mean(r2_score(g[4500:], behavior[4500:])) for g in (kalman(features), best))
    assert found > possible - 0.02


@pytest.mark.parametrize("seed", range(4))
def test_the_steady_state_solves_the_riccati_equation(seed: int) -> None:
    rng = np.random.default_rng(seed)
    a = rng.normal(size=(4, 4))
    a *= 0.999 / np.abs(np.linalg.eigvals(a)).max()
    w, h = np.diag(rng.uniform(0, 1, 4)), rng.normal(size=(4, 4))
    expected = solve_discrete_are(a.T, h, w, np.eye(4))
    np.testing.assert_allclose(solve_prior(a, w, h @ h.T), expected, rtol=1e-7, atol=1e-9)


def test_states_are_those_of_the_recursion_bin_by_bin() -> None:
    rng = np.random.default_rng(0)
    keep, drive = np.array([[0.9, -0.3], [0.4, 0.8]]), rng.normal(size=(77, 2))
    state = np.zeros(2)
    for found, one in zip(accumulate(keep, drive), drive, strict=True):
        state = keep @ state + one
        np.testing.assert_allclose(found, state, atol=1e-12)


def test_where_the_past_is_unknown_the_present_stands_in_its_place() -> None:
    behavior = np.array([[1.0], [2.0], [np.nan], [4.0], [5.0]])
    np.testing.assert_array_equal(stack_past(behavior, 2)[:, 1], [1, 1, 2, 4, 4])
