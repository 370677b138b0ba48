"""Features that are read in blocks are those of stacked bins, and a fit on them never stacks a session."""

from __future__ import annotations

import tracemalloc

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgedistill import scratch
from edgedistill.data.bins import Split
from edgedistill.training.evaluate import fit_readout, read_out, score, stack_lagged_bins
from edgedistill.training.lagged_features import LaggedFeatures


def draw_features(t: int, channels: int, lags: int, d: int = 3, seed: int = 0) -> LaggedFeatures:
    rng = np.random.default_rng(seed)
    latents, bins = rng.normal(size=(t, d)), rng.normal(2, 3, size=(t, channels))
    return LaggedFeatures(latents.astype(np.float32), bins.astype(np.float32), lags, np.array([0.5]))


@settings(max_examples=40, deadline=None)
@given(start=st.integers(0, 40), length=st.integers(0, 40), lags=st.integers(0, 12))
def test_a_block_holds_the_rows_of_the_stacked_features(start: int, length: int, lags: int) -> None:
    features = draw_features(50, 4, lags)
    stacked = np.hstack([features.latents, stack_lagged_bins(0.5 * features.bins.astype(np.float64), lags)])
    assert features.shape == stacked.shape
    np.testing.assert_array_equal(features.read(slice(start, start + length)), stacked[start : start + length])


@pytest.mark.parametrize("block", [1, 700, 1 << 13])
def test_the_size_of_a_block_changes_no_readout(block: int, monkeypatch: pytest.MonkeyPatch) -> None:
    features, split = draw_features(3000, 5, 4), Split(slice(0, 2000), slice(2100, 2500), slice(2550, 3000))
    rng = np.random.default_rng(1)
    stacked = features.read(slice(0, 3000))
    behavior = stacked @ rng.normal(size=(stacked.shape[1], 2)) + 9 * rng.normal(size=(3000, 2)) + 40
    behavior[rng.random(3000) < 0.3] = np.nan
    whole = fit_readout(stacked, behavior, split, settled=30, latents=3)  # one block
    monkeypatch.setattr(scratch, "BLOCK_VALUES", block)
    found = fit_readout(features, behavior, split, settled=30, latents=3)
    assert found.penalty == whole.penalty
    np.testing.assert_allclose(found.weight, whole.weight, rtol=1e-9, atol=1e-12)
    scores = score(found, features, behavior, split), score(whole, stacked, behavior, split)
    assert scores[0].r2 == pytest.approx(scores[1].r2, abs=1e-12)
    np.testing.assert_allclose(read_out([found], features, split.test)[0], whole(stacked)[split.test], rtol=1e-9)


def test_a_fit_takes_less_memory_than_the_stacked_features() -> None:
    t, channels, lags = 30_000, 20, 19
    features, behavior = draw_features(t, channels, lags), np.random.default_rng(2).normal(size=(t, 2))
    split = Split(slice(0, 20_000), slice(20_000, 25_000), slice(25_000, t))
    stacked_bytes = 8 * t * features.shape[1]  # 97 MB
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(scratch, "BLOCK_VALUES", 1 << 18)
        tracemalloc.start()
        try:
            score(fit_readout(features, behavior, split), features, behavior, split)
            peak = tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()
    assert peak < 0.25 * stacked_bytes
