"""Runs the INT8 student in numpy, one bin or a whole stretch at a time (docs/numerics.md, "The step").

Z-scored bins come in, kinematics go out. A stretch is computed layer by layer instead of bin by bin. Integer sums are
exact in any order and everything else is pinned, so `run` over T bins gives the same bits as T calls of `step`. The
rings are read in the order of time and written back by slot.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from edgedistill.errors import EngineError
from edgedistill.numerics.arithmetic import (
    Floats,
    Int8,
    lane_sum,
    product,
    quantize,
    rms32,
    silu32,
)
from edgedistill.numerics.attention import attend
from edgedistill.numerics.state import require_state
from edgedistill.numerics.tensors import Int8Model

BLOCK = 64  # bins computed at once; attention touches BLOCK x (window + BLOCK) scores for each head

Trace = dict[str, npt.NDArray[Any]]


class Oracle:
    """Runs a quantized student, and keeps its place in the stream."""

    def __init__(self, model: Int8Model) -> None:
        self.model, self.shape = model, model.shape
        self._tensors = model.tensors
        self.reset()

    def reset(self) -> None:
        """Goes back to a fresh stream without live slots and with zero lagged bins."""
        shape = self.shape
        rings = (2 * shape.layers, shape.heads, shape.window - 1, shape.head_dim)
        self._rings: Int8 = np.zeros(rings, np.int8)  # k and v of layer i: 2i and 2i + 1
        self._pos = self._live = 0
        self._lags: Int8 = np.zeros((shape.lag_rows, shape.channels), np.int8)
        self._latent: Floats = np.zeros(shape.d, np.float32)

    @property
    def latent(self) -> Floats:
        """Returns the latent (d,) of the last bin before the last norm's gain, which is folded into the read-out."""
        return np.array(self._latent)

    def step(self, bin: npt.NDArray[np.floating[Any]]) -> Floats:
        """Returns kinematics (K,) in physical units of one z-scored bin (C,), which is finite and 0 where masked."""
        if np.shape(bin) != (self.shape.channels,):
            raise EngineError("a step takes one bin", got=np.shape(bin), expected=f"({self.shape.channels},)")
        return np.asarray(self.run(np.asarray(bin)[None])[0])

    def run(self, bins: npt.NDArray[np.floating[Any]]) -> Floats:
        """Returns kinematics (T, K) of bins (T, C), with the bits that T calls of `step` give."""
        return np.asarray(self.trace(bins, ())["kinematics"])

    def trace(self, bins: npt.NDArray[np.floating[Any]], wanted: tuple[str, ...] | None = None) -> Trace:
        """Returns kinematics, latents and integer tensors of bins (T, C), each with T first.

        `wanted` names the integers, and None means all of them: bin and latent, and for each layer attn, q, k and v
        (T, H, Dh), context, mlp and hidden. A part that is kept in float32 reads no integers, so it has none here.
        """
        values = np.asarray(bins, np.float32)
        if values.ndim != 2 or values.shape[1] != self.shape.channels:
            raise EngineError("bins do not fit the student", got=values.shape, expected=f"(T, {self.shape.channels})")
        if not np.isfinite(values).all():
            raise EngineError(
                "a bin must be finite", got=f"{np.count_nonzero(~np.isfinite(values))} values that are not"
            )
        blocks = [self._block(values[at : at + BLOCK], wanted) for at in range(0, max(1, len(values)), BLOCK)]
        return {name: np.concatenate([block[name] for block in blocks]) for name in blocks[0]}

    def export_state(self) -> Trace:
        """Returns copies of the state in the layout that all engines exchange (docs/numerics.md, "State")."""
        state: Trace = {}
        for i in range(self.shape.layers):
            state |= {f"ring_k_{i}": self._rings[2 * i].copy(), f"ring_v_{i}": self._rings[2 * i + 1].copy()}
        state |= {"pos": np.array([self._pos], np.int32), "live": np.array([self._live], np.int32)}
        return state | ({"lags": self._lags.copy()} if len(self._lags) else {})

    def import_state(self, state: Mapping[str, npt.NDArray[Any]]) -> None:
        """Continues from a state of any engine. For one that does not fit it raises EngineError and changes nothing."""
        require_state(self.export_state(), state)
        rings = [state[f"ring_{kind}_{i}"] for i in range(self.shape.layers) for kind in "kv"]
        self._rings, self._pos, self._live = np.stack(rings), int(state["pos"][0]), int(state["live"][0])
        if len(self._lags):
            self._lags = state["lags"].copy()

    # ---------------------------------------------------------------- the step, over a block of bins

    def _block(self, bins: Floats, wanted: tuple[str, ...] | None) -> Trace:
        integers: Trace = {}
        recent, x = self._embed(bins, integers)
        past, new = self._rings[:, :, self._order()], []
        for i in range(self.shape.layers):
            x, keys, values = self._layer(i, x, past[2 * i], past[2 * i + 1], integers)
            new += [keys, values]
        latent = rms32(x)
        kinematics = self._readout(latent, recent, integers)
        self._advance(np.concatenate([past, np.stack(new)], axis=2), recent)
        self._latent = latent[-1] if len(latent) else self._latent
        kept = integers if wanted is None else {name: integers[name] for name in wanted}
        return {**kept, "latents": latent, "kinematics": kinematics}

    def _order(self) -> npt.NDArray[np.int64]:
        """Returns the slots from the oldest to the newest."""
        slots = self.shape.window - 1
        return (self._pos + np.arange(slots)) % slots

    def _advance(self, known: Int8, recent: Int8) -> None:
        """Keeps the newest of keys and values (2L, H, W - 1 + T, Dh), and of the bins (R + T, C)."""
        slots = self.shape.window - 1
        steps = known.shape[2] - slots
        self._pos, self._live = (self._pos + steps) % slots, min(self._live + steps, slots)
        self._rings = np.empty_like(self._rings)
        self._rings[:, :, self._order()] = known[:, :, steps:]
        self._lags = recent[::-1][: len(self._lags)].copy()

    def _embed(self, bins: Floats, integers: Trace) -> tuple[Int8, Floats]:
        """Returns lagged and new bins as integers (R + T, C), in the order of time, and tokens (T, d)."""
        integers["bin"] = quantize(bins, self._tensors["bin.inv_scale"])
        recent = np.concatenate([self._lags[::-1], integers["bin"]])
        taps = self._lagged(recent, [tap * self.shape.dilation for tap in range(self.shape.taps)])
        return recent, self._of_bins("embed.weight", taps) + self._tensors["embed.bias"]

    def _lagged(self, recent: Int8, lags: list[int]) -> Int8:
        """Turns bins (R + T, C) in the order of time into rows (T, len(lags) * C), ordered [lag, channel]."""
        before = len(self._lags)
        return np.concatenate([recent[before - lag : len(recent) - lag] for lag in lags], axis=1)

    def _layer(self, i: int, x: Floats, past_k: Int8, past_v: Int8, integers: Trace) -> tuple[Floats, Int8, Int8]:
        """Returns the residual stream (T, d) after layer i, and its new keys and values (H, T, Dh)."""
        name, shape = f"layers.{i}.", self.shape
        normed = rms32(x)
        for part in "qkv":
            flat = self._linear(f"{name}w{part}", normed, name + "attn", integers)
            eight = quantize(flat, self._tensors[f"{name}{part}.inv_scale"])
            integers[name + part] = eight.reshape(len(x), shape.heads, shape.head_dim)
        q, k, v = (integers[name + part].swapaxes(0, 1) for part in "qkv")
        keys, values = np.concatenate([past_k, k], axis=1), np.concatenate([past_v, v], axis=1)
        bias, score_scale, v_scale = (self._tensors[name + part] for part in ("age_bias", "score_scale", "v.scale"))
        context = attend(q, keys, values, bias, self._live, score_scale, v_scale).reshape(len(x), shape.d)
        x = x + self._linear(name + "wo", context, name + "context", integers)
        normed = rms32(x)
        gate = self._linear(name + "wgate", normed, name + "mlp", integers)
        hidden = silu32(gate) * self._linear(name + "wup", normed, name + "mlp", integers)
        return x + self._linear(name + "wdown", hidden, name + "hidden", integers), k, v

    def _readout(self, latent: Floats, recent: Int8, integers: Trace) -> Floats:
        """Returns kinematics (T, K): the latent's part plus the lagged bins' part, plus the bias."""
        lagged = self._lagged(recent, list(range(self.shape.lags + 1)))
        of_latent = self._linear("readout.latent", latent, "latent", integers)
        return (of_latent + self._of_bins("readout.lags", lagged)) + self._tensors["readout.bias"]

    # ---------------------------------------------------------------- products

    def _linear(self, weight: str, x: Floats, activation: str, integers: Trace) -> Floats:
        """Returns float(x8 · w8) * multiplier for x (T, n), or a float32 product of x where the part is kept so."""
        w = self._tensors[weight]
        if w.dtype != np.int8:
            return _float_product(x, w)
        integers[activation] = quantize(x, self._tensors[f"{activation}.inv_scale"])
        return product(integers[activation], w).astype(np.float32) * self._tensors[f"{weight}.multiplier"]

    def _of_bins(self, weight: str, bins: Int8) -> Floats:
        """Computes what `_linear` does for bins, which are integers already."""
        w = self._tensors[weight]
        if w.dtype != np.int8:
            return _float_product(bins.astype(np.float32) * self._tensors["bin.scale"], w)
        return product(bins, w).astype(np.float32) * self._tensors[f"{weight}.multiplier"]


def _float_product(x: Floats, w: Floats) -> Floats:
    """Multiplies (T, n) by rows (out, n). Each result is a lane sum of products."""
    return np.stack([lane_sum(x * row) for row in w], axis=-1)
