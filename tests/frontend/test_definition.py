"""The front end computes what its definition says, bit for bit."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgedistill.frontend import (
    FrontEndConfig,
)
from tests.frontend.plain_definition import assert_equals_reference, draw_losses
from tests.frontend.recordings import BANDS, RATES, left_out_columns, recording, short_rules

CHAINS = (  # the default, filters that settle within the few bins of a test, and bands
    {},
    {"bands": BANDS},
    {"bands": BANDS[:1], "band_ms": 20, "line_hz": 0, "highpass_hz": 6, "filter_order": 1},
    {"highpass_hz": 6, "line_hz": 0},
    {"highpass_hz": 15, "line_hz": 60, "notch_q": 1},
)


@settings(deadline=None, max_examples=30)
@given(st.sampled_from(RATES), st.integers(1, 4), st.integers(0, 2**32), st.sampled_from(CHAINS), st.data())
def test_equals_the_plain_definition_bit_for_bit(rate, channels, seed, chain, data):
    left_out = data.draw(left_out_columns(channels))
    bridged_s = data.draw(st.sampled_from([0, 0.03, 2]))
    config = short_rules(rate, channels, left_out=left_out, bridged_s=bridged_s, **chain)
    frames = recording(config, 14 if rate > 2000 else 50, seed)
    assert_equals_reference(config, frames, draw_losses(data, config, len(frames)))


@pytest.mark.parametrize("rate", [Fraction(1000), Fraction(2000)])
@pytest.mark.parametrize("lost_bins", [3, 4])
def test_equals_the_plain_definition_after_the_longest_bridged_gap_and_after_one_bin_more(rate, lost_bins):
    config = short_rules(rate, 3, bridged_s=0.03, highpass_hz=6, line_hz=0)
    frames = recording(config, 60, 11)
    lost = np.zeros(len(frames), np.bool_)
    lost[config.edge(30) : config.edge(30 + lost_bins)] = True
    out = assert_equals_reference(config, frames, lost)
    assert np.flatnonzero(out.gap[25:36]).tolist() == list(range(5, 5 + lost_bins))


def test_equals_the_plain_definition_with_the_default_rules():
    config = FrontEndConfig(Fraction(1000), 3)
    x = np.random.default_rng(0).normal(scale=40, size=(3600, 3)).astype(np.float32)
    x[200, 1] = np.nan  # bad 0.2 to 1.2 s
    x[800:2200, 2] = 3.25  # flat from 1.8 s, good again at 3.2 s
    out = assert_equals_reference(config, x)
    assert np.flatnonzero(out.bad[:, 1]).tolist() == list(range(20, 120))
    assert np.flatnonzero(out.bad[:, 2]).tolist() == list(range(179, 319))


def test_equals_the_plain_definition_where_small_states_are_cleared():
    config = FrontEndConfig(Fraction(2000), 2, line_hz=0, highpass_hz=20, flat_s=10)
    x = np.zeros((2600, 2))
    x[0] = 1e3, 1e-3
    x[:60] += np.random.default_rng(1).normal(size=(60, 2))
    out = assert_equals_reference(config, x)
    assert np.all(out.values[-1] == 0)  # zero, and not a denormal
    assert np.any(np.abs(out.values[60:]) > 0)
