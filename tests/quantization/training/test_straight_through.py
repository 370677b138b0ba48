"""Rounding is that of the device forward, and has the gradients of the papers backward."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from edgedistill.numerics import quantize
from edgedistill.quantization.training.straight_through import (
    fake_quantize_rows,
    fake_quantize_tensor,
    integer_attention,
)


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("learned", [False, True], ids=["frozen", "learned"])
@given(
    values=st.lists(st.floats(-1e3, 1e3, width=32, allow_subnormal=False), min_size=1, max_size=40),
    scale=st.floats(2**-10, 100, width=32),
)
def test_a_tensor_is_rounded_as_on_the_device(learned: bool, values: list[float], scale: float) -> None:
    x, s = np.array(values, np.float32), np.float32(scale)
    y = fake_quantize_tensor(torch.from_numpy(x), torch.tensor(s, requires_grad=learned)).detach().numpy()
    expected = quantize(x, np.float32(1 / np.float64(s)))
    np.testing.assert_array_equal(y, expected * s)
    inside = np.abs(x) <= 127 * s
    assert (np.abs(y - x)[inside] <= 0.5 * s * (1 + 1e-5) + 1e-6 * np.abs(x[inside])).all()
    assert (np.abs(y) <= 127 * s).all()
    assert (y[x == 0] == 0).all()


def test_ties_go_to_even() -> None:
    x = torch.tensor([-2.5, -1.5, -0.5, 0.0, 0.5, 1.5, 2.5, 126.5, 127.5, 300])
    assert fake_quantize_tensor(x, torch.tensor(1.0)).tolist() == [-2, -2, 0, 0, 0, 2, 2, 126, 127, 127]


def test_each_row_has_its_own_scale_and_a_row_of_zeros_stays() -> None:
    w = torch.stack([random(20), 1000 * random(20, seed=1), torch.zeros(20)]).requires_grad_()
    y = fake_quantize_rows(w)
    scale = w.detach().abs().amax(1, keepdim=True) / 127
    assert ((y - w).abs() <= 0.5001 * scale).all()
    assert not y[2].any()
    y.sum().backward()
    assert torch.equal(w.grad, torch.ones_like(w))  # nothing of a weight is clipped


@pytest.mark.parametrize("learned", [False, True], ids=["frozen", "learned"])
def test_the_gradient_passes_only_inside_the_range(learned: bool) -> None:
    x = torch.tensor([-200.0, -126.9, 0.3, 127.4, 127.6, 500.0], requires_grad=True)
    fake_quantize_tensor(x, torch.tensor(1.0, requires_grad=learned)).sum().backward()
    assert x.grad is not None
    assert x.grad.tolist() == [0, 1, 1, 1, 0, 0]


def test_the_gradient_of_a_scale_equals_that_of_lsq() -> None:
    """Compares with Esser 2020, equation 3, value by value, damped by 1 / sqrt(127 * width)."""
    x, weights = 60 * random(30, 8), random(30, 8, seed=1)
    scale = torch.tensor(0.7, requires_grad=True)
    (fake_quantize_tensor(x, scale) * weights).sum().backward()
    expected = 0.0
    for value, weight in zip(x.flatten().tolist(), weights.flatten().tolist(), strict=True):
        v = value / 0.7
        expected += weight * (round(v) - v if abs(v) <= 127 else math.copysign(127, v))
    assert scale.grad is not None
    assert scale.grad.item() == pytest.approx(expected / math.sqrt(127 * 8), rel=1e-3)


def heads(seed: int = 0) -> list[Tensor]:
    """Returns q, k, v of (batch 2, heads 3, blocks 1), 5 queries over 11 keys, and a bias that hides some keys."""
    q, k, v = (
        random(2, 3, 1, 5, 4, seed=seed),
        random(2, 3, 1, 4, 11, seed=seed + 1),
        random(2, 3, 1, 11, 4, seed=seed + 2),
    )
    bias = 0.5 * random(3, 1, 5, 11, seed=seed + 3)
    return [q, k, v, bias.masked_fill(random(3, 1, 5, 11, seed=seed + 4) > 1, -math.inf)]


def test_attention_equals_that_of_integers() -> None:
    q, k, v, bias = heads()
    context = integer_attention(q, k, v, bias)
    scores = (q @ k + bias).double().numpy()
    p = np.rint(127 * np.exp(scores - scores.max(-1, keepdims=True)))
    np.testing.assert_allclose(context, p @ v.double().numpy() / p.sum(-1, keepdims=True), atol=1e-5)


def test_gradients_of_attention_equal_those_of_a_softmax() -> None:
    """The softmax has p / sum p in place of the probabilities, which are within 1 % of them."""
    found, expected = ([t.requires_grad_() for t in heads()] for _ in range(2))
    weights = random(2, 3, 1, 5, 4, seed=9)
    (integer_attention(*found) * weights).sum().backward()
    q, k, v, bias = expected
    ((q @ k + bias).softmax(-1) @ v * weights).sum().backward()
    for a, b in zip(found, expected, strict=True):
        assert a.grad is not None
        assert b.grad is not None
        assert (a.grad - b.grad).norm() < 0.02 * b.grad.norm()
    assert found[3].grad is not None
    torch.testing.assert_close(found[3].grad.sum(-1), torch.zeros(3, 1, 5), rtol=0, atol=1e-5)  # blind to a shift
