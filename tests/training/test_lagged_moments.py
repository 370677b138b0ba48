"""Moments of lagged bins are those of the stacked bins, whatever rows are summed over."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgedistill.training.bin_blocks import PlainBins
from edgedistill.training.evaluate import stack_lagged_bins
from edgedistill.training.lagged_moments import LaggedFilter, LagGrid, choose_grid, compute_lagged_moments


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 1000), step=st.integers(1, 4), taps=st.integers(1, 5), share=st.floats(0.2, 1))
def test_moments_are_those_of_stacked_bins(seed: int, step: int, taps: int, share: float) -> None:
    rng = np.random.default_rng(seed)
    bins, targets = rng.normal([0, 4, -1], size=(90, 3)), rng.normal(size=(90, 2))
    rows = rng.random(90) < share
    rows[: rng.integers(0, 20)] = False
    rows[50 : 50 + rng.integers(1, 30)] = True
    targets[~rows] = np.nan
    lags = tuple(range(0, step * taps, step))
    found = compute_lagged_moments(bins, targets, rows, lags)
    stacked = stack_lagged_bins(bins, lags[-1]).reshape(90, -1, 3)[:, lags].reshape(90, -1)[rows]
    known = targets[rows] - targets[rows].mean(0)
    centred = stacked - stacked.mean(0)
    assert found.count == rows.sum()
    np.testing.assert_allclose(found.mean.reshape(-1), stacked.mean(0), atol=1e-12)
    np.testing.assert_allclose(found.flat_gram, centred.T @ centred, atol=1e-9)
    np.testing.assert_allclose(found.flat_cross, centred.T @ known, atol=1e-9)
    np.testing.assert_allclose(found.target_gram, known.T @ known, atol=1e-9)
    np.testing.assert_allclose(found.scale, stacked.std(0), atol=1e-9)
    np.testing.assert_allclose(found.target_variance, known.var(0), atol=1e-9)


def test_a_selection_holds_fewer_inputs_and_lags() -> None:
    rng = np.random.default_rng(0)
    bins, targets, rows = rng.normal(size=(60, 4)), rng.normal(size=(60, 1)), np.arange(60) > 9
    part = compute_lagged_moments(bins, targets, rows, (0, 2, 4, 6)).select(slice(1, 3), 5)
    alone = compute_lagged_moments(bins[:, 1:3], targets, rows, (0, 2, 4))
    assert part.lags == alone.lags
    np.testing.assert_allclose(part.flat_gram, alone.flat_gram, atol=1e-10)
    np.testing.assert_allclose(part.flat_cross, alone.flat_cross, atol=1e-10)


def test_a_constant_input_has_the_scale_one() -> None:
    bins = np.column_stack([np.full(50, 7.3), np.zeros(50), np.arange(50.0)])
    found = compute_lagged_moments(bins, bins[:, 2:], np.ones(50, np.bool_), (0,))
    np.testing.assert_allclose(found.scale, [1, 1, np.arange(50).std()])


def test_a_filter_is_a_sum_over_lagged_bins() -> None:
    rng = np.random.default_rng(1)
    bins, weight = rng.normal(size=(30, 2)), rng.normal(size=(3, 2, 2))
    found = LaggedFilter((0, 4), weight, np.array([1.0, 2, 3]))(bins)
    stacked = stack_lagged_bins(bins, 4).reshape(30, 5, 2)[:, [0, 4]].reshape(30, 4)
    np.testing.assert_allclose(found, stacked @ weight.reshape(3, 4).T + [1, 2, 3])


@pytest.mark.parametrize(
    ("longest", "inputs", "dense", "expected"),
    [
        (5, 32, 32, LagGrid(1, 32)),
        (20, 160, 0, LagGrid(2, 0)),
        (20, 160, 32, LagGrid(2, 32)),  # 11 lags of 2 x 32 + 128
        (40, 160, 32, LagGrid(7, 32)),  # 6 lags of 7 x 32 + 128
        (40, 96, 96, LagGrid(2, 0)),
        (10, 700, 0, LagGrid(4, 0)),
        (10, 5000, 0, LagGrid(11, 0)),
        (0, 32, 0, LagGrid(1, 0)),
    ],
)
def test_lags_are_as_dense_as_the_features_allow(longest: int, inputs: int, dense: int, expected: LagGrid) -> None:
    assert choose_grid(longest, inputs, dense, 2200) == expected


def test_a_grid_reads_its_dense_inputs_at_every_bin() -> None:
    rng = np.random.default_rng(0)
    bins, grid = rng.normal(size=(40, 5)), LagGrid(3, 2)
    stacked = grid.stack(PlainBins(bins)).read(0, 40)
    assert stacked.shape[1] == 2 * 3 + 3
    assert (grid.count_columns(2), grid.count_columns(5)) == (6, 9)
    lagged = stack_lagged_bins(stacked, 3)
    seen = {lagged[20, column] for column in [*range(9), *range(27, 36)]}  # lags 0 and 3
    assert seen == {*bins[15:21, :2].reshape(-1), *bins[[17, 20], 2:].reshape(-1)}
