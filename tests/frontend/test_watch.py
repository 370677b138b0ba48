"""Tests that a watch finds the bad channels of the front end, and the ranges of what it was given."""

from __future__ import annotations

import itertools
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgedistill.frontend import FrontEnd, FrontEndConfig
from edgedistill.frontend.watch import ChannelWatch

CONFIG = FrontEndConfig(rate=Fraction(24414063, 10000), channels=6, left_out=(4,), bands=((70.0, 150.0),))
BIN = 24  # frames, or one more
BINS = 200


def make_frames(bins: int) -> np.ndarray:
    """Returns frames (n, 6) in which one channel goes flat, one loses samples, and one saturates."""
    frames = np.random.default_rng(1).normal(0, 50, (bins * BIN, 6)).astype(np.float32)
    frames[BIN * 20 : BIN * 160, 1] = 7.0
    frames[BIN * 40 : BIN * 60, 2] = np.nan
    frames[BIN * 90 : BIN * 130, 3] = 400.0
    return frames


@settings(deadline=None, max_examples=25)
@given(cuts=st.lists(st.integers(0, BINS * BIN), max_size=6), lost=st.integers(0, 300 * BIN))
def test_a_watch_masks_what_the_front_end_masks_however_frames_are_cut(cuts: list[int], lost: int) -> None:
    frames, watch, front_end = make_frames(BINS), ChannelWatch(CONFIG), FrontEnd(CONFIG)
    edges = [0, *sorted(cuts), len(frames)]
    pieces = [frames[a:b] for a, b in itertools.pairwise(edges)]
    pieces.insert(len(pieces) // 2, np.empty((0, 6), np.float32))  # in whose place frames are lost
    found, expected = [], []
    for i, piece in enumerate(pieces):
        gap = i == (len(pieces) - 1) // 2
        found.append(watch.gap(lost) if gap else watch.push(piece))
        expected.append(front_end.gap(lost) if gap else front_end.push(piece))
    assert [one.first_bin for one in found] == [one.first_bin for one in expected]
    np.testing.assert_array_equal(
        np.concatenate([one.bad for one in found]), np.concatenate([one.bad for one in expected])
    )
    for mine, bins in zip(found, expected, strict=True):
        assert np.isnan(mine.low[bins.gap]).all()
        assert np.isfinite(mine.low[~bins.gap][:, [0, 1, 3, 4, 5]]).all()


def test_ranges_are_those_of_the_raw_samples_of_each_bin() -> None:
    config = FrontEndConfig(rate=Fraction(1000), channels=3)
    frames = np.random.default_rng(2).normal(0, 50, (95, 3)).astype(np.float32)
    frames[12, 0] = np.inf
    frames[30:40, 1] = np.nan
    found = ChannelWatch(config).push(frames)
    assert found.low.shape == (9, 3)
    finite = np.where(np.isfinite(frames[:90]), frames[:90], np.nan).reshape(9, 10, 3)
    for row, bins in enumerate(finite):
        for channel in range(3):
            samples = bins[:, channel][~np.isnan(bins[:, channel])]
            low, high = (samples.min(), samples.max()) if samples.size else (np.nan, np.nan)
            assert (found.low[row, channel], found.high[row, channel]) == pytest.approx((low, high), nan_ok=True)
    assert found.bad[1, 0]
    assert found.bad[3, 1]
    assert not found.bad[:, 2].any()
