"""Rounds tensors in training: forward as on the device, backward as if nothing had been rounded.

The inputs are float tensors, and the outputs are multiples of a scale. The straight-through estimator (Bengio 2013,
arXiv:1308.3432) passes the gradient where the value was inside the range and stops it outside. A scale that is learned
gets the gradient of LSQ (Esser 2020, arXiv:1902.08153).
"""

from __future__ import annotations

import math
from typing import Any, cast

import torch
from torch import Tensor
from torch.autograd import Function

from edgedistill.numerics.arithmetic import LEVELS
from edgedistill.quantization.four_bits import find_scale, round_to_nearest


def fake_quantize_rows(w: Tensor) -> Tensor:
    """Rounds a weight (out, n) to eight bits with a scale for each output channel. A row of zeros does not change."""
    largest = w.detach().abs().amax(1)
    scale = torch.where(largest > 0, largest, float(LEVELS)) / LEVELS
    return torch.fake_quantize_per_channel_affine(w, scale, torch.zeros_like(scale), 0, -LEVELS, LEVELS)


def fake_quantize_groups(w: Tensor) -> Tensor:
    """Rounds a weight (out, n) to four bits with a factor for each group of inputs, as `four_bits` does."""
    with torch.no_grad():
        scale = find_scale(w)
        rounded = round_to_nearest(w, scale)[0] * scale[:, None]
    return w + (rounded - w).detach()


def fake_quantize_tensor(x: Tensor, scale: Tensor) -> Tensor:
    """Rounds x with one scale (a tensor of no dimensions), which learns where it requires a gradient."""
    if scale.requires_grad:
        return cast(Tensor, LearnedScale.apply(x, scale))  # type: ignore[no-untyped-call]
    return torch.fake_quantize_per_tensor_affine(x, scale, _zero_point(scale), -LEVELS, LEVELS)


def integer_attention(q: Tensor, k: Tensor, v: Tensor, bias: Tensor) -> Tensor:
    """Returns the context (batch, …, n, Dh) of attention with exponentials of eight bits.

    q (batch, …, n, Dh) is scaled, k is (batch, …, Dh, span), v is (batch, …, span, Dh). bias (…, n, span) is added to
    the scores and is -inf where a key is not seen.
    """
    return cast(Tensor, IntegerSoftmax.apply(q, k, v, bias))  # type: ignore[no-untyped-call]


class LearnedScale(Function):
    """Rounds with a learned scale (LSQ).

    d(x8 * s)/ds is x8 - x/s inside the range and x8 = ±127 outside, damped by 1/sqrt(127 * width). Summed over values
    that is ((g, y) - (g inside, x)) / s with y = x8 * s: two dot products, without another tensor.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, scale: Tensor) -> Tensor:
        """Rounds x of any shape, features last."""
        y = torch.fake_quantize_per_tensor_affine(x, scale, _zero_point(scale), -LEVELS, LEVELS)
        ctx.save_for_backward(x, y, scale)
        return y

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor]:
        """Returns the gradients of x and of the scale."""
        (gradient,), (x, y, scale) = gradients, ctx.saved_tensors
        inside = gradient * (x.abs() <= (LEVELS + 0.5) * scale)
        total = torch.dot(gradient.flatten(), y.flatten()) - torch.dot(inside.flatten(), x.flatten())
        return inside, total / scale / math.sqrt(LEVELS * x.shape[-1])


class IntegerSoftmax(Function):
    """Attends with exponentials of eight bits: p = rint(127 exp(s - max s)), context = p v / sum p.

    The gradient is that of a softmax with the probabilities p / sum p. Only p is kept, and the scores are not.
    """

    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor, bias: Tensor) -> Tensor:
        """Computes `integer_attention`."""
        p = (q @ k).add_(bias)
        p = p.sub_(p.amax(-1, keepdim=True)).exp_().mul_(LEVELS).round_()
        total = p.sum(-1, keepdim=True)
        context = (p @ v).div_(total)
        ctx.save_for_backward(q, k, v, p, total, context)
        return context

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Returns the gradients of q, k, v and bias."""
        q, k, v, p, total, context = ctx.saved_tensors
        gradient = gradients[0] / total
        of_scores = (gradient @ v.mT).sub_((gradient * context).sum(-1, keepdim=True)).mul_(p)
        return of_scores @ k.mT, q.mT @ of_scores, p.mT @ gradient, of_scores.sum(0)


def _zero_point(scale: Tensor) -> Tensor:
    return torch.zeros((), dtype=torch.int32, device=scale.device)
