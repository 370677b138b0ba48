"""Bins that are read block by block are those of the whole, smoothed and stacked, and moments need no more memory."""

from __future__ import annotations

import tracemalloc

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.signal import lfilter

from edgedistill import scratch
from edgedistill.training import bin_blocks
from edgedistill.training.bin_blocks import PlainBins, StackedBins, smooth_bins
from edgedistill.training.kalman import fit_linear_gaussian, run_decoders, solve_steady_kalman
from edgedistill.training.lagged_moments import LaggedFilter, compute_lagged_moments

BINS = np.random.default_rng(0).normal(size=(300, 4)).astype(np.float32)
anywhere = st.integers(-20, 320)


def cut(whole: np.ndarray, start: int, stop: int) -> np.ndarray:
    """Returns the rows from start to stop, with zeros where there are none."""
    return np.vstack([np.zeros((50, whole.shape[1])), whole, np.zeros((50, whole.shape[1]))])[50 + start : 50 + stop]


@settings(max_examples=40, deadline=None)
@given(start=anywhere, length=st.integers(0, 30), ahead=st.integers(0, 9))
def test_bins_are_zero_outside_the_session(start: int, length: int, ahead: int) -> None:
    moved = np.vstack([BINS[ahead:], np.zeros((ahead, 4))]).astype(np.float64)
    stop = min(start + length, 340)
    np.testing.assert_array_equal(PlainBins(BINS, ahead).read(start, stop), cut(moved, start, stop))


@settings(max_examples=40, deadline=None)
@given(start=anywhere, length=st.integers(0, 30))
def test_a_smoothed_block_has_the_bits_of_the_whole(start: int, length: int) -> None:
    keep, whole = 0.9, BINS.astype(np.float64)
    whole[:, 1:] = lfilter([1 - keep], [1, -keep], whole[:, 1:].T).T
    stop = min(start + length, 340)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(bin_blocks, "STRIDE", 64)
        found = smooth_bins(PlainBins(BINS), 1, keep).read(start, stop)
    np.testing.assert_array_equal(found, cut(whole, start, stop))


@settings(max_examples=40, deadline=None)
@given(start=anywhere, length=st.integers(0, 30), columns=st.sampled_from([slice(None), slice(6, None), slice(2, 7)]))
def test_stacked_blocks_hold_the_last_bins_of_the_dense_inputs(start: int, length: int, columns: slice) -> None:
    phases = [cut(BINS[:, :2], -lag, 300 - lag) for lag in range(3)]
    whole = np.hstack([*phases, BINS[:, 2:]])
    stacked = StackedBins(PlainBins(BINS), 3, 2, columns)
    stop = min(start + length, 300)
    assert stacked.width == whole[:, columns].shape[1]
    assert stacked.read(0, 300).tobytes() == np.ascontiguousarray(whole[:, columns], np.float64).tobytes()
    if start < stop:
        np.testing.assert_array_equal(stacked.read(start, stop), cut(whole, start, stop)[:, columns])


@pytest.mark.parametrize("share", [1.0, 0.5])
@pytest.mark.parametrize("block", [1, 70 * 12])
def test_the_size_of_a_block_changes_no_moment(block: int, share: float, monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(1)
    rows, targets = rng.random(300) < share, rng.normal(size=(300, 2))
    whole = compute_lagged_moments(BINS, targets, rows, (0, 2, 4))
    monkeypatch.setattr(scratch, "BLOCK_VALUES", block)
    found = compute_lagged_moments(BINS, targets, rows, (0, 2, 4))
    np.testing.assert_allclose(found.flat_gram, whole.flat_gram, atol=1e-10)
    np.testing.assert_allclose(found.flat_cross, whole.flat_cross, atol=1e-10)
    np.testing.assert_allclose(found.mean, whole.mean, atol=1e-13)


def test_decoders_in_one_pass_decode_what_each_does(monkeypatch: pytest.MonkeyPatch) -> None:
    rng, rows = np.random.default_rng(2), np.ones(300, np.bool_)
    behavior = np.cumsum(rng.normal(size=(300, 2)), axis=0)
    moments = compute_lagged_moments(BINS, behavior, rows, (0, 1))
    kalman = solve_steady_kalman(fit_linear_gaussian(moments, behavior, rows, 1), 0.1)
    ridge = LaggedFilter((0, 3), rng.normal(size=(2, 2, 4)), np.array([1.0, 2.0]))
    monkeypatch.setattr(scratch, "BLOCK_VALUES", 1)  # blocks of 64 bins
    for decoder, found in zip((kalman, ridge), run_decoders([kalman, ridge], BINS, 40, 290), strict=True):
        np.testing.assert_allclose(found, decoder(BINS[40:290].astype(np.float64)), rtol=1e-10, atol=1e-12)


def test_moments_with_scattered_labels_take_less_memory_than_the_lagged_bins(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(3)
    bins, rows = rng.normal(size=(40_000, 20)).astype(np.float32), rng.random(40_000) < 0.5
    monkeypatch.setattr(scratch, "BLOCK_VALUES", 1 << 18)
    tracemalloc.start()
    try:
        compute_lagged_moments(bins, rng.normal(size=(40_000, 2)), rows, range(20))
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 0.2 * 8 * 20 * bins.size  # 128 MB
