"""Coverage counts the true values inside intervals, and its standard error is that of errors which last."""

from __future__ import annotations

import numpy as np
import pytest

from edgedistill.measure.intervals import QUANTILES, RUN, compute_standard_error, measure_coverage


@pytest.mark.parametrize("level", list(QUANTILES))
def test_intervals_of_the_right_size_cover_what_they_promise(level: float) -> None:
    rng = np.random.default_rng(0)
    truth, size = rng.normal(size=(20_000, 2)), np.array([0.5, 3.0])
    decoded = truth + size * rng.normal(size=truth.shape)
    found = measure_coverage(decoded[None], np.broadcast_to(size, (1, *truth.shape)), truth, level)
    assert found.share == pytest.approx(level, abs=0.01)
    assert found.per_output == pytest.approx((level, level), abs=0.015)
    half = measure_coverage(decoded[None], np.broadcast_to(size / 2, (1, *truth.shape)), truth, level)
    assert half.share < level - 0.15


def test_bins_of_unknown_truth_do_not_count_and_ends_belong_to_the_interval() -> None:
    truth = np.array([[0.0], [np.nan], [0.0], [0.0]])
    decoded = np.array([[[QUANTILES[0.9]], [0.0], [5.0], [np.nan]]])
    found = measure_coverage(decoded, np.ones_like(decoded), truth, 0.9)
    assert found.share == pytest.approx(1 / 3)  # a value that is not finite lies in no interval
    assert found.standard_error is None
    assert found.to_json()["share_per_output"] == [pytest.approx(1 / 3)]


def test_draws_and_outputs_are_averaged() -> None:
    truth = np.zeros((10, 2))
    decoded = np.zeros((2, 10, 2))
    decoded[1, :, 1] = 9.0  # one of two draws misses one of two outputs
    found = measure_coverage(decoded, np.ones_like(decoded), truth, 0.9)
    assert (found.share, found.per_output) == (0.75, (1.0, 0.5))


@pytest.mark.parametrize("lasts", [1, 20])
def test_the_standard_error_is_the_spread_of_repeats(lasts: int) -> None:
    rng, bins = np.random.default_rng(lasts), 10_000
    means, errors = [], []
    for _ in range(200):
        values = np.repeat(rng.uniform(size=bins // lasts) < 0.9, lasts).astype(np.float64)
        values[rng.integers(bins, size=500)] = np.nan
        means.append(np.nanmean(values))
        errors.append(compute_standard_error(values))
    assert np.mean(errors) == pytest.approx(np.std(means), rel=0.15)
    assert np.std(means) == pytest.approx(np.sqrt(0.09 * lasts / bins), rel=0.15)


def test_too_few_bins_have_no_standard_error() -> None:
    assert compute_standard_error(np.full(4 * RUN, 0.5)) is None
    assert compute_standard_error(np.full(100, np.nan)) is None
    sparse = np.full(50 * RUN, np.nan)
    sparse[: 4 * RUN] = 1.0  # runs without a known bin do not count
    assert compute_standard_error(sparse) is None
    assert compute_standard_error(np.full(5 * RUN, 0.5)) == 0.0
