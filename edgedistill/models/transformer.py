"""Layers both networks share: RMSNorm, gated MLP, and a bidirectional block with rotary positions.

The student's causal attention is its own (`student.py`): the device's definition, not a library's.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

NORM_EPS = 1e-6  # keeps a silent bin's norm finite; far below the variance of any token seen in training


def rms(x: Tensor) -> Tensor:
    """x / sqrt(mean(x^2) + eps) over the last axis, without gain."""
    return x * torch.rsqrt(x.square().mean(-1, keepdim=True) + NORM_EPS)


def weight(rows: int, columns: int, scale: float = 1.0) -> nn.Parameter:
    """A (rows, columns) matrix whose outputs have the variance of its inputs times `scale` squared."""
    return nn.Parameter(torch.randn(rows, columns) * (scale / math.sqrt(columns)))


class GatedMLP(nn.Module):
    """down(silu(gate x) * up x); (…, d) -> (…, d)."""

    def __init__(self, d: int, ff: int, depth: int) -> None:
        super().__init__()
        self.wgate, self.wup = weight(ff, d), weight(ff, d)
        self.wdown = weight(d, ff, 1 / math.sqrt(2 * depth))

    def forward(self, x: Tensor) -> Tensor:
        """Applies the MLP to every token."""
        return F.linear(F.silu(F.linear(x, self.wgate)) * F.linear(x, self.wup), self.wdown)


def rotary_angles(bins: Tensor, head_dim: int) -> Tensor:
    """(…, tokens) bin indices -> (…, tokens, head_dim / 2) angles; periods from 6 bins to about 3,000."""
    frequency = 500.0 ** (-torch.arange(0, head_dim, 2, device=bins.device) / head_dim)
    return bins[..., None] * frequency


def rotate(x: Tensor, angles: Tensor) -> Tensor:
    """Rotary position embedding (Su 2021): pairs of features turn by their angle."""
    even, odd = x[..., 0::2], x[..., 1::2]
    cos, sin = angles.cos()[:, None], angles.sin()[:, None]
    return torch.stack([even * cos - odd * sin, even * sin + odd * cos], -1).flatten(-2)


def reach_bins(heads: int) -> Tensor:
    """(heads,) bins over which attention fades at the start of training: 3, 9, 27 ... (after ALiBi, Press 2022)."""
    return 3.0 ** torch.arange(1, heads + 1)


class RotaryBlock(nn.Module):
    """Pre-norm transformer block, every token sees every other; (batch, tokens, d) -> same.

    Heads fade with distance besides turning: without it a short training never finds the neighbouring bins.
    """

    def __init__(self, d: int, heads: int, ff: int, depth: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm_attn, self.norm_mlp = nn.Parameter(torch.ones(d)), nn.Parameter(torch.ones(d))
        self.wqkv, self.wo = weight(3 * d, d), weight(d, d, 1 / math.sqrt(2 * depth))
        self.mlp = GatedMLP(d, ff, depth)

    def forward(self, x: Tensor, angles: Tensor) -> Tensor:
        """`angles` (batch, tokens, head_dim / 2) from `rotary_angles`."""
        batch, tokens, d = x.shape
        qkv = F.linear(rms(x) * self.norm_attn, self.wqkv)
        q, k, v = qkv.view(batch, tokens, 3, self.heads, d // self.heads).permute(2, 0, 3, 1, 4)
        at = angles[..., 0]  # the first pair turns by one radian a bin
        fade = -(at[:, None, :, None] - at[:, None, None, :]).abs() / reach_bins(self.heads)[:, None, None].to(at)
        context = F.scaled_dot_product_attention(rotate(q, angles), rotate(k, angles), v, attn_mask=fade)
        x = x + F.linear(context.transpose(1, 2).reshape(batch, tokens, d), self.wo)
        return x + self.mlp(rms(x) * self.norm_mlp)  # type: ignore[no-any-return]
