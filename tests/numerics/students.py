"""Makes random quantized students as `build` makes them, and writes out the step of docs/numerics.md bin by bin."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from edgedistill.config import StudentShape
from edgedistill.numerics import Int8Model
from edgedistill.numerics.tensors import four_bit_parts
from edgedistill.quantization.integers import quantize_student, replace_readout
from edgedistill.quantization.onnx_graph import list_weight_shapes

SMALL = StudentShape(channels=5, outputs=2, d=32, layers=2, heads=2, window=9, ff=48, taps=3, dilation=2, lags=3)
ODD = StudentShape(channels=3, outputs=1, d=21, layers=1, heads=3, window=4, ff=31, taps=1, dilation=1, lags=0)

f32 = np.float32


def random_weights(shape: StudentShape, seed: int = 0) -> dict[str, npt.NDArray[np.float32]]:
    """Returns weights of the size that training leaves them at."""
    rng = np.random.default_rng(seed)
    weights = {}
    for name, size in list_weight_shapes(shape).items():
        scale = 1 / np.sqrt(size[-1]) if len(size) == 2 else 0.1
        offset = 1.0 if "norm" in name else 0.0
        weights[name] = (offset + scale * rng.standard_normal(size)).astype(np.float32)
    return weights


def likely_ranges(shape: StudentShape, seed: int = 0) -> dict[str, list[float]]:
    """Returns ranges as calibration finds them for such weights. A little is clipped."""
    rng = np.random.default_rng(seed + 1)
    found: dict[str, list[float]] = {"bin": [3.5], "latent": [2.8]}
    for i in range(shape.layers):
        found |= {f"layers.{i}.{name}": [2.8] for name in ("attn", "mlp")} | {f"layers.{i}.hidden": [1.5]}
        found |= {f"layers.{i}.{name}": list(rng.uniform(1.0, 3.0, shape.heads)) for name in ("q", "k", "v", "context")}
    return found


def random_model(
    shape: StudentShape = SMALL, seed: int = 0, keep: tuple[str, ...] = (), four: tuple[str, ...] = ()
) -> Int8Model:
    """Returns a quantized student of `shape`. Its parts `four` have four-bit weights."""
    weights, ranges = random_weights(shape, seed), likely_ranges(shape, seed)
    return Int8Model(shape, quantize_student(shape, weights, ranges, keep, four))


def largest_four_bit_model(shape: StudentShape) -> Int8Model:
    """All weights are 7 * 15 or -7 * 15, and all inputs 127 or -127, so that sums of 32 come near 16 bits.

    Those of the embedding are so with `saturated_bins`. Their sums then move the tokens by little.
    """
    tensors = {name: array.copy() for name, array in random_model(shape, four=four_bit_parts(shape)).tensors.items()}
    for name in [name.removesuffix(".factor") for name in tensors if name.endswith(".factor")]:
        signs = np.sign(np.arange(len(tensors[name])) % 3 - 0.5)[:, None]  # whole rows, some up and some down
        signs = np.abs(signs) if name.endswith("wgate") else signs  # SiLU makes 0 of a negative gate
        tensors[name] = np.broadcast_to(105 * signs, tensors[name].shape).astype(np.int8)
        tensors[name + ".factor"][:] = 15
    for name in ("attn", "context", "mlp", "hidden"):
        tensors[f"layers.0.{name}.inv_scale"][:] = 1e9
    tensors["embed.weight.multiplier"] = np.full(shape.d, 1e-6, np.float32)
    tensors["embed.bias"][:] = 50.0
    return Int8Model(shape, tensors)


def without_lags(model: Int8Model) -> Int8Model:
    """Returns the same student with a random read-out that sees the latents alone."""
    shape, rng = model.shape, np.random.default_rng(3)
    latent = rng.standard_normal((shape.outputs, shape.d)).astype(np.float32)
    unread = np.zeros((shape.outputs, (shape.lags + 1) * shape.channels), np.float32)
    return replace_readout(model, latent, unread, np.ones(shape.outputs, np.float32))


def random_bins(shape: StudentShape, steps: int, seed: int = 0) -> npt.NDArray[np.float32]:
    """Returns z-scored bins (steps, channels)."""
    return np.random.default_rng(seed + 2).standard_normal((steps, shape.channels)).astype(np.float32)


def saturated_bins(shape: StudentShape, seed: int = 0) -> npt.NDArray[np.float32]:
    """Returns z-scored bins (3 n, channels): random ones, then as large and as low as can be for all taps at once."""
    bins = random_bins(shape, 3 * (shape.taps * shape.dilation + 2), seed)
    _, high, low = np.split(bins, 3)
    high[:], low[:] = 1e4, -1e4
    return bins


# ---------------------------------------------------------------- docs/numerics.md, bin by bin and value by value


class LiteralStep:
    """Computes the step as its definition reads, in scalars and loops, written without reading the oracle's code."""

    def __init__(self, model: Int8Model) -> None:
        self.shape, self.t = model.shape, model.tensors
        shape = model.shape
        self.rings = np.zeros((shape.layers, 2, shape.heads, shape.window - 1, shape.head_dim), np.int8)
        self.pos = self.live = 0
        self.lags = [np.zeros(shape.channels, np.int8) for _ in range(shape.lag_rows)]

    def step(self, bin_: npt.NDArray[np.float32]) -> dict[str, Any]:
        shape, t, seen = self.shape, self.t, {}
        seen["bin"] = eight(bin_, t["bin.inv_scale"])
        rows = [seen["bin"], *self.lags]
        taps = np.concatenate([rows[tap * shape.dilation] for tap in range(shape.taps)])
        x = scaled(taps, t, "embed.weight") + t["embed.bias"]
        fresh = []
        for i in range(shape.layers):
            x, new = self.layer(i, x, seen)
            fresh.append(new)
        latent = norm(x)
        seen["latent"] = eight(latent, t["latent.inv_scale"])
        lagged = np.concatenate(rows[: shape.lags + 1])
        said = scaled(seen["latent"], t, "readout.latent") + scaled(lagged, t, "readout.lags")
        seen["latents"], seen["kinematics"] = latent, said + t["readout.bias"]
        for i, (k, v) in enumerate(fresh):
            self.rings[i, 0, :, self.pos], self.rings[i, 1, :, self.pos] = k, v
        self.pos, self.live = (self.pos + 1) % (shape.window - 1), min(self.live + 1, shape.window - 1)
        self.lags = rows[:-1] if self.lags else []
        return seen

    def layer(self, i: int, x: npt.NDArray[np.float32], seen: dict[str, Any]) -> tuple[Any, Any]:
        shape, t, name = self.shape, self.t, f"layers.{i}."
        a = eight(norm(x), t[name + "attn.inv_scale"])
        heads = {}
        for part in "qkv":
            flat = eight(scaled(a, t, f"{name}w{part}"), t[f"{name}{part}.inv_scale"])
            heads[part] = flat.reshape(shape.heads, shape.head_dim)
        context = np.concatenate([self.head(i, h, heads) for h in range(shape.heads)])
        c = eight(context, t[name + "context.inv_scale"])
        x = x + scaled(c, t, name + "wo")
        b = eight(norm(x), t[name + "mlp.inv_scale"])
        gate, up = scaled(b, t, name + "wgate"), scaled(b, t, name + "wup")
        hidden = np.array([(g / (f32(1) + exponential(-g))) * u for g, u in zip(gate, up, strict=True)], np.float32)
        h8 = eight(hidden, t[name + "hidden.inv_scale"])
        seen |= {name + "attn": a, name + "context": c, name + "mlp": b, name + "hidden": h8}
        seen |= {name + part: heads[part] for part in "qkv"}
        return x + scaled(h8, t, name + "wdown"), (heads["k"], heads["v"])

    def head(self, i: int, h: int, heads: dict[str, Any]) -> npt.NDArray[np.float32]:
        t, name, slots = self.t, f"layers.{i}.", self.shape.window - 1
        keys, values, ages = [heads["k"][h]], [heads["v"][h]], [0]
        for age in range(1, self.live + 1):
            slot = (self.pos - age) % slots
            keys.append(self.rings[i, 0, h, slot])
            values.append(self.rings[i, 1, h, slot])
            ages.append(age)
        scores = []
        for key, age in zip(keys, ages, strict=True):
            total = sum(int(a) * int(b) for a, b in zip(heads["q"][h], key, strict=True))
            scores.append(f32(total) * t[name + "score_scale"][0] + t[name + "age_bias"][h, age])
        p = [int(np.rint(f32(127) * exponential(s - max(scores)))) for s in scores]
        out = []
        for column in range(self.shape.head_dim):
            total = sum(weight * int(value[column]) for weight, value in zip(p, values, strict=True))
            out.append((f32(total) * t[name + "v.scale"][0]) / f32(sum(p)))
        return np.array(out, np.float32)


def eight(x: npt.NDArray[np.float32], inv_scale: npt.NDArray[np.float32]) -> npt.NDArray[np.int8]:
    return np.array([max(-127, min(127, int(np.rint(v * inv_scale[0])))) for v in x], np.int8)


def scaled(x: npt.NDArray[np.int8], t: Any, name: str) -> npt.NDArray[np.float32]:
    totals = [sum(int(a) * int(b) for a, b in zip(x, row, strict=True)) for row in t[name]]
    return np.array([f32(total) * m for total, m in zip(totals, t[name + ".multiplier"], strict=True)], np.float32)


def norm(x: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    mean = summed([v * v for v in x]) / f32(len(x))
    factor = f32(1) / np.sqrt(mean + f32(1e-6))
    return np.array([v * factor for v in x], np.float32)


def summed(values: list[np.float32]) -> np.float32:
    lanes = [f32(0)] * 16
    for i, value in enumerate(values):
        lanes[i % 16] = lanes[i % 16] + value
    for half in (8, 4, 2, 1):
        lanes = [lanes[j] + lanes[j + half] for j in range(half)]
    return lanes[0]


def exponential(x: np.float32) -> np.float32:
    x = min(max(x, f32(-87)), f32(88))
    n = np.rint(x * f32(1.4426950408889634))
    r = (x - n * f32(0.693359375)) - n * f32(-2.1219444005471377e-4)
    p = f32(0.008312521)
    for c in (0.04189016, 0.16667114, 0.4999923):
        p = p * r + f32(c)
    return np.ldexp(((p * r) * r + r) + f32(1), int(n))  # a power of two, so it is exact
