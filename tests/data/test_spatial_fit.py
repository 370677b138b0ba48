"""The model of an array is the precision matrix of its good bins, and gives lost channels their conditional mean."""

from __future__ import annotations

from dataclasses import replace
from fractions import Fraction

import numpy as np
import pytest
from sklearn.covariance import LedoitWolf

from edgedistill.data.session import SessionBins
from edgedistill.data.spatial_fit import (
    LEAST_SHRINKAGE,
    MEAN_BINS,
    find_precision,
    fit_spatial_model,
    fit_standardization,
)
from edgedistill.frontend import FrontEndConfig, SpatialModel, settling_bins, standardize

BINS, CHANNELS = 4000, 6


def array_of(channels: int, sweeps: int = 64, common_average: bool = True) -> FrontEndConfig:
    return FrontEndConfig(rate=Fraction(250), channels=channels, fill_sweeps=sweeps, common_average=common_average)


def correlated(bins: int = BINS, channels: int = CHANNELS, seed: int = 0) -> np.ndarray:
    """Returns values (bins, channels) in uV that share a background, each channel with its own size and offset."""
    rng = np.random.default_rng(seed)
    shared = rng.standard_normal((bins, 1)) * rng.uniform(1, 2, channels)
    local = rng.standard_normal((bins, 2)) @ rng.standard_normal((2, channels))
    return (shared + local + 0.3 * rng.standard_normal((bins, channels))) * rng.uniform(10, 90, channels) + 5


def fit(values: np.ndarray, bad: np.ndarray | None = None, **settings: int) -> SpatialModel:
    bad = np.zeros(values.shape, np.bool_) if bad is None else bad
    mean, std = statistics(values, bad)
    return fit_spatial_model(array_of(values.shape[1], **settings), values, bad, mean, std)


def statistics(values: np.ndarray, bad: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    held = np.ma.array(values, mask=bad)
    return np.asarray(held.mean(axis=0).filled(0)), np.asarray(held.std(axis=0).filled(0))


def standardized(values: np.ndarray) -> np.ndarray:
    return np.asarray((values - values.mean(axis=0)) / values.std(axis=0))


def covariance_of(model: SpatialModel) -> np.ndarray:
    """Returns the covariance of the standardized channels of the slow LFP that the model describes."""
    slow = model.parts[0]
    return np.linalg.inv(slow.coupling.astype(np.float64) * np.outer(slow.scale, slow.scale))


def conditional_mean(covariance: np.ndarray, values: np.ndarray, lost: list[int]) -> np.ndarray:
    """Returns the mean (B, lost) of a Gaussian given its other channels, as a textbook writes it."""
    others = np.setdiff1d(np.arange(len(covariance)), lost)
    across = covariance[np.ix_(lost, others)]
    return np.asarray(values[:, others] @ np.linalg.solve(covariance[np.ix_(others, others)], across.T))


def means_of(present: np.ndarray) -> np.ndarray:
    """Returns the means over 200 ms, one after the other, without the bins that fill none."""
    whole = len(present) // MEAN_BINS
    return np.stack([present[i * MEAN_BINS : (i + 1) * MEAN_BINS].mean(axis=0) for i in range(whole)])


@pytest.mark.parametrize("bins", [400, 4007])
def test_few_bins_are_shrunk_as_ledoit_and_wolf_say(bins: int) -> None:
    present = standardized(correlated(bins))
    theirs = LedoitWolf(assume_centered=True).fit(means_of(present))
    assert theirs.shrinkage_ > LEAST_SHRINKAGE
    np.testing.assert_allclose(find_precision(means_of(present)), np.linalg.inv(theirs.covariance_), rtol=1e-6)


def test_how_channels_go_together_is_learned_from_what_changes_slowly() -> None:
    rng = np.random.default_rng(0)
    slow = np.repeat(rng.standard_normal(400), MEAN_BINS)
    fast = rng.standard_normal(400 * MEAN_BINS)
    fast -= np.repeat(fast.reshape(400, MEAN_BINS).mean(axis=1), MEAN_BINS)  # nothing of it is left in a mean
    present = np.column_stack([slow + fast, slow - fast])
    covariance = np.linalg.inv(find_precision(means_of(present)))
    assert np.corrcoef(present.T)[0, 1] < 0.1
    assert covariance[0, 1] / covariance[0, 0] > 0.95


def test_many_bins_are_shrunk_by_a_thousandth() -> None:
    present = standardized(correlated(2_000_000, 3))
    means = means_of(present)
    assert LedoitWolf(assume_centered=True).fit(means).shrinkage_ < LEAST_SHRINKAGE
    found, covariance = np.linalg.inv(find_precision(means_of(present))), means.T @ means / len(means)
    wanted = 0.999 * covariance + 0.001 * np.trace(covariance) / 3 * np.eye(3)
    np.testing.assert_allclose(found, wanted, rtol=1e-3)  # what they shrink besides is less than that


def test_the_model_holds_the_precision_matrix_with_a_diagonal_of_one() -> None:
    values = correlated()
    model = fit(values)
    precision = find_precision(means_of(standardized(values)))
    (coupling,) = model.coupling
    np.testing.assert_array_equal(coupling, coupling.T)
    np.testing.assert_array_equal(np.diag(coupling), 1)
    np.testing.assert_allclose(coupling * np.outer(model.scale, model.scale), precision, rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(model.scale * model.inverse_scale, 1, rtol=1e-6)
    for part in (model.coupling, model.scale, model.inverse_scale, model.gain):
        assert part.dtype == np.float32


@pytest.mark.parametrize("common_average", [False, True])
def test_every_channel_of_the_models_input_has_a_deviation_of_one(common_average: bool) -> None:
    values = correlated()
    found = fit(values, common_average=common_average)
    z = found.complete(standardized(values).astype(np.float32), np.ones(values.shape, np.bool_))
    np.testing.assert_allclose(z.std(axis=0), 1, rtol=1e-4)
    np.testing.assert_allclose(z.mean(axis=0), 0, atol=1e-4)


@pytest.mark.parametrize("lost", [[2], [0, 3, 4], [1, 2, 3, 4, 5]])
def test_lost_channels_become_their_conditional_mean(lost: list[int]) -> None:
    values = correlated()
    model = fit(values)
    s, there = standardized(values).astype(np.float32), np.ones(values.shape, np.bool_)
    there[:, lost] = False
    whole = s.astype(np.float64)
    whole[:, lost] = conditional_mean(covariance_of(model), whole, lost)
    wanted = (whole - whole.mean(axis=1, keepdims=True)) * model.gain
    found = model.complete(np.where(there, s, np.float32(77)), there)
    np.testing.assert_allclose(found, wanted, atol=2e-3)
    np.testing.assert_array_equal(found, model.complete(np.where(there, s, np.nan), there))


def test_a_channel_that_the_block_hardly_shows_is_not_known_and_always_zero() -> None:
    values, bad = correlated(), np.zeros((BINS, CHANNELS), np.bool_)
    bad[BINS // 11 :, 1] = True
    bad[:, 4] = True
    model = fit(values, bad)
    assert model.known.tolist() == [True, False, True, True, False, True]
    assert not model.coupling[0, [1, 4]].any()
    assert not model.coupling[0, :, [1, 4]].any()
    assert (model.scale[[1, 4]] == 1).all()
    there = np.ones((1, CHANNELS), np.bool_)
    there[:, ~model.known] = False
    z = model.complete(np.full((1, CHANNELS), 3, np.float32), there)[0]
    assert not z[[1, 4]].any()
    rest = fit(values[:, model.known])
    np.testing.assert_allclose(model.gain[model.known], rest.gain, rtol=1e-5)


def test_a_channel_needs_a_hundred_bins_in_a_short_block() -> None:
    values, bad = correlated(300), np.zeros((300, CHANNELS), np.bool_)
    bad[100:, 0] = True
    bad[99:, 1] = True
    assert fit(values, bad).known.tolist() == [True, False, True, True, True, True]


def test_a_channel_without_a_deviation_is_not_known() -> None:
    values = correlated()
    values[:, 3] = 7.0
    assert np.flatnonzero(~fit(values).known).tolist() == [3]


def test_bins_with_a_bad_channel_are_left_out_where_enough_whole_ones_remain() -> None:
    values, bad = correlated(), np.zeros((BINS, CHANNELS), np.bool_)
    bad[: BINS // 2, 0] = True
    values[: BINS // 2] += np.random.default_rng(1).standard_normal((BINS // 2, CHANNELS)) * 200
    mean, std = statistics(values, bad)
    model = fit_spatial_model(array_of(CHANNELS), values, bad, mean, std)
    whole = (values[BINS // 2 :] - mean) / std
    np.testing.assert_allclose(
        covariance_of(model), np.linalg.inv(find_precision(means_of(whole))), rtol=1e-3, atol=1e-4
    )


def test_an_array_of_which_something_is_always_bad_uses_all_bins_with_zeros() -> None:
    values, bad = correlated(), np.zeros((BINS, CHANNELS), np.bool_)
    bad[np.arange(BINS), np.arange(BINS) % CHANNELS] = True
    bad[:10] = True
    mean, std = statistics(values, bad)
    model = fit_spatial_model(array_of(CHANNELS), values, bad, mean, std)
    present = np.where(bad, 0, (values - mean) / std)[10:]
    np.testing.assert_allclose(
        covariance_of(model), np.linalg.inv(find_precision(means_of(present))), rtol=1e-3, atol=1e-4
    )


def test_the_twin_of_a_lost_channel_takes_its_place() -> None:
    values = correlated(60_000)
    values[:, 5] = 3 * values[:, 2] + 40
    model = fit(values, sweeps=64)
    s, there = standardized(values).astype(np.float32), np.ones(values.shape, np.bool_)
    intact = model.complete(s, there)
    there[:, 5] = False
    assert np.isfinite(intact).all()
    assert np.abs(model.complete(s, there) - intact).max() < 0.15


def test_an_array_whose_average_was_already_taken_can_be_fitted() -> None:
    values = correlated()
    values = values - values.mean(axis=1, keepdims=True)
    model = fit(values, sweeps=64)
    s, there = standardized(values).astype(np.float32), np.ones(values.shape, np.bool_)
    intact = model.complete(s, there)
    there[:, 0] = False
    assert np.isfinite(model.coupling).all()
    assert np.abs(model.complete(s, there) - intact).max() < 0.2  # the others tell what it was


def test_a_dead_channel_that_holds_a_rest_of_the_mains_is_not_known() -> None:
    values, rng = correlated(), np.random.default_rng(3)
    alive = fit(values[:, :5])
    values[:, 5] = 0.05 * rng.standard_normal(len(values))
    model = fit(values)
    assert model.known.tolist() == [True] * 5 + [False]
    np.testing.assert_array_equal(model.gain[:5], alive.gain)
    z = model.complete(standardized(values).astype(np.float32), np.broadcast_to(model.known, values.shape))
    np.testing.assert_array_equal(z[:, 5], 0)


def test_one_channel_alone_is_not_its_own_average() -> None:
    values = correlated(channels=1)
    model = fit(values)
    np.testing.assert_allclose(model.gain, 1, rtol=1e-5)
    s = standardized(values).astype(np.float32)
    np.testing.assert_allclose(model.complete(s, np.ones(s.shape, np.bool_)), s, rtol=1e-5, atol=1e-6)
    assert not model.complete(s, np.zeros(s.shape, np.bool_)).any()


def test_a_block_without_a_good_bin_knows_no_channel() -> None:
    values = correlated()
    model = fit(values, np.ones(values.shape, np.bool_))
    assert not model.known.any()
    assert not model.complete(values.astype(np.float32), np.zeros(values.shape, np.bool_)).any()


BANDS = ((12.0, 30.0), (30.0, 60.0))


def fit_features(parts: list[np.ndarray], bad: np.ndarray) -> SpatialModel:
    """Returns the model of an array whose features are these (T, C), of which the same channels are bad (T, C)."""
    config = replace(array_of(parts[0].shape[1]), bands=BANDS[: len(parts) - 1])
    values, every = np.concatenate(parts, axis=1), np.tile(bad, len(parts))
    return fit_spatial_model(config, values, every, *statistics(values, every))


def test_each_feature_has_its_own_model_and_only_the_slow_lfp_an_average() -> None:
    parts, bad = [correlated(seed=seed) for seed in range(3)], np.zeros((BINS, CHANNELS), np.bool_)
    bad[:500, 2] = True
    model = fit_features(parts, bad)
    assert model.coupling.shape == (3, CHANNELS, CHANNELS)
    for feature, values in enumerate(parts):
        config = replace(array_of(CHANNELS), common_average=not feature)
        alone = fit_spatial_model(config, values, bad, *statistics(values, bad))
        for name in ("coupling", "scale", "inverse_scale", "gain"):
            part, whole = getattr(model.parts[feature], name), getattr(alone.parts[0], name)
            np.testing.assert_array_equal(part, whole, err_msg=f"{name} of feature {feature}")


def test_a_channel_whose_slow_lfp_is_not_known_is_not_known_in_any_band() -> None:
    parts = [correlated(seed=seed) for seed in range(3)]
    parts[0][:, 3], parts[1][:, 4] = 7.0, 7.0
    model = fit_features(parts, np.zeros((BINS, CHANNELS), np.bool_))
    known = [np.flatnonzero(part.gain > 0).tolist() for part in model.parts]
    assert known == [[0, 1, 2, 4, 5], [0, 1, 2, 5], [0, 1, 2, 4, 5]]
    assert np.flatnonzero(~model.known).tolist() == [3]


def test_only_the_undisturbed_bins_of_the_block_count(bins: SessionBins) -> None:
    assert bins.lfp is not None
    assert bins.bad is not None
    block, lfp, disturbed = slice(0, 8000), bins.lfp.copy(), np.zeros(bins.bad.shape, np.bool_)
    disturbed[3000:3500, 1] = True
    wanted = fit_standardization(replace(bins, bad=bins.bad | disturbed), block)
    lfp[8000:] *= 50
    lfp[3000:3500, 1] = 1e6
    found = fit_standardization(replace(bins, lfp=lfp, disturbed=disturbed), block)
    np.testing.assert_array_equal(found.std, wanted.std)
    np.testing.assert_array_equal(found.spatial.coupling, wanted.spatial.coupling)
    np.testing.assert_array_equal(found.spatial.gain, wanted.spatial.gain)


def test_an_artefact_and_the_start_do_not_count(bins: SessionBins) -> None:
    assert bins.lfp is not None
    assert bins.frontend is not None
    block, lfp = slice(0, 8000), bins.lfp.copy()
    wanted = fit_standardization(bins, block)
    lfp[4000:4005] += 3000 * wanted.std  # on all channels, which would look like a background that they share
    lfp[: settling_bins(bins.frontend)] += 20 * wanted.std
    found = fit_standardization(replace(bins, lfp=lfp), block)
    np.testing.assert_allclose(found.spatial.coupling, wanted.spatial.coupling, atol=0.05)
    np.testing.assert_allclose(found.spatial.gain, wanted.spatial.gain, rtol=0.05)


def test_a_standardization_fills_in_bad_and_wild_values(bins: SessionBins) -> None:
    assert bins.lfp is not None
    assert bins.bad is not None
    found = fit_standardization(bins, slice(0, 8000))
    lfp, bad = bins.lfp[9000:9010].copy(), bins.bad[9000:9010].copy()
    lfp[2, 0], lfp[3, 1], bad[4, 2] = np.nan, 1e12, True
    s, there, judged = standardize(lfp, bad, (found.mean, found.std), found.spatial.known)
    assert np.argwhere(~there).tolist() == np.argwhere(judged).tolist() == [[2, 0], [3, 1], [4, 2]]
    np.testing.assert_array_equal(found.inputs(lfp, bad), found.spatial.complete(s, there))
    assert np.isfinite(found.inputs(lfp, bad)).all()
    assert found.inputs(lfp, bad)[[2, 3, 4], [0, 1, 2]].all()
