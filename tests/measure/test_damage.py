"""Tests that signals are damaged where an array is, before the fill-in, and by the size that is stated."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from edgedistill.frontend import SpatialModel, Standardization
from edgedistill.measure.damage import (
    LfpSignal,
    SpikeSignal,
    add_noise,
    draw_bank,
    draw_channels,
    lose_bank,
    lose_channels,
    pass_days,
)

from .signals import C, T, make_array, make_spikes

SHARES = (0.0, 0.05, 0.25, 0.5)


def test_a_larger_loss_contains_the_smaller_ones() -> None:
    for signal in (make_array(), make_spikes()):
        before: set[int] = set()
        for share in SHARES:
            lost = set(draw_channels(signal, share, 1).tolist())
            assert before <= lost
            assert len(lost) == round(share * len(signal.find_live()))
            before = lost


def test_draws_differ_and_are_the_same_again() -> None:
    signal = make_array()
    drawn = [tuple(draw_channels(signal, 0.25, draw)) for draw in range(3)]
    assert len(set(drawn)) == 3
    assert drawn == [tuple(draw_channels(signal, 0.25, draw)) for draw in range(3)]


def test_only_channels_that_the_model_knows_are_lost() -> None:
    signal = make_array(unknown=(3, 7))
    assert set(draw_channels(signal, 1.0, 0)) == set(range(C)) - {3, 7}


@pytest.mark.parametrize("share", [0.25, 0.4, 0.5])
def test_a_bank_lies_side_by_side_and_draws_spread_over_the_array(share: float) -> None:
    signal = make_array()
    starts = []
    for draw in range(4):
        bank = draw_bank(signal, share, draw)
        assert np.array_equal(bank, np.arange(bank[0], bank[0] + round(share * C)))
        assert bank[-1] < C
        starts.append(bank[0])
    assert max(starts) - min(starts) > (1 - share) * C / 2


def test_lost_channels_are_filled_in_from_the_others() -> None:
    signal = make_array(common=2.0)
    silent = signal.present.copy()
    silent[:, 5] = 0
    filled, zeroed = signal.without(np.array([5])), replace(signal, present=silent).intact()
    intact = signal.intact()
    assert np.abs(filled - intact).max() > 0
    assert ((filled - intact) ** 2).mean() < 0.5 * ((zeroed - intact) ** 2).mean()


def test_a_lost_channel_leaves_no_trace_of_what_it_showed() -> None:
    signal = make_array()
    other = signal.present.copy()
    other[:, 5] = 1e6
    lost = np.array([5])
    assert np.array_equal(replace(signal, present=other).without(lost), signal.without(lost))


def test_no_damage_gives_the_input_itself() -> None:
    for signal in (make_array(unknown=(2,)), make_spikes()):
        intact = signal.intact()
        for damage in (lose_channels, lose_bank, add_noise, pass_days):
            assert np.array_equal(damage(signal, 0.0, 0), intact)
            assert damage(signal, 0.5, 0).dtype == np.float32


def test_noise_has_its_size_in_the_models_input() -> None:
    gain = np.linspace(0.5, 4, C).astype(np.float32)
    signal = make_array(gain=gain, average=False)
    added = add_noise(signal, 0.5, 0) - signal.intact()
    assert added.std(axis=0) == pytest.approx(np.full(C, 0.5), rel=0.1)
    averaged = make_array(gain=gain)
    added = add_noise(averaged, 0.5, 0) - averaged.intact()
    units = 1 / gain  # of the noise before the average, which takes a part of all noise away from each channel
    expected = 0.5 * gain * np.sqrt(units**2 * (1 - 2 / C) + (units**2).sum() / C**2)
    assert added.std(axis=0) == pytest.approx(expected, rel=0.1)


def test_noise_and_drift_reach_no_channel_that_is_not_there() -> None:
    signal = make_array(unknown=(7,))
    signal.there[100:200, 3] = False
    other = signal.present.copy()
    other[100:200, 3] = 55
    for damage in (add_noise, pass_days):
        damaged = damage(signal, 1.0, 0)
        assert not damaged[:, 7].any()
        assert np.array_equal(damage(replace(signal, present=other), 1.0, 0), damaged)


def test_gains_drift_before_the_average() -> None:
    signal = make_array(average=False)
    drifted, intact = pass_days(signal, 15, 0), signal.intact()
    ratio = drifted / intact
    assert ratio.std(axis=0).max() < 1e-4  # a constant gain for each channel
    assert np.log(ratio[0]).std() == pytest.approx(0.1, rel=0.4)
    averaged = make_array(common=3.0)
    common_left = pass_days(averaged, 15, 0).std() / averaged.intact().std()
    assert common_left > 1.01  # what all channels share no longer cancels


def test_channels_are_lost_with_their_bands_and_banks_are_those_of_channels() -> None:
    signal = make_array(features=3)
    lost = draw_bank(signal, 0.25, 1)
    assert lost.max() < C
    assert len(lost) == C // 4
    other = signal.present.copy()
    other[:, [f * C + c for f in range(3) for c in lost]] = 1e6
    damaged = signal.without(lost)
    assert np.array_equal(replace(signal, present=other).without(lost), damaged)
    changed = (damaged != signal.intact()).any(axis=0).reshape(3, C)
    assert changed[:, lost].all()
    kept = np.setdiff1d(np.arange(C), lost)
    assert not changed[1:, kept].any()  # no average is taken of log power


def test_a_drifting_gain_adds_to_log_power_and_noise_is_on_every_number() -> None:
    signal = make_array(average=False, features=3)
    gain = signal.spatial.gain
    log_gain = np.log((pass_days(signal, 15, 0) / signal.intact())[0, :C])
    shift = (pass_days(signal, 15, 0) - signal.intact()) / gain
    np.testing.assert_allclose(shift[:, C : 2 * C], np.tile(2 * log_gain / 2, (T, 1)), atol=1e-4)
    np.testing.assert_allclose(shift[:, 2 * C :], np.tile(2 * log_gain / 3, (T, 1)), atol=1e-4)
    noise = add_noise(signal, 0.5, 0) - signal.intact()
    assert noise.std(axis=0) == pytest.approx(np.full(3 * C, 0.5), rel=0.1)


def test_units_vanish_at_the_published_pace() -> None:
    signal = make_spikes()
    changed = [(pass_days(signal, 15, draw) != signal.bins).any(axis=0).mean() for draw in range(40)]
    assert np.mean(changed) == pytest.approx(0.33, abs=0.05)


def test_lost_units_are_zero_and_noise_has_the_units_deviation() -> None:
    signal = SpikeSignal(3 * make_spikes().bins)
    lost = draw_channels(signal, 0.25, 0)
    damaged = lose_channels(signal, 0.25, 0)
    assert not damaged[:, lost].any()
    kept = np.setdiff1d(np.arange(C), lost)
    assert np.array_equal(damaged[:, kept], signal.bins[:, kept])
    added = add_noise(signal, 0.5, 0) - signal.bins
    assert added.std(axis=0) == pytest.approx(0.5 * signal.bins.std(axis=0), rel=0.1)


def test_an_array_of_one_channel_can_lose_it() -> None:
    one = np.ones(1, np.float32)
    spatial = SpatialModel(np.ones((1, 1, 1), np.float32), one, one, one, 8, True)
    standardization = Standardization(np.zeros(1), np.ones(1), spatial)
    signal = LfpSignal(np.ones((T, 1), np.float32), np.ones((T, 1), np.bool_), standardization)
    assert not lose_channels(signal, 1.0, 0).any()
    assert np.array_equal(lose_bank(signal, 0.25, 0), signal.intact())
