"""Computes the activations of a float student, named as their ranges.

The inputs are a student and bins. The output is every activation that has a scale on the device (docs/numerics.md,
"What is eight bits wide"), as the float student computes it before any folding. Norms are without their gains,
which go into the weights after them, and q, k, v and context are separate for each head.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import cast

import torch
from torch import Tensor
from torch.nn import functional as F

from edgedistill.models.student import Student, StudentBlock
from edgedistill.models.transformer import rms
from edgedistill.models.window_attention import window_attention


@torch.no_grad()
def compute_activations(student: Student, session: str, bins: Tensor) -> dict[str, Tensor]:
    """Returns every activation of (batch, n, channels) from a fresh state, by name.

    Each is (batch, n, width) or, for q, k, v and context, (batch, heads, n, head_dim).
    """
    found, x = {"bin": bins}, student.tokenizer(session, bins)
    blocks = cast("Iterable[StudentBlock]", student.layers)
    for i, (block, cache) in enumerate(zip(blocks, student.make_empty_cache(len(bins)), strict=True)):
        seen, x = compute_block_activations(block, x, cache)
        found |= {f"layers.{i}.{name}": values for name, values in seen.items()}
    return found | {"latent": rms(x)}


def compute_block_activations(
    block: StudentBlock, x: Tensor, cache: tuple[Tensor, Tensor]
) -> tuple[dict[str, Tensor], Tensor]:
    """Returns the activations of one block on (batch, n, d), after an empty cache, and the output of the block."""
    q, k, v = block.qkv(x)
    keys, values = torch.cat([cache[0], k], 2), torch.cat([cache[1], v], 2)
    context = window_attention(q, keys, values, block.age_bias)
    after = x + F.linear(context.transpose(1, 2).flatten(2), block.wo)
    normed = rms(after)
    gate, up = (F.linear(normed * block.norm_mlp, w) for w in (block.mlp.wgate, block.mlp.wup))
    seen = {"attn": rms(x), "q": q, "k": k, "v": v, "context": context, "mlp": normed, "hidden": F.silu(gate) * up}
    return seen, block.finish(x, context)
