"""How frames are cut, the future, a restart and a gap change no bit of the bins."""

from __future__ import annotations

from dataclasses import replace
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgedistill.errors import EngineError
from edgedistill.frontend import (
    FrontEnd,
    FrontEndConfig,
    bin_edges,
)
from edgedistill.frontend.design import resume_bins
from tests.frontend.recordings import (
    BANDS,
    RATES,
    assert_same,
    fields,
    joined,
    left_out_columns,
    noise,
    quick,
    recording,
    short_rules,
)


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
