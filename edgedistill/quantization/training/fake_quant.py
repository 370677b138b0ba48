"""Makes a student round as the device does, for quantization-aware distillation.

The inputs are a float student and the ranges of its activations. The output has the methods of `Student`, and rounds
every tensor that has eight bits on the device, in the same places (docs/numerics.md, "What is eight bits wide"). In
training, rounding is straight-through, in float arithmetic. In evaluation `quantize_student` makes the integers and
`exact_torch` runs them, with the bits of the oracle, so that a validation loss is that of the device.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator, Mapping
from typing import cast

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from edgedistill.config import StudentShape, StudentSize
from edgedistill.errors import EdgeDistillError, did_you_mean
from edgedistill.models.student import Student, StudentBlock
from edgedistill.models.teacher_heads import TeacherHeads
from edgedistill.models.tokenizer import BinTokenizer, stack_lags
from edgedistill.models.transformer import rms
from edgedistill.models.window_attention import BLOCK, build_age_bias_band, window_attention
from edgedistill.numerics import part_names
from edgedistill.numerics.arithmetic import LEVELS
from edgedistill.numerics.tensors import activations, weight_matrices
from edgedistill.quantization.exact_torch import ExactStream, cut_into_blocks
from edgedistill.quantization.integers import (
    check_ranges,
    fold,
    quantize_student,
    require_four_bit_parts,
    require_parts,
)
from edgedistill.quantization.training.straight_through import (
    fake_quantize_groups,
    fake_quantize_rows,
    fake_quantize_tensor,
    integer_attention,
)

# A range is its calibrated value times exp(SPEED * growth). A step of AdamW is about the learning rate whatever the
# gradient, so a range moves by up to SPEED times as much in a step as a weight of size 1.
SPEED = 10.0
Cache = list[tuple[Tensor, Tensor]]


class FakeQuantStudent(nn.Module):
    """Trains `student` in place with eight bits where the device has them.

    `ranges` are as `quantize_student` takes them. Parts in `keep` stay float32, and parts in `four` get four-bit
    weights, rounded to nearest. With `quantized` only these parts
    are rounded, also in evaluation, which is then in float arithmetic (sensitivity). With `learn_scales` the ranges are
    trained too, except that of the bins, which the read-out shares. The ratios between heads do not change.
    """

    def __init__(
        self,
        student: Student,
        ranges: Mapping[str, npt.ArrayLike],
        keep: Collection[str] = (),
        quantized: Collection[str] | None = None,
        learn_scales: bool = False,
        four: Collection[str] = (),
    ) -> None:
        super().__init__()
        self.student, self.keep, self.emulated = student, tuple(keep), quantized is not None
        shape = student.size.shape(1, 1)
        require_parts(shape, keep)
        require_four_bit_parts(shape, four)
        self.four = frozenset(four)
        require_known(quantized or (), part_names(shape))
        self.parts = frozenset(part_names(shape) if quantized is None else quantized) - frozenset(keep)
        self.rounds_bins = not self.emulated or "embed" in self.parts  # an embedding in float32 also reads int8 bins
        self.ranges = check_ranges(shape, ranges)
        self.places = {name: place for place, name in enumerate(activations(shape))}
        self.growth = nn.Parameter(torch.zeros(len(self.places)), requires_grad=learn_scales)
        self.limits: Tensor
        self.factors: Tensor
        limits, factors = compute_folding(shape, self.ranges)
        self.register_buffer("limits", limits, persistent=False)
        self.register_buffer("factors", factors, persistent=False)

    # ---------------------------------------------------------------- the methods of a student

    @property
    def size(self) -> StudentSize:
        """Returns the size of the wrapped student."""
        return self.student.size

    @property
    def tokenizer(self) -> BinTokenizer:
        """Returns the tokenizer of the wrapped student, in float."""
        return self.student.tokenizer

    @property
    def to_teacher(self) -> TeacherHeads:
        """Returns the training heads of the wrapped student."""
        return self.student.to_teacher

    @property
    def to_behavior(self) -> nn.Linear:
        """Returns a training head of the wrapped student."""
        return self.student.to_behavior

    @property
    def to_bins(self) -> nn.Linear:
        """Returns a training head of the wrapped student."""
        return self.student.to_bins

    def forward(self, session: str, bins: Tensor) -> Tensor:
        """Returns latents (batch, bins, d) of (batch, bins, channels) from a fresh state, rounded as on the device."""
        if self.exact:
            return torch.stack([next(self._exact_stream(session, part, len(part))) for part in bins])
        with torch.autocast(bins.device.type, enabled=False):  # bfloat16 rounds more coarsely than the device
            return self._encode(self._tokens(session, bins), self.student.make_empty_cache(len(bins)), 0)[0]

    def stream(self, session: str, bins: Tensor, chunk: int = 4096) -> Iterator[Tensor]:
        """Yields latents (n, d) of a recording (bins, channels), chunk by chunk."""
        if self.exact:
            yield from self._exact_stream(session, bins, chunk)
            return
        cache, reach, live = self.student.make_empty_cache(1), max(self.tokenizer.lags), 0
        for start in range(0, len(bins), chunk):
            seen = bins[max(0, start - reach) : start + chunk]
            tokens = self._tokens(session, seen[None])[:, min(start, reach) :]
            latents, cache = self._encode(tokens, cache, live)
            live = min(live + tokens.shape[1], self.size.window - 1)
            yield latents[0]

    # ---------------------------------------------------------------- evaluation: the integers of the device

    @property
    def exact(self) -> bool:
        """Returns whether latents have the bits of the oracle."""
        return not self.training and not self.emulated

    def compute_ranges(self) -> dict[str, list[float]]:
        """Returns the ranges as they are now, for `quantize_student`. Learned ones have moved by a factor."""
        factors = np.exp(SPEED * self.growth.detach().cpu().double().numpy())
        return {name: (self.ranges[name] * factors[place]).tolist() for name, place in self.places.items()}

    def quantize(self, session: str) -> dict[str, npt.NDArray[np.generic]]:
        """Quantizes the student as it is now, with a read-out of zeros."""
        shape = self.size.shape(self.tokenizer.channels[session], 1)
        weights = {name: tensor.cpu().numpy() for name, tensor in self.student.fold(session).items()}
        weights["readout.latent"] = np.zeros((1, shape.d), np.float32)
        weights["readout.lags"] = np.zeros((1, (shape.lags + 1) * shape.channels), np.float32)
        weights["readout.bias"] = np.zeros(1, np.float32)
        return quantize_student(shape, weights, self.compute_ranges(), self.keep, self.four)

    @torch.no_grad()
    def _exact_stream(self, session: str, bins: Tensor, chunk: int) -> Iterator[Tensor]:
        tensors, rounded = self.quantize(session), "readout" not in self.keep
        shape = self.size.shape(self.tokenizer.channels[session], 1)
        stream = ExactStream(shape, tensors, bins.device)
        for part in bins.split(chunk):
            found = stream.trace(part, ("latent",) if rounded else ())
            latents = found["latent"] * float(tensors["latent.scale"][0]) if rounded else found["latents"]
            yield latents * self.student.norm_out

    # ---------------------------------------------------------------- training: rounding simulated

    def _tokens(self, session: str, bins: Tensor) -> Tensor:
        eight = fake_quantize_tensor(bins, self._scale("bin").detach()) if self.rounds_bins else bins
        weight = self._weight("embed", self.tokenizer.weight(session))
        return F.linear(stack_lags(eight, self.tokenizer.lags), weight, self.tokenizer.bias)

    def _encode(self, x: Tensor, cache: Cache, live: int) -> tuple[Tensor, Cache]:
        after = []
        for i, before in enumerate(cache):
            x, kept = self._layer(i, x, before, live)
            after.append(kept)
        return self._round("readout", "latent", rms(x)) * self.student.norm_out, after

    def _layer(
        self, i: int, x: Tensor, cache: tuple[Tensor, Tensor], live: int
    ) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        block, layer = cast(StudentBlock, self.student.layers[i]), f"layers.{i}."
        factors = self.factors[i]
        normed = self._round(layer + "qkv", layer + "attn", rms(x))
        q, k, v = (
            self._head(layer, name, normed, w * block.norm_attn * rows[:, None])
            for name, w, rows in zip("qkv", (block.wq, block.wk, block.wv), factors, strict=False)
        )
        k, v = torch.cat([cache[0], k], 2), torch.cat([cache[1], v], 2)
        context = self._attention(layer, q, k, v, block.age_bias, live).transpose(1, 2).flatten(2)
        context = self._round(layer + "out", layer + "context", context)
        x = x + F.linear(context, self._weight(layer + "out", block.wo * factors[3]))
        normed = self._round(layer + "gate_up", layer + "mlp", rms(x))
        gate, up = (
            F.linear(normed, self._weight(layer + "gate_up", w * block.norm_mlp))
            for w in (block.mlp.wgate, block.mlp.wup)
        )
        hidden = self._round(layer + "down", layer + "hidden", F.silu(gate) * up)
        x = x + F.linear(hidden, self._weight(layer + "down", block.mlp.wdown))
        past = k.shape[2] - (self.size.window - 1)
        return x, (k[:, :, past:], v[:, :, past:])

    def _head(self, layer: str, name: str, normed: Tensor, weight: Tensor) -> Tensor:
        """Projects (batch, n, d) to one of q, k and v, rounded, as (batch, heads, n, head_dim)."""
        flat = F.linear(normed, self._weight(layer + "qkv", weight))
        rounded = self._round(layer + "attention", layer + name, flat)
        heads: Tensor = rounded.unflatten(-1, (self.size.heads, -1))
        return heads.transpose(1, 2)

    def _attention(self, layer: str, q: Tensor, k: Tensor, v: Tensor, age_bias: Tensor, live: int) -> Tensor:
        if layer + "attention" not in self.parts:
            return window_attention(q, k, v, age_bias, live)
        n, block = q.shape[2], min(BLOCK, q.shape[2])
        band = build_age_bias_band(age_bias, block)
        context = integer_attention(*cut_into_blocks(q / math.sqrt(q.shape[-1]), k, v, band, live))
        return context.flatten(2, 3)[:, :, :n]

    def _weight(self, part: str, w: Tensor) -> Tensor:
        if part not in self.parts:
            return w
        return fake_quantize_groups(w) if part in self.four else fake_quantize_rows(w)

    def _round(self, part: str, name: str, x: Tensor) -> Tensor:
        return fake_quantize_tensor(x, self._scale(name)) if part in self.parts else x

    def _scale(self, name: str) -> Tensor:
        place = self.places[name]
        scale: Tensor = self.limits[place] / LEVELS * torch.exp(SPEED * self.growth[place])
        return scale


def require_known(parts: Collection[str], known: Collection[str]) -> None:
    """Raises EdgeDistillError that names a part which no student of this shape has."""
    for part in parts:
        if part not in known:
            raise EdgeDistillError(f"unknown part '{part}' to quantize", expected=did_you_mean(part, known))


def compute_folding(shape: StudentShape, ranges: Mapping[str, npt.NDArray[np.float64]]) -> tuple[Tensor, Tensor]:
    """Returns what `integers.fold` does to weights of one.

    The first result is the range of every activation after it, in their order. The second holds, as (layers, 4, d), the
    factors by which the ranges of heads enter rows of wq, wk, wv and columns of wo.
    """
    ones = {name: np.ones(size, np.float32) for name, (size, _) in weight_matrices(shape).items()}
    norms = ["norm_out", *(f"layers.{i}.norm_{part}" for i in range(shape.layers) for part in ("attn", "mlp"))]
    folded, limits = fold(shape, ones | {name: np.ones(shape.d, np.float32) for name in norms}, ranges)
    factors = [
        [folded[f"layers.{i}.{name}"][:, 0] for name in ("wq", "wk", "wv")] + [folded[f"layers.{i}.wo"][0]]
        for i in range(shape.layers)
    ]
    after = np.concatenate([limits[name] for name in activations(shape)])
    return torch.from_numpy(after).float(), torch.from_numpy(np.array(factors)).float()
