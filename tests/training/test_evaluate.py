"""Read-outs and scores agree with scikit-learn."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.linear_model import Ridge
from sklearn.metrics import r2_score as sklearn_r2

from edgedistill.data.bins import Split
from edgedistill.training.distill import make_student
from edgedistill.training.evaluate import (
    PENALTIES,
    Array,
    choose_shares,
    fit_readout,
    probe,
    r2_score,
    score,
    stack_lagged_bins,
    stream_latents,
    unscale_behavior,
)

from .sessions import STUDENT, session, session_bins

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


def latents_and_bins(overfit: float, informative: float) -> tuple[Array, Array]:
    """Returns 4 latents beside 200 bins, and behavior that both tell.

    The latents hold the noise of the behavior in the training block, and noise of their own, `overfit`, in the others.
    `informative` is how much of the behavior the bins tell.
    """
    rng = np.random.default_rng(0)
    x, told = rng.normal(size=(1000, 204)), rng.normal(size=(1000, 2))
    hidden = informative * x[:, 4:24] @ rng.normal(size=(20, 2)) / np.sqrt(20)
    y = told + hidden + 0.3 * rng.normal(size=(1000, 2))
    x[:, :2], x[:, 2:4] = y, told
    x[600:, :2] += overfit * rng.normal(size=(400, 2))
    return x, y


def score_parts(x: Array, y: Array) -> tuple[float, float, float, float]:
    """Returns R² on the test block of the read-out, and of ridges on all features, latents alone and bins alone."""
    mixed = fit_readout(x, y, SPLIT, latents=4)
    assert mixed.validation_r2 == pytest.approx(np.mean(r2_score(mixed(x)[SPLIT.validation], y[SPLIT.validation])))
    rest = [(fit_readout(part, y, SPLIT), part) for part in (x, x[:, :4], x[:, 4:])]
    assert all(mixed.validation_r2 >= alone.validation_r2 - 1e-9 for alone, _ in rest)
    return score(mixed, x, y, SPLIT).r2, *(score(alone, part, y, SPLIT).r2 for alone, part in rest)


def test_latents_that_overfit_do_not_hide_the_bins() -> None:
    mixed, whole, latents, bins = score_parts(*latents_and_bins(overfit=1.5, informative=1.5))
    assert mixed > 0.03 + max(whole, latents, bins)


def test_bins_that_tell_nothing_cost_nothing() -> None:
    mixed, whole, latents, _ = score_parts(*latents_and_bins(overfit=0.0, informative=0.0))
    assert mixed > max(whole, latents) - 0.01


def test_latents_that_tell_nothing_cost_nothing() -> None:
    mixed, _, latents, bins = score_parts(*latents_and_bins(overfit=20.0, informative=3.0))
    assert latents < 0 < bins
    assert mixed > bins - 0.02


def test_the_shares_of_a_mean_are_the_best_of_all_tenths() -> None:
    rng = np.random.default_rng(1)
    truth = rng.normal(size=(300, 2))
    truth[5] = np.nan
    guesses = [truth + size * rng.normal(size=(300, 2)) for size in (1.0, 1.4, 30.0)]
    shares, found = choose_shares(guesses, truth)
    every = {
        (a / 10, b / 10, (10 - a - b) / 10): np.mean(
            r2_score((a * guesses[0] + b * guesses[1] + (10 - a - b) * guesses[2]) / 10, truth)
        )
        for a in range(11)
        for b in range(11 - a)
    }
    assert shares == pytest.approx(max(every, key=lambda one: every[one]))
    assert found == pytest.approx(max(every.values()))
    assert shares[0] > shares[1] > 0 == shares[2]
    assert choose_shares([guesses[0], guesses[0]], truth)[0] == (1.0, 0.0)


def test_the_shares_of_an_output_that_never_moves_are_those_of_the_first_guess() -> None:
    still = np.zeros((50, 1))
    shares, found = choose_shares([still, still + 1], still)
    assert shares == (1.0, 0.0)
    assert np.isnan(found)


@given(lags=st.integers(0, 8), n=st.integers(8, 30))
def test_lagged_features_look_back_only(lags: int, n: int) -> None:
    bins = np.arange(2.0 * n).reshape(n, 2) + 1
    features = stack_lagged_bins(bins, lags).reshape(n, lags + 1, 2)
    for t in range(n):
        for lag in range(lags + 1):
            assert (features[t, lag] == (bins[t - lag] if t >= lag else 0)).all()


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
