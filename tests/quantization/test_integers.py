from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from edgedistill.config import StudentShape
from edgedistill.errors import EdgeDistillError
from edgedistill.numerics import Int8Model, part_names
from edgedistill.numerics.arithmetic import product
from edgedistill.numerics.tensors import weight_matrices
from edgedistill.quantization.integers import bound_accumulators, check_ranges, fold, quantize_student

from ..numerics.students import SMALL, likely_ranges, random_model, random_weights

WEIGHTS, RANGES = random_weights(SMALL), likely_ranges(SMALL)
HEAD = SMALL.head_dim


def test_folding_leaves_scores_and_values_as_they_were():
    folded, _ = fold(SMALL, WEIGHTS, check_ranges(SMALL, RANGES))
    for i in range(SMALL.layers):
        layer, gain = f"layers.{i}.", WEIGHTS[f"layers.{i}.norm_attn"]
        for h in range(SMALL.heads):
            rows = slice(h * HEAD, (h + 1) * HEAD)
            q, k, v = (WEIGHTS[layer + name][rows] * gain.astype(float) for name in ("wq", "wk", "wv"))
            assert np.allclose(folded[layer + "wq"][rows].T @ folded[layer + "wk"][rows], q.T @ k)
            through = folded[layer + "wo"][:, rows] @ folded[layer + "wv"][rows]
            assert np.allclose(through, WEIGHTS[layer + "wo"][:, rows] @ v)


def test_folding_gives_all_heads_the_range_of_the_widest():
    ranges = check_ranges(SMALL, RANGES)
    folded, limits = fold(SMALL, WEIGHTS, ranges)
    for part, name in (("k", "wk"), ("v", "wv")):
        widest = ranges[f"layers.0.{part}"]
        gained = WEIGHTS["layers.0." + name] * WEIGHTS["layers.0.norm_attn"].astype(float)
        for h in range(SMALL.heads):
            rows = slice(h * HEAD, (h + 1) * HEAD)
            ratio = widest.max() / widest[h]
            assert np.allclose(folded["layers.0." + name][rows], gained[rows] * ratio)
        assert limits[f"layers.0.{part}"] == widest.max()


def test_rounding_errs_by_at_most_half_the_scale_of_the_row():
    folded, _ = fold(SMALL, WEIGHTS, check_ranges(SMALL, RANGES))
    tensors = quantize_student(SMALL, WEIGHTS, RANGES)
    for name in weight_matrices(SMALL):
        scale = tensors[name + ".scale"].astype(float)[:, None]
        assert (np.abs(tensors[name] * scale - folded[name]) <= 0.5001 * scale).all(), name
        assert (np.abs(tensors[name]).max(axis=1) == 127).all(), name


def test_multipliers_are_rounded_once():
    tensors = quantize_student(SMALL, WEIGHTS, RANGES)
    for name, (_, source) in weight_matrices(SMALL).items():
        exact = tensors[name + ".scale"].astype(float) * float(tensors[source + ".scale"][0])
        assert (tensors[name + ".multiplier"] == exact.astype(np.float32)).all()
    inverse = 1 / float(tensors["bin.scale"][0])
    assert tensors["bin.inv_scale"][0] == np.float32(inverse)


def test_a_row_of_zero_weights_stays_exactly_zero():
    weights = {**WEIGHTS, "readout.lags": WEIGHTS["readout.lags"].copy()}
    weights["readout.lags"][1] = 0
    tensors = quantize_student(SMALL, weights, RANGES)
    assert not tensors["readout.lags"][1].any()
    assert tensors["readout.lags.scale"][1] == 1


@pytest.mark.parametrize("seed", range(3))
def test_the_bound_of_each_accumulator_is_tight(seed):
    model = random_model(seed=seed)
    bounds = bound_accumulators(model)
    rng = np.random.default_rng(seed)
    for name in weight_matrices(SMALL):
        w = model.tensors[name]
        worst = (127 * np.sign(w)).astype(np.int8)
        assert np.abs(product(worst, w)).max() == bounds[name]
        some = rng.integers(-127, 128, (200, w.shape[1])).astype(np.int8)
        assert np.abs(product(some, w)).max() <= bounds[name]
    assert bounds["layers.0.scores"] == 127 * 127 * SMALL.head_dim


def test_an_accumulator_that_could_overflow_is_refused_by_name():
    long = StudentShape(channels=1, outputs=1, d=1, layers=1, heads=1, window=140_000, ff=1, taps=1, dilation=1, lags=0)
    with pytest.raises(EdgeDistillError, match=r"'layers.0.context' can overflow"):
        quantize_student(long, random_weights(long), likely_ranges(long))
    many = replace(SMALL, channels=140_000, taps=1, lags=0)
    weights = random_weights(many)
    weights["embed.weight"][3] = 1
    with pytest.raises(EdgeDistillError, match=r"'embed.weight' can overflow"):
        quantize_student(many, weights, likely_ranges(many))


@pytest.mark.parametrize("part", [part for part in part_names(SMALL) if not part.endswith("attention")])
def test_a_kept_part_stays_float32(part):
    tensors = quantize_student(SMALL, WEIGHTS, RANGES, (part,))
    model = Int8Model(SMALL, tensors)
    assert model.keep == (part,)
    assert sum(array.dtype == np.int8 for array in tensors.values()) < len(weight_matrices(SMALL))


@pytest.mark.parametrize(
    ("name", "value", "culprit"),
    [
        ("bin", [0.0], "'bin'"),
        ("latent", [np.inf], "'latent'"),
        ("layers.1.hidden", [np.nan], "layers.1.hidden"),
        ("layers.0.k", [1.0, 0.0], "'layers.0.k', head 1"),
        ("layers.0.v", [1.0, -2.0], "'layers.0.v', head 1"),
        ("layers.0.q", [1.0], "layers.0.q"),
        ("layers.0.mlp", [1e-44], "layers.0.mlp"),
    ],
)
def test_a_range_that_gives_no_scale_is_refused_by_name(name, value, culprit):
    with pytest.raises(EdgeDistillError, match=culprit):
        quantize_student(SMALL, WEIGHTS, {**RANGES, name: value})


def test_a_missing_or_broken_tensor_is_named():
    ranges = dict(RANGES)
    del ranges["layers.1.context"]
    with pytest.raises(EdgeDistillError, match=r"layers\.1\.context"):
        quantize_student(SMALL, WEIGHTS, ranges)
    broken = {**WEIGHTS, "layers.0.wdown": np.full_like(WEIGHTS["layers.0.wdown"], np.nan)}
    with pytest.raises(EdgeDistillError, match=r"layers\.0\.wdown"):
        quantize_student(SMALL, broken, RANGES)


def test_a_part_that_cannot_stay_in_float32_is_refused():
    with pytest.raises(EdgeDistillError, match="INT8 ring"):
        quantize_student(SMALL, WEIGHTS, RANGES, ("layers.0.attention",))
    with pytest.raises(EdgeDistillError, match=r"did you mean 'layers.1.down'"):
        quantize_student(SMALL, WEIGHTS, RANGES, ("layers.1.dwn",))
