"""Bins in which the front end still rings from a loss or an artefact are found, and no others."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
import pytest

from edgedistill.data.settling import Level, find_rings_of_artefacts, find_rings_of_losses, robust_deviation
from edgedistill.frontend import FrontEnd, FrontEndConfig

RATE, SECONDS, CHANNELS = 250, 80, 3
CONFIG = FrontEndConfig(rate=Fraction(RATE), channels=CHANNELS, common_average=False)


def recorded(offset: float) -> np.ndarray:
    rng = np.random.default_rng(3)
    return (rng.standard_normal((RATE * SECONDS, CHANNELS)) * 20 + np.array([0.0, offset, -offset])).astype(np.float32)


@pytest.mark.parametrize("common_average", [False, True])
@pytest.mark.parametrize("decimated", [False, True])
def test_the_bins_named_are_those_that_a_loss_has_changed(common_average: bool, decimated: bool) -> None:
    rate = 2000 if decimated else RATE
    config = FrontEndConfig(rate=Fraction(rate), channels=CHANNELS, common_average=common_average)
    whole = np.repeat(recorded(1500.0), rate // RATE, axis=0)
    whole += np.random.default_rng(5).standard_normal(whole.shape).astype(np.float32)
    cut = whole.copy()
    cut[40 * rate : 40 * rate + rate // 20] = np.nan
    clean, lossy = FrontEnd(config).push(whole), FrontEnd(config).push(cut)
    level = Level(config, len(clean.values))
    level.add(cut, 0)
    deviation = robust_deviation(clean.values, np.arange(len(clean.values))[:, None] > np.full(CHANNELS, 2000))
    rings = find_rings_of_losses(config, lossy.bad, level.offset(lossy.bad), deviation)
    after = ~lossy.bad
    off = np.abs(lossy.values - clean.values) / deviation
    quiet = after & ~rings
    quiet[:2000] = False
    assert off[quiet].max() < 0.6  # a tenth from the offset, the rest from samples that are really missing
    assert rings[:, 1].sum() > 300
    assert not rings[:4000].any()
    changed = off[4200:4400, 1] > 1
    assert changed.any()
    assert rings[4200:4400, 1][changed].all()


def test_channels_without_an_offset_do_not_ring() -> None:
    lost = np.zeros((8000, CHANNELS), np.bool_)
    lost[4000:4100] = True
    rings = find_rings_of_losses(CONFIG, lost, np.full((8000, 3), [0.0, 2.0, 2000.0]), np.array([20.0, 30.0, 0.0]))
    assert np.flatnonzero(rings.any(axis=1)).tolist() == [4100, 4101]  # the low-pass still holds zeros


def test_an_artefact_rings_as_long_as_its_size_says() -> None:
    values = np.zeros((8000, CHANNELS))
    values[1000:1100] = [100.0, 700.0, 5e5]  # of ordinary data, which reach several deviations, nothing is left behind
    invalid = np.zeros(8000, np.bool_)
    invalid[1000:1100] = True
    rings = find_rings_of_artefacts(CONFIG, values, invalid, np.full(CHANNELS, 20.0))
    assert not rings[:1100].any()
    lengths = rings.sum(axis=0)
    assert lengths[0] == 0
    assert 300 < lengths[1] < lengths[2] < 5000
    assert rings[1100 : 1100 + lengths[1], 1].all()


@pytest.mark.parametrize("lost_s", [10, 2])
def test_the_offset_of_the_time_of_a_loss_counts_and_not_that_of_the_session(lost_s: int) -> None:
    whole = recorded(0.0)
    whole += (np.linspace(-400, 400, len(whole))[:, None] * [1, 1, 0]).astype(np.float32)  # the mean is 0
    cut = whole.copy()
    cut[60 * RATE : (60 + lost_s) * RATE] = 0.0 if lost_s > 2 else np.nan
    clean, lossy = FrontEnd(CONFIG).push(whole), FrontEnd(CONFIG).push(cut)
    level = Level(CONFIG, len(clean.values))
    for at in range(0, len(cut), 999):
        level.add(cut[at : at + 999], at)
    deviation = robust_deviation(clean.values, np.arange(len(clean.values))[:, None] > np.full(CHANNELS, 2000))
    offset = level.offset(lossy.bad)
    assert np.abs(offset[60:62, 0] - 205).max() < 20
    rings = find_rings_of_losses(CONFIG, lossy.bad, offset, deviation)
    off = np.abs(lossy.values - clean.values) / deviation
    quiet = ~lossy.bad & ~rings
    quiet[:2000] = False
    quiet[6000:6100] = False  # a channel counts as good in its first flat second
    assert off[quiet].max() < 0.7
    assert rings[:, 0].sum() > 300


def test_where_no_second_is_whole_the_offset_is_that_of_all_samples() -> None:
    level = Level(CONFIG, 800)
    level.add(np.full((8 * RATE, CHANNELS), 70.0, np.float32), 0)
    bad = np.zeros((800, CHANNELS), np.bool_)
    bad[::100] = True
    assert level.offset(bad) == pytest.approx(np.full((8, CHANNELS), 70.0))
