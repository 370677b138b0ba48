"""Defines the layers of both networks: RMSNorm, a gated MLP, and a bidirectional block with rotary positions.

The causal attention of the student stands in `student`, because its definition is that of the device.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

NORM_EPS = 1e-6  # keeps the norm of a silent bin finite; far below the variance of any token in training


def rms(x: Tensor) -> Tensor:
    """Returns x / sqrt(mean(x^2) + eps) over the last axis, without gain."""
    return x * torch.rsqrt(x.square().mean(-1, keepdim=True) + NORM_EPS)


def draw_weight(rows: int, columns: int, scale: float = 1.0) -> nn.Parameter:
    """Draws a (rows, columns) matrix whose outputs have the variance of its inputs times `scale` squared."""
    return nn.Parameter(torch.randn(rows, columns) * (scale / math.sqrt(columns)))


class GatedMLP(nn.Module):
    """Computes down(silu(gate x) * up x), (…, d) -> (…, d)."""

    def __init__(self, d: int, ff: int, depth: int) -> None:
        super().__init__()
        self.wgate, self.wup = draw_weight(ff, d), draw_weight(ff, d)
        self.wdown = draw_weight(d, ff, 1 / math.sqrt(2 * depth))

    def forward(self, x: Tensor) -> Tensor:
        """Applies the MLP to every token."""
        return F.linear(F.silu(F.linear(x, self.wgate)) * F.linear(x, self.wup), self.wdown)


def compute_rotary_angles(bins: Tensor, head_dim: int) -> Tensor:
    """Returns angles (…, tokens, head_dim / 2) of bin indices (…, tokens), with periods from 6 bins to about 3,000."""
    frequency = 500.0 ** (-torch.arange(0, head_dim, 2, device=bins.device) / head_dim)
    return bins[..., None] * frequency


def rotate(x: Tensor, angles: Tensor) -> Tensor:
    """Turns pairs of features by their angle: the rotary position embedding of Su 2021."""
    even, odd = x[..., 0::2], x[..., 1::2]
    cos, sin = angles.cos()[:, None], angles.sin()[:, None]
    return torch.stack([even * cos - odd * sin, even * sin + odd * cos], -1).flatten(-2)


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

    def forward(self, x: Tensor, angles: Tensor) -> Tensor:
        """Applies the block. `angles` (batch, tokens, head_dim / 2) come from `compute_rotary_angles`."""
        batch, tokens, d = x.shape
        qkv = F.linear(rms(x) * self.norm_attn, self.wqkv)
        q, k, v = qkv.view(batch, tokens, 3, self.heads, d // self.heads).permute(2, 0, 3, 1, 4)
        at = angles[..., 0]  # the first pair turns by one radian a bin
        fade = -(at[:, None, :, None] - at[:, None, None, :]).abs() / compute_reach_bins(self.heads)[:, None, None].to(
            at
        )
        # torch's fused attention reads a mask of another type than the queries as if it had theirs
        context = F.scaled_dot_product_attention(rotate(q, angles), rotate(k, angles), v, attn_mask=fade.to(v))
        x = x + F.linear(context.transpose(1, 2).reshape(batch, tokens, d), self.wo)
        return x + self.mlp(rms(x) * self.norm_mlp)  # type: ignore[no-any-return]
