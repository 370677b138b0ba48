"""Bins in which the front end still rings from an artefact in invalid times are found, and no others."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
import pytest

from edgedistill.data.settling import Level, find_rings_of_artefacts, robust_deviation
from edgedistill.frontend import FrontEnd, FrontEndConfig

RATE, SECONDS, CHANNELS = 250, 80, 3
CONFIG = FrontEndConfig(rate=Fraction(RATE), channels=CHANNELS)


def recorded() -> np.ndarray:
    rng = np.random.default_rng(3)
    offsets = np.array([0.0, 1500.0, -1500.0])
    return (rng.standard_normal((RATE * SECONDS, CHANNELS)) * 20 + offsets).astype(np.float32)


@pytest.mark.parametrize("hz", [0.0, 7.0])
def test_an_artefact_rings_as_long_as_its_slow_part_says(hz: float) -> None:
    whole, t = recorded(), np.arange(RATE * SECONDS) / RATE
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
