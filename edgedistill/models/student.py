"""Defines the student, a causal transformer with one token a bin, which decodes while the bins arrive.

The input is the z-scored bins of one session. The output is one latent a bin. Attention looks back over a sliding
window of `window` bins and knows a position only by its age (how many bins ago), because keys in an INT8 ring cannot be
rotated again. The same weights are used in three ways with equal results:

- `forward` takes a whole segment and attends in blocks of the window (training).
- `stream` takes a recording chunk by chunk and carries keys and values over (evaluation).
- `step` takes one bin and reads and appends to rings as the device does (docs/numerics.md, "The step", in float).

`fold` returns the tensors of one session as the engines read them, and `student_from_tensors` is its inverse.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from edgedistill.config import StudentShape, StudentSize
from edgedistill.models.teacher_heads import TeacherHeads
from edgedistill.models.tokenizer import BinTokenizer, name_parameter
from edgedistill.models.transformer import GatedMLP, draw_weight, normed_linear, rms
from edgedistill.models.window_attention import window_attention

ARRAY = "array"  # of a student that knows one session


class StudentBlock(nn.Module):
    """Computes one pre-norm block of the student. Parameters are named as in `student.safetensors`."""

    def __init__(self, size: StudentSize) -> None:
        super().__init__()
        d, self.heads = size.d, size.heads
        self.norm_attn, self.norm_mlp = nn.Parameter(torch.ones(d)), nn.Parameter(torch.ones(d))
        self.wq, self.wk, self.wv = draw_weight(d, d), draw_weight(d, d), draw_weight(d, d)
        self.wo = draw_weight(d, d, 1 / math.sqrt(2 * size.layers))
        self.age_bias = nn.Parameter(make_recency_bias(size.heads, size.window))
        self.mlp = GatedMLP(d, size.ff, size.layers)

    def qkv(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Projects (batch, n, d) to q, k and v, each (batch, heads, n, head_dim)."""
        qkv = normed_linear(x, self.norm_attn, torch.cat([self.wq, self.wk, self.wv]))
        q, k, v = qkv.unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        return q, k, v

    def finish(self, x: Tensor, context: Tensor) -> Tensor:
        """Returns the residual stream after the attention `context` (batch, heads, n, head_dim) and the MLP."""
        x = x + F.linear(context.transpose(1, 2).flatten(2), self.wo)
        return x + self.mlp(x, self.norm_mlp)  # type: ignore[no-any-return]

    def forward(self, x: Tensor, cache: tuple[Tensor, Tensor], live: int) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        """Returns bins (batch, n, d) after the block, and the cache for the bins that follow.

        `cache` holds keys and values of the window - 1 bins before them, of which the last `live` exist.
        """
        q, k, v = self.qkv(x)
        k, v = torch.cat([cache[0], k], 2), torch.cat([cache[1], v], 2)
        context = window_attention(q, k, v, self.age_bias, live)
        keep = self.age_bias.shape[1] - 1
        return self.finish(x, context), (k[:, :, k.shape[2] - keep :], v[:, :, v.shape[2] - keep :])


def make_recency_bias(heads: int, window: int) -> Tensor:
    """Returns initial biases (heads, window). Heads fade over 10, 30, 90 … bins (after ALiBi, Press 2022)."""
    reach = torch.tensor([10.0 * 3.0**h for h in range(heads)])
    return -torch.arange(window) / reach[:, None]


@dataclass
class StudentState:
    """Holds what a streaming student remembers: the state of docs/numerics.md, "State", in float."""

    ring_k: list[Tensor]  # for each layer (heads, window - 1, head_dim) by slot
    ring_v: list[Tensor]
    pos: int  # slot that is written next
    live: int  # number of slots that are filled
    lags: Tensor  # (lag rows, channels); row j is the bin j + 1 bins ago


class Student(nn.Module):
    """Decodes the sessions in `channels` (id -> number of channels), whose arrays are in `arrays` (id -> name).

    `teacher_d` and `outputs` are the widths of the heads that predict the teacher's targets and behavior in training.
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
        self.to_teacher = TeacherHeads(size.d, teacher_d, channels)
        self.to_behavior = nn.Linear(size.d, outputs)
        widest = max(channels.values())
        self.to_bins = nn.Linear(size.d, widest)

    def make_empty_cache(self, batch: int) -> list[tuple[Tensor, Tensor]]:
        """Returns keys and values before the first bin: window - 1 slots that do not exist yet."""
        shape = (batch, self.size.heads, self.size.window - 1, self.size.d // self.size.heads)
        zeros = torch.zeros(shape, device=self.norm_out.device)
        return [(zeros, zeros) for _ in self.layers]

    def encode(
        self, tokens: Tensor, cache: list[tuple[Tensor, Tensor]], live: int
    ) -> tuple[Tensor, list[tuple[Tensor, Tensor]]]:
        """Returns the latents of tokens (batch, n, d), and the caches after them."""
        layers, after = self.encode_layers(tokens, cache, live)
        return layers[-1], after

    def encode_layers(
        self, tokens: Tensor, cache: list[tuple[Tensor, Tensor]], live: int
    ) -> tuple[list[Tensor], list[tuple[Tensor, Tensor]]]:
        """Returns tokens (batch, n, d) as they are after each layer, the last ones normalized, and the caches."""
        layers, after = [], []
        for block, before in zip(self.layers, cache, strict=True):
            tokens, kept = block(tokens, before, live)
            layers.append(tokens)
            after.append(kept)
        return [*layers[:-1], rms(tokens) * self.norm_out], after

    def forward(self, session: str, bins: Tensor) -> Tensor:
        """Returns latents (batch, bins, d) of (batch, bins, channels), from a fresh state."""
        return self.encode(self.tokenizer(session, bins), self.make_empty_cache(len(bins)), 0)[0]

    def layer_latents(self, session: str, bins: Tensor) -> list[Tensor]:
        """Returns what `forward` returns, after each layer. The last is that of `forward`."""
        return self.encode_layers(self.tokenizer(session, bins), self.make_empty_cache(len(bins)), 0)[0]

    def stream(self, session: str, bins: Tensor, chunk: int = 4096) -> Iterator[Tensor]:
        """Yields the latents (n, d) of a recording (bins, channels) chunk by chunk. Together they equal `forward`."""
        for layers in self.stream_layers(session, bins, chunk):
            yield layers[-1][0]

    def stream_layers(self, session: str, bins: Tensor, chunk: int = 4096) -> Iterator[list[Tensor]]:
        """Yields what `layer_latents` returns of one recording (bins, channels), chunk by chunk."""
        cache, reach, live = self.make_empty_cache(1), max(self.tokenizer.lags), 0
        for start in range(0, len(bins), chunk):
            seen = bins[max(0, start - reach) : start + chunk]
            tokens = self.tokenizer(session, seen[None])[:, min(start, reach) :]
            layers, cache = self.encode_layers(tokens, cache, live)
            live = min(live + tokens.shape[1], self.size.window - 1)
            yield layers

    def make_fresh_state(self, session: str) -> StudentState:
        """Returns the state before the first bin."""
        rings = [(k[0].clone(), v[0].clone()) for k, v in self.make_empty_cache(1)]
        rows = max(self.size.lags, max(self.tokenizer.lags))
        lags = torch.zeros(rows, self.tokenizer.channels[session], device=self.norm_out.device)
        return StudentState([k for k, _ in rings], [v for _, v in rings], 0, 0, lags)

    def step(self, session: str, bin_: Tensor, state: StudentState) -> Tensor:
        """Returns the latent (d,) of one z-scored bin (channels,), and moves `state` on by that bin."""
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
        """Returns the tensors of one session under the names that the engines read, without a read-out."""
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


def student_from_tensors(shape: StudentShape, tensors: Mapping[str, Tensor], session: str) -> Student:
    """Returns the student whose `fold` of `session` gives these tensors. Its heads for training are untrained."""
    student = Student(shape.size, {session: shape.channels}, {session: ARRAY}, 1, shape.outputs).eval()
    stored = {f"tokenizer.base.{name_parameter(ARRAY)}": "embed.weight", "tokenizer.bias": "embed.bias"}
    own = student.state_dict()
    for name, tensor in own.items():
        own[name] = tensors.get(stored.get(name, name.replace(".mlp.", ".")), tensor)
    student.load_state_dict(own)
    return student
