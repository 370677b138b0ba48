"""How frames are cut, the future and a restart change no bit of the bins, and bad channels are found."""

from __future__ import annotations

import json
import math
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
    band_sections,
    bin_edges,
    count_notches,
    filter_sections,
    find_bands,
    group_delay_ms,
    settling_bins,
    stream,
    zscore,
)
from edgedistill.frontend.design import resume_bins

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
    """Returns frames (n, C) float32 with NaN, infinities, lost packets, and dead, saturated and silent channels."""
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
    if rng.random() < 0.5:
        begin = int(rng.integers(0, n))
        x[begin : begin + int(rng.integers(1, 3 * config.edge(1)))] = np.nan
    return x


def fields(bins: Bins) -> dict[str, np.ndarray]:
    names = ("values", "bad", "end_frame", "gap", "unsettled")
    return {name: getattr(bins, name) for name in names}


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


INF = float("inf")


def biquads(sections: list[list[float]], z: list[list[float]], x: float) -> float:
    """Filters one sample with the sections, in transposed direct form II."""
    for (b0, b1, b2, _, a1, a2), s in zip(sections, z, strict=True):
        y = b0 * x + s[0]
        s[0] = b1 * x - a1 * y + s[1]
        s[1] = b2 * x - a2 * y
        x = y
    return x


def rest(sections: list[list[float]], x: float) -> list[list[float]]:
    """Returns the states in which the sections have been at x for ever."""
    states, level = [], 1.0
    for b0, b1, b2, _, a1, a2 in sections:
        after = level * ((b0 + b1) + b2) / ((1 + a1) + a2)
        second = b2 * level - a2 * after
        states.append([((b1 * level - a1 * after) + second) * x, second * x])
        level = after
    return states


def cleared(z: list[list[float]]) -> list[list[float]]:
    return [[0.0 if abs(state) < 1e-30 else state for state in section] for section in z]


def is_finite(x: float) -> bool:
    return abs(x) <= float(np.finfo(np.float32).max)


def logarithm(x: float) -> float:
    """Returns ln x in the operations of the definition."""
    mantissa, exponent = math.frexp(x)  # from 1/2 to 1, and the definition's lies between the root of 1/2 and that of 2
    if mantissa < math.sqrt(0.5):
        mantissa, exponent = 2 * mantissa, exponent - 1
    s = (mantissa - 1) / (mantissa + 1)
    z = s * s
    p = ((1 / 9 * z + 1 / 7) * z + 1 / 5) * z + 1 / 3
    return exponent * 0.6931471805599453 + (s + s) * (1 + z * p)


class PlainChannel:
    """Computes one channel, a bin at a time and sample by sample."""

    def __init__(self, config: FrontEndConfig) -> None:
        self.config = config
        self.first, self.second = (sos.tolist() for sos in filter_sections(config))
        self.decimator = [[0.0, 0.0] for _ in self.first]
        self.shaper = [[0.0, 0.0] for _ in self.second]
        self.bands = [sections.tolist() for sections in band_sections(config)]
        self.band_states = [[[0.0, 0.0] for _ in sections] for sections in self.bands]
        self.power = [2.0**-20] * len(self.bands)
        self.ranges = [(-INF, INF)] * (max(config.flat_bins, config.saturated_bins) - 1)
        self.lowest, self.highest = INF, -INF
        self.clean = config.recover_bins

    def lose(self) -> None:
        """Takes a lost bin."""
        self.decimator = [[0.0, 0.0] for _ in self.first]

    def take(self, samples: list[float], begin: int, lost_bins: int) -> list[float]:
        """Takes a bin that begins with frame `begin` after so many lost bins, and returns its features."""
        config = self.config
        finite = [x if is_finite(x) else 0.0 for x in samples]
        if lost_bins > 0:
            since = config.settled_bins - resume_bins(config) - 4 * lost_bins
            long = lost_bins > config.bridged_bins
            self.clean = min(self.clean, config.recover_bins if long else max(config.recover_bins, since))
        restarts = lost_bins > config.bridged_bins or self.clean == 0
        if config.decimation > 1 and (restarts or lost_bins > 0):
            self.decimator = rest(self.first, finite[0])
        kept = []
        for frame, x in enumerate(finite, begin):
            y = biquads(self.first, self.decimator, x) if config.decimation > 1 else x
            if frame % config.decimation == 0:
                kept.append(y)
        if restarts:
            self.shaper = rest(self.second, kept[0])
        n = count_notches(config)
        if restarts:
            self.band_states = [rest([*self.second[:n], *band], kept[0])[n:] for band in self.bands]
        notches, others = self.shaper[:n], self.shaper[n:]
        clean = [biquads(self.second[:n], notches, x) for x in kept]
        value = [biquads(self.second[n:], others, x) for x in clean][-1]
        power = [self.measure(b, clean, restarts) for b in range(len(self.bands))]
        self.decimator, self.shaper = cleared(self.decimator), cleared([*notches, *others])
        self.band_states = [cleared(states) for states in self.band_states]
        self.judge(samples)
        return [value, *power]

    def measure(self, band: int, clean: list[float], restarts: bool) -> float:
        """Returns the log power of one band, and moves its smoothed power on."""
        total = 0.0
        for x in clean:
            y = biquads(self.bands[band], self.band_states[band], x)
            total += y * y
        mean = total / len(clean)
        before = mean if restarts else self.power[band]
        rate = -math.expm1(-self.config.bin_ms / self.config.band_ms)
        self.power[band] = max(before + rate * (mean - before), 2.0**-20)
        return logarithm(self.power[band])

    def judge(self, samples: list[float]) -> None:
        """Counts the bins since the last trigger, this one included."""
        finite = [x for x in samples if is_finite(x)]
        low, high = min(finite, default=INF), max(finite, default=-INF)
        self.ranges.append((low, high))
        self.lowest, self.highest = min(self.lowest, low), max(self.highest, high)
        bottom, top = self.range_of(self.config.flat_bins)
        flat = top - bottom < self.config.flat_uv
        bottom, top = self.range_of(self.config.saturated_bins)
        saturated = top == bottom and (high == self.highest or low == self.lowest)
        trigger = len(finite) < len(samples) or flat or saturated
        self.clean = 0 if trigger else min(self.clean + 1, self.config.settled_bins)

    def range_of(self, bins: int) -> tuple[float, float]:
        return min(low for low, _ in self.ranges[-bins:]), max(high for _, high in self.ranges[-bins:])


def choose(config: FrontEndConfig, clean: list[int]) -> tuple[list[bool], bool]:
    """Returns the bad channels and whether most of the others have not settled, for `clean` of every channel."""
    used = [-1 if c in config.left_out else count for c, count in enumerate(clean)]
    recovered = [count >= config.recover_bins for count in used]
    settled = [count >= config.settled_bins for count in used]
    unsettled = 2 * sum(settled) < sum(recovered)
    return [not good for good in (recovered if unsettled else settled)], unsettled


def reference(config: FrontEndConfig, frames: np.ndarray, lost: np.ndarray) -> dict[str, np.ndarray]:
    """Computes every bin in plain Python, as the oracle of the front end. Frames in `lost` (n,) carry no samples."""
    channels = [PlainChannel(config) for _ in range(config.channels)]
    used = [c for c in range(config.channels) if c not in config.left_out]
    rows = []
    lost_bins, b = config.bridged_bins + 1, 0
    per_bin = config.rate * config.bin_ms / 1000
    while (end := int(-(-(b + 1) * per_bin // 1))) <= len(frames):
        begin = int(-(-b * per_bin // 1))
        x = frames[begin:end].astype(np.float64).tolist()
        gap = any(lost[begin:end]) or not all(any(is_finite(frame[c]) for c in used) for frame in x)
        if gap:
            for channel in channels:
                channel.lose()
            values, bad, unsettled = [0.0] * config.inputs, [True] * len(channels), False
            lost_bins = min(lost_bins + 1, config.bridged_bins + 1)
        else:
            columns = zip(channels, zip(*x, strict=True), strict=True)
            taken = [channel.take(list(column), begin, lost_bins) for channel, column in columns]
            values = [number for feature in zip(*taken, strict=True) for number in feature]
            bad, unsettled = choose(config, [channel.clean for channel in channels])
            lost_bins = 0
        rows.append((values, bad, end - 1, gap, unsettled))
        b += 1
    kinds = (np.float64, np.bool_, np.int64, np.bool_, np.bool_)
    names = ("values", "bad", "end_frame", "gap", "unsettled")
    columns = zip(*rows, strict=True)
    return {name: np.array(column, kind) for name, kind, column in zip(names, kinds, columns, strict=True)}


def feed(front: FrontEnd, frames: np.ndarray, lost: np.ndarray) -> dict[str, np.ndarray]:
    """Pushes the frames, and declares those in `lost` (n,) as lost."""
    edges = [0, *(np.flatnonzero(np.diff(lost)) + 1).tolist(), len(lost)]
    parts = [
        front.gap(stop - begin) if lost[begin] else front.push(frames[begin:stop]) for begin, stop in pairwise(edges)
    ]
    return joined(parts)


def assert_equals_reference(config: FrontEndConfig, frames: np.ndarray, lost: np.ndarray | None = None) -> Bins:
    lost = np.zeros(len(frames), np.bool_) if lost is None else lost
    expected = reference(config, frames, lost)
    got = feed(FrontEnd(config), frames, lost)
    for name in ("gap", "unsettled", "bad"):
        np.testing.assert_array_equal(got[name], expected[name], err_msg=name)
    assert_same(got, expected)
    return Bins(0, **got)


def draw_losses(data: st.DataObject, config: FrontEndConfig, frames: int) -> np.ndarray:
    """Draws which of the frames (n,) are declared lost: gaps of a few frames up to several bins."""
    lost = np.zeros(frames, np.bool_)
    for begin in data.draw(st.lists(st.integers(0, frames - 1), max_size=3)):
        lost[begin : begin + data.draw(st.integers(1, 8 * config.edge(1)))] = True
    return lost


BANDS = ((12.0, 30.0), (30.0, 60.0))
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


# ------------------------------------------------------------------------------------ chunks, future, restart


@quick
@given(st.sampled_from(RATES), st.integers(1, 5), st.integers(0, 2**32), st.data())
def test_chunking_changes_no_bit(rate, channels, seed, data):
    bands = data.draw(st.sampled_from([(), BANDS]))
    config = short_rules(rate, channels, left_out=data.draw(left_out_columns(channels)), bands=bands)
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
    config = short_rules(rate, channels, bands=data.draw(st.sampled_from([(), BANDS])))
    x = recording(config, 20, seed)
    k = data.draw(st.integers(0, 19))
    changed = x.copy()
    value = data.draw(st.sampled_from([np.nan, np.inf, 0.0, 1e6, -3e38]))
    changed[config.edge(k) :, data.draw(st.integers(0, channels - 1))] = value
    a, b = FrontEnd(config).push(x), FrontEnd(config).push(changed)
    for name in fields(a):
        assert fields(a)[name][:k].tobytes() == fields(b)[name][:k].tobytes()
    assert np.all(a.end_frame[:k] < config.edge(k))


@quick
@given(st.sampled_from(RATES), st.integers(1, 4), st.integers(0, 2**32), st.data())
def test_exported_state_goes_on_identically_from_any_frame(rate, channels, seed, data):
    bands = data.draw(st.sampled_from([(), BANDS]))
    config = short_rules(rate, channels, left_out=data.draw(left_out_columns(channels)), bands=bands)
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


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("frame", -1),
        ("frame", 2**62 + 1),
        ("frame", 2**63 - 1),
        ("lost_bins", 202),
        ("lowest", np.inf),
        ("highest", -1e39),
        ("low", np.inf),
        ("high", -np.inf),
        ("shaper", 1e-31),
        ("clean", 1e9),
        ("clean", 0.5),
        ("clean", -1.0),
        ("lowest", np.nan),
        ("shaper", np.nan),
        ("decimator", np.inf),
    ],
)
def test_a_state_that_no_stream_comes_to_is_refused_and_changes_nothing(name, value):
    config = short_rules(Fraction(2000), 2)
    front = FrontEnd(config)
    front.push(noise(config.edge(5), 2))
    before = front.export_state()
    damaged = {**before, name: np.full_like(before[name], value)}
    with pytest.raises(EngineError):
        front.import_state(damaged)
    assert_same(front.export_state(), before)


@pytest.mark.parametrize("rate", [2000, 30000])
def test_kept_samples_are_those_of_float32(rate):
    config = short_rules(Fraction(rate), 2)
    front = FrontEnd(config)
    front.push(noise(config.edge(5) + 3, 2).astype(np.float32))
    before = front.export_state()
    for value in (1e300, -1e39, 0.1, 1e-300):
        with pytest.raises(EngineError, match="fe_pending"):
            front.import_state({**before, "pending": np.full((3, 2), value)})
        assert_same(front.export_state(), before)
    for value in (np.nan, np.inf, -np.inf, 0.5):
        front.import_state({**before, "pending": np.full((3, 2), value)})


@pytest.mark.parametrize("odd", [np.array("x"), np.array([1]), np.array(1.0), np.array(None), np.array(1, np.uint64)])
def test_a_count_of_another_kind_is_refused(odd):
    front = FrontEnd(short_rules(Fraction(2000), 2))
    for name in ("frame", "lost_bins"):
        with pytest.raises(EngineError, match=rf"another configuration(.|\n)*{name}"):
            front.import_state({**front.export_state(), name: odd})
    with pytest.raises(EngineError, match=r"another configuration(.|\n)*no other"):
        front.import_state({**front.export_state(), "other": odd})


def test_a_stream_ends_at_the_most_frames_that_can_be_counted():
    front = FrontEnd(short_rules(Fraction(2000), 1))
    front.import_state({**front.export_state(), "frame": np.array(2**62 - 24), "pending": np.zeros((0, 1))})
    for call in (lambda: front.push(np.zeros((25, 1))), lambda: front.gap(25)):
        with pytest.raises(EngineError, match=f"{2**62} in all"):
            call()
    assert front.push(np.ones((24, 1))).end_frame.tolist() == [2**62 - 5]
    front.import_state(front.export_state())


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
@given(st.sampled_from(RATES), st.integers(0, 3000), st.integers(1, 3000))
def test_a_gap_is_frames_without_any_sample(rate, before, lost):
    config = short_rules(rate, 2)
    x = np.random.default_rng(6).normal(size=(before + lost + 900, 2))
    x[before : before + lost] = np.nan
    front = FrontEnd(config)
    got = joined([front.push(x[:before]), front.gap(lost), front.push(x[before + lost :])])
    assert_same(got, fields(FrontEnd(config).push(x)))
    touched = [config.edge(k) < before + lost and config.edge(k + 1) > before for k in range(len(got["gap"]))]
    assert got["gap"].tolist() == touched
    assert np.all(got["values"][touched] == 0)
    assert got["bad"][touched].all()


def test_a_frame_with_one_sample_is_not_lost_unless_that_channel_is_left_out():
    x = noise(300, 3)
    x[105, :2] = np.nan
    config = FrontEndConfig(Fraction(1000), 3)
    assert not FrontEnd(config).push(x).gap.any()
    assert np.flatnonzero(FrontEnd(replace(config, left_out=(2,))).push(x).gap).tolist() == [10]


def test_a_short_gap_is_as_if_its_bins_had_never_been():
    x = noise(3000, 3)
    front = FrontEnd(FrontEndConfig(Fraction(1000), 3))
    out = joined([front.push(x[:2000]), front.gap(500), front.push(x[2000:])])
    whole = FrontEnd(front.config).push(x)
    assert np.delete(out["values"], slice(200, 250), axis=0).tobytes() == whole.values.tobytes()


@pytest.mark.parametrize("rate", [1000, 2000])
def test_after_a_long_gap_the_values_are_those_of_a_new_stream(rate):
    x = noise(4 * rate, 3)
    front = FrontEnd(FrontEndConfig(Fraction(rate), 3))
    front.push(x[: 2 * rate])
    front.gap(2 * rate + rate // 100)  # 2.01 s
    new = FrontEnd(front.config).push(x[2 * rate :])
    after = front.push(x[2 * rate :])
    assert after.values.tobytes() == new.values.tobytes()
    assert after.unsettled.all()


def test_channels_are_used_unsettled_after_a_long_gap_and_settled_after_a_short_one():
    config = FrontEndConfig(Fraction(250), 2)
    front = FrontEnd(config)
    start = front.push(noise(config.edge(2000), 2))
    first = config.settled_bins - config.recover_bins - 1  # `clean` starts at recover_bins
    assert np.flatnonzero(start.unsettled).tolist() == list(range(first))
    assert not start.bad.any()
    for lost_bins, unsettled in ((1, resume_bins(config) + 4), (201, first + 1)):
        front.gap(config.edge(front.push(np.zeros((0, 2))).first_bin + lost_bins) - config.edge(0) - front._frame)
        after = front.push(noise(config.edge(2000), 2))
        assert np.flatnonzero(after.unsettled).tolist() == list(range(unsettled - 1))
        assert not after.bad.any()


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
