"""The student: a causal transformer, one token a bin, that decodes as the bins stream in.

Comes in: z-scored bins of one session. Goes out: one latent a bin. Attention looks back over a sliding window of
`window` bins and knows positions only by age (how many bins ago), because an INT8 ring of keys and values
cannot be re-rotated. Three ways through the same weights, equal to each other:

- `forward`: a whole stretch, attention over blocks of the window (training);
- `stream`: stretch after stretch, keys and values carried over (evaluation);
- `step`: one bin, rings read and appended as on the device (the definition in float; numerics "State").

`fold` gives one session's tensors as the engines read them.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from edgedistill.config import StudentSize
from edgedistill.models.tokenizer import BinTokenizer
from edgedistill.models.transformer import GatedMLP, rms, weight

BLOCK = 64  # queries that share one stretch of keys; keys a block = BLOCK + window - 1


def window_attention(q: Tensor, k: Tensor, v: Tensor, age_bias: Tensor, live: int = 0) -> Tensor:
    """Attention of every query to its own bin and the window - 1 before it.

    q (batch, heads, n, head_dim); k, v (batch, heads, window - 1 + n, head_dim), of whose first window - 1
    only the last `live` exist; age_bias (heads, window), age 0 first. Returns (batch, heads, n, head_dim).
    """
    n, head_dim = q.shape[2:]
    window = age_bias.shape[1]
    block = min(BLOCK, n)
    blocks = -(-n // block)
    fill = blocks * block - n
    q = F.pad(q, (0, 0, 0, fill)).unflatten(2, (blocks, block))
    span = block + window - 1
    k, v = (F.pad(x, (0, 0, 0, fill)).unfold(2, span, block) for x in (k, v))  # (…, blocks, head_dim, span)
    bias = age_bias_band(age_bias, block)[:, None]  # (heads, 1, block, span)
    key = torch.arange(span, device=q.device) + block * torch.arange(blocks, device=q.device)[:, None]
    bias = bias.masked_fill((key < window - 1 - live)[:, None], -math.inf)  # (heads, blocks, block, span)
    # scale and mask outside the batch: the scores are the largest tensor by far, and are touched once
    scores = (q / math.sqrt(head_dim)) @ k + bias
    context = scores.softmax(-1) @ v.transpose(-1, -2)
    return context.flatten(2, 3)[:, :, :n]


def age_bias_band(age_bias: Tensor, block: int) -> Tensor:
    """(heads, window) by age -> (heads, block, block + window - 1), -inf outside the window."""
    heads, window = age_bias.shape
    span = block + window - 1
    # query i sees key j at age i + window - 1 - j: rows of the flipped bias, each shifted one to the right
    row = F.pad(age_bias.flip(1), (0, block), value=-math.inf)  # (heads, span + 1)
    return row.repeat(1, block)[:, : block * span].view(heads, block, span)


class StudentBlock(nn.Module):
    """Pre-norm block of the student; names as in `student.safetensors`."""

    def __init__(self, size: StudentSize) -> None:
        super().__init__()
        d, self.heads = size.d, size.heads
        self.norm_attn, self.norm_mlp = nn.Parameter(torch.ones(d)), nn.Parameter(torch.ones(d))
        self.wq, self.wk, self.wv = weight(d, d), weight(d, d), weight(d, d)
        self.wo = weight(d, d, 1 / math.sqrt(2 * size.layers))
        self.age_bias = nn.Parameter(recency_bias(size.heads, size.window))
        self.mlp = GatedMLP(d, size.ff, size.layers)

    def qkv(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """(batch, n, d) -> three of (batch, heads, n, head_dim)."""
        normed = rms(x) * self.norm_attn
        q, k, v = (F.linear(normed, w).unflatten(-1, (self.heads, -1)) for w in (self.wq, self.wk, self.wv))
        return q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2)

    def finish(self, x: Tensor, context: Tensor) -> Tensor:
        """Residual stream after attention `context` (batch, heads, n, head_dim) and the MLP."""
        x = x + F.linear(context.transpose(1, 2).flatten(2), self.wo)
        return x + self.mlp(rms(x) * self.norm_mlp)  # type: ignore[no-any-return]

    def forward(self, x: Tensor, cache: tuple[Tensor, Tensor], live: int) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        """Bins (batch, n, d) after a cache of the window - 1 bins before them, `live` of which exist."""
        q, k, v = self.qkv(x)
        k, v = torch.cat([cache[0], k], 2), torch.cat([cache[1], v], 2)
        context = window_attention(q, k, v, self.age_bias, live)
        keep = self.age_bias.shape[1] - 1
        return self.finish(x, context), (k[:, :, k.shape[2] - keep :], v[:, :, v.shape[2] - keep :])


def recency_bias(heads: int, window: int) -> Tensor:
    """(heads, window) to start from: heads that fade over about 10, 30, 100 … bins (after ALiBi, Press 2022)."""
    reach = torch.tensor([10.0 * 3.0**h for h in range(heads)])
    return -torch.arange(window) / reach[:, None]


@dataclass
class StudentState:
    """What a streaming student remembers: the rings of numerics.md, in float."""

    ring_k: list[Tensor]  # a layer: (heads, window - 1, head_dim) by slot
    ring_v: list[Tensor]
    pos: int  # next slot to write
    live: int  # slots filled
    lags: Tensor  # (lag rows, channels), row j = the bin j + 1 bins ago


class Student(nn.Module):
    """Causal student over the sessions in `channels` (id -> channels), of the arrays in `arrays` (id -> name).

    `teacher_d` and `outputs` size the training heads: projection to the teacher's latents, and behavior.
    """

    def __init__(
        self,
        size: StudentSize,
        channels: Mapping[str, int],
        arrays: Mapping[str, str],
        teacher_d: int,
        outputs: int,
    ) -> None:
        super().__init__()
        self.size = size
        self.tokenizer = BinTokenizer(size.d, size.taps, size.dilation, channels, arrays)
        self.layers = nn.ModuleList(StudentBlock(size) for _ in range(size.layers))
        self.norm_out = nn.Parameter(torch.ones(size.d))
        self.to_teacher = nn.Linear(size.d, teacher_d)
        self.to_behavior = nn.Linear(size.d, outputs)
        widest = max(channels.values())
        self.to_bins = nn.Linear(size.d, widest)

    def empty_cache(self, batch: int) -> list[tuple[Tensor, Tensor]]:
        """Keys and values before the first bin: window - 1 slots that do not exist yet."""
        shape = (batch, self.size.heads, self.size.window - 1, self.size.d // self.size.heads)
        zeros = torch.zeros(shape, device=self.norm_out.device)
        return [(zeros, zeros) for _ in self.layers]

    def encode(
        self, tokens: Tensor, cache: list[tuple[Tensor, Tensor]], live: int
    ) -> tuple[Tensor, list[tuple[Tensor, Tensor]]]:
        """(batch, n, d) tokens -> latents and the caches after them."""
        after = []
        for block, before in zip(self.layers, cache, strict=True):
            tokens, kept = block(tokens, before, live)
            after.append(kept)
        return rms(tokens) * self.norm_out, after

    def forward(self, session: str, bins: Tensor) -> Tensor:
        """(batch, bins, channels) from a fresh state -> latents (batch, bins, d)."""
        return self.encode(self.tokenizer(session, bins), self.empty_cache(len(bins)), 0)[0]

    def stream(self, session: str, bins: Tensor, chunk: int = 4096) -> Iterator[Tensor]:
        """Latents (n, d) of a recording (bins, channels), chunk by chunk, equal to `forward` over all of it."""
        cache, reach, live = self.empty_cache(1), max(self.tokenizer.lags), 0
        for start in range(0, len(bins), chunk):
            seen = bins[max(0, start - reach) : start + chunk]
            tokens = self.tokenizer(session, seen[None])[:, min(start, reach) :]
            latents, cache = self.encode(tokens, cache, live)
            live = min(live + tokens.shape[1], self.size.window - 1)
            yield latents[0]

    def fresh_state(self, session: str) -> StudentState:
        """The state before the first bin."""
        rings = [(k[0].clone(), v[0].clone()) for k, v in self.empty_cache(1)]
        rows = max(self.size.lags, max(self.tokenizer.lags))
        lags = torch.zeros(rows, self.tokenizer.channels[session], device=self.norm_out.device)
        return StudentState([k for k, _ in rings], [v for _, v in rings], 0, 0, lags)

    def step(self, session: str, bin_: Tensor, state: StudentState) -> Tensor:
        """One z-scored bin (channels,) -> its latent (d,); `state` moves on by one bin."""
        recent = torch.cat([bin_[None], state.lags])
        taps = recent[self.tokenizer.lags].flatten()
        x = F.linear(taps, self.tokenizer.weight(session), self.tokenizer.bias)[None, None]
        slots = self.size.window - 1
        age = (state.pos - 1 - torch.arange(slots, device=x.device)) % slots + 1
        dead = age > state.live
        blocks = cast("Iterable[StudentBlock]", self.layers)
        for block, ring_k, ring_v in zip(blocks, state.ring_k, state.ring_v, strict=True):
            q, k, v = (part[0] for part in block.qkv(x))  # (heads, 1, head_dim)
            keys, values = torch.cat([ring_k, k], 1), torch.cat([ring_v, v], 1)
            bias = torch.cat([block.age_bias[:, age].masked_fill(dead, -math.inf), block.age_bias[:, :1]], 1)
            scores = (q @ keys.transpose(1, 2))[:, 0] / math.sqrt(q.shape[-1]) + bias
            x = block.finish(x, (scores.softmax(-1)[:, None] @ values)[None])
            ring_k[:, state.pos], ring_v[:, state.pos] = k[:, 0], v[:, 0]
        state.pos, state.live = (state.pos + 1) % slots, min(state.live + 1, slots)
        state.lags = recent[:-1] if len(state.lags) else state.lags
        return (rms(x) * self.norm_out)[0, 0]

    def fold(self, session: str) -> dict[str, Tensor]:
        """One session's tensors under the names the engines read, without a read-out."""
        tensors = {
            "embed.weight": self.tokenizer.weight(session),
            "embed.bias": self.tokenizer.bias,
            "norm_out": self.norm_out,
        }
        for i, block in enumerate(self.layers):
            for name in ("norm_attn", "wq", "wk", "wv", "wo", "age_bias", "norm_mlp"):
                tensors[f"layers.{i}.{name}"] = getattr(block, name)
            for name in ("wgate", "wup", "wdown"):
                tensors[f"layers.{i}.{name}"] = getattr(block.mlp, name)
        return {name: tensor.detach().clone().contiguous() for name, tensor in tensors.items()}
