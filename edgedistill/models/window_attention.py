"""Defines the student's attention over a sliding window, in two forms with equal results up to rounding.

`attend_at_once` is the definition in operations of torch, for any device. On a CPU `window_attention` goes over the
blocks one after another, because the scores of one block stay in the cache of the processor, and blocks at the start of
a segment read the keys that exist and no others. Its gradient is written out, so that only the probabilities are kept.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any, cast

import torch
from torch import Tensor
from torch.autograd import Function
from torch.nn import functional as F

BLOCK = 64  # queries that share their keys; a block has BLOCK + window - 1 keys


def window_attention(q: Tensor, k: Tensor, v: Tensor, age_bias: Tensor, live: int = 0) -> Tensor:
    """Lets every query attend to its own bin and the window - 1 bins before it.

    q is (batch, heads, n, head_dim). k and v are (batch, heads, window - 1 + n, head_dim), and only the last `live`
    of their first window - 1 bins exist. age_bias is (heads, window), age 0 first. Returns (batch, heads, n, head_dim).
    """
    if q.device.type != "cpu":  # a loop over small operations would leave a GPU idle
        return attend_at_once(q, k, v, age_bias, live)
    block = min(BLOCK, q.shape[2])
    band = build_age_bias_band(age_bias, block)
    return cast(Tensor, BlockwiseAttention.apply(q, k, v, band, live))  # type: ignore[no-untyped-call]


def attend_at_once(q: Tensor, k: Tensor, v: Tensor, age_bias: Tensor, live: int = 0) -> Tensor:
    """Computes `window_attention` for all blocks together."""
    n, head_dim = q.shape[2:]
    window = age_bias.shape[1]
    block = min(BLOCK, n)
    blocks = -(-n // block)
    fill = blocks * block - n
    q = F.pad(q, (0, 0, 0, fill)).unflatten(2, (blocks, block))
    span = block + window - 1
    k, v = (F.pad(x, (0, 0, 0, fill)).unfold(2, span, block) for x in (k, v))  # (…, blocks, head_dim, span)
    bias = build_age_bias_band(age_bias, block)[:, None]  # (heads, 1, block, span)
    key = torch.arange(span, device=q.device) + block * torch.arange(blocks, device=q.device)[:, None]
    bias = bias.masked_fill((key < window - 1 - live)[:, None], -math.inf)  # (heads, blocks, block, span)
    # scale and mask are applied outside the batch, because the scores are the largest tensor by far
    scores = (q / math.sqrt(head_dim)) @ k + bias
    context = scores.softmax(-1) @ v.transpose(-1, -2)
    return context.flatten(2, 3)[:, :, :n]


def build_age_bias_band(age_bias: Tensor, block: int) -> Tensor:
    """Turns (heads, window) by age into (heads, block, block + window - 1), -inf outside the window."""
    heads, window = age_bias.shape
    span = block + window - 1
    # query i sees key j at age i + window - 1 - j, so row i is the flipped bias shifted by i to the right
    row = F.pad(age_bias.flip(1), (0, block), value=-math.inf)  # (heads, span + 1)
    return row.repeat(1, block)[:, : block * span].view(heads, block, span)


class BlockwiseAttention(Function):
    """Attends block by block, with the bias of `build_age_bias_band`, on rows (batch * heads) at once.

    With P the probabilities of a block and G the gradient of its context, the gradient of the scores is
    P (G Vᵀ - rowsum(G context)), as in FlashAttention (Dao 2022).
    """

    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor, band: Tensor, live: int) -> Tensor:
        """Computes `window_attention`. `band` is (heads, block, block + window - 1)."""
        batch, heads, n, head_dim = q.shape
        q, k, v = (x.flatten(0, 1) for x in (q, k, v))
        q = q / math.sqrt(head_dim)
        context, kept = torch.empty_like(q), []
        for queries, keys, rows, columns in list_blocks(n, band, live):
            bias = band[:, rows, columns].repeat(batch, 1, 1)
            p = bias.baddbmm_(q[:, queries], k[:, keys].mT).softmax(-1)
            context[:, queries] = p @ v[:, keys]
            kept.append(p)
        ctx.save_for_backward(q, k, v, band, context, *kept)
        ctx.live = live
        return cast(Tensor, context.unflatten(0, (batch, heads)))

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor, None]:
        """Returns the gradients of q, k, v and the bias."""
        q, k, v, band, context, *kept = ctx.saved_tensors
        batch, heads = gradients[0].shape[:2]
        gradient = gradients[0].flatten(0, 1)
        to_remove = (gradient * context).sum(-1, keepdim=True)
        of_q, of_k, of_v, of_band = torch.empty_like(q), *(torch.zeros_like(x) for x in (k, v, band))
        blocks = list_blocks(q.shape[1], band, ctx.live)
        for p, (queries, keys, rows, columns) in zip(kept, blocks, strict=True):
            part = gradient[:, queries]
            of_v[:, keys].baddbmm_(p.mT, part)
            of_scores = (part @ v[:, keys].mT).sub_(to_remove[:, queries]).mul_(p)
            of_k[:, keys].baddbmm_(of_scores.mT, q[:, queries])
            of_q[:, queries] = of_scores @ k[:, keys]
            of_band[:, rows, columns] += of_scores.unflatten(0, (batch, heads)).sum(0)
        of_q /= math.sqrt(q.shape[2])
        of_q, of_k, of_v = (x.unflatten(0, (batch, heads)) for x in (of_q, of_k, of_v))
        return of_q, of_k, of_v, of_band, None


def list_blocks(n: int, band: Tensor, live: int) -> Iterator[tuple[slice, slice, slice, slice]]:
    """Yields, for each block of n queries, its queries and keys, and the rows and columns of `band` between them."""
    block, span = band.shape[1:]
    first = span - block - live  # first key that exists
    for start in range(0, n, block):
        stop = min(n, start + block)
        keys = slice(max(start, first), stop + span - block)
        yield slice(start, stop), keys, slice(0, stop - start), slice(keys.start - start, keys.stop - start)
