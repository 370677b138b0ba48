"""The filters have the response, the delay and the settling time that they were designed for."""

from __future__ import annotations

import json
from dataclasses import replace
from fractions import Fraction

import numpy as np
import pytest
from scipy.signal import sosfreqz

from edgedistill.errors import ConfigError
from edgedistill.frontend import (
    FrontEnd,
    FrontEndConfig,
    band_sections,
    count_notches,
    filter_sections,
    find_bands,
    group_delay_ms,
    settling_bins,
)
from tests.frontend.recordings import BANDS, RATES, noise, recording


def measured_gain(config: FrontEndConfig, hz: list[float], seconds: int = 40) -> np.ndarray:
    """Fits the amplitude at the end of the stream of a sine of each frequency, one a channel, by least squares."""
    rate = float(config.rate)
    t = np.arange(int(seconds * rate)) / rate
    out = FrontEnd(config).push(100 * np.sin(2 * np.pi * np.outer(t, hz)))
    d = config.decimation
    sampled = (out.end_frame // d * d / rate)[-1000:]  # when the decimated sample of a bin was taken
    gains = []
    for f, y in zip(hz, out.values[-1000:].T, strict=True):
        design = np.stack([np.sin(2 * np.pi * f * sampled), np.cos(2 * np.pi * f * sampled)], axis=1)
        gains.append(np.linalg.norm(np.linalg.lstsq(design, y, rcond=None)[0]) / 100)
    return np.array(gains)


def designed_gain(config: FrontEndConfig, hz: list[float]) -> np.ndarray:
    first, second = filter_sections(config)
    gain = np.abs(sosfreqz(second, worN=np.array(hz), fs=float(config.decimated_rate))[1])
    if len(first):
        gain = gain * np.abs(sosfreqz(first, worN=np.array(hz), fs=float(config.rate))[1])
    return gain


@pytest.mark.parametrize("rate", [Fraction(1000), Fraction(390625, 384)])
@pytest.mark.parametrize("line_hz", [50, 60])
def test_frequency_response_is_the_designed_one(rate, line_hz):
    # Two lie beside the line by less than the mains wander. On the line itself, 100 bins a second hide the phase.
    hz = [0.5, 1, 4, 13, 31.7, 41.3, line_hz + 0.04, 2 * line_hz + 0.04, 170.3]
    config = FrontEndConfig(rate, len(hz), line_hz=line_hz)
    got, designed = measured_gain(config, hz), designed_gain(config, hz)
    np.testing.assert_allclose(got, designed, rtol=2e-3, atol=2e-3)
    db = 20 * np.log10(np.maximum(got, 1e-9))
    assert np.all(db[[6, 7]] < -20)
    assert np.all(db[:4] > -0.5)
    assert np.all(db[4:6] > -3)


@pytest.mark.parametrize("rate", [Fraction(1000), Fraction(30000), Fraction(390625, 16)])
@pytest.mark.parametrize(("hz", "band"), [(20.0, 0), (42.0, 1), (100.0, 2), (220.0, 3)])
def test_a_tone_is_the_log_power_of_its_own_band(rate, hz, band):
    config = FrontEndConfig(rate, 1, bands=((12, 30), (30, 60), (70, 150), (150, 300)))
    t = np.arange(int(6 * rate)) / float(rate)
    values = FrontEnd(config).push(40 * np.sin(2 * np.pi * hz * t)[:, None]).values[-300:, 1:]
    gain = designed_band_gain(config, hz)
    found = np.exp(values).mean(axis=0)  # averaged over the phases at which bins end
    assert found[band] == pytest.approx((40 * gain[band]) ** 2 / 2, rel=0.01)
    assert gain[band] > 0.9
    others = np.delete(found, band)
    assert (others < 0.1 * found[band]).all()


def designed_band_gain(config: FrontEndConfig, hz: float) -> np.ndarray:
    """Returns the gain of each band at one frequency, with the notches and the decimator before it."""
    first, second = filter_sections(config)
    fs1, notches = float(config.decimated_rate), second[: count_notches(config)]
    gain = np.abs(
        [sosfreqz(np.concatenate([notches, band]), worN=[hz], fs=fs1)[1][0] for band in band_sections(config)]
    )
    return gain * np.abs(sosfreqz(first, worN=[hz], fs=float(config.rate))[1][0]) if len(first) else gain


def test_power_is_smoothed_by_its_time_constant_and_silence_has_the_least():
    config = FrontEndConfig(Fraction(1000), 2, bands=((70, 150),), line_hz=0)
    x = np.random.default_rng(0).normal(scale=30, size=(4000, 2))
    x[2000:, 0] = np.sqrt(10) * x[:2000, 0]
    x[2000:, 1] *= 1e-9
    value = FrontEnd(config).push(x).values[:, 2:]
    before, after = np.exp(value[150:200]).mean(axis=0), np.exp(value[350:]).mean(axis=0)
    assert after[0] / before[0] == pytest.approx(10, rel=1e-3)
    fall = value[210, 1] - value[230, 1]
    assert fall == pytest.approx(2, abs=0.05)  # ln of the power falls by 1 in 100 ms
    assert value[-1, 1] == pytest.approx(-20 * np.log(2), abs=1e-9)


def test_the_slow_lfp_does_not_depend_on_bands():
    x = recording(FrontEndConfig(Fraction(2000), 4), 60, 3)
    plain = FrontEndConfig(Fraction(2000), 4)
    without, banded = FrontEnd(plain).push(x), FrontEnd(replace(plain, bands=BANDS)).push(x)
    assert banded.values[:, :4].tobytes() == without.values.tobytes()
    assert banded.bad.tobytes() == without.bad.tobytes()


WANTED = ((12, 30), (30, 60), (70, 150), (150, 300))


@pytest.mark.parametrize(
    ("rate", "expected"),
    [
        (Fraction(200), WANTED[:2]),
        (Fraction(300), (*WANTED[:2], (70, 120))),
        (Fraction(500), WANTED[:3]),
        (Fraction(1000), WANTED),
        (Fraction(2000), WANTED),
        (Fraction(390625, 16), WANTED),
        (Fraction(30000), WANTED),
    ],
)
def test_a_recording_gets_the_bands_that_its_rate_holds(rate, expected):
    bands = find_bands(WANTED, rate)
    assert bands == expected
    config = FrontEndConfig(rate, 1, bands=bands)
    assert np.isfinite(FrontEnd(config).push(noise(int(rate), 1)).values).all()
    assert FrontEndConfig.from_json(json.loads(json.dumps(config.to_json()))) == config


UNHOLDABLE = [  # the last four have poles so near the unit circle that they ring for hours, or for ever
    *[((30, 12),), ((0, 12),), ((100, 500),), ((-1, 3),), ((np.nan, 3),), ((1, np.inf),)],
    *[((1e-300, 1e-299),), ((1e-9, 400),), ((10, 10.01),), ((20, 499.999999),)],
]


@pytest.mark.parametrize("bands", UNHOLDABLE)
def test_bands_that_no_filter_holds_are_refused(bands):
    with pytest.raises(ConfigError, match="bands"):
        FrontEndConfig(Fraction(1000), 1, bands=bands)
    with pytest.raises(ConfigError, match="band_ms"):
        FrontEndConfig(Fraction(1000), 1, bands=BANDS, band_ms=0)


@pytest.mark.parametrize("bands", ["", "12-30", {}, {"12": 30}, 0, [12, 30], [[12, "30"]], [[12]], [[True, 30]]])
def test_bands_of_a_manifest_that_are_none_are_refused(bands):
    with pytest.raises(ConfigError, match="band"):
        FrontEndConfig.from_json(FrontEndConfig(Fraction(1000), 1).to_json() | {"bands": bands})


@pytest.mark.parametrize("band", [(1, 2), (1, 499), (498, 499)])
def test_the_sharpest_bands_forget_a_loud_second_within_half_a_minute(band):
    x = noise(40_000, 1)
    loud = x.copy()
    loud[:1000] *= 100
    config = FrontEndConfig(Fraction(1000), 1, bands=(band,))
    plain, after = (FrontEnd(config).push(part).values[-500:, 1] for part in (x, loud))
    np.testing.assert_allclose(after, plain, atol=0.01)


@pytest.mark.parametrize("rate", RATES)
def test_the_passband_reaches_from_a_twentieth_of_a_hertz_to_fifty(rate):
    config = FrontEndConfig(rate, 1)
    gain = designed_gain(config, [0.005, 0.05, 0.2, 1, 10, 30, 50, 90])
    assert gain[0] < 0.02
    assert gain[[1, 6]] == pytest.approx(0.707, abs=0.06)
    assert np.all(gain[[2, 3, 4, 5]] > 0.93)
    assert gain[7] < 0.3


@pytest.mark.parametrize("rate", [Fraction(390625, 16), Fraction(390625, 384), Fraction(1000), Fraction(250)])
@pytest.mark.parametrize("hz", [5.0, 10.0, 25.0])
def test_group_delay_is_that_of_a_delayed_pulse(rate, hz):
    config = FrontEndConfig(rate, 1, flat_uv=0)  # the pulse fades to nothing on both sides
    t = np.arange(int(6 * rate)) / float(rate)
    pulse = 100 * np.exp(-0.5 * ((t - 3) / 0.25) ** 2) * np.cos(2 * np.pi * hz * (t - 3))
    out = FrontEnd(config).push(pulse[:, None])
    sampled = out.end_frame // config.decimation * config.decimation / float(rate)
    delays_ms = np.arange(0, 20, 0.05)
    residuals = []
    for delay in delays_ms / 1000:  # the bins are the delayed envelope on a carrier of any phase
        envelope = np.exp(-0.5 * ((sampled - 3 - delay) / 0.25) ** 2)
        carrier = np.exp(2j * np.pi * hz * (sampled - 3))
        design = np.stack([envelope * carrier.real, envelope * carrier.imag], axis=1)
        residuals.append(np.linalg.lstsq(design, out.values[:, 0], rcond=None)[1][0])
    assert delays_ms[np.argmin(residuals)] == pytest.approx(group_delay_ms(config, hz), abs=0.2)


@pytest.mark.parametrize("rate", [250, 1000, 2000])
def test_after_settling_less_than_four_percent_of_a_step_are_left(rate):
    config = FrontEndConfig(Fraction(rate), 1, flat_uv=0, saturated_ms=100_000)
    bins = settling_bins(config)
    assert 1000 < bins < 2000  # a 0.05 Hz high-pass forgets a step in 10 to 20 s
    x = np.full((config.edge(bins + 500), 1), 1000.0)
    x[: config.edge(1)] = 0
    out = np.abs(FrontEnd(config).push(x).values[1:, 0])
    assert np.all(out[bins:] < 40)
    assert out[bins - 30 : bins].max() > 38  # it did not settle much earlier


def test_a_faster_highpass_settles_faster():
    base = FrontEndConfig(Fraction(1000), 1)
    assert settling_bins(replace(base, highpass_hz=0.5)) < settling_bins(base) / 5
