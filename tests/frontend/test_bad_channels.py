"""Bad channels are found at once, and those that are left out change nothing."""

from __future__ import annotations

from dataclasses import replace
from fractions import Fraction

import numpy as np
import pytest

from edgedistill.frontend import (
    FrontEnd,
    FrontEndConfig,
)
from tests.frontend.plain_definition import feed
from tests.frontend.recordings import assert_same, fields, noise


def bad_bins(x: np.ndarray, **changes: object) -> list[list[int]]:
    """Returns the indices of bad bins by channel at 1 kHz, where bin k holds frames 10 k to 10 k + 9."""
    config = replace(FrontEndConfig(Fraction(1000), x.shape[1]), **changes)
    return [np.flatnonzero(column).tolist() for column in FrontEnd(config).push(x).bad.T]


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf, 1e39])
def test_a_sample_that_is_not_finite_marks_its_channel_at_once_and_for_a_second(value):
    x = noise(3000, 3)
    x[509, 1] = value
    assert bad_bins(x) == [[], list(range(50, 150)), []]


def test_a_second_trigger_starts_the_second_anew():
    x = noise(4000, 2)
    x[[500, 1200], 0] = np.nan
    assert bad_bins(x)[0] == list(range(50, 220))


def test_flat_for_a_second_is_bad_and_less_is_not():
    x = noise(5000, 2)
    x[500:1500, 0] = 2.0
    x[500:1499, 1] = 2.0
    x[500:1500:2, 0] += 0.9e-3
    assert bad_bins(x) == [list(range(149, 249)), []]
    x[500:1500:2, 0] += 0.2e-3
    assert bad_bins(x)[0] == []


def test_standing_still_at_the_extreme_is_bad_and_elsewhere_is_not():
    x = np.clip(noise(3000, 4), -40, 40)
    x[500:520, 0] = x[:, 0].max()  # exactly two bins
    x[500:520, 1] = [*[x[:, 1].max()] * 19, 39.0]
    x[500:520, 2] = x[:, 2].min()
    x[500:520, 3] = 0.5
    assert bad_bins(x) == [list(range(51, 151)), [], list(range(51, 151)), []]


def test_a_new_extreme_counts_only_from_when_it_was_reached():
    x = noise(3000, 1)
    x[500:540, 0] = 60.0
    x[1500, 0] = 500.0
    x[1600:1640, 0] = 60.0  # no longer the largest value seen
    x[:500] = x[:500].clip(-50, 50)
    x[540:1500] = x[540:1500].clip(-50, 50)
    assert bad_bins(x)[0] == list(range(51, 153))


def test_a_channel_dead_from_the_start_is_found_in_two_bins_and_stays_bad():
    x = noise(2000, 2)
    x[:, 1] = 0.0
    assert bad_bins(x) == [[], list(range(1, 200))]


def settling_fast(**changes: object) -> FrontEndConfig:
    """Returns a chain at 1 kHz whose filters settle in less than a second."""
    return replace(FrontEndConfig(Fraction(1000), 3, highpass_hz=2, line_hz=0), **changes)


def test_in_a_settled_array_a_channel_is_bad_until_its_filters_have_settled():
    config = settling_fast()
    x = noise(8000, 3)
    x[3005, 1] = np.nan
    out = FrontEnd(config).push(x)
    assert np.flatnonzero(out.bad[:, 1]).tolist() == list(range(300, 300 + config.settled_bins))
    assert not out.bad[:, [0, 2]].any()
    assert not out.unsettled[300:].any()


def test_after_a_fault_on_most_channels_they_are_used_once_they_have_recovered():
    config = settling_fast()
    x = noise(8000, 3)
    x[3005, 1] = x[3006, 2] = np.nan
    out = FrontEnd(config).push(x)
    for channel in (1, 2):
        assert np.flatnonzero(out.bad[:, channel]).tolist() == list(range(300, 300 + config.recover_bins))
    until = list(range(300 + config.recover_bins, 300 + config.settled_bins))
    assert np.flatnonzero(out.unsettled[300:] * 1).tolist() == [k - 300 for k in until]


def test_a_fault_on_one_channel_changes_no_other():
    x = noise(4000, 4)
    x[1005:1300, 3] = np.nan
    x[2000:2005, 3] = 1e6
    out = FrontEnd(FrontEndConfig(Fraction(1000), 4)).push(x)
    three = FrontEnd(FrontEndConfig(Fraction(1000), 3)).push(x[:, :3])
    assert out.values[:, :3].tobytes() == three.values.tobytes()
    assert out.bad[:, :3].tobytes() == three.bad.tobytes()


@pytest.mark.parametrize("rate", [1000, 2000])
def test_after_a_fault_nothing_of_the_channel_before_it_remains_but_in_the_decimator(rate):
    """Bin 100 has the fault, so the filters of bin 101 start from rest."""
    x = noise(3 * rate, 3)
    other = x.copy()
    other[:rate, 2] = 3 * x[:rate, 2]
    x[rate, 2] = other[rate, 2] = np.nan
    a, b = (FrontEnd(FrontEndConfig(Fraction(rate), 3)).push(y).values for y in (x, other))
    assert a[101:].tobytes() == b[101:].tobytes()
    assert np.abs(a[:100, 2] - b[:100, 2]).max() > 1


@pytest.mark.parametrize("rate", [1000, 2000])
def test_an_electrodes_offset_makes_no_step(rate):
    """There is none at the start, none after a long gap, and none where a channel has recovered."""
    config = settling_fast(rate=Fraction(rate))
    x = noise(12 * rate, 3)
    x[8 * rate + 5, 1] = np.nan
    lost = np.zeros(len(x), np.bool_)
    lost[3 * rate : 6 * rate] = True
    plain, shifted = (feed(FrontEnd(config), frames, lost) for frames in (x, x + np.array([2000, -2000, 0])))
    assert plain["bad"].tobytes() == shifted["bad"].tobytes()
    assert plain["gap"].sum() == 300
    assert not plain["bad"][-1].any()  # channel 1 has come back
    np.testing.assert_allclose(
        np.where(plain["bad"], 0, shifted["values"]), np.where(plain["bad"], 0, plain["values"]), atol=1e-6
    )


def test_without_samples_values_are_zero_and_with_the_largest_floats_they_are_finite():
    config = FrontEndConfig(Fraction(2000), 3)
    x = np.full((4000, 3), np.nan)
    out = FrontEnd(config).push(x)
    assert out.bad.all()
    assert out.gap.all()
    assert np.all(out.values == 0)
    x = np.where(np.random.default_rng(0).random((4000, 3)) < 0.5, 1, -1) * np.finfo(np.float32).max
    assert np.isfinite(FrontEnd(config).push(x).values).all()


@pytest.mark.parametrize("channels", [1, 4])
def test_the_common_average_is_not_subtracted_here(channels):
    config = FrontEndConfig(Fraction(1000), channels)
    x = noise(1000, channels)
    with_average, without = (FrontEnd(replace(config, common_average=on)).push(x) for on in (True, False))
    assert_same(fields(with_average), fields(without))
    assert np.abs(with_average.values).max() > 1


# ------------------------------------------------------------------------------------ channels that are left out


def with_mains(rate: Fraction, channels: int, column: int) -> np.ndarray:
    """Returns 2 s of frames (n, C) in which one channel floats: it holds 3000 uV of mains."""
    x = noise(int(2 * rate), channels)
    x[:, column] += 3000 * np.sin(2 * np.pi * 60 * np.arange(len(x)) / float(rate))
    return x


@pytest.mark.parametrize("column", [0, 2, 4])
@pytest.mark.parametrize("rate", [Fraction(1000), Fraction(390625, 16)])
def test_a_left_out_channel_is_as_one_that_is_not_there(rate, column):
    plain = FrontEndConfig(rate, 5)
    config = replace(plain, left_out=(column,))
    x = with_mains(rate, 5, column)
    x[700:760, 3] = np.nan
    out = FrontEnd(config).push(x)
    assert out.bad[:, column].all()
    others = [c for c in range(5) if c != column]
    fewer = FrontEnd(replace(plain, channels=4)).push(x[:, others])
    for name, expected in fields(fewer).items():
        got = fields(out)[name]
        assert (got[:, others] if got.ndim == 2 else got).tobytes() == expected.tobytes(), name


def test_a_left_out_channel_never_recovers_though_its_filters_run():
    x = with_mains(Fraction(2000), 2, 1)
    plain = FrontEndConfig(Fraction(2000), 2)
    front, other = FrontEnd(replace(plain, left_out=(1,))), FrontEnd(plain)
    out, usual = front.push(x), other.push(x)
    assert out.bad[:, 1].all()
    assert not out.bad[:, 0].any()
    assert out.values.tobytes() == usual.values.tobytes()
    assert_same(front.export_state(), other.export_state())
