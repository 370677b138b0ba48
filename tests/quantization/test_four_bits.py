"""Four-bit rounding gives the form, errs as its steps allow, and keeps outputs better where it knows the inputs."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from edgedistill.errors import EdgeDistillError
from edgedistill.numerics import Int8Model
from edgedistill.numerics.four_bits import find_form_fault, spread_factors
from edgedistill.numerics.tensors import four_bit_parts, part_of, weight_matrices
from edgedistill.quantization.four_bits import find_factors, find_scale, round_by_moments, round_to_nearest
from edgedistill.quantization.integers import bound_accumulators, check_ranges, fold, quantize_student
from edgedistill.quantization.training.straight_through import fake_quantize_groups

from ..numerics.students import SMALL, likely_ranges, random_weights

WEIGHTS, RANGES = random_weights(SMALL), likely_ranges(SMALL)
PARTS = four_bit_parts(SMALL)
Tensor = torch.Tensor


def draw_weights(rows: int = 24, n: int = 80, seed: int = 0) -> Tensor:
    """Returns weights whose groups differ in size."""
    rng = np.random.default_rng(seed)
    w = rng.standard_normal((rows, n)) * np.repeat(rng.uniform(0.05, 1, (rows, -(-n // 32))), 32, axis=1)[:, :n]
    return torch.from_numpy(w)


def draw_inputs(n: int = 80, seed: int = 0) -> Tensor:
    """Returns inputs (5000, n) that go together, as activations do."""
    rng = np.random.default_rng(seed)
    return torch.from_numpy(rng.standard_normal((5000, 12)) @ rng.standard_normal((12, n)) + 0.1)


def moments_of(x: Tensor) -> np.ndarray:
    return (x.T @ x / len(x)).numpy()


def require_form(integers: Tensor, factors: Tensor) -> None:
    assert find_form_fault(integers.numpy().astype(np.int8), factors.numpy().astype(np.uint8)) is None


@settings(max_examples=30)
@given(st.integers(1, 5), st.integers(1, 100), st.integers(0, 99))
def test_any_matrix_gets_the_form(rows: int, n: int, seed: int) -> None:
    w = draw_weights(rows, n, seed)
    w[0] = 0
    scale = find_scale(w)
    require_form(*round_to_nearest(w, scale))
    integers, factors = round_by_moments(w, scale, moments_of(draw_inputs(n)))
    require_form(integers, factors)
    assert scale[0] == 1
    assert not integers[0].any()


def test_what_has_the_form_already_comes_back() -> None:
    rng = np.random.default_rng(0)
    q, factors = rng.integers(-7, 8, (16, 80)), rng.integers(1, 16, (16, 3))
    q[:, ::32], factors[:, 0] = 7, 15
    exact = torch.from_numpy((q * spread_factors(factors, 80)).astype(np.float64)) * 0.013
    integers, found = round_to_nearest(exact, find_scale(exact))
    assert (integers * 0.013 - exact).abs().max() < 1e-12
    assert (found.numpy() == factors).all()


def test_a_factor_has_the_least_error_of_those_that_were_tried() -> None:
    w = draw_weights()
    scale = find_scale(w)
    factors = find_factors(w, scale)

    def error(factors: Tensor) -> Tensor:
        step = factors.repeat_interleave(32, 1)[:, :80] * scale[:, None]
        off = w - (w / step).round().clamp(-7, 7) * step
        return torch.stack([part.square().sum(1) for part in off.split(32, 1)], 1)

    widest = (torch.stack([part.abs().amax(1) for part in w.split(32, 1)], 1) / (7 * scale[:, None])).round()
    assert (error(factors) <= error(widest.clamp(1, 15)) + 1e-12).all()
    assert error(factors).sum() < 0.99 * error(widest.clamp(1, 15)).sum()


@pytest.mark.parametrize("seed", range(3))
def test_rounding_with_moments_keeps_the_outputs_better(seed: int) -> None:
    w, x = draw_weights(seed=seed), draw_inputs(seed=seed)
    scale = find_scale(w)
    nearest, by_moments = (
        (x @ (found[0] * scale[:, None] - w).T).square().mean()
        for found in (round_to_nearest(w, scale), round_by_moments(w, scale, moments_of(x)))
    )
    assert by_moments < 0.5 * nearest


def test_an_input_that_never_moves_does_no_harm() -> None:
    w, x = draw_weights(), draw_inputs()
    x[:, 7] = 0
    integers, factors = round_by_moments(w, find_scale(w), moments_of(x))
    require_form(integers, factors)
    require_form(*round_by_moments(w, find_scale(w), np.zeros((80, 80))))


def test_a_student_has_four_bits_where_it_is_told() -> None:
    some = PARTS[:1] + PARTS[2:]
    model = Int8Model(SMALL, quantize_student(SMALL, WEIGHTS, RANGES, (), some))
    assert model.four == some
    eight = quantize_student(SMALL, WEIGHTS, RANGES)
    folded, _ = fold(SMALL, WEIGHTS, check_ranges(SMALL, RANGES))
    for name in weight_matrices(SMALL):
        if part_of(name) not in some:
            assert np.array_equal(model.tensors[name], eight[name])
            continue
        scale = model.tensors[name + ".scale"].astype(float)[:, None]
        step = scale * spread_factors(model.tensors[name + ".factor"], folded[name].shape[1])
        inside = np.abs(folded[name]) <= 7.5 * step
        assert inside.mean() > 0.8, name
        off = np.abs(model.tensors[name] * scale - folded[name])
        assert (off <= 0.5001 * step)[inside].all(), name
        source = weight_matrices(SMALL)[name][1]
        exact = scale[:, 0] * float(model.tensors[source + ".scale"][0])
        assert (model.tensors[name + ".multiplier"] == exact.astype(np.float32)).all()


def test_moments_of_the_context_follow_the_folding() -> None:
    """Columns of wo are multiplied by what the context is divided by, so the outputs are those of the moments given."""
    rng = np.random.default_rng(0)
    sources = {source: size[1] for name, (size, source) in weight_matrices(SMALL).items() if part_of(name) in PARTS}
    inputs = {source: rng.standard_normal((400, 6)) @ rng.standard_normal((6, n)) for source, n in sources.items()}
    moments = {source: x.T @ x / len(x) for source, x in inputs.items()}
    folded, _ = fold(SMALL, WEIGHTS, check_ranges(SMALL, RANGES))
    v = np.array(RANGES["layers.0.v"])
    x = inputs["layers.0.context"] / np.repeat(v / v.max(), SMALL.head_dim)
    off = []
    for known in (None, moments):
        tensors = quantize_student(SMALL, WEIGHTS, RANGES, (), PARTS, known)
        wo = tensors["layers.0.wo"] * tensors["layers.0.wo.scale"].astype(float)[:, None]
        off.append(np.square(x @ (wo - folded["layers.0.wo"]).T).mean())
    assert off[1] < 0.5 * off[0]


def test_accumulators_are_bounded_as_those_of_int8_weights() -> None:
    model = Int8Model(SMALL, quantize_student(SMALL, WEIGHTS, RANGES, (), PARTS))
    bounds = bound_accumulators(model)
    for name, ((_, n), _) in weight_matrices(SMALL).items():
        assert bounds[name] <= 127 * (105 if part_of(name) in PARTS else 127) * n


def test_parts_that_always_have_eight_bits_are_refused_by_name() -> None:
    with pytest.raises(EdgeDistillError, match=r"'readout' has no four-bit weights"):
        quantize_student(SMALL, WEIGHTS, RANGES, (), ("readout",))
    with pytest.raises(EdgeDistillError, match=r"'layers\.0\.qvk'[\s\S]*layers\.0\.qkv"):
        quantize_student(SMALL, WEIGHTS, RANGES, (), ("layers.0.qvk",))
    broken = {**WEIGHTS, "layers.0.wdown": np.full_like(WEIGHTS["layers.0.wdown"], np.nan)}
    with pytest.raises(EdgeDistillError, match=r"layers\.0\.wdown"):
        quantize_student(replace(SMALL), broken, RANGES, (), PARTS)


def test_training_rounds_as_deployment_does_and_passes_the_gradient() -> None:
    w = draw_weights().float().requires_grad_()
    rounded = fake_quantize_groups(w)
    scale = find_scale(w.detach().double())
    wanted = round_to_nearest(w.detach().double(), scale)[0] * scale[:, None]
    assert ((rounded.double() - wanted).abs() < 1e-6).double().mean() > 0.999  # a tie may fall elsewhere in float32
    (rounded * torch.arange(80.0)).sum().backward()
    assert w.grad is not None
    assert torch.equal(w.grad, torch.arange(80.0).expand(24, 80))
