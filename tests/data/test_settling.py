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


@pytest.mark.parametrize("hz", [0.0, 7.0])
def test_an_artefact_rings_as_long_as_its_slow_part_says(hz: float) -> None:
    whole, t = recorded(0.0), np.arange(RATE * SECONDS) / RATE
    loud = whole + (2000 * np.cos(2 * np.pi * hz * t) * ((t >= 40) & (t < 50)))[:, None].astype(np.float32)
    clean, artefact = FrontEnd(CONFIG).push(whole), FrontEnd(CONFIG).push(loud)
    level = Level(CONFIG, len(clean.values))
    level.add(loud, 0)
    invalid = np.zeros(len(clean.values), np.bool_)
    invalid[4000:5000] = True
    unknown = np.repeat(invalid[:, None], CHANNELS, axis=1)
    deviation = robust_deviation(clean.values, ~unknown & (np.arange(len(unknown))[:, None] > 2000))
    excess = level.excess(level.offset(unknown))
    rings = find_rings_of_artefacts(CONFIG, artefact.values, invalid, excess, deviation)
    off = np.abs(artefact.values - clean.values) / deviation
    quiet = ~rings & ~invalid[:, None]
    quiet[:2000] = False
    assert off[quiet].max() < 0.5
    assert not rings[:5000].any()
    assert rings[5000:5100].all()
    assert rings.sum(axis=0).max() > 900 if hz == 0 else rings.sum(axis=0).max() < 700


def test_ordinary_data_in_an_invalid_stretch_leave_nothing_behind() -> None:
    values = np.random.default_rng(1).normal(size=(3000, CHANNELS)) * 20
    invalid = np.zeros(3000, np.bool_)
    invalid[1000:1100] = True
    rings = find_rings_of_artefacts(CONFIG, values, invalid, np.full((30, CHANNELS), 500.0), np.full(CHANNELS, 20.0))
    assert not rings.any()
