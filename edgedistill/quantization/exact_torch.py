"""Runs the INT8 student in torch, many bins at once, with the same bits as `numerics.Oracle`.

The inputs are the tensors of `student.int8.safetensors` and z-scored bins. The outputs are latents, kinematics and
every integer tensor. Fake-quantized PyTorch is evaluated in this way, on a CPU or a GPU.

The bits are the same in any order of summation. Integers are held in floating point, and every partial sum of a product
of n int8 pairs is at most 127 * 127 * n. Where that is below 2**24, float32 holds it. Elsewhere float64 is used.
TensorFloat-32 and bfloat16 operands would do as well, because both hold integers up to 127. A bfloat16 result would
not, so autocast is switched off. Everything else is one rounded operation at a time, with none fused.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from functools import reduce
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.nn import functional as F

from edgedistill.config import StudentShape
from edgedistill.models.window_attention import BLOCK, build_age_bias_band
from edgedistill.numerics.arithmetic import (
    HIGHEST,
    LANES,
    LEVELS,
    LN2_HIGH,
    LN2_LOW,
    LOG2_E,
    LOWEST,
    POLYNOMIAL,
    RMS_EPSILON,
)
from edgedistill.scratch import allocate, release_pages

PIECE = 512  # bins at once on a CPU, so that the scores of a head (PIECE / BLOCK x 64 x window) stay in the cache
PIECE_GPU = 16384
EXACT = 2**24  # float32 holds every integer below this

Tensors = Mapping[str, npt.NDArray[Any]]


def run_exact_stream(shape: StudentShape, tensors: Tensors, bins: Tensor) -> tuple[Tensor, Tensor]:
    """Runs bins (T, C) through a fresh stream, on the device of `bins`.

    Returns latents (T, d) before the gain and kinematics (T, K). `tensors` are those of `quantize_student`, checked by
    `numerics.Int8Model`.
    """
    found = ExactStream(shape, tensors, bins.device).trace(bins, ())
    return found["latents"], found["kinematics"]


class ExactStream:
    """Runs a quantized student and keeps its place in the stream, as `numerics.Oracle` does, many bins at once."""

    def __init__(self, shape: StudentShape, tensors: Tensors, device: torch.device | str = "cpu") -> None:
        self.shape = shape
        self._tensors = {name: _to_device(device, array) for name, array in tensors.items()}
        self._width = torch.tensor(float(shape.d), device=device)
        ring = torch.zeros(shape.heads, shape.window - 1, shape.head_dim, device=device)
        self._rings = [(ring, ring) for _ in range(shape.layers)]  # keys and values in the order of time
        self._lags = torch.zeros(shape.lag_rows, shape.channels, device=device)  # in the order of time
        self._live = 0
        self._bands = [build_age_bias_band(self._tensors[f"layers.{i}.age_bias"], BLOCK) for i in range(shape.layers)]

    @torch.no_grad()
    def trace(self, bins: Tensor, wanted: tuple[str, ...] | None = None) -> dict[str, Tensor]:
        """Returns latents (T, d), kinematics (T, K) and integers by name, as `Oracle.trace`. The stream moves on."""
        size = PIECE if bins.device.type == "cpu" else PIECE_GPU
        with torch.autocast(bins.device.type, enabled=False):
            pieces = (self._run_piece(piece, wanted) for piece in bins.float().split(size))
            return _join(pieces, len(bins))

    # ---------------------------------------------------------------- the step, over a piece

    def _run_piece(self, bins: Tensor, wanted: tuple[str, ...] | None) -> dict[str, Tensor]:
        integers: dict[str, Tensor] = {"bin": quantize(bins, self._tensors["bin.inv_scale"])}
        recent = torch.cat([self._lags, integers["bin"]])
        taps = self._stack_lags(recent, [tap * self.shape.dilation for tap in range(self.shape.taps)])
        x = self._multiply_bins("embed.weight", taps) + self._tensors["embed.bias"]
        for i in range(self.shape.layers):
            x = self._layer(i, x, integers)
        latents = self._rms(x)
        kinematics = self._readout(latents, recent, integers)
        self._live = min(self._live + len(bins), self.shape.window - 1)
        self._lags = recent[len(bins) :]
        names = integers if wanted is None else wanted
        return {**{n: integers[n].to(torch.int8) for n in names}, "latents": latents, "kinematics": kinematics}

    def _stack_lags(self, recent: Tensor, lags: list[int]) -> Tensor:
        """Turns (R + n, C) in the order of time into (n, len(lags) * C), in the order [lag, channel]."""
        before = self.shape.lag_rows
        return torch.cat([recent[before - lag : len(recent) - lag] for lag in lags], 1)

    def _layer(self, i: int, x: Tensor, integers: dict[str, Tensor]) -> Tensor:
        name, shape = f"layers.{i}.", self.shape
        normed = self._rms(x)
        for part in "qkv":
            flat = self._linear(f"{name}w{part}", normed, name + "attn", integers)
            eight = quantize(flat, self._tensors[f"{name}{part}.inv_scale"])
            integers[name + part] = eight.unflatten(1, (shape.heads, shape.head_dim))
        q, k, v = (integers[name + part].transpose(0, 1) for part in "qkv")
        keys, values = (torch.cat([past, new], 1) for past, new in zip(self._rings[i], (k, v), strict=True))
        self._rings[i] = (keys[:, len(x) :], values[:, len(x) :])
        context = self._attention(i, q, keys, values)
        x = x + self._linear(name + "wo", context, name + "context", integers)
        normed = self._rms(x)
        gate = self._linear(name + "wgate", normed, name + "mlp", integers)
        up = self._linear(name + "wup", normed, name + "mlp", integers)
        hidden = (gate / (1 + exp32(-gate))) * up
        return x + self._linear(name + "wdown", hidden, name + "hidden", integers)

    def _attention(self, i: int, q: Tensor, keys: Tensor, values: Tensor) -> Tensor:
        """Lets q (H, n, Dh) attend over keys and values (H, W - 1 + n, Dh), and returns context (n, H * Dh)."""
        n, window = q.shape[1], self.shape.window
        q, keys, values, bias = cut_into_blocks(q, keys, values, self._bands[i], self._live)
        scores = _exact_matmul(q, keys, self.shape.head_dim)
        scores = scores.mul_(self._tensors[f"layers.{i}.score_scale"]).add_(bias)
        # exp32 takes -inf as -87, and 127 times that exponential rounds to 0
        p = exp32(scores.sub_(scores.amax(-1, keepdim=True))).mul_(LEVELS).round_()
        weighted = _exact_matmul(p, values, window)
        context = weighted.mul_(self._tensors[f"layers.{i}.v.scale"]).div_(p.sum(-1, keepdim=True))
        return context.flatten(1, 2)[:, :n].transpose(0, 1).flatten(1)

    def _readout(self, latents: Tensor, recent: Tensor, integers: dict[str, Tensor]) -> Tensor:
        of_latent = self._linear("readout.latent", latents, "latent", integers)
        of_bins = self._multiply_bins("readout.lags", self._stack_lags(recent, list(range(self.shape.lags + 1))))
        return (of_latent + of_bins) + self._tensors["readout.bias"]

    def _rms(self, x: Tensor) -> Tensor:
        # dividing by a number would not do, because on a GPU torch multiplies by its reciprocal
        mean = lane_sum(x * x) / self._width
        # The float32 root of MKL is off by one unit in 0.7 % of cases. In float64 no root of a float32 comes closer
        # than two units to a tie of float32, so rounding the float64 root once more gives the correctly rounded one.
        root = (mean + float(RMS_EPSILON)).double().sqrt().float()
        return x * (1 / root)[..., None]

    def _linear(self, weight: str, x: Tensor, activation: str, integers: dict[str, Tensor]) -> Tensor:
        w = self._tensors[weight]
        if w.dtype != torch.int8:
            return float_product(x, w)
        if activation not in integers:
            integers[activation] = quantize(x, self._tensors[f"{activation}.inv_scale"])
        return self._requantize(weight, integers[activation])

    def _multiply_bins(self, weight: str, bins: Tensor) -> Tensor:
        w = self._tensors[weight]
        if w.dtype != torch.int8:
            return float_product(bins * self._tensors["bin.scale"], w)
        return self._requantize(weight, bins)

    def _requantize(self, weight: str, x: Tensor) -> Tensor:
        w = self._tensors[weight].float()
        return _exact_matmul(x, w.T, w.shape[1]).mul_(self._tensors[f"{weight}.multiplier"])


def cut_into_blocks(q: Tensor, k: Tensor, v: Tensor, band: Tensor, live: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Cuts queries (…, heads, n, Dh), and keys and values of the window - 1 + n bins up to them, into blocks.

    `band` (heads, block, span) is from `build_age_bias_band`, with span = block + window - 1. Only the last `live` of
    the first window - 1 keys exist. Returns q (…, heads, blocks, block, Dh), k (…, Dh, span), v (…, span, Dh), and the
    bias (heads, 1 or blocks, block, span), which is -inf where a key is not seen.
    """
    block, span = band.shape[1:]
    blocks = max(1, -(-q.shape[-2] // block))
    fill = blocks * block - q.shape[-2]
    q = F.pad(q, (0, 0, 0, fill)).unflatten(-2, (blocks, block))
    k, v = (F.pad(x, (0, 0, 0, fill)).unfold(-2, span, block) for x in (k, v))
    bias = band[:, None]
    if live < span - block:
        at = torch.arange(span, device=q.device) + block * torch.arange(blocks, device=q.device)[:, None]
        bias = bias.masked_fill((at < span - block - live)[:, None], -math.inf)
    return q, k, v.mT, bias


# ---------------------------------------------------------------- arithmetic, as in numerics.arithmetic


def quantize(x: Tensor, inv_scale: Tensor) -> Tensor:
    """Returns round(x * inv_scale), ties to even, saturating at -127 and 127. Integers are held in float32."""
    return (x * inv_scale).round_().clamp_(-LEVELS, LEVELS)


def exp32(x: Tensor) -> Tensor:
    """Computes `numerics.exp32`, operation by operation."""
    x = x.clamp(float(LOWEST), float(HIGHEST))
    n = (x * float(LOG2_E)).round_()
    r = x.sub_(n * float(LN2_HIGH)).sub_(n * float(LN2_LOW))
    p = r * float(POLYNOMIAL[0])
    for coefficient in POLYNOMIAL[1:-1]:
        p = p.add_(float(coefficient)).mul_(r)
    p = p.add_(float(POLYNOMIAL[-1])).mul_(r).mul_(r).add_(r).add_(1)
    power = n.to(torch.int32).add_(127).bitwise_left_shift_(23).view(torch.float32)  # 2**n by its bits
    return p.mul_(power)


def lane_sum(x: Tensor) -> Tensor:
    """Computes `numerics.lane_sum` over the last axis."""
    parts = F.pad(x, (0, -x.shape[-1] % LANES)).unflatten(-1, (-1, LANES)).unbind(-2)
    return _add_lanes(parts, -1)[..., 0]


def float_product(x: Tensor, w: Tensor) -> Tensor:
    """Multiplies x (T, n) by the rows of w (out, n) as lane sums, for parts that a recipe keeps in float32."""
    fill = -x.shape[1] % LANES
    across, rows = (F.pad(t, (0, fill)).T.contiguous().unflatten(0, (-1, LANES)) for t in (x, w))  # (n / 16, 16, …)
    step = max(1, EXACT // (LANES * len(w)))  # bins at once: two products of 64 MB at most
    parts = across.split(step, 2)
    return torch.cat(
        [_add_lanes((a[..., None] * b[:, None] for a, b in zip(part, rows, strict=True)), 0)[0] for part in parts]
    )


def _add_lanes(parts: Iterable[Tensor], axis: int) -> Tensor:
    """Adds parts of 16 lanes along `axis` in order, then lanes that are 8, 4, 2 and 1 apart."""
    total = reduce(torch.add, parts)
    for half in (8, 4, 2, 1):
        total = total.narrow(axis, 0, half) + total.narrow(axis, half, half)
    return total


def _exact_matmul(a: Tensor, b: Tensor, terms: int) -> Tensor:
    """Returns a @ b of integers up to 127, rounded to float32 once. At most `terms` terms of a sum are not 0."""
    if LEVELS * LEVELS * terms < EXACT:
        return a @ b
    return (a.double() @ b.double()).float()


def _join(pieces: Iterable[dict[str, Tensor]], count: int) -> dict[str, Tensor]:
    """Puts the tensors of pieces one after another, `count` rows in all. On a CPU they lie where `allocate` says."""
    found: dict[str, Tensor] = {}
    done = 0
    for piece in pieces:
        for name, rows in piece.items():
            if name not in found:
                shape, kind = (count, *rows.shape[1:]), np.int8 if rows.dtype == torch.int8 else np.float32
                found[name] = torch.from_numpy(allocate(shape, kind)) if rows.is_cpu else rows.new_empty(shape)
            found[name][done : done + len(rows)] = rows
        done += len(rows)
        release_pages()
    return found


def _to_device(device: torch.device | str, array: npt.NDArray[Any]) -> Tensor:
    return torch.from_numpy(np.ascontiguousarray(array)).to(device)
