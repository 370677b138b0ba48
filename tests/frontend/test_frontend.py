"""How frames are cut, the future and a restart change no bit of the bins; bad channels and lost frames are found."""

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
from edgedistill.frontend.design import rest_states, resume_bins

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
    """Returns a chain whose rules act, and whose filters settle, within a few bins."""
    short = {"flat_s": 0.05, "recover_s": 0.04, "bridged_s": 0.03, "highpass_hz": 4}
    return FrontEndConfig(rate, channels, **{**short, **changes})  # type: ignore[arg-type]


def left_out_columns(channels: int) -> st.SearchStrategy[tuple[int, ...]]:
    """Draws columns that the settings may leave out: any but all."""
    columns = st.sets(st.integers(0, channels - 1), max_size=channels - 1)
    return columns.map(lambda drawn: tuple(sorted(drawn)))


def recording(config: FrontEndConfig, bins: int, seed: int) -> np.ndarray:
    """Returns frames (n, C) float32 on offsets, with every fault of a channel, and with frames that are lost.

    Faults are NaN, infinities, and dead, saturated and silent channels.
    """
    rng = np.random.default_rng(seed)
    n = config.edge(bins) + int(rng.integers(0, config.edge(1)))
    offsets = rng.normal(scale=300, size=config.channels)
    x = (rng.normal(scale=50, size=(n, config.channels)) + offsets).astype(np.float32)
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
    for first in rng.integers(0, n, rng.integers(0, 3)):
        x[first : first + rng.integers(1, 3 * config.edge(1))] = np.nan
    return x


FIELDS = ("values", "bad", "end_frame", "gap", "unsettled")


def fields(bins: Bins) -> dict[str, np.ndarray]:
    return {name: getattr(bins, name) for name in FIELDS}


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


def rest(sections: list[list[float]], x: float) -> list[list[float]]:
    """Returns the states of the sections in the steady state of the input x."""
    level, states = 1.0, []
    for b0, b1, b2, _, a1, a2 in sections:
        after = level * ((b0 + b1) + b2) / ((1.0 + a1) + a2)
        second = b2 * level - a2 * after
        states.append([((b1 * level - a1 * after) + second) * x, second * x])
        level = after
    return states


def is_finite(x: float) -> bool:
    return abs(x) <= float(np.finfo(np.float32).max)


def is_triggered(config: FrontEndConfig, ranges: list[tuple[float, float]], broken: bool) -> bool:
    """Applies the rules for one channel to the ranges (low, high) of all its bins so far, without lost ones."""
    flat_part, tail = ranges[-config.flat_bins :], ranges[-config.saturated_bins :]
    flat = (
        len(flat_part) == config.flat_bins
        and max(high for _, high in flat_part) - min(low for low, _ in flat_part) < config.flat_uv
    )
    low, high = ranges[-1]
    at_extreme = high == max(h for _, h in ranges) or low == min(lo for lo, _ in ranges)
    still = max(h for _, h in tail) == min(lo for lo, _ in tail)
    return broken or flat or (len(tail) == config.saturated_bins and still and at_extreme)


class Reference:
    """Computes bins sample by sample in plain Python, as the oracle of the front end."""

    def __init__(self, config: FrontEndConfig) -> None:
        self.config, C = config, config.channels
        self.first, self.second = (sos.tolist() for sos in filter_sections(config))
        self.z1 = [[[0.0, 0.0] for _ in self.first] for _ in range(C)]
        self.z2 = [[[0.0, 0.0] for _ in self.second] for _ in range(C)]
        self.ranges: list[list[tuple[float, float]]] = [[] for _ in range(C)]
        self.clean = [config.recover_bins] * C
        self.lost_bins = config.bridged_bins + 1

    def bin(self, frames: list[list[float]], begin: int, lost: bool) -> tuple[list[float], list[bool], bool]:
        """Returns values and bad channels (C,), and whether most channels have not settled, for the frames of a bin."""
        C = self.config.channels
        if lost:
            self.lost_bins = min(self.lost_bins + 1, self.config.bridged_bins + 1)
            self.z1 = [[[0.0, 0.0] for _ in self.first] for _ in range(C)]
            return [0.0] * C, [True] * C, False
        self.resume()
        values = [self.channel(c, [row[c] for row in frames], begin) for c in range(C)]
        self.lost_bins = 0
        return values, *self.choose()

    def resume(self) -> None:
        config = self.config
        allowed = config.recover_bins
        if self.lost_bins <= config.bridged_bins:
            allowed = max(allowed, config.settled_bins - resume_bins(config) - 4 * self.lost_bins)
        if self.lost_bins:
            self.clean = [min(clean, allowed) for clean in self.clean]

    def channel(self, c: int, samples: list[float], begin: int) -> float:
        config, D = self.config, self.config.decimation
        fine = [x for x in samples if is_finite(x)]
        restarts = self.lost_bins > config.bridged_bins or self.clean[c] == 0
        kept = []
        for i, sample in enumerate(samples):
            x = sample if is_finite(sample) else 0.0
            if D > 1:
                if i == 0 and (restarts or self.lost_bins):
                    self.z1[c] = rest(self.first, x)
                x = biquads(self.first, self.z1[c], x)
            if (begin + i) % D == 0:
                kept.append(x)
        if restarts:
            self.z2[c] = rest(self.second, kept[0])
        value = [biquads(self.second, self.z2[c], x) for x in kept][-1]
        flush(self.z1[c])
        flush(self.z2[c])
        self.ranges[c].append((min(fine, default=float("inf")), max(fine, default=float("-inf"))))
        triggered = is_triggered(config, self.ranges[c], len(fine) < len(samples))
        self.clean[c] = 0 if triggered else min(self.clean[c] + 1, config.settled_bins)
        return value

    def choose(self) -> tuple[list[bool], bool]:
        config, used = self.config, [c for c in range(self.config.channels) if c not in self.config.left_out]
        recovered = [c for c in used if self.clean[c] >= config.recover_bins]
        settled = [c for c in used if self.clean[c] >= config.settled_bins]
        unsettled = 2 * len(settled) < len(recovered)
        good = recovered if unsettled else settled
        return [c not in good for c in range(config.channels)], unsettled


def reference(config: FrontEndConfig, frames: np.ndarray, declared: range = range(0)) -> dict[str, np.ndarray]:
    """Returns all bins of frames (n, C), those of `declared` lost, with the names of FIELDS."""
    stream, found, b = Reference(config), [], 0
    per_bin = config.rate * config.bin_ms / 1000
    used = [c for c in range(config.channels) if c not in config.left_out]
    rows = [[float(x) for x in row] for row in frames]
    while -(-(b + 1) * per_bin // 1) <= len(frames):
        begin, end = int(-(-b * per_bin // 1)), int(-(-(b + 1) * per_bin // 1))
        lost = any(f in declared or not any(is_finite(rows[f][c]) for c in used) for f in range(begin, end))
        values, bad, unsettled = stream.bin(rows[begin:end], begin, lost)
        found.append((values, bad, end - 1, lost, unsettled))
        b += 1
    types = (np.float64, np.bool_, np.int64, np.bool_, np.bool_)
    columns = zip(*found, strict=True) if found else ((),) * len(types)
    arrays = [np.array(column, dtype) for column, dtype in zip(columns, types, strict=True)]
    shaped = [
        a.reshape(-1, config.channels) if name in ("values", "bad") else a
        for name, a in zip(FIELDS, arrays, strict=True)
    ]
    return dict(zip(FIELDS, shaped, strict=True))


def assert_equals_reference(config: FrontEndConfig, frames: np.ndarray, declared: range = range(0)) -> Bins:
    front = FrontEnd(config)
    stretches = (frames[: declared.start], frames[declared.stop :]) if len(declared) else (frames, frames[:0])
    parts = [front.push(stretches[0]), front.gap(len(declared)), front.push(stretches[1])]
    assert_same(joined(parts), reference(config, frames, declared))
    return parts[0]


@settings(deadline=None, max_examples=25)
@given(st.sampled_from(RATES), st.integers(1, 4), st.integers(0, 2**32), st.data())
def test_equals_the_plain_definition_bit_for_bit(rate, channels, seed, data):
    bins = 14 if rate > 2000 else 70
    config = short_rules(rate, channels, left_out=data.draw(left_out_columns(channels)))
    x = recording(config, bins, seed)
    first, lost = data.draw(st.integers(0, len(x))), data.draw(st.sampled_from([0, 0, 1, 30, 300]))
    assert_equals_reference(config, x, range(first, min(first + lost, len(x))))


def test_equals_the_plain_definition_with_the_default_rules():
    config = FrontEndConfig(Fraction(1000), 3)
    x = np.random.default_rng(0).normal(scale=40, size=(3600, 3)).astype(np.float32)
    x[200, 1] = np.nan  # bad 0.2 to 1.2 s
    x[800:2200, 2] = 3.25  # flat from 1.8 s, good again at 3.2 s
    out = assert_equals_reference(config, x)
    assert out.unsettled.all()
    assert np.flatnonzero(out.bad[:, 1]).tolist() == list(range(20, 120))
    assert np.flatnonzero(out.bad[:, 2]).tolist() == list(range(179, 319))


def test_equals_the_plain_definition_where_small_states_are_cleared():
    config = FrontEndConfig(Fraction(2000), 2, line_hz=0, highpass_hz=20, recover_s=10)
    x = np.zeros((2600, 2))
    x[0] = 1e3, 1e-3
    x[:60] += np.random.default_rng(1).normal(size=(60, 2))
    out = assert_equals_reference(config, x)
    assert np.all(out.values[-1] == 0)  # zero, and not a denormal
    assert np.any(np.abs(out.values[60:]) > 0)


@given(st.sampled_from(RATES), st.integers(0, 2))
def test_filters_at_rest_stay_there(rate, line):
    """A constant input keeps every state, and what comes out is what the sections make of it."""
    for sections in filter_sections(FrontEndConfig(rate, 1, line_hz=(0, 50, 60)[line])):
        states = rest_states(sections)
        assert states.tolist() == [list(pair) for pair in rest(sections.tolist(), 1.0)]
        z = (1000 * states).tolist()
        outputs = [biquads(sections.tolist(), z, 1000.0) for _ in range(50)]
        kept = np.reshape(z, states.shape)
        np.testing.assert_allclose(kept, 1000 * states, rtol=1e-9, atol=1e-9 * np.abs(1000 * states).max(initial=1))
        assert np.ptp(outputs) < 1e-6


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
    some = data.draw(st.sampled_from([slice(None), slice(0, 1), slice(channels - 1, None)]))
    changed[config.edge(k) :, some] = value
    a, b = FrontEnd(config).push(x), FrontEnd(config).push(changed)
    for name in FIELDS:
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
    for name, value in (
        ("lost_bins", -1), ("lost_bins", 5), ("clean", 0.5), ("clean", config.settled_bins + 1), ("clean", np.nan),
        ("shaper", np.inf), ("shaper", 1e90), ("lowest", np.nan), ("high", np.nan),
    ):  # fmt: skip
        with pytest.raises(EngineError, match=f"fe_{name}.*out of range"):
            front.import_state({**before, name: np.full_like(before[name], value, np.float64)})
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
def test_a_gap_is_frames_without_a_sample(rate, before, lost):
    config = short_rules(rate, 2)
    x = np.random.default_rng(6).normal(size=(before + lost + 900, 2))
    x[before : before + lost] = np.nan
    front, other = FrontEnd(config), FrontEnd(config)
    got = joined([front.push(x[:before]), front.gap(lost), front.push(x[before + lost :])])
    assert_same(got, fields(other.push(x)))
    assert_same(front.export_state(), other.export_state())
    touched = [
        config.edge(k) < before + lost and config.edge(k + 1) > before and lost > 0 for k in range(len(got["gap"]))
    ]
    assert got["gap"].tolist() == touched
    assert got["bad"][touched].all()
    assert not got["values"][touched].any()


@pytest.mark.parametrize("rate", [Fraction(1000), Fraction(390625, 16)])
def test_lost_bins_leave_filters_and_rules_as_they_are(rate):
    config = short_rules(rate, 3)
    x = recording(config, 30, 1)
    front = FrontEnd(config)
    front.push(x[: config.edge(20)])
    before = front.export_state()
    front.gap(config.edge(22) - config.edge(20))
    after = front.export_state()
    assert (before.pop("lost_bins"), after.pop("lost_bins")) == (0, 2)
    assert (before.pop("frame"), after.pop("frame")) == (config.edge(20), config.edge(22))
    assert not after.pop("decimator").any()
    assert before.pop("decimator").any() == (config.decimation > 1)
    assert_same(after, before)


def test_after_a_long_gap_a_stream_is_a_new_one():
    config = short_rules(Fraction(1000), 3)
    x = np.random.default_rng(2).normal(400, 30, (3000, 3))
    front, fresh = FrontEnd(config), FrontEnd(config)
    front.push(x[:1000])
    front.gap(10 * (config.bridged_bins + 1))
    resumed, new = front.push(x[1040:]), fresh.push(x[1040:])
    assert resumed.values.tobytes() == new.values.tobytes()
    assert resumed.bad.tobytes() == new.bad.tobytes()
    assert resumed.unsettled.tolist() == new.unsettled.tolist()


def test_a_bridged_gap_costs_what_the_filters_forgot():
    """Channels are used on, and the longer the gap was, the longer the output is called unsettled."""
    config = FrontEndConfig(Fraction(1000), 3)
    x = np.random.default_rng(2).normal(400, 30, (19_000, 3))
    whole = FrontEnd(config).push(x)
    assert not whole.unsettled[1600:].any()
    for lost in (1, 20, 100):
        front = FrontEnd(config)
        front.push(x[:17_000])
        front.gap(10 * lost)
        resumed = front.push(x[17_000 + 10 * lost :])
        assert not resumed.bad.any()
        assert np.flatnonzero(resumed.unsettled).tolist() == list(
            range(min(resume_bins(config) + 4 * lost - 1, len(resumed.values)))
        )
    # the jump is over, and the high-pass lacks what the gap hid
    assert np.abs(resumed.values[50:] - whole.values[-50:]).max() < 30
    assert np.abs(resumed.values[50:] - whole.values[-50:]).max() > 0


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


def test_a_channel_that_breaks_after_all_have_settled_is_bad_until_it_has_settled_again():
    config = FrontEndConfig(Fraction(1000), 3, highpass_hz=1)
    at = config.settled_bins + 20
    x = noise(10 * (at + config.settled_bins + 5), 3)
    x[10 * at, 1] = np.nan
    out = FrontEnd(config).push(x)
    first = config.settled_bins - config.recover_bins - 1  # the first bin in which all have settled
    assert np.flatnonzero(out.unsettled).tolist() == list(range(first))
    assert not out.bad[:, [0, 2]].any()
    assert np.flatnonzero(out.bad[:, 1]).tolist() == list(range(at, at + config.settled_bins))


def test_when_most_channels_break_at_once_they_are_used_before_they_have_settled():
    config = FrontEndConfig(Fraction(1000), 4, highpass_hz=1)
    at = config.settled_bins
    x = noise(20 * (at + 200), 4)
    x[10 * at, :3] = np.inf
    out = FrontEnd(config).push(x)
    recovered = at + config.recover_bins
    assert out.bad[at:recovered].tolist() == [[True] * 3 + [False]] * config.recover_bins
    assert not out.unsettled[at:recovered].any()
    assert not out.bad[recovered : recovered + 50].any()
    assert out.unsettled[recovered : recovered + 50].all()


def test_each_channel_is_filtered_by_itself():
    x = noise(4000, 4)
    other = x.copy()
    other[500:700, 3] = np.nan
    other[1000:, 3] = 1e30
    a, b = (FrontEnd(FrontEndConfig(Fraction(1000), 4)).push(frames) for frames in (x, other))
    assert a.values[:, :3].tobytes() == b.values[:, :3].tobytes()
    assert a.bad[:, :3].tobytes() == b.bad[:, :3].tobytes()


def test_after_a_fault_a_channel_does_not_know_what_was_before_it():
    """Filters start from rest in every bin after a trigger, so the last faulty bin is all that is left."""
    x = noise(3000, 2)
    other = x.copy()
    other[500:1000, 1] *= 1e4
    x[1000:1500, 1] = other[1000:1500, 1] = np.nan
    a, b = (FrontEnd(FrontEndConfig(Fraction(1000), 2)).push(frames).values for frames in (x, other))
    assert np.abs(a[100] - b[100])[1] > 1e4
    assert a[102:].tobytes() == b[102:].tobytes()


def test_an_offset_is_no_step_at_the_start_and_after_a_fault():
    x = noise(3000, 1) + 1e5
    plain = x.copy()
    x[1500:1520] = np.nan
    x[1510] = 1.0  # so that no frame is lost where there is but one channel
    out = FrontEnd(FrontEndConfig(Fraction(1000), 1)).push(x)
    assert np.abs(out.values[:150]).max() < 200
    assert np.abs(FrontEnd(FrontEndConfig(Fraction(1000), 1)).push(plain).values).max() < 200


def test_a_stream_without_a_sample_and_the_largest_floats_stay_finite():
    config = FrontEndConfig(Fraction(2000), 3)
    out = FrontEnd(config).push(np.full((4000, 3), np.nan))
    assert out.bad.all()
    assert out.gap.all()
    assert np.all(out.values == 0)
    x = np.where(np.random.default_rng(0).random((4000, 3)) < 0.5, 1, -1) * np.finfo(np.float32).max
    assert np.isfinite(FrontEnd(config).push(x).values).all()


# ------------------------------------------------------------------------------------ channels that are left out


@pytest.mark.parametrize("column", [0, 2, 4])
@pytest.mark.parametrize("rate", [Fraction(1000), Fraction(390625, 16)])
def test_a_left_out_channel_is_bad_whatever_it_holds_and_changes_no_other(rate, column):
    plain = FrontEndConfig(rate, 5)
    config = replace(plain, left_out=(column,))
    x = noise(int(2 * rate), 5)
    x[700:760, 3] = np.nan
    lost = x.copy()
    lost[:, column] = np.nan
    out = FrontEnd(config).push(x)
    others = [c for c in range(5) if c != column]
    assert out.bad[:, column].all()
    for seen in (FrontEnd(config).push(lost), FrontEnd(plain).push(lost)):
        assert seen.values[:, others].tobytes() == out.values[:, others].tobytes()
        assert seen.bad.tobytes() == out.bad.tobytes()
    fewer = FrontEnd(replace(plain, channels=4)).push(x[:, others])
    assert out.values[:, others].tobytes() == fewer.values.tobytes()
    assert out.bad[:, others].tobytes() == fewer.bad.tobytes()


def test_a_frame_with_samples_in_left_out_channels_alone_is_lost():
    config = FrontEndConfig(Fraction(1000), 3, left_out=(1,))
    x = noise(100, 3)
    x[35, [0, 2]] = np.nan
    assert np.flatnonzero(FrontEnd(config).push(x).gap).tolist() == [3]
    assert not FrontEnd(replace(config, left_out=())).push(x).gap.any()
    x[35, 0] = 1.0
    assert not FrontEnd(config).push(x).gap.any()


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
    config = FrontEndConfig(rate, len(hz), line_hz=line_hz)
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
def test_after_settling_less_than_a_twenty_fifth_of_a_step_is_left(rate):
    config = FrontEndConfig(Fraction(rate), 1, flat_uv=0, saturated_ms=100_000)
    bins = settling_bins(config)
    assert 1400 < bins < 1450  # a 0.05 Hz high-pass forgets a step in 14 s
    x = np.full((config.edge(bins + 500), 1), 1000.0)
    x[0] = 0  # the filters start from rest in it, and what follows is a step
    out = np.abs(FrontEnd(config).push(x).values[:, 0])
    assert np.all(out[bins:] < 40.5)
    assert out[bins - 10 : bins].max() > 39.5  # it did not settle much earlier
    x[0] = 1000
    assert np.abs(FrontEnd(config).push(x).values).max() < 1e-6  # an offset is no step


def test_the_figures_of_the_documentation_hold():
    config = FrontEndConfig(Fraction(1000), 1)
    assert (settling_bins(config), resume_bins(config)) == (1432, 63)
    assert (config.settled_bins, config.bridged_bins) == (1532, 200)
    allowed = [config.clean_after_loss(lost) for lost in (1, 10, 200, 201)]
    assert allowed == [1532 - 63 - 4, 1532 - 63 - 40, 1532 - 63 - 800, 100]


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
        {"bridged_s": -0.1},
        {"fill_sweeps": -1},
        {"fill_sweeps": 65},
        {"follow_s": 9.9},
        {"follow_s": -60},
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


def test_settings_that_are_absent_have_their_defaults():
    config = FrontEndConfig(Fraction(1000), 4)
    assert FrontEndConfig.from_json({"rate": "1000", "channels": 4}) == config
    assert (config.left_out, config.fill_sweeps, config.follow_rate) == ((), 8, 0)
    assert replace(config, follow_s=60).follow_rate == pytest.approx(1 / 6000)


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
