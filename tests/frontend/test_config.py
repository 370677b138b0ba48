"""Settings that make no sense are refused by name; z-scores."""

from __future__ import annotations

import json
from dataclasses import replace
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgedistill.errors import ConfigError, EngineError
from edgedistill.frontend import (
    FrontEnd,
    FrontEndConfig,
    stream,
    zscore,
)
from tests.frontend.recordings import BANDS, left_out_columns


@pytest.mark.parametrize("rate", [Fraction(199), Fraction(100), Fraction(0), Fraction(-5)])
def test_rates_below_200_hz_are_refused(rate):
    with pytest.raises(ConfigError, match="at least 200 Hz"):
        FrontEndConfig(rate, 4)


@pytest.mark.parametrize(
    "change",
    [
        {"channels": 0},
        {"bin_ms": 0},
        {"bin_ms": 4, "rate": Fraction(200)},
        {"line_hz": -60},
        {"notch_q": 0},
        {"highpass_hz": 0},
        {"highpass_hz": 60},
        {"lowpass_hz": 500},
        {"filter_order": 0},
        {"intermediate_hz": 90},
        {"bridged_s": -0.01},
        {"fill_sweeps": -1},
        {"fill_sweeps": 65},
        {"follow_s": 9.9},
        {"follow_s": -1},
        {"follow_s": float("inf")},
        {"follow_s": float("nan")},
        {"left_out": (4,)},
        {"left_out": (-1, 2)},
        {"left_out": (2, 1)},
        {"left_out": (1, 1)},
        {"left_out": (0, 1, 2, 3)},
        {"left_out": (0, True)},
        {"left_out": (1.0,)},
        {"left_out": [1]},
        {"left_out": 1},
    ],
)
def test_impossible_figures_are_refused_by_name(change):
    with pytest.raises(ConfigError):
        replace(FrontEndConfig(Fraction(1000), 4), **change)


@given(st.fractions(min_value=200, max_value=50_000), st.integers(1, 500), st.booleans(), st.data())
def test_configuration_survives_json(rate, channels, common_average, data):
    left_out = data.draw(left_out_columns(channels))
    config = FrontEndConfig(rate, channels, common_average=common_average, left_out=left_out)
    assert FrontEndConfig.from_json(json.loads(json.dumps(config.to_json()))) == config


def test_settings_of_an_older_bundle_leave_nothing_out():
    older = FrontEndConfig(Fraction(1000), 4).to_json()
    del older["left_out"]
    assert FrontEndConfig.from_json(older).left_out == ()


@pytest.mark.parametrize("left_out", ["12", 1, None, [1, "2"], [2, 1], [[1]]])
def test_a_list_that_names_no_channels_is_refused_by_name(left_out):
    good = FrontEndConfig(Fraction(1000), 4).to_json()
    with pytest.raises(ConfigError, match=r"cannot have this left_out[\s\S]*columns from 0 to 3"):
        FrontEndConfig.from_json({**good, "left_out": left_out})


def test_an_unknown_or_missing_setting_is_named():
    good = FrontEndConfig(Fraction(1000), 4).to_json()
    with pytest.raises(ConfigError, match="did you mean 'notch_q'"):
        FrontEndConfig.from_json({**good, "notch_k": 3})
    with pytest.raises(ConfigError, match="no channels"):
        FrontEndConfig.from_json({name: value for name, value in good.items() if name != "channels"})


@pytest.mark.parametrize("frames", [np.zeros((5, 3)), np.zeros(4), np.zeros((4, 5)), np.zeros((5, 4), np.int16)])
def test_frames_of_another_shape_or_without_gain_are_refused(frames):
    with pytest.raises(EngineError, match=r"\(n, 4\)"):
        FrontEnd(FrontEndConfig(Fraction(1000), 4)).push(frames)


def test_no_frames_give_no_bins():
    out = FrontEnd(FrontEndConfig(Fraction(1000), 4)).push(np.zeros((0, 4), np.float32))
    assert out.values.shape == out.bad.shape == (0, 4)
    assert out.end_frame.shape == out.gap.shape == (0,)


def test_zscore_is_computed_in_float64_and_masks():
    values = np.array([[1e8 + 1, 5.0, 3.0], [1e8 + 2, np.nan, 4.0]])
    bad = np.array([[False, False, False], [False, True, False]])
    z = zscore(values, bad, np.array([1e8, 1.0, 3.0]), np.array([2.0, 3.0, 0.0]))
    assert z.dtype == np.float32
    expected = np.array([[0.5, np.float32(4 / 3), 0], [1, 0, 0]], np.float32)
    np.testing.assert_array_equal(z, expected)


@pytest.mark.parametrize("settings_", [{}, {"bands": BANDS}, {"bands": BANDS, "line_hz": 0}])
@pytest.mark.parametrize("loop", [None, lambda sections, x, z: None, lambda sections, x: None])
def test_another_scipy_gives_the_same_bits(monkeypatch: pytest.MonkeyPatch, loop: object, settings_: dict) -> None:
    config = FrontEndConfig(rate=Fraction(2000), channels=3, **settings_)
    frames = np.random.default_rng(0).normal(size=(400, 3)) * 30
    expected = FrontEnd(config).push(frames)
    monkeypatch.setattr(stream, "_sosfilt", loop)
    stream._loop_is_as_known.cache_clear()
    try:
        assert not stream._loop_is_as_known()
        assert FrontEnd(config).push(frames).values.tobytes() == expected.values.tobytes()
    finally:
        stream._loop_is_as_known.cache_clear()
