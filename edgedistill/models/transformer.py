"""Defines the layers of both networks: RMSNorm, a gated MLP, and a bidirectional block with rotary positions.

The causal attention of the student stands in `window_attention`, because its definition is that of the device.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.autograd import Function
from torch.nn import functional as F

NORM_EPS = 1e-6  # keeps the norm of a silent bin finite; far below the variance of any token in training


def rms(x: Tensor) -> Tensor:
    """Returns x / sqrt(mean(x^2) + eps) over the last axis, without gain."""
    if x.device.type != "cpu":
        return x * torch.rsqrt(x.square().mean(-1, keepdim=True) + NORM_EPS)
    return cast(Tensor, RootMeanSquareNorm.apply(x))  # type: ignore[no-untyped-call]


class RootMeanSquareNorm(Function):
    """Computes `rms` with its gradient written out, which goes over the tokens a third as often.

    With y = x s the gradient of x is s (g - y mean(g y)).
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        """Normalizes x (…, d)."""
        length = torch.linalg.vector_norm(x, dim=-1, keepdim=True)
        scale = length.square_().div_(x.shape[-1]).add_(NORM_EPS).rsqrt_()
        y: Tensor = x * scale
        ctx.save_for_backward(y, scale)
        return y

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        """Returns the gradient of x."""
        (gradient,), (y, scale) = gradients, ctx.saved_tensors
        mean = (gradient * y).mean(-1, keepdim=True)
        return torch.addcmul(gradient, y, mean, value=-1).mul_(scale)


def normed_linear(x: Tensor, gain: Tensor, weight: Tensor) -> Tensor:
    """Returns `weight` (rows, d) times the normalized tokens (…, d) with their `gain` (d,).

    The gain is multiplied into the weight, because there are more tokens than rows.
    """
    return F.linear(rms(x), weight * gain)


def draw_weight(rows: int, columns: int, scale: float = 1.0) -> nn.Parameter:
    """Draws a (rows, columns) matrix whose outputs have the variance of its inputs times `scale` squared."""
    return nn.Parameter(torch.randn(rows, columns) * (scale / math.sqrt(columns)))


class GatedMLP(nn.Module):
    """Computes down(silu(gate y) * up y) of the normalized tokens y, (…, d) -> (…, d)."""

    def __init__(self, d: int, ff: int, depth: int) -> None:
        super().__init__()
        self.wgate, self.wup = draw_weight(ff, d), draw_weight(ff, d)
        self.wdown = draw_weight(d, ff, 1 / math.sqrt(2 * depth))

    def forward(self, x: Tensor, gain: Tensor) -> Tensor:
        """Normalizes every token, with its `gain` (d,), and applies the MLP."""
        normed = rms(x)
        gate, up = F.linear(normed, self.wgate * gain), F.linear(normed, self.wup * gain)
        return F.linear(F.silu(gate) * up, self.wdown)


def compute_rotary_angles(bins: Tensor, head_dim: int) -> Tensor:
    """Returns angles (…, tokens, head_dim / 2) of bin indices (…, tokens), with periods from 6 bins to about 3,000."""
    frequency = 500.0 ** (-torch.arange(0, head_dim, 2, device=bins.device) / head_dim)
    return bins[..., None] * frequency


@dataclass(frozen=True)
class Positions:
    """Holds what every block of a network computes from the times of its tokens."""

    turn: Tensor  # (batch, tokens, 1, 1, head_dim / 2) complex numbers of length 1, by which pairs of features turn
    fade: Tensor  # (batch, heads, tokens, tokens) which is added to the scores


def compute_positions(times: Tensor, heads: int, head_dim: int) -> Positions:
    """Returns the positions of tokens at `times` (batch, tokens), counted in bins or tokens."""
    angles = compute_rotary_angles(times, head_dim)
    at = angles[..., 0]  # the first pair turns by one radian a bin
    distance = (at[:, None, :, None] - at[:, None, None, :]).abs()
    turn = torch.polar(torch.ones_like(angles), angles)[:, :, None, None]
    return Positions(turn, distance * (-1 / compute_reach_bins(heads)[:, None, None].to(at)))


def rotate(x: Tensor, turn: Tensor) -> Tensor:
    """Turns pairs of features (batch, tokens, …, head_dim) by their angle: the rotary position embedding of Su 2021."""
    x = x if x.dtype in (torch.float32, torch.float64) else x.float()  # complex numbers have no half precision
    pairs = torch.view_as_complex(x.unflatten(-1, (-1, 2)))
    return torch.view_as_real(pairs * turn).flatten(-2)


def compute_reach_bins(heads: int) -> Tensor:
    """Returns over how many bins each head fades at the start: 3, 9, 27 ... (heads,) (after ALiBi, Press 2022)."""
    return 3.0 ** torch.arange(1, heads + 1)


class RotaryBlock(nn.Module):
    """Computes a pre-norm transformer block in which every token sees every other, (batch, tokens, d) -> the same.

    Besides the rotation, the scores of each head fade with distance, because a short training otherwise never finds the
    neighbouring bins.
    """

    def __init__(self, d: int, heads: int, ff: int, depth: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm_attn, self.norm_mlp = nn.Parameter(torch.ones(d)), nn.Parameter(torch.ones(d))
        self.wqkv, self.wo = draw_weight(3 * d, d), draw_weight(d, d, 1 / math.sqrt(2 * depth))
        self.mlp = GatedMLP(d, ff, depth)

    def forward(self, x: Tensor, positions: Positions) -> Tensor:
        """Applies the block to tokens at `positions`."""
        qkv = normed_linear(x, self.norm_attn, self.wqkv).unflatten(-1, (3, self.heads, -1))
        turned, v = rotate(qkv[:, :, :2], positions.turn), qkv[:, :, 2].transpose(1, 2)
        q, k = turned.permute(2, 0, 3, 1, 4)
        # torch's fused attention reads a mask of another type than the queries as if it had theirs
        context = F.scaled_dot_product_attention(q, k, v, attn_mask=positions.fade.to(v))
        x = x + F.linear(context.transpose(1, 2).flatten(2), self.wo)
        return x + self.mlp(x, self.norm_mlp)  # type: ignore[no-any-return]
