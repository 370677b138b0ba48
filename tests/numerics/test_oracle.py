from __future__ import annotations

from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgedistill.errors import BundleError, EngineError
from edgedistill.numerics import Int8Model, Oracle, part_names
from edgedistill.numerics.tensors import four_bit_parts

from .students import ODD, SMALL, LiteralStep, random_bins, random_model

SHAPES = {
    "small": SMALL,
    "odd": ODD,
    "wide window": replace(SMALL, window=80),
    "shortest window": replace(SMALL, window=2, lags=0),
    "taps reach further than lags": replace(SMALL, taps=4, dilation=3, lags=1),
}


@pytest.mark.parametrize("name", SHAPES)
@pytest.mark.parametrize("weights", [8, 4])
def test_the_oracle_is_the_definition_bit_for_bit(weights, name):
    model = random_model(SHAPES[name], four=four_bit_parts(SHAPES[name]) if weights == 4 else ())
    bins = random_bins(model.shape, 40)
    literal = LiteralStep(model)
    written_out = [literal.step(bin_) for bin_ in bins]
    traced = Oracle(model).trace(bins)
    assert traced.keys() == written_out[0].keys()
    for key, values in traced.items():
        expected = np.array([step[key] for step in written_out])
        assert values.dtype == expected.dtype, key
        assert (values == expected).all(), key


@pytest.mark.parametrize("name", SHAPES)
def test_the_rings_are_those_of_the_definition(name):
    model = random_model(SHAPES[name])
    literal, oracle = LiteralStep(model), Oracle(model)
    for bin_ in random_bins(model.shape, 25):
        literal.step(bin_)
        oracle.step(bin_)
        state = oracle.export_state()
        for i, (k, v) in enumerate(literal.rings):
            assert (state[f"ring_k_{i}"] == k).all()
            assert (state[f"ring_v_{i}"] == v).all()
        assert (state["pos"][0], state["live"][0]) == (literal.pos, literal.live)
        assert len(literal.lags) == 0 or (state["lags"] == np.array(literal.lags)).all()


@settings(max_examples=25)
@given(st.lists(st.integers(0, 90), max_size=6), st.sampled_from(sorted(SHAPES)))
def test_chunking_changes_nothing(cuts, name):
    model = random_model(SHAPES[name])
    bins = random_bins(model.shape, 90)
    whole, parts = Oracle(model), Oracle(model)
    edges = [0, *sorted(cuts), 90]
    chunks = [parts.run(bins[a:b]) for a, b in pairwise(edges)]
    assert (np.concatenate(chunks) == whole.run(bins)).all()
    assert_same_state(parts, whole)
    assert (parts.latent == whole.latent).all()


@pytest.mark.parametrize("before", [0, 3, 8, 9, 40])  # window 9: fresh, filling, full, wrapped once, often
def test_after_export_and_import_nothing_differs(before):
    model = random_model()
    bins = random_bins(model.shape, before + 30)
    first, second = Oracle(model), Oracle(model)
    first.run(bins[:before])
    second.run(random_bins(model.shape, 17, seed=9))  # another past, which the import must replace
    second.import_state(first.export_state())
    assert (first.run(bins[before:]) == second.run(bins[before:])).all()
    assert_same_state(first, second)


@pytest.mark.parametrize("before", [3, 8, 40])
def test_after_a_reset_the_oracle_is_a_fresh_one(before):
    model = random_model()
    used, fresh = Oracle(model), Oracle(model)
    used.run(random_bins(model.shape, before))
    used.reset()
    assert_same_state(used, fresh)
    bins = random_bins(model.shape, 30, seed=1)
    assert (used.run(bins) == fresh.run(bins)).all()


def test_an_exported_state_is_a_copy():
    oracle = Oracle(random_model())
    oracle.run(random_bins(SMALL, 20))
    state = oracle.export_state()
    kept = {name: array.copy() for name, array in state.items()}
    oracle.run(random_bins(SMALL, 20, seed=1))
    assert all((state[name] == kept[name]).all() for name in state)


def test_the_future_never_changes_the_past():
    model = random_model()
    bins = random_bins(model.shape, 60)
    other = bins.copy()
    other[40:] = 1e6
    assert (Oracle(model).run(bins)[:40] == Oracle(model).run(other)[:40]).all()


def test_huge_inputs_saturate_and_are_forgotten_after_the_receptive_field():
    model = random_model()
    bins = random_bins(model.shape, 200)
    hit = bins.copy()
    hit[50] = 3e38
    clean, dirty = Oracle(model).run(bins), Oracle(model).run(hit)
    assert np.isfinite(dirty).all()
    reach = model.shape.receptive_field + model.shape.lag_rows
    assert (clean[50] != dirty[50]).any()
    assert (clean[50 + reach :] == dirty[50 + reach :]).all()


@pytest.mark.parametrize("part", [part for part in part_names(SMALL) if not part.endswith("attention")])
def test_a_kept_part_is_near_the_quantized_one_and_chunks_alike(part):
    kept, model = random_model(keep=(part,)), random_model()
    assert kept.keep == (part,)
    bins = random_bins(SMALL, 80)
    oracle = Oracle(kept)
    by_parts = np.concatenate([oracle.run(bins[:7]), oracle.run(bins[7:8]), oracle.run(bins[8:])])
    assert (by_parts == Oracle(kept).run(bins)).all()
    plain = Oracle(model).run(bins)
    assert (by_parts != plain).any()
    assert np.corrcoef(by_parts[:, 0], plain[:, 0])[0, 1] > 0.99


@pytest.mark.parametrize(
    ("change", "culprit"),
    [
        (lambda s: s.pop("ring_v_1"), "ring_v_1"),
        (lambda s: s.update(lags=s["lags"].astype(np.float32)), "lags"),
        (lambda s: s.update(ring_k_0=s["ring_k_0"][:, 1:]), "ring_k_0"),
        (lambda s: s.update(pos=np.array([8], np.int32)), "out of range"),
        (lambda s: s.update(live=np.array([-1], np.int32)), "out of range"),
        (lambda s: s.update(ring_k_0=np.full_like(s["ring_k_0"], -128)), "-128"),
        (lambda s: s.update(lags=np.full_like(s["lags"], -128)), "'lags' holds -128"),
    ],
)
def test_a_foreign_state_is_refused_and_changes_nothing(change, culprit):
    oracle = Oracle(random_model())
    oracle.run(random_bins(SMALL, 20))
    before, state = oracle.export_state(), oracle.export_state()
    change(state)
    with pytest.raises(EngineError, match=culprit):
        oracle.import_state(state)
    after = oracle.export_state()
    assert all((after[name] == before[name]).all() for name in before)


def test_bins_that_do_not_fit_are_refused():
    oracle = Oracle(random_model())
    with pytest.raises(EngineError, match="one bin"):
        oracle.step(np.zeros(4, np.float32))
    with pytest.raises(EngineError, match="do not fit"):
        oracle.run(np.zeros((3, 4), np.float32))
    with pytest.raises(EngineError, match="finite"):
        oracle.run(np.full((3, 5), np.nan, np.float32))


@pytest.mark.parametrize(
    ("change", "culprit"),
    [
        (lambda t: t.pop("layers.1.wo"), "layers.1.wo"),
        (lambda t: t.update(more=np.zeros(1, np.float32)), "more"),
        (lambda t: t.update({"latent.scale": np.zeros(1, np.float32)}), "latent.scale"),
        (lambda t: t.update({"embed.multiplier": np.full(32, np.inf, np.float32)}), "embed.multiplier"),
        (lambda t: t.update({"layers.0.wq": t["layers.0.wq"].T[:3]}), "layers.0.wq"),
        (lambda t: t.update({"layers.0.wq": np.full((32, 32), -128, np.int8)}), "layers.0.wq"),
        (lambda t: t.update({"readout.bias": np.array([np.nan, 0], np.float32)}), "readout.bias"),
    ],
)
def test_damaged_tensors_are_refused_by_name(change, culprit):
    tensors = dict(random_model().tensors)
    change(tensors)
    with pytest.raises(BundleError, match=culprit):
        Int8Model(SMALL, tensors)


def assert_same_state(one: Oracle, other: Oracle) -> None:
    ours, theirs = one.export_state(), other.export_state()
    assert ours.keys() == theirs.keys()
    for name in ours:
        assert (ours[name] == theirs[name]).all(), name
