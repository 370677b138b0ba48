"""Layers equal their definition in plain operations, and gradients that are written out those of autograd."""

from __future__ import annotations

import torch
from torch import Tensor

from edgedistill.models.transformer import (
    NORM_EPS,
    RootMeanSquareNorm,
    compute_positions,
    compute_rotary_angles,
    normed_linear,
    rms,
    rotate,
)


def plain_rms(x: Tensor) -> Tensor:
    return x * torch.rsqrt(x.square().mean(-1, keepdim=True) + NORM_EPS)


def test_rms_equals_its_definition_also_for_silence() -> None:
    x = torch.randn(3, 7, 16, generator=torch.Generator().manual_seed(0))
    x[0, 0], x[1, 1] = 0.0, 1e-4
    x.requires_grad_()
    torch.testing.assert_close(rms(x), plain_rms(x), rtol=1e-6, atol=1e-6)
    weight = torch.randn(3, 7, 16, generator=torch.Generator().manual_seed(1))
    found, expected = (torch.autograd.grad((f(x) * weight).sum(), x)[0] for f in (rms, plain_rms))
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


def test_the_gradient_of_rms_is_that_of_differences() -> None:
    x = torch.randn(2, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(2), requires_grad=True)
    assert torch.autograd.gradcheck(RootMeanSquareNorm.apply, x)


def test_the_gain_may_stand_in_the_weight() -> None:
    x, gain, weight = (
        torch.randn(*shape, generator=torch.Generator().manual_seed(3)) for shape in ((6, 8), (8,), (3, 8))
    )
    torch.testing.assert_close(normed_linear(x, gain, weight), (plain_rms(x) * gain) @ weight.T, rtol=1e-5, atol=1e-5)


def test_pairs_turn_by_their_angle_and_heads_fade_with_distance() -> None:
    times = torch.tensor([[0.0, 3.0, 4.0]])
    positions = compute_positions(times, heads=2, head_dim=6)
    x = torch.randn(1, 3, 2, 2, 6, generator=torch.Generator().manual_seed(4))
    angles = compute_rotary_angles(times, 6)[:, :, None, None]
    even, odd = x[..., 0::2], x[..., 1::2]
    turned = rotate(x, positions.turn)
    torch.testing.assert_close(turned[..., 0::2], even * angles.cos() - odd * angles.sin())
    torch.testing.assert_close(turned[..., 1::2], even * angles.sin() + odd * angles.cos())
    distance = (times[0, :, None] - times[0]).abs()
    torch.testing.assert_close(positions.fade[0], torch.stack([-distance / 3, -distance / 9]))
