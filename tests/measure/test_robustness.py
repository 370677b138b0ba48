"""Tests the curves of a linear decoder, whose loss can be worked out by hand."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pytest

from edgedistill.measure.robustness import (
    DAYS,
    DRAWS,
    LOST,
    Stream,
    add_noise,
    lose_channels,
    measure_curves,
    pass_days,
)

C, T = 40, 1500


class Linear:
    """A decoder whose kinematics are the sums of each half of the channels."""

    def reset(self) -> None:
        pass

    def step(self, bin: npt.NDArray[np.floating]) -> npt.NDArray[np.float32]:
        return np.array([bin[: C // 2].sum(), bin[C // 2 :].sum()], np.float32)


def stream(spikes: bool = False) -> Stream:
    rng = np.random.default_rng(0)
    bins = rng.standard_normal((T, C)).astype(np.float32)
    bins[:, 7] = 0.0  # a silent channel, whose deviation is 0
    truth = np.stack([Linear().step(bin) for bin in bins])
    truth[100:110] = np.nan
    return Stream(Linear(), bins, truth, 50, spikes)


def test_levels_are_nested_and_only_lost_channels_change() -> None:
    known = stream()
    before = set()
    for share in LOST:
        spoiled = lose_channels(known, share, draw=1)
        lost = {c for c in range(C) if not np.array_equal(spoiled[:, c], known.bins[:, c])}
        assert before <= lost
        assert len(lost | {7}) in (round(share * C), round(share * C) + 1)
        before = lost


def test_noise_does_not_change_masked_bins_of_the_lfp() -> None:
    known = stream()
    assert not add_noise(known, 1.0, 0)[:, 7].any()
    assert np.array_equal(add_noise(known, 0.0, 0), known.bins)
    spread = (add_noise(known, 0.5, 0) - known.bins).std()
    assert spread == pytest.approx(0.5, rel=0.05)


def test_day_zero_is_the_recording_itself_and_units_vanish_at_the_published_pace() -> None:
    for spikes in (False, True):
        known = stream(spikes)
        assert np.array_equal(pass_days(known, 0, 0), known.bins)
    changed = [np.mean([(pass_days(known, 15, draw) != known.bins).any(0).mean() for draw in range(40)])]
    assert changed[0] == pytest.approx(0.33, abs=0.05)


def test_curves_fall_as_they_must() -> None:
    found = {curve.kind: curve for curve in measure_curves({"lfp": stream(), "spikes": stream(spikes=True)})}
    for curve in found.values():
        for rows in curve.r2.values():
            assert rows[0] == pytest.approx((1.0, 1.0, 1.0), abs=1e-6)
            assert all(low <= mean <= high for mean, low, high in rows)
    lost = found["lost channels"].r2["lfp"]
    means = [mean for mean, _, _ in lost]
    assert means == pytest.approx([1 - share for share in LOST], abs=0.05)  # channels are independent and equal
    noise = [mean for mean, _, _ in found["added noise"].r2["lfp"]]
    assert noise[-1] == pytest.approx(0.0, abs=0.1)  # as much noise as signal
    drift = found["drift, simulated"]
    assert drift.levels == tuple(map(float, DAYS))
    assert drift.r2["spikes"][-1][0] < drift.r2["lfp"][-1][0]
    assert found["lost channels"].to_json()["draws"] == DRAWS
