"""Tests the curves of linear decoders, whose loss can be worked out by hand."""

from __future__ import annotations

import json

import numpy as np
import numpy.typing as npt
import pytest

from edgedistill.measure.damage import Signal
from edgedistill.measure.robustness import (
    ADDED_NOISE,
    DAYS,
    DRAWS,
    LIMITS,
    LOST,
    LOST_BANK,
    LOST_CHANNELS,
    NOISE,
    Curve,
    Subject,
    Truth,
    list_harms,
    measure_curves,
)

from .signals import C, make_array, make_spikes


class Linear:
    """A decoder whose kinematics are the sums of each half of the channels. It keeps what it was given."""

    def __init__(self) -> None:
        self.seen: list[list[npt.NDArray[np.float32]]] = []

    def reset(self) -> None:
        self.seen.append([])

    def step(self, bin: npt.NDArray[np.floating]) -> npt.NDArray[np.float32]:
        self.seen[-1].append(bin)
        return np.array([bin[: C // 2].sum(), bin[C // 2 :].sum()], np.float32)


def truth_of(signal: Signal) -> Truth:
    """Returns what `Linear` decodes from the undamaged signal, unknown for a while."""
    decoder = Linear()
    decoder.reset()
    kinematics = np.stack([decoder.step(bin) for bin in signal.intact()])
    kinematics[100:110] = np.nan
    kinematics[:50] = 1e6  # these bins do not count
    return Truth(kinematics, 50)


def measure(signal: Signal, **more: object) -> dict[str, Curve]:
    curves = measure_curves({"a": Subject(Linear(), signal)}, truth_of(signal), list_harms(C), "a", **more)
    return {curve.kind: curve for curve in curves}


def means(curve: Curve, subject: str = "a") -> list[float]:
    return [mean for mean, _, _ in curve.r2[subject]]


def test_units_that_are_lost_take_their_share_of_r2() -> None:
    found = measure(make_spikes())
    for curve in found.values():
        assert curve.r2["a"][0] == pytest.approx((1.0, 1.0, 1.0), abs=1e-6)
        assert all(low <= mean <= high for mean, low, high in curve.r2["a"])
    assert means(found[LOST_CHANNELS]) == pytest.approx([1 - share for share in LOST], abs=0.05)
    assert means(found[ADDED_NOISE]) == pytest.approx([1 - size**2 for size in NOISE], abs=0.1)
    bank = found[LOST_BANK]
    assert means(bank) == pytest.approx([1 - share for share in bank.levels], abs=0.05)


def test_what_channels_share_is_kept_by_the_fill_in() -> None:
    filled, zeroed = (measure(signal, draws=1)[LOST_CHANNELS] for signal in (make_array(3, average=False), Zeroed()))
    assert means(filled)[-1] > 0.95
    assert means(zeroed)[-1] < means(filled)[-1] - 0.2


class Zeroed:
    """The same array in a decoder that puts 0 where a channel is lost."""

    def __init__(self) -> None:
        self.array = make_array(common=3, average=False)
        self.shape = self.array.shape

    def __getattr__(self, name: str) -> object:
        return getattr(self.array, name)

    def without(self, lost: npt.NDArray[np.intp]) -> npt.NDArray[np.float32]:
        bins = self.array.intact()
        bins[:, lost] = 0
        return bins


def test_subjects_of_one_signal_decode_the_same_damaged_input() -> None:
    array, spikes = make_array(), make_spikes()
    subjects = {"a": Subject(Linear(), array), "b": Subject(Linear(), array), "c": Subject(Linear(), spikes)}
    curves = measure_curves(subjects, truth_of(array), list_harms(C), draws=2)
    seen = {name: [np.stack(run) for run in subject.engine.seen] for name, subject in subjects.items()}  # type: ignore[attr-defined]
    assert len(seen["a"]) == len(seen["c"]) == 1 + 2 * sum(len(curve.levels) - 1 for curve in curves)
    assert all(np.array_equal(ours, theirs) for ours, theirs in zip(seen["a"], seen["b"], strict=True))
    assert not np.array_equal(seen["a"][0], seen["c"][0])
    assert curves[0].r2["a"] == curves[0].r2["b"]


def test_a_curve_says_what_is_kept_and_whether_that_is_enough() -> None:
    curve = Curve(LOST_CHANNELS, "share", (0.0, 0.05, 0.25, 0.5), {"a": rows(0.5, 0.49, 0.375, 0.4)}, 3, "a")
    assert curve.kept_share("a") == pytest.approx((1, 0.98, 0.75, 0.8))
    assert [(v.level, v.ok) for v in curve.judge()] == [(0.05, True), (0.25, False), (0.5, True)]
    found = curve.to_json()
    json.dumps(found, allow_nan=False)
    assert found["kept_share"] == {"a": list(curve.kept_share("a"))}
    assert found["limits"][1] == {"subject": "a", "level": 0.25, "kept_share": 0.75, "limit": 0.9, "ok": False}  # type: ignore[index]


def test_nothing_is_kept_of_an_r2_that_is_not_above_zero() -> None:
    for intact in (0.0, -0.3):
        curve = Curve(ADDED_NOISE, "standard deviations", (0.0, 0.5), {"a": rows(intact, -0.5)}, 3, "a")
        assert curve.kept_share("a") == (None, None)
        assert [v.ok for v in curve.judge()] == [None]


def test_limits_are_set_on_one_subject_or_on_none() -> None:
    curve = Curve(LOST_BANK, "share", (0.0, 0.25), {"a": rows(0.8, 0.1), "b": rows(0.8, 0.8)}, 3)
    assert curve.judge() == ()
    assert curve.to_json()["limits"] == []


def rows(*values: float) -> tuple[tuple[float, float, float], ...]:
    return tuple((value, value - 0.1, value + 0.1) for value in values)


def test_every_level_with_a_limit_is_measured_on_every_array() -> None:
    for channels in (1, 4, 32, 64, 96, 128):
        harms = {harm.kind: harm for harm in list_harms(channels)}
        for kind, limits in LIMITS.items():
            assert set(limits) <= set(harms[kind].levels)
        for harm in harms.values():
            assert harm.levels[0] == 0
            assert sorted(set(harm.levels)) == list(harm.levels)
    banks = {channels: list_harms(channels)[1].levels for channels in (8, 32, 64, 96)}
    assert banks == {8: (0, 0.25), 32: (0, 0.25, 0.5), 64: (0, 0.25, 0.5), 96: (0, 1 / 6, 0.25, 1 / 3)}


def test_levels_and_draws_stand_in_the_json() -> None:
    found = measure(make_spikes())
    assert found["drift, simulated"].levels == tuple(map(float, DAYS))
    assert found[LOST_CHANNELS].to_json()["draws"] == DRAWS
