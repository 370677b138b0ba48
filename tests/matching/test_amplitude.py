"""The amplitude of a recording is compared with the bundle's by the deviation of bins after the front end."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pytest

from edgedistill.errors import RecordingError
from edgedistill.frontend import FrontEnd, FrontEndConfig, settling_bins
from edgedistill.matching.amplitude import describe_length, judge_ratios, measure_ratios

from ..bundles import CONFIG
from .days import RATE, signal_uv

NAMES = ("a", "b", "c")


@dataclass(frozen=True)
class Held:
    """Frames in memory."""

    data: np.ndarray
    run: tuple[int, int] | None = None
    invalid_s: tuple[float, float] = (0, 0)

    @property
    def longest_run(self) -> tuple[int, int]:
        return self.run or (0, len(self.data))

    @property
    def frames(self) -> int:
        return len(self.data)

    def find_invalid(self, config: FrontEndConfig) -> np.ndarray:
        at = (np.arange(config.bin_of(self.frames)) + 0.5) / 100
        return (at > self.invalid_s[0]) & (at < self.invalid_s[1])

    def read(self, start: int, stop: int) -> np.ndarray:
        return self.data[start:stop]


def deviation(frames: np.ndarray) -> np.ndarray:
    return FrontEnd(CONFIG).push(frames).values[settling_bins(CONFIG) :].std(0)


@pytest.fixture(scope="module")
def std() -> np.ndarray:
    return deviation(signal_uv(100))


def test_a_gap_in_the_middle_is_not_what_is_compared(std: np.ndarray) -> None:
    late = np.concatenate([np.full((50_000, 3), np.nan, np.float32), 2 * signal_uv(100)])
    assert np.isnan(measure_ratios(Held(late, (0, 1)), CONFIG, std)).all()
    assert measure_ratios(Held(late, (50_000, 75_000)), CONFIG, std) == pytest.approx(2, rel=0.05)


def test_the_ratio_is_that_of_the_gain(std: np.ndarray) -> None:
    assert measure_ratios(Held(signal_uv(100)), CONFIG, std) == pytest.approx(1, rel=0.05)
    assert measure_ratios(Held(4 * signal_uv(100)), CONFIG, std) == pytest.approx(4, rel=0.05)


def test_only_the_middle_is_read(std: np.ndarray) -> None:
    frames = signal_uv(400)
    frames[: round(150 * RATE)] *= 100
    frames[round(250 * RATE) :] *= 100
    assert measure_ratios(Held(frames), CONFIG, std) == pytest.approx(1, rel=0.05)


def test_a_signal_that_all_channels_share_counts(std: np.ndarray) -> None:
    """The bundle's deviations are those before the common average, which would take it away."""
    frames = signal_uv(100)
    shared = np.random.default_rng(1).normal(size=(len(frames), 1)).astype(np.float32) * 90
    found = measure_ratios(Held(frames + shared), CONFIG, std)
    assert found == pytest.approx(deviation(frames + shared) / std, rel=0.1)
    assert found[0] > 2


def test_lost_packets_do_not_count_whatever_the_offset_of_the_electrodes(std: np.ndarray) -> None:
    frames = signal_uv(100) + np.array([0, 3000, -3000], np.float32)
    frames[:: round(3 * RATE)] = np.nan
    frames[round(50 * RATE) : round(53 * RATE)] = np.nan
    assert measure_ratios(Held(frames), CONFIG, std) == pytest.approx(1, rel=0.1)


@pytest.mark.parametrize("invalid_s", [(60, 140), (5, 195), (2, 100)])
def test_invalid_times_do_not_count(std: np.ndarray, invalid_s: tuple[float, float]) -> None:
    frames = signal_uv(220)
    frames[round(invalid_s[0] * RATE) : round(invalid_s[1] * RATE)] *= 100
    assert measure_ratios(Held(frames, None, invalid_s), CONFIG, std) == pytest.approx(1, rel=0.1)
    assert np.isnan(measure_ratios(Held(frames, None, (0, 220)), CONFIG, std)).all()


def test_artefacts_lost_frames_and_their_ringing_do_not_count(std: np.ndarray) -> None:
    frames = signal_uv(100) + 5000
    frames[round(40 * RATE) : round(41 * RATE)] = np.nan
    frames[round(60 * RATE), 1] = 1e6
    assert measure_ratios(Held(frames), CONFIG, std) == pytest.approx(1, rel=0.1)


def test_silent_and_bad_channels_and_short_recordings_are_not_compared(std: np.ndarray) -> None:
    frames = signal_uv(100)
    frames[:, 2] = np.nan
    ratios = measure_ratios(Held(frames), CONFIG, std * (0, 1, 1))
    assert np.isnan(ratios).tolist() == [True, False, True]
    assert np.isnan(measure_ratios(Held(signal_uv(5)), CONFIG, std)).all()
    assert np.isnan(measure_ratios(Held(signal_uv(0)), CONFIG, std)).all()


@pytest.mark.parametrize(("gain", "warns"), [(0.4, True), (0.6, False), (1.9, False), (2.1, True), (19, True)])
def test_a_median_outside_a_half_to_two_is_a_warning(gain: float, warns: bool) -> None:
    found = judge_ratios(gain * np.array([0.9, 1, 1.1]), NAMES, "day.nwb", "lfp")
    assert len(found) == warns
    for warning in found:
        for word in (f"{gain:g} times", "conversion", "channel_conversion", "unit of lfp"):
            assert word in warning


@pytest.mark.parametrize("gain", [0.04, 21, 1e6])
def test_a_median_outside_a_twentieth_to_twenty_is_an_error(gain: float) -> None:
    with pytest.raises(RecordingError, match=r"(?s)day.nwb: .* of lfp .*conversion.*edgedistill inspect day.nwb"):
        judge_ratios(np.full(3, gain), NAMES, "day.nwb", "lfp")


def test_single_channels_that_are_far_off_are_listed() -> None:
    (warning,) = judge_ratios(np.array([1.0, 0.05, 1.2, 15.0, np.nan]), "abcde", "day.nwb", "lfp")
    assert "b (0.05 times), d (15 times)" in warning
    (gain,) = judge_ratios(np.array([9.0, 11.0, 10.0]), NAMES, "day.nwb", "lfp")  # one gain, no single channel
    assert "10 times" in gain


def test_that_nothing_was_compared_is_said() -> None:
    (warning,) = judge_ratios(np.full(3, np.nan), NAMES, "day.nwb", "lfp")
    assert "not compared" in warning


def test_a_recording_that_is_too_short_is_called_so() -> None:
    needed = settling_bins(CONFIG) / 100 + 5
    assert describe_length(Held(signal_uv(needed)), CONFIG) is None
    short = describe_length(Held(signal_uv(1)), CONFIG)
    assert short is not None
    assert f"the recording is 1 s long, and {needed:g} s are needed" in short
