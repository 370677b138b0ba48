"""How frames are cut, the future and a restart change no bit of the bins, and bad channels are found."""

from __future__ import annotations

import json
from dataclasses import replace
from fractions import Fraction
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.signal import sosfreqz

from edgedistill.errors import ConfigError, EngineError
from edgedistill.frontend import (
    Bins,
    FrontEnd,
    FrontEndConfig,
    bin_edges,
    filter_sections,
    group_delay_ms,
    settling_bins,
    stream,
    zscore,
)

RATES = (
    Fraction(390625, 16),
    Fraction(30000),
    Fraction(1000),
    Fraction(390625, 384),
    Fraction(250),
    Fraction(200),
)
quick = settings(deadline=None, max_examples=20)


def short_rules(rate: Fraction, channels: int, **changes: object) -> FrontEndConfig:
    """Returns the default chain with rules that are short enough to act within a few bins."""
    return FrontEndConfig(rate, channels, **{"flat_s": 0.05, "recover_s": 0.04, **changes})  # type: ignore[arg-type]


def left_out_columns(channels: int) -> st.SearchStrategy[tuple[int, ...]]:
    """Draws columns that the settings may leave out: any but all."""
    columns = st.sets(st.integers(0, channels - 1), max_size=channels - 1)
    return columns.map(lambda drawn: tuple(sorted(drawn)))


def recording(config: FrontEndConfig, bins: int, seed: int) -> np.ndarray:
    """Returns frames (n, C) float32 with every fault: NaN, infinities, dead, saturated and silent channels."""
    rng = np.random.default_rng(seed)
    n = config.edge(bins) + int(rng.integers(0, config.edge(1)))
    x = rng.normal(scale=50, size=(n, config.channels)).astype(np.float32)
    for channel in range(config.channels):
        a, b = np.sort(rng.integers(0, n, 2))
        fault = rng.integers(0, 7)
        if fault == 0:
            x[a:b, channel] = np.nan
        elif fault == 1:
            x[rng.integers(0, n, 2), channel] = (np.inf, -np.inf)
        elif fault == 2:
            x[:, channel] = 0
        elif fault == 3:
            x[:, channel] = np.clip(x[:, channel], -60, 60)
            x[a:b, channel] = 60
        elif fault == 4:
            x[a:b, channel] = 1e-4 * x[a:b, channel].clip(-1, 1)
    return x


def fields(bins: Bins) -> dict[str, np.ndarray]:
    return {"values": bins.values, "bad": bins.bad, "end_frame": bins.end_frame, "gap": bins.gap}


def joined(parts: list[Bins]) -> dict[str, np.ndarray]:
    for before, after in pairwise(parts):
        assert after.first_bin == before.first_bin + len(before.values)
    return {name: np.concatenate([fields(part)[name] for part in parts]) for name in fields(parts[0])}


def assert_same(a: dict[str, np.ndarray], b: dict[str, np.ndarray]) -> None:
    """Compares bit for bit, the sign of zero included."""
    for name in a:
        assert a[name].dtype == b[name].dtype
        assert a[name].shape == b[name].shape
        assert a[name].tobytes() == b[name].tobytes(), name


# ------------------------------------------------------------------------------------ the definition, plainly


def biquads(sections: list[list[float]], z: list[list[float]], x: float) -> float:
    """Filters one sample with the sections, in transposed direct form II."""
    for (b0, b1, b2, _, a1, a2), s in zip(sections, z, strict=True):
        y = b0 * x + s[0]
        s[0] = b1 * x - a1 * y + s[1]
        s[1] = b2 * x - a2 * y
        x = y
    return x


def flush(z: list[list[float]]) -> None:
    for s in z:
        for i in (0, 1):
            if abs(s[i]) < 1e-30:
                s[i] = 0.0


def reference(config: FrontEndConfig, frames: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Computes values and bad channels (B, C) sample by sample in plain Python, as the oracle of the front end."""
    C, D, inf = config.channels, config.decimation, float("inf")
    first, second = (sos.tolist() for sos in filter_sections(config))
    z1 = [[[0.0, 0.0] for _ in first] for _ in range(C)]
    z2 = [[[0.0, 0.0] for _ in second] for _ in range(C)]
    ranges: list[list[tuple[float, float]]] = [[] for _ in range(C)]  # (low, high) of every bin so far
    since_trigger = [10**9] * C
    bad = [c in config.left_out for c in range(C)]
    values, flags = [], []
    per_bin = config.rate * config.bin_ms / 1000
    b = 0
    while -(-(b + 1) * per_bin // 1) <= len(frames):
        begin, end = int(-(-b * per_bin // 1)), int(-(-(b + 1) * per_bin // 1))
        kept: list[list[float]] = [[] for _ in range(C)]
        broken = [False] * C
        for c in range(C):
            low, high = inf, -inf
            for frame in range(begin, end):
                x = float(frames[frame, c])
                if not abs(x) <= float(np.finfo(np.float32).max):
                    x, broken[c] = 0.0, True
                else:
                    low, high = min(low, x), max(high, x)
                if bad[c]:
                    x = 0.0
                if D > 1:
                    x = biquads(first, z1[c], x)
                if frame % D == 0:
                    kept[c].append(x)
            ranges[c].append((low, high))
            flush(z1[c])
        for c in range(C):
            second_ago = ranges[c][-config.flat_bins :]
            flat = (
                len(second_ago) == config.flat_bins
                and max(high for _, high in second_ago) - min(low for low, _ in second_ago) < config.flat_uv
            )
            tail = ranges[c][-config.saturated_bins :]
            top, bottom = max(high for _, high in tail), min(low for low, _ in tail)
            low, high = ranges[c][-1]
            at_extreme = high == max(h for _, h in ranges[c]) or low == min(lo for lo, _ in ranges[c])
            saturated = len(tail) == config.saturated_bins and top == bottom and at_extreme
            since_trigger[c] = 0 if broken[c] or flat or saturated else since_trigger[c] + 1
            bad[c] = since_trigger[c] < config.recover_bins or c in config.left_out
        good = [c for c in range(C) if not bad[c]]
        row = [0.0] * C
        for i in range(len(kept[0])):
            total = 0.0
            for c in good:
                total = total + kept[c][i]
            mean = total / len(good) if config.common_average and len(good) > 1 else 0.0
            for c in range(C):
                x = 0.0 if bad[c] else kept[c][i] - mean
                row[c] = biquads(second, z2[c], x)
        for c in range(C):
            flush(z2[c])
        values.append(row)
        flags.append(list(bad))
        b += 1
    return np.array(values, dtype=np.float64).reshape(-1, C), np.array(flags, dtype=bool).reshape(-1, C)


def assert_equals_reference(config: FrontEndConfig, frames: np.ndarray) -> Bins:
    values, bad = reference(config, frames)
    out = FrontEnd(config).push(frames)
    np.testing.assert_array_equal(out.bad, bad)
    assert out.values.tobytes() == values.tobytes()
    return out


@settings(deadline=None, max_examples=12)
@given(st.sampled_from(RATES), st.integers(1, 4), st.integers(0, 2**32), st.booleans(), st.data())
def test_equals_the_plain_definition_bit_for_bit(rate, channels, seed, common_average, data):
    bins = 12 if rate > 2000 else 30
    left_out = data.draw(left_out_columns(channels))
    config = short_rules(rate, channels, common_average=common_average, left_out=left_out)
    assert_equals_reference(config, recording(config, bins, seed))


def test_equals_the_plain_definition_with_the_default_rules():
    config = FrontEndConfig(Fraction(1000), 3)
    x = np.random.default_rng(0).normal(scale=40, size=(3600, 3)).astype(np.float32)
    x[200, 1] = np.nan  # bad 0.2 to 1.2 s
    x[800:2200, 2] = 3.25  # flat from 1.8 s, good again at 3.2 s
    out = assert_equals_reference(config, x)
    assert np.flatnonzero(out.bad[:, 1]).tolist() == list(range(20, 120))
    assert np.flatnonzero(out.bad[:, 2]).tolist() == list(range(179, 319))


def test_equals_the_plain_definition_where_small_states_are_cleared():
    config = FrontEndConfig(Fraction(2000), 2, line_hz=0, highpass_hz=20, recover_s=10, common_average=False)
    x = np.zeros((2600, 2))
    x[0] = 1e3, 1e-3
    x[:60] += np.random.default_rng(1).normal(size=(60, 2))
    out = assert_equals_reference(config, x)
    assert np.all(out.values[-1] == 0)  # zero, and not a denormal
    assert np.any(np.abs(out.values[60:]) > 0)


# ------------------------------------------------------------------------------------ chunks, future, restart


@quick
@given(st.sampled_from(RATES), st.integers(1, 5), st.integers(0, 2**32), st.data())
def test_chunking_changes_no_bit(rate, channels, seed, data):
    config = short_rules(rate, channels, left_out=data.draw(left_out_columns(channels)))
    x = recording(config, 20, seed)
    cuts = sorted(data.draw(st.lists(st.integers(0, len(x)), max_size=30)))
    front = FrontEnd(config)
    parts = [front.push(x[a:b]) for a, b in zip([0, *cuts], [*cuts, len(x)], strict=True)]
    whole = FrontEnd(config)
    assert_same(joined(parts), fields(whole.push(x)))
    assert_same(front.export_state(), whole.export_state())


@pytest.mark.parametrize("rate", [Fraction(390625, 16), Fraction(1000)])
def test_frame_by_frame_and_beyond_a_batch_are_the_same(rate):
    config = short_rules(rate, 32)
    x = recording(config, 30 if rate > 1000 else 900, 3)  # many internal batches
    front = FrontEnd(config)
    step = 1 if rate == 1000 else 37
    assert_same(
        joined([front.push(x[i : i + step]) for i in range(0, len(x), step)]),
        fields(FrontEnd(config).push(x)),
    )


def test_float64_and_float32_frames_give_the_same_bins_in_any_memory_order():
    config = short_rules(Fraction(2000), 3)
    x = recording(config, 20, 4)
    expected = fields(FrontEnd(config).push(x))
    for same in (x.astype(np.float64), np.asfortranarray(x), np.repeat(x, 2, axis=1)[:, ::2]):
        before = same.copy()
        assert_same(fields(FrontEnd(config).push(same)), expected)
        np.testing.assert_array_equal(same, before)  # the caller's frames are not changed


@quick
@given(st.sampled_from(RATES), st.integers(1, 4), st.integers(0, 2**32), st.data())
def test_the_future_does_not_change_the_past(rate, channels, seed, data):
    config = short_rules(rate, channels)
    x = recording(config, 20, seed)
    k = data.draw(st.integers(0, 19))
    changed = x.copy()
    value = data.draw(st.sampled_from([np.nan, np.inf, 0.0, 1e6, -3e38]))
    changed[config.edge(k) :, data.draw(st.integers(0, channels - 1))] = value
    a, b = FrontEnd(config).push(x), FrontEnd(config).push(changed)
    for name in ("values", "bad", "end_frame"):
        assert fields(a)[name][:k].tobytes() == fields(b)[name][:k].tobytes()
    assert np.all(a.end_frame[:k] < config.edge(k))


@quick
@given(st.sampled_from(RATES), st.integers(1, 4), st.integers(0, 2**32), st.data())
def test_exported_state_goes_on_identically_from_any_frame(rate, channels, seed, data):
    config = short_rules(rate, channels, left_out=data.draw(left_out_columns(channels)))
    x = recording(config, 20, seed)
    cut = data.draw(st.integers(0, len(x)))
    front = FrontEnd(config)
    front.push(x[:cut])
    lost = data.draw(st.sampled_from([0, 0, 3, 700]))
    front.gap(lost)
    state = front.export_state()
    rest = front.push(x[cut:])
    other = FrontEnd(config)
    other.push(x[::-1][:333])
    other.import_state(state)
    assert_same(fields(other.push(x[cut:])), fields(rest))
    assert_same(other.export_state(), front.export_state())


def test_imported_and_exported_state_share_no_memory_with_the_stream():
    config = short_rules(Fraction(1000), 2)
    x = recording(config, 20, 0)
    front, other = FrontEnd(config), FrontEnd(config)
    front.push(x[:95])
    state = front.export_state()
    kept = {name: array.copy() for name, array in state.items()}
    other.import_state(state)
    other.push(x)
    front.push(x)
    assert_same(state, kept)


def test_a_foreign_state_is_refused_and_changes_nothing():
    config = short_rules(Fraction(1000), 2)
    front = FrontEnd(config)
    front.push(recording(config, 5, 0))
    before = front.export_state()
    with pytest.raises(EngineError, match="another configuration"):
        front.import_state(FrontEnd(short_rules(Fraction(1000), 3)).export_state())
    with pytest.raises(EngineError, match="no frame"):
        front.import_state({})
    assert_same(front.export_state(), before)


def test_reset_starts_over():
    config = short_rules(Fraction(390625, 384), 3)
    x = recording(config, 20, 5)
    front = FrontEnd(config)
    expected = fields(front.push(x))
    front.reset()
    assert_same(fields(front.push(x)), expected)


# ------------------------------------------------------------------------------------ the clock


@given(
    st.fractions(min_value=200, max_value=50_000, max_denominator=10_000),
    st.integers(0, 100 * 3600 * 24),
)
def test_bin_edges_are_exact_for_any_rate_after_a_day(rate, k):
    exact = [-(-j * rate / 100 // 1) for j in (k, k + 1)]
    assert bin_edges(rate, k, k + 1).tolist() == exact
    config = FrontEndConfig(rate, 1)
    begin, end = (int(edge) for edge in exact)
    assert (config.edge(k), config.edge(k + 1)) == (begin, end)
    assert config.bin_of(begin) == config.bin_of(end - 1) == k
    assert config.bin_of(end) == k + 1
    assert end - begin <= config.edge(1)


@pytest.mark.parametrize("rate", RATES)
def test_the_clock_of_a_stream_does_not_drift_over_hours(rate):
    """Simulates ten hours of stream by moving its state ahead, then pushes a second of frames."""
    config = FrontEndConfig(rate, 1)
    front = FrontEnd(config)
    frame = int(36_000 * rate) - 7
    begin = frame - config.edge(config.bin_of(frame))
    front.import_state({**front.export_state(), "frame": np.array(frame), "pending": np.zeros((begin, 1))})
    out = front.push(np.random.default_rng(0).normal(size=(int(rate), 1)))
    bins = np.arange(out.first_bin, out.first_bin + len(out.values))
    assert out.first_bin == frame * 100 // rate
    assert out.end_frame.tolist() == [-(-(int(k) + 1) * rate // 100) - 1 for k in bins]
    assert abs(len(bins) - 100) <= 1


def test_the_last_frame_of_a_bin_completes_it():
    config = FrontEndConfig(Fraction(390625, 16), 1)
    front = FrontEnd(config)
    assert config.edge(1) == 245
    assert len(front.push(np.ones((244, 1))).values) == 0
    out = front.push(np.ones((1, 1)))
    assert (out.first_bin, out.end_frame.tolist()) == (0, [244])


# ------------------------------------------------------------------------------------ gaps


@quick
@given(st.sampled_from(RATES), st.integers(0, 3000), st.integers(0, 3000))
def test_a_gap_is_zeros_with_flagged_bins(rate, before, lost):
    config = short_rules(rate, 2)
    x = np.random.default_rng(6).normal(size=(before + lost + 900, 2))
    x[before : before + lost] = 0
    front = FrontEnd(config)
    got = joined([front.push(x[:before]), front.gap(lost), front.push(x[before + lost :])])
    expected = fields(FrontEnd(config).push(x))
    touched = [
        config.edge(k) < before + lost and config.edge(k + 1) > before and lost > 0 for k in range(len(got["gap"]))
    ]
    assert got["gap"].tolist() == touched
    assert_same({**got, "gap": expected["gap"]}, expected)


def test_a_negative_gap_is_refused():
    with pytest.raises(EngineError, match="negative"):
        FrontEnd(FrontEndConfig(Fraction(1000), 1)).gap(-1)


# ------------------------------------------------------------------------------------ bad channels


def bad_bins(x: np.ndarray, **changes: object) -> list[list[int]]:
    """Returns the indices of bad bins by channel at 1 kHz, where bin k holds frames 10 k to 10 k + 9."""
    config = replace(FrontEndConfig(Fraction(1000), x.shape[1]), **changes)
    return [np.flatnonzero(column).tolist() for column in FrontEnd(config).push(x).bad.T]


def noise(n: int, channels: int) -> np.ndarray:
    return np.random.default_rng(7).normal(scale=30, size=(n, channels))


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


def test_a_bad_channel_leaves_the_common_average_and_is_fed_zero():
    x = noise(4000, 4)
    x[:, 3] = np.nan
    out = FrontEnd(FrontEndConfig(Fraction(1000), 4)).push(x)
    three = FrontEnd(FrontEndConfig(Fraction(1000), 3)).push(x[:, :3])
    assert out.values[:, :3].tobytes() == three.values.tobytes()
    assert np.all(out.values[:, 3] == 0)


def test_after_an_artefact_on_one_channel_the_others_are_as_if_it_had_been_quiet():
    x = noise(3000, 3)
    other = x.copy()
    other[1000:1100, 2] = 1e4 * x[1000:1100, 2]
    x[1000, 2] = other[1000, 2] = np.nan
    a, b = (FrontEnd(FrontEndConfig(Fraction(1000), 3)).push(y).values for y in (x, other))
    assert a.tobytes() == b.tobytes()


def test_all_channels_bad_and_the_largest_floats_stay_finite():
    config = FrontEndConfig(Fraction(2000), 3)
    x = np.full((4000, 3), np.nan)
    out = FrontEnd(config).push(x)
    assert out.bad.all()
    assert np.all(out.values == 0)
    x = np.where(np.random.default_rng(0).random((4000, 3)) < 0.5, 1, -1) * np.finfo(np.float32).max
    assert np.isfinite(FrontEnd(config).push(x).values).all()


def test_one_channel_is_not_averaged_away():
    assert np.abs(FrontEnd(FrontEndConfig(Fraction(1000), 1)).push(noise(1000, 1)).values).max() > 1


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
    lost = x.copy()
    lost[:, column] = np.nan
    out = FrontEnd(config).push(x)
    assert out.bad[:, column].all()
    assert np.all(out.values[:, column] == 0)
    assert_same(fields(FrontEnd(config).push(lost)), fields(out))
    assert_same(fields(FrontEnd(plain).push(lost)), fields(out))
    others = [c for c in range(5) if c != column]
    spoiled = FrontEnd(plain).push(x).values - out.values
    assert np.abs(spoiled[:, others]).max() > 100  # the average would carry the mains to them
    fewer = FrontEnd(replace(plain, channels=4)).push(x[:, others])
    assert out.values[:, others].tobytes() == fewer.values.tobytes()
    assert out.bad[:, others].tobytes() == fewer.bad.tobytes()


def test_a_left_out_channel_never_recovers_and_is_held_from_the_first_frame():
    x = with_mains(Fraction(2000), 2, 1)
    front = FrontEnd(FrontEndConfig(Fraction(2000), 2, left_out=(1,)))
    out = front.push(x)
    assert out.bad[:, 1].all()
    assert not out.bad[:, 0].any()
    state = front.export_state()
    assert not state["decimator"][:, 1].any()
    assert not state["shaper"][:, 1].any()
    assert np.abs(out.values[:, 0]).max() > 1  # one channel alone is not its own average


# ------------------------------------------------------------------------------------ the filters


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
    config = FrontEndConfig(rate, len(hz), line_hz=line_hz, common_average=False)
    got, designed = measured_gain(config, hz), designed_gain(config, hz)
    np.testing.assert_allclose(got, designed, rtol=2e-3, atol=2e-3)
    db = 20 * np.log10(np.maximum(got, 1e-9))
    assert np.all(db[[6, 7]] < -20)
    assert np.all(db[:4] > -0.5)
    assert np.all(db[4:6] > -3)


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
def test_after_settling_an_offset_is_below_one_percent(rate):
    config = FrontEndConfig(Fraction(rate), 1, common_average=False, flat_uv=0, saturated_ms=100_000)
    bins = settling_bins(config)
    assert 1000 < bins < 2500  # a 0.05 Hz high-pass forgets an electrode's offset in 10 to 25 s
    x = np.full((config.edge(bins + 500), 1), 1000.0)
    out = np.abs(FrontEnd(config).push(x).values[:, 0])
    # bins sample the response, so its true peak is a little higher than theirs
    assert np.all(out[bins:] < 0.012 * out.max())
    assert out[bins - 60 : bins].max() > 0.008 * out.max()  # it did not settle much earlier


def test_a_faster_highpass_settles_faster():
    base = FrontEndConfig(Fraction(1000), 1)
    assert settling_bins(replace(base, highpass_hz=0.5)) < settling_bins(base) / 5


# ------------------------------------------------------------------------------------ configuration, z-score


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


@pytest.mark.parametrize("loop", [None, lambda sections, x, z: None, lambda sections, x: None])
def test_another_scipy_gives_the_same_bits(monkeypatch: pytest.MonkeyPatch, loop: object) -> None:
    config = FrontEndConfig(rate=Fraction(2000), channels=3)
    frames = np.random.default_rng(0).normal(size=(400, 3)) * 30
    expected = FrontEnd(config).push(frames)
    monkeypatch.setattr(stream, "_sosfilt", loop)
    stream._loop_is_as_known.cache_clear()
    try:
        assert not stream._loop_is_as_known()
        assert FrontEnd(config).push(frames).values.tobytes() == expected.values.tobytes()
    finally:
        stream._loop_is_as_known.cache_clear()
