"""The linear baselines see the inputs that they are named after, choose on validation alone, and never look ahead."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import pytest
import torch

from edgedistill.training import baselines
from edgedistill.training.baselines import fit_bundle_ridge, fit_linear_baselines, fit_ridge, score_ridge, smooth
from edgedistill.training.batches import TrainingSession, training_session_from_bins
from edgedistill.training.evaluate import Array, fit_readout, r2_score, score, stack_lagged_bins, unscale_behavior

from .sessions import CHANNELS, GAP, session, session_bins


@pytest.fixture(autouse=True)
def few_settings() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(baselines, "RIDGE_LAGS", (3, 12))
        patch.setattr(baselines, "KALMAN_LAGS", (0, 3))
        patch.setattr(baselines, "SMOOTHING_MS", (0, 100))
        yield


def lfp_of(made: TrainingSession) -> Array:
    return np.asarray(made.inputs("lfp").double().numpy())


def with_power(made: TrainingSession, noise: float = 4.0) -> TrainingSession:
    """Returns the session with one band beside the slow LFP, which follows the velocity under white noise."""
    assert made.behavior is not None
    rng = np.random.default_rng(3)
    mixed = made.behavior.numpy() @ rng.normal(size=(2, CHANNELS))
    power = (mixed + noise * rng.normal(size=mixed.shape)).astype(np.float32)
    return replace(made, lfp=torch.cat([made.inputs("lfp"), torch.from_numpy(power)], 1))


def test_without_band_power_only_the_slow_lfp_and_the_spikes_are_decoded() -> None:
    made = session()
    found = fit_linear_baselines(made, "lfp") | fit_linear_baselines(made, "spikes")
    assert set(found) == {"ridge_lfp", "kalman_lfp", "ridge_spike", "kalman_spike"}
    assert all(found[name].score.r2 > 0.5 for name in ("ridge_lfp", "kalman_lfp"))
    assert all(found[name].score.r2 > 0.1 for name in ("ridge_spike", "kalman_spike"))
    assert found["ridge_lfp"].smoothing_ms == found["kalman_lfp"].smoothing_ms == 0
    again = fit_linear_baselines(made, "lfp")["ridge_lfp"]
    assert again.decoded.tobytes() == found["ridge_lfp"].decoded.tobytes()


def test_each_baseline_sees_the_inputs_of_its_name() -> None:
    made = with_power(session())
    found = fit_linear_baselines(made, "lfp")
    suffixes = ("lfp", "power", "lfp_power")
    assert set(found) == {f"{method}_{suffix}" for method in ("ridge", "kalman") for suffix in suffixes}
    other = replace(made, lfp=torch.cat([-2 * made.inputs("lfp")[:, :CHANNELS], made.inputs("lfp")[:, CHANNELS:]], 1))
    again = fit_linear_baselines(other, "lfp")
    np.testing.assert_allclose(again["ridge_power"].decoded, found["ridge_power"].decoded)
    np.testing.assert_allclose(again["kalman_power"].decoded, found["kalman_power"].decoded)
    alone = fit_linear_baselines(session(), "lfp")
    np.testing.assert_allclose(found["ridge_lfp"].decoded, alone["ridge_lfp"].decoded)
    assert found["ridge_lfp_power"].score.validation_r2 > found["ridge_lfp"].score.validation_r2
    assert found["ridge_lfp_power"].score.validation_r2 > found["ridge_power"].score.validation_r2


def test_with_spaced_lags_each_baseline_still_sees_the_inputs_of_its_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(baselines, "MOST_FEATURES", 60)  # 13 lags of 3 slow inputs, and 4 of 3 others
    made = with_power(session())
    found = fit_linear_baselines(made, "lfp")
    slow, power = made.inputs("lfp")[:, :CHANNELS], made.inputs("lfp")[:, CHANNELS:]
    again = fit_linear_baselines(replace(made, lfp=torch.cat([-2 * slow, power], 1)), "lfp")
    np.testing.assert_allclose(again["ridge_power"].decoded, found["ridge_power"].decoded)
    nothing = fit_linear_baselines(replace(made, lfp=torch.cat([slow, 0 * power], 1)), "lfp")
    assert nothing["ridge_lfp_power"].score.r2 == pytest.approx(nothing["ridge_lfp"].score.r2, abs=0.01)


def test_noisy_power_is_smoothed_and_the_slow_lfp_never_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(baselines, "RIDGE_LAGS", (0,))
    made = with_power(session())
    found = fit_linear_baselines(made, "lfp")
    assert found["ridge_power"].smoothing_ms == 100
    assert found["ridge_lfp"].smoothing_ms == found["kalman_lfp"].smoothing_ms == 0
    monkeypatch.setattr(baselines, "SMOOTHING_MS", (0,))
    rough = fit_linear_baselines(made, "lfp")["ridge_power"]
    assert found["ridge_power"].score.r2 > rough.score.r2 + 0.05


def test_a_ridge_of_wide_inputs_chooses_among_all_smoothings(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its shortest lags may need a wider grid than those of a Kalman filter, which may want another smoothing."""
    tried: list[tuple[float, int]] = []
    watched = lambda bins, ms, slow: tried.append((ms, bins.shape[1])) or smooth(bins, ms, slow)  # noqa: E731
    monkeypatch.setattr(baselines, "MOST_FEATURES", 3 * CHANNELS)  # one bin of slow LFP and power, and little more
    monkeypatch.setattr(baselines, "SMOOTHING_MS", (0, 50, 100))
    monkeypatch.setattr(baselines, "RIDGE_LAGS", (3,))
    monkeypatch.setattr(baselines, "KALMAN_LAGS", (0,))
    monkeypatch.setattr(baselines, "smooth", watched)
    fit_linear_baselines(with_power(session()), "lfp")
    for ms in (0, 50, 100):  # in the search of the Kalman filters, and again in that of the ridges
        assert tried.count((ms, 2 * CHANNELS)) >= 2


@pytest.mark.parametrize("unit", [1e-5, 1e-3, 1e3])
def test_the_unit_of_the_behavior_changes_no_score(unit: float) -> None:
    bins = session_bins()
    assert bins.behavior is not None
    other = training_session_from_bins(replace(bins, behavior=bins.behavior * unit), GAP)
    mine, its = fit_linear_baselines(session(), "lfp"), fit_linear_baselines(other, "lfp")
    for name, found in mine.items():
        assert its[name].score.r2 == pytest.approx(found.score.r2, abs=1e-4)


def test_smoothing_is_a_causal_exponential() -> None:
    bins = np.zeros((200, 3))
    bins[50] = 1
    found = smooth(bins, 100, 1).read(0, 200)
    np.testing.assert_array_equal(found[:, 0], bins[:, 0])
    keep = np.exp(-0.1)
    np.testing.assert_allclose(found[50:60, 1], (1 - keep) * keep ** np.arange(10))
    assert not found[:50].any()
    np.testing.assert_array_equal(smooth(bins, 0, 1).read(0, 200), bins)


def test_a_ridge_is_the_readout_of_stacked_bins() -> None:
    bins = session_bins()
    assert bins.behavior is not None
    holes = bins.behavior.copy()
    holes[3000:3300] = holes[4000:4010] = np.nan
    made = training_session_from_bins(replace(bins, behavior=holes), GAP)
    behavior, features = unscale_behavior(made), stack_lagged_bins(lfp_of(made), 12)
    readout = fit_readout(features, behavior, made.split, made.settled)
    found = fit_ridge(lfp_of(made), made, lags=[12])
    assert found.readout.penalty == readout.penalty
    np.testing.assert_allclose(found.readout.weight, readout.weight, rtol=1e-6, atol=1e-9)
    np.testing.assert_allclose(found.readout.bias, readout.bias)
    assert found.score.r2 == pytest.approx(score(readout, features, behavior, made.split).r2, abs=1e-9)


def test_the_best_ridge_comes_with_its_lags_and_its_score() -> None:
    made = session()
    lfp = lfp_of(made)
    best = fit_ridge(lfp, made)
    fixed = {lags: fit_ridge(lfp, made, lags=[lags]) for lags in (0, 3, best.lags)}
    assert best.score == fixed[best.lags].score == score_ridge(lfp, made)
    assert fixed[3].readout.weight.shape == (2, 4 * lfp.shape[1])
    assert fixed[0].lags == 0
    guess = best.readout(stack_lagged_bins(lfp, best.lags))[made.split.test]
    assert r2_score(guess, unscale_behavior(made)[made.split.test]) == pytest.approx(best.score.r2_per_output)
    assert fit_linear_baselines(made, "lfp")["ridge_lfp"].score.r2 == pytest.approx(best.score.r2)


def test_lags_that_are_left_out_have_no_weight(monkeypatch: pytest.MonkeyPatch) -> None:
    made = session()
    monkeypatch.setattr(baselines, "MOST_FEATURES", 4 * CHANNELS)
    found = fit_ridge(lfp_of(made), made, lags=[12])
    weight = found.readout.weight.reshape(2, 13, CHANNELS)
    assert np.flatnonzero(weight.any((0, 2))).tolist() == [0, 4, 8, 12]
    guess = found.readout(stack_lagged_bins(lfp_of(made), 12))[made.split.test]
    assert r2_score(guess, unscale_behavior(made)[made.split.test]) == pytest.approx(found.score.r2_per_output)


@pytest.mark.parametrize(("noise", "slow_alone"), [(0.1, False), (1e3, True)])
def test_the_ridge_of_a_bundle_reads_band_power_where_that_helps(noise: float, slow_alone: bool) -> None:
    made = with_power(session(), noise)
    inputs = lfp_of(made)
    found = fit_bundle_ridge(inputs, CHANNELS, made, [10])
    weight = found.readout.weight.reshape(2, 11, 2 * CHANNELS)
    assert weight[..., :CHANNELS].any()
    assert bool(weight[..., CHANNELS:].any()) != slow_alone
    guess = found.readout(stack_lagged_bins(inputs, 10))[made.split.test]
    assert r2_score(guess, unscale_behavior(made)[made.split.test]) == pytest.approx(found.score.r2_per_output)
    alone = fit_bundle_ridge(inputs[:, :CHANNELS], CHANNELS, made, [10])
    assert found.readout.validation_r2 >= alone.readout.validation_r2


def test_half_of_the_lags_of_a_bidirectional_ridge_lie_in_the_future() -> None:
    made = session()
    behavior, lfp = unscale_behavior(made), lfp_of(made)
    late = np.vstack([np.zeros((6, lfp.shape[1])), lfp[:-6]])  # what moves the hand comes 6 bins after it has moved
    causal, both = (score_ridge(late, made, bidirectional).r2 for bidirectional in (False, True))
    assert both == pytest.approx(score_ridge(lfp, made).r2, abs=0.03)
    assert both > causal + 0.02
    assert len(behavior) == len(lfp)


def test_an_output_that_never_moves_does_not_stop_the_baselines() -> None:
    bins = session_bins()
    assert bins.behavior is not None
    still = bins.behavior.copy()
    still[:, 1] = 3
    made = training_session_from_bins(replace(bins, behavior=still), GAP)
    for found in fit_linear_baselines(made, "lfp").values():
        assert found.score.r2_per_output[0] > 0.3
        assert not found.score.r2_per_output[1] > 0.99


def test_an_artefact_in_the_training_block_does_not_turn_a_baseline() -> None:
    made = session()
    loud = made.inputs("lfp").clone()
    loud[2000:2005] = 300 * torch.tensor([1.0, -1.0, 1.0])
    for name, found in fit_linear_baselines(replace(made, lfp=loud), "lfp").items():
        assert found.score.r2 > fit_linear_baselines(made, "lfp")[name].score.r2 - 0.02


def test_baselines_never_look_ahead() -> None:
    """Bins after the validation block change neither the fit, nor the choice, nor any earlier output."""
    made = with_power(session())
    stop = made.split.test.start
    other = made.inputs("lfp").clone()
    other[stop:] += 50
    mine, its = fit_linear_baselines(made, "lfp"), fit_linear_baselines(replace(made, lfp=other), "lfp")
    for name, found in mine.items():
        assert (found.smoothing_ms, found.lags) == (its[name].smoothing_ms, its[name].lags)
        assert found.score.validation_r2 == its[name].score.validation_r2
        np.testing.assert_array_equal(found.decoded[:stop], its[name].decoded[:stop])
        assert not np.allclose(found.decoded[stop:], its[name].decoded[stop:])
