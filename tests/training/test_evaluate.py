"""Read-outs and scores agree with scikit-learn, and the Kalman filter with a system whose answer is known."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.linalg import solve_discrete_are
from sklearn.linear_model import Ridge
from sklearn.metrics import r2_score as sklearn_r2

from edgedistill.data.bins import Split
from edgedistill.training.baselines import fit_ridge, score_kalman, score_ridge
from edgedistill.training.batches import training_session_from_bins
from edgedistill.training.distill import make_student
from edgedistill.training.evaluate import (
    PENALTIES,
    Array,
    fit_readout,
    probe,
    r2_score,
    score,
    stack_lagged_bins,
    stream_latents,
    unscale_behavior,
)
from edgedistill.training.kalman import fit_kalman

from .sessions import GAP, STUDENT, session, session_bins

SPLIT = Split(slice(0, 600), slice(650, 750), slice(800, 1000))


def regression(seed: int = 0, features: int = 12, n: int = 1000) -> tuple[Array, Array]:
    """Returns features of unequal scale, and two outputs with noise."""
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(n, features)) * 10 ** rng.uniform(-2, 2, features) + rng.normal(size=features)
    y = x @ (rng.normal(size=(features, 2)) / x.std(0)[:, None]) + 3 * rng.normal(size=(n, 2)) + [50, -3]
    return x, y


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 1000), holes=st.integers(0, 5))
def test_r2_equals_that_of_scikit_learn(seed: int, holes: int) -> None:
    rng = np.random.default_rng(seed)
    truth = rng.normal(size=(60, 3)) * 10 + 4
    guess = truth + rng.normal(size=truth.shape) * [1, 10, 30]
    known = np.ones(60, np.bool_)
    for row in rng.integers(0, 60, holes):
        truth[row, rng.integers(3)], known[row] = np.nan, False
    expected = sklearn_r2(truth[known], guess[known], multioutput="raw_values")
    np.testing.assert_allclose(r2_score(guess, truth), expected, rtol=1e-10)


def test_an_output_that_never_moves_has_no_r2() -> None:
    truth = np.column_stack([np.arange(20.0), np.full(20, 3.0)])
    first, second = r2_score(truth, truth)
    assert first == 1
    assert np.isnan(second)


@pytest.mark.parametrize("seed", range(3))
def test_the_readout_equals_the_ridge_of_scikit_learn(seed: int) -> None:
    x, y = regression(seed)
    readout = fit_readout(x, y, SPLIT, settled=40)
    train = slice(40, 600)
    scale = x[train].std(0)
    by_r2 = {}
    for penalty in PENALTIES:
        ridge = Ridge(alpha=penalty * 560 / 1e4).fit(x[train] / scale, y[train])
        guess = ridge.predict(x / scale)
        by_r2[sklearn_r2(y[SPLIT.validation], guess[SPLIT.validation])] = penalty, guess
    best, (penalty, guess) = max(by_r2.items())
    assert readout.penalty == penalty
    assert readout.validation_r2 == pytest.approx(best, rel=1e-8)
    np.testing.assert_allclose(readout(x), guess, rtol=1e-7, atol=1e-7)
    found = score(readout, x, y, SPLIT)
    assert found.r2 == pytest.approx(sklearn_r2(y[SPLIT.test], guess[SPLIT.test]), rel=1e-7)
    assert found.r2 == pytest.approx(np.mean(found.r2_per_output))


def test_unknown_behavior_is_left_out_of_the_fit() -> None:
    x, y = regression()
    holes, kept = y.copy(), np.r_[0:100, 150:600]
    holes[100:150, 0] = np.nan
    readout = fit_readout(x, holes, SPLIT)
    without = Split(slice(0, 550), slice(600, 700), slice(750, 950))
    again = fit_readout(np.vstack([x[kept], x[600:]]), np.vstack([y[kept], y[600:]]), without)
    np.testing.assert_allclose(readout.weight, again.weight, rtol=1e-9)


def test_the_test_block_does_not_change_the_readout() -> None:
    x, y = regression()
    other_x, other_y = x.copy(), y.copy()
    other_x[750:], other_y[750:] = 1e6, -1e6
    mine, its = fit_readout(x, y, SPLIT), fit_readout(other_x, other_y, SPLIT)
    assert mine.weight.tobytes() == its.weight.tobytes()
    assert mine.penalty == its.penalty


def test_a_constant_feature_does_not_change_the_readout() -> None:
    x, y = regression()
    readout = fit_readout(np.column_stack([x, np.full(len(x), 7.0)]), y, SPLIT)
    assert np.isfinite(readout.weight).all()
    np.testing.assert_allclose(readout.weight[:, :-1], fit_readout(x, y, SPLIT).weight, rtol=1e-8)


@given(lags=st.integers(0, 8), n=st.integers(8, 30))
def test_lagged_features_look_back_only(lags: int, n: int) -> None:
    bins = np.arange(2.0 * n).reshape(n, 2) + 1
    features = stack_lagged_bins(bins, lags).reshape(n, lags + 1, 2)
    for t in range(n):
        for lag in range(lags + 1):
            assert (features[t, lag] == (bins[t - lag] if t >= lag else 0)).all()


# ---------------------------------------------------------------- Kalman


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


# ---------------------------------------------------------------- sessions


def test_baselines_decode_a_session_and_are_deterministic() -> None:
    made = session()
    lfp = made.inputs("lfp").double().numpy()
    ridge, kalman = score_ridge(lfp, made), score_kalman(lfp, made)
    assert ridge.r2 > 0.5
    assert kalman.r2 > 0.5
    assert score_ridge(lfp, made) == ridge


def test_the_best_ridge_comes_with_its_lags_and_its_score() -> None:
    made = session()
    lfp = made.inputs("lfp").double().numpy()
    best = fit_ridge(lfp, made)
    fixed = {lags: fit_ridge(lfp, made, lags=[lags]) for lags in (0, 3, best.lags)}
    assert best.score == fixed[best.lags].score == score_ridge(lfp, made)
    assert fixed[3].readout.weight.shape == (2, 4 * lfp.shape[1])
    assert fixed[0].lags == 0
    guess = best.readout(stack_lagged_bins(lfp, best.lags))[made.split.test]
    assert r2_score(guess, unscale_behavior(made)[made.split.test]) == pytest.approx(best.score.r2_per_output)


def test_an_output_that_never_moves_does_not_stop_the_baselines() -> None:
    bins = session_bins()
    assert bins.behavior is not None
    still = bins.behavior.copy()
    still[:, 1] = 3
    made = training_session_from_bins(replace(bins, behavior=still), GAP)
    lfp = made.inputs("lfp").double().numpy()
    for found in (score_ridge(lfp, made), score_kalman(lfp, made)):
        assert found.r2_per_output[0] > 0.3
        assert not found.r2_per_output[1] > 0.99


def test_baselines_never_look_ahead() -> None:
    """Bins after the validation block change neither the fit, nor the choice, nor any earlier output."""
    made = session()
    lfp = made.inputs("lfp").double().numpy()
    behavior, features = unscale_behavior(made), stack_lagged_bins(lfp, 5)
    readout = fit_readout(features, behavior, made.split, made.settled)
    other = lfp.copy()
    other[made.split.test.start :] += 50
    guess = readout(stack_lagged_bins(other, 5))
    stop = made.split.test.start
    assert guess[:stop].tobytes() == readout(features)[:stop].tobytes()
    assert score_ridge(other, made).validation_r2 == score_ridge(lfp, made).validation_r2


def test_a_probe_streams_from_the_first_bin() -> None:
    made = session()
    student = make_student([made], "lfp", STUDENT, 4, seed=0).eval()
    latents = stream_latents(student, "s1", made.inputs("lfp"))
    with torch.no_grad():
        whole = student("s1", made.inputs("lfp")[None])[0].double().numpy()
    np.testing.assert_allclose(latents, whole, atol=1e-5)
    readout, found = probe(latents, made)
    assert found.validation_r2 == readout.validation_r2
    assert found.r2 > 0.3
    bins = session_bins()
    assert bins.behavior is not None
    np.testing.assert_allclose(unscale_behavior(made), bins.behavior, rtol=1e-5, atol=1e-5)


def test_a_constant_output_does_not_change_the_choice_of_penalty() -> None:
    """A third, constant column, as of hands that move in a plane, leaves the read-out of the others as it was."""
    made = session()
    behavior, features = unscale_behavior(made), stack_lagged_bins(made.inputs("lfp").double().numpy(), 5)
    flat = np.column_stack([behavior, np.full(len(behavior), 0.1)])
    alone, beside = (fit_readout(features, y, made.split) for y in (behavior, flat))
    assert beside.penalty == alone.penalty
    np.testing.assert_allclose(beside.weight[:2], alone.weight, rtol=1e-9)
    assert np.isnan(r2_score(flat, flat)[2])
