"""Blocks do not leak into each other, statistics come from training bins alone, and the cache keeps every bit."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgedistill import scratch
from edgedistill.data.session import (
    MIN_BINS,
    SessionBins,
    compute_moments,
    fit_normalization,
    split_bins,
)
from edgedistill.errors import RecordingError
from edgedistill.frontend import settling_bins


@given(n=st.integers(1, 400_000), gap=st.integers(0, 5000))
def test_blocks_are_contiguous_separated_by_the_gap_and_long_enough(n: int, gap: int) -> None:
    try:
        split = split_bins(n, gap)
    except RecordingError:
        assert n < max(MIN_BINS, 5010 + 2 * gap)
        return
    assert split.train.start == 0
    assert split.validation.start - split.train.stop == gap
    assert split.test.start - split.validation.stop == gap
    assert split.test.stop == n >= MIN_BINS
    assert min(b.stop - b.start for b in (split.train, split.validation, split.test)) >= 500


def test_statistics_come_only_from_good_bins_of_the_block(bins: SessionBins) -> None:
    assert bins.lfp is not None
    assert bins.bad is not None
    assert bins.frontend is not None
    block = slice(0, 9000)
    lfp, bad = bins.lfp.copy(), bins.bad.copy()
    bad[7000:8000, 1] = True
    lfp[9000:] += 1e6
    lfp[7000:8000, 1] = 1e6
    mean, std = fit_normalization(replace(bins, lfp=lfp, bad=bad), block)
    settled = settling_bins(bins.frontend)
    good = np.r_[settled:7000, 8000:9000]
    np.testing.assert_allclose(mean[1], bins.lfp[good, 1].mean(), atol=1e-9)
    np.testing.assert_allclose(std[1], bins.lfp[good, 1].std())
    np.testing.assert_allclose(std[0], bins.lfp[settled:9000, 0].std())


def test_an_artefact_does_not_move_the_statistics_and_clean_channels_keep_every_bit(bins: SessionBins) -> None:
    assert bins.lfp is not None
    assert bins.bad is not None
    assert bins.frontend is not None
    block, settled = slice(0, 9000), settling_bins(bins.frontend)
    mean, std = fit_normalization(bins, block)
    good = ~bins.bad[settled:9000]
    plain = np.where(good, bins.lfp[settled:9000], 0).sum(0) / good.sum(0)
    np.testing.assert_array_equal(mean, plain)
    lfp = bins.lfp.copy()
    lfp[5000:5010, 1] += 1000 * std[1]  # 100 ms, then what rings through the high-pass
    lfp[5010:5400, 1] -= 100 * std[1] * np.exp(-np.arange(390) / 100)
    moved, wider = fit_normalization(replace(bins, lfp=lfp), block)
    np.testing.assert_array_equal(np.delete(wider, 1), np.delete(std, 1))
    assert abs(wider[1] / std[1] - 1) < 0.05
    assert abs(moved[1] - mean[1]) < 0.05 * std[1]


def test_a_channel_of_frequent_bursts_keeps_its_deviation(bins: SessionBins) -> None:
    assert bins.lfp is not None
    lfp = bins.lfp.copy()
    lfp[::20, 1] *= 100
    assert fit_normalization(replace(bins, lfp=lfp), slice(0, 9000))[1][1] > 10 * lfp[1::20, 1].std()


@pytest.mark.parametrize("channels", [2, 31, 100])
def test_moments_of_some_rows_at_a_time_have_the_bits_of_all_at_once(
    channels: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(scratch, "BLOCK_VALUES", 1)  # blocks of 64 rows
    rng = np.random.default_rng(channels)
    values, counted = rng.normal(7, 3, size=(999, channels)), rng.random((999, channels)) < 0.9
    mean, deviation = compute_moments(values, counted)
    expected = np.where(counted, values, 0.0).sum(axis=0) / counted.sum(axis=0)
    spread = (np.where(counted, values - expected, 0.0) ** 2).sum(axis=0) / counted.sum(axis=0)
    assert mean.tobytes() == expected.tobytes()
    assert deviation.tobytes() == np.sqrt(spread).tobytes()
