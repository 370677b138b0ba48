"""The filter of a decoder's outputs is Kalman's, is chosen on validation, and is left out where it does not help."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest

from edgedistill.data.bins import Split
from edgedistill.training.evaluate import Array, r2_score
from edgedistill.training.kalman import (
    LEAST_VARIANCE,
    LinearGaussian,
    fit_linear_gaussian,
    solve_steady_kalman,
    stack_past,
)
from edgedistill.training.lagged_moments import compute_lagged_moments
from edgedistill.training.output_filter import fit_output_filter, smoothing_from_kalman

SPLIT = Split(slice(0, 4000), slice(4100, 5000), slice(5100, 8000))
T = 8000


def smooth_behavior(seed: int = 0) -> Array:
    """Returns two velocities that wander over a third of a second, in unequal units, about unequal means."""
    noise = np.random.default_rng(seed).normal(size=(T + 100, 2))
    slow = np.stack([np.convolve(column, np.hanning(60), "same") for column in noise.T], 1)[:T]
    return slow / slow.std(0) * [5.0, 0.02] + [1.0, -0.3]


def rough(behavior: Array, noise: float, seed: int = 1) -> Array:
    """Returns what a decoder with white errors would give."""
    return behavior + noise * behavior.std(0) * np.random.default_rng(seed).normal(size=behavior.shape)


def mean_r2(guess: Array, truth: Array) -> float:
    return float(np.mean(r2_score(guess[SPLIT.test], truth[SPLIT.test])))


def test_a_rough_output_becomes_better_on_data_that_nothing_was_chosen_on() -> None:
    behavior = smooth_behavior()
    decoded = rough(behavior, 0.7)
    found = fit_output_filter(decoded, behavior, SPLIT)
    assert found.kind == "kalman"
    assert found.order in (1, 2)
    assert found.validation_r2 > found.raw_validation_r2 + 0.2
    assert mean_r2(found(decoded), behavior) > mean_r2(decoded, behavior) + 0.2


def test_an_output_that_is_right_already_stays_as_it_is() -> None:
    behavior = smooth_behavior()
    found = fit_output_filter(behavior, behavior, SPLIT)
    assert (found.kind, found.model, found.order, found.noise) == ("none", None, None, None)
    assert found.validation_r2 == found.raw_validation_r2 == 1.0
    assert found(behavior) is behavior


def drifting_behavior(seed: int = 0) -> Array:
    """Returns two velocities that are what a Kalman filter of order 1 assumes, so that no factor mends the model."""
    noise, behavior = np.random.default_rng(seed).normal(size=(T, 2)), np.zeros((T, 2))
    for t in range(1, T):
        behavior[t] = 0.98 * behavior[t - 1] + 0.2 * noise[t]
    return behavior


def test_the_noise_factor_is_chosen_on_validation_where_errors_are_larger_than_in_training() -> None:
    behavior = drifting_behavior()
    alike, worse = rough(behavior, 0.4), rough(behavior, 1.2)
    worse[SPLIT.train] = alike[SPLIT.train]
    same, found = (fit_output_filter(decoded, behavior, SPLIT) for decoded in (alike, worse))
    assert same.noise is not None
    assert found.noise is not None
    assert 0.5 <= same.noise <= 2  # the factor of a filter that fits is 1
    assert 4 <= found.noise <= 16  # that of variances which are nine times as large is 9


def test_the_test_block_and_what_lies_after_it_choose_nothing() -> None:
    behavior = smooth_behavior()
    decoded = rough(behavior, 0.7)
    other, spoiled = decoded.copy(), behavior.copy()
    other[SPLIT.validation.stop :] = 1e3
    spoiled[SPLIT.validation.stop :] = np.nan
    mine, its = fit_output_filter(decoded, behavior, SPLIT), fit_output_filter(other, spoiled, SPLIT)
    assert mine.model is not None
    assert its.model is not None
    assert (mine.order, mine.noise) == (its.order, its.noise)
    assert mine.model.gain.tobytes() == its.model.gain.tobytes()


def test_bins_before_the_front_end_settled_and_unknown_behavior_do_not_count() -> None:
    behavior = smooth_behavior()
    decoded = rough(behavior, 0.7)
    decoded[:500] = 1e4
    holes = behavior.copy()
    holes[1000:1400, 1] = np.nan
    found = fit_output_filter(decoded, holes, SPLIT, settled=500)
    assert found.kind == "kalman"
    assert mean_r2(found(decoded), behavior) > mean_r2(decoded, behavior) + 0.2


@pytest.mark.parametrize("block", ["train", "validation"])
def test_without_labels_there_is_no_filter(block: str) -> None:
    behavior = smooth_behavior()
    decoded = rough(behavior, 0.7)
    behavior[getattr(SPLIT, block)] = np.nan
    assert fit_output_filter(decoded, behavior, SPLIT).kind == "none"


@pytest.mark.filterwarnings("error")
def test_an_output_that_stands_still_disturbs_no_other() -> None:
    behavior = smooth_behavior()
    decoded = rough(behavior, 0.7)
    still, given = behavior.copy(), decoded.copy()
    still[:, 1], given[:, 1] = 3.0, 3.0
    alone = fit_output_filter(decoded[:, :1], behavior[:, :1], SPLIT)
    found = fit_output_filter(given, still, SPLIT)
    assert found.kind == "kalman"
    np.testing.assert_allclose(found(given)[:, 1], 3.0, atol=1e-3)
    np.testing.assert_allclose(found(given)[:, 0], alone(decoded[:, :1])[:, 0], atol=0.2)


def test_what_is_smoothed_is_what_the_kalman_filter_gives_in_the_outputs_own_units() -> None:
    behavior = smooth_behavior()
    decoded, raw_scale, scale = rough(behavior, 0.7), np.array([7.0, 0.01]), np.array([2.0, 0.05])
    fitted = fit_model(decoded[SPLIT.train] / raw_scale, behavior[SPLIT.train] / scale, 2)
    kalman = solve_steady_kalman(fitted, 0.01)
    model = smoothing_from_kalman(kalman, raw_scale, scale)
    assert model.find_fault() is None
    expected = kalman(decoded / raw_scale) * scale
    np.testing.assert_allclose(model.run(decoded.astype(np.float32)), expected, rtol=1e-3, atol=1e-4)


def fit_model(decoded: Array, behavior: Array, order: int) -> LinearGaussian:
    known = np.isfinite(behavior).all(1)
    moments = compute_lagged_moments(decoded, stack_past(behavior, order), known, (0,))
    return fit_linear_gaussian(moments, behavior, known, order)


def textbook_filter(model: LinearGaussian, noise: float, features: Array) -> tuple[Array, list[Array]]:
    """Runs a Kalman filter with a gain that is computed anew for each bin. Returns states (T, S) and the gains."""
    a, h, q = model.a, model.h, noise * model.q
    w = model.w + LEAST_VARIANCE * np.diag(model.moments.target_variance[: len(a)])
    state, p = np.zeros(len(a)), np.eye(len(a))
    states, gains = [], []
    for observed in features - model.moments.mean[0]:
        ahead, prior = a @ state, a @ p @ a.T + w
        gain = prior @ h.T @ np.linalg.inv(h @ prior @ h.T + q)
        state = ahead + gain @ (observed - h @ ahead)
        p = (np.eye(len(a)) - gain @ h) @ prior
        states.append(state)
        gains.append(gain)
    return np.array(states) + model.mean_state, gains


@pytest.mark.parametrize("order", [1, 2])
@pytest.mark.parametrize("noise", [0.25, 1.0, 8.0])
def test_a_textbook_filter_with_a_changing_gain_converges_to_it(order: int, noise: float) -> None:
    behavior = smooth_behavior() * [1.0, 250.0]
    decoded = rough(behavior, 0.5)
    model = fit_model(decoded[SPLIT.train], behavior[SPLIT.train], order)
    steady = solve_steady_kalman(model, 0.0, noise)
    states, gains = textbook_filter(model, noise, decoded[:1500])
    apart = [float(np.abs(gain - steady.drive.weight[:, 0]).max()) for gain in gains]
    assert apart[0] > 10 * apart[400]
    assert apart[400] < 1e-3
    assert all(later <= earlier + 1e-6 for earlier, later in pairwise(apart[100:400:100]))
    np.testing.assert_allclose(steady(decoded[:1500])[600:], states[600:, :2], atol=0.02)
