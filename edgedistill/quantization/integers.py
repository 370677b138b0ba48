"""Makes the integers that every engine reads, from a float32 student and the ranges of its activations.

Integers are made nowhere else. Gains of the norms and scales of single heads are folded into weights first, so that q,
k and v have one scale each (docs/numerics.md, "Folding"). Scales are rounded to float32 once, multipliers once more,
and no accumulator of the result can leave 32 bits.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from edgedistill.config import StudentShape
from edgedistill.errors import EdgeDistillError, did_you_mean
from edgedistill.numerics import Int8Model, part_names, part_of
from edgedistill.numerics.arithmetic import LEVELS
from edgedistill.numerics.four_bits import FACTOR
from edgedistill.numerics.tensors import activations, four_bit_parts, weight_matrices
from edgedistill.quantization.four_bits import find_scale, round_by_moments, round_to_nearest

Array = npt.NDArray[np.float64]
Ranges = Mapping[str, npt.ArrayLike]  # activation -> largest magnitude; q, k, v and context have one for each head

PER_HEAD = ("q", "k", "v", "context")
INT32_MAX = 2**31 - 1


def quantize_student(
    shape: StudentShape,
    weights: Mapping[str, npt.NDArray[np.float32]],
    ranges: Ranges,
    keep: Collection[str] = (),
    four: Collection[str] = (),
    moments: Mapping[str, Array] | None = None,
) -> dict[str, npt.NDArray[Any]]:
    """Returns the tensors of a student in integers, by the names that `Int8Model` takes.

    `weights` are those of `student.safetensors`. `ranges` are those of the float student before any folding.
    Parts in `keep` stay float32, and parts in `four` get four-bit weights. These are rounded with the second moments
    (n, n) of the activations that they read, before any folding, and to nearest where there are none. Raises
    EdgeDistillError for a range or a weight that no scale fits, and for an accumulator that could overflow.
    """
    require_parts(shape, keep)
    require_four_bit_parts(shape, four)
    known = check_ranges(shape, ranges)
    folded, limits = fold(shape, weights, known)
    seen = None if moments is None else fold_moments(shape, moments, known)
    tensors: dict[str, npt.NDArray[Any]] = {}
    for name in activations(shape):
        scale = round_scales(limits[name] / LEVELS, name)
        tensors |= {f"{name}.scale": scale, f"{name}.inv_scale": (1 / scale.astype(np.float64)).astype(np.float32)}
    for name, (_, source) in weight_matrices(shape).items():
        if part_of(name) in keep:
            tensors[name] = folded[name].astype(np.float32)
        elif part_of(name) in four:
            of_input = None if seen is None else seen.get(source)
            tensors |= quantize_groups(name, folded[name], tensors[f"{source}.scale"], of_input)
        else:
            tensors |= quantize_rows(name, folded[name], tensors[f"{source}.scale"])
    for i in range(shape.layers):
        q, k = (tensors[f"layers.{i}.{part}.scale"].astype(np.float64) for part in "qk")
        tensors[f"layers.{i}.score_scale"] = (q * k / np.sqrt(shape.head_dim)).astype(np.float32)
        tensors[f"layers.{i}.age_bias"] = weights[f"layers.{i}.age_bias"]
    tensors |= {name: weights[name] for name in ("embed.bias", "readout.bias")}
    tensors = {name: np.ascontiguousarray(array) for name, array in tensors.items()}
    require_no_overflow(Int8Model(shape, tensors))
    return tensors


def replace_readout(
    model: Int8Model,
    latent: npt.NDArray[np.float32],
    lags: npt.NDArray[np.float32],
    bias: npt.NDArray[np.float32],
) -> Int8Model:
    """Returns the same student with another read-out, of latents (K, d) without a gain and of bins (K, (lags + 1) * C).

    `bias` is (K,). Raises EdgeDistillError for weights that no scale fits, and for an accumulator that could overflow.
    """
    tensors, matrices = dict(model.tensors), weight_matrices(model.shape)
    for name, weight in (("readout.latent", latent), ("readout.lags", lags)):
        if part_of(name) in model.keep:
            tensors[name] = weight
        else:
            tensors |= quantize_rows(name, weight.astype(np.float64), tensors[f"{matrices[name][1]}.scale"])
    tensors["readout.bias"] = bias
    found = Int8Model(model.shape, {name: np.ascontiguousarray(array) for name, array in tensors.items()})
    require_no_overflow(found)
    return found


def require_parts(shape: StudentShape, keep: Collection[str]) -> None:
    """Raises EdgeDistillError for a part in `keep` that does not exist or cannot stay in higher precision."""
    known = [part for part in part_names(shape) if not part.endswith(".attention")]
    for part in keep:
        if part.endswith(".attention"):
            raise EdgeDistillError(
                f"'{part}' cannot be kept in higher precision",
                causes=("keys and values live in an INT8 ring",),
                next_step="keep its layer's 'qkv' or 'out' instead",
            )
        if part not in known:
            raise EdgeDistillError(f"unknown part '{part}' to keep", expected=did_you_mean(part, known))


def require_four_bit_parts(shape: StudentShape, parts: Collection[str]) -> None:
    """Raises EdgeDistillError for a part that does not exist or whose weights always have eight bits."""
    known = four_bit_parts(shape)
    for part in parts:
        if part not in known:
            causes = ("only the embedding and the matrices of the layers can have four bits",)
            raise EdgeDistillError(
                f"'{part}' has no four-bit weights", expected=did_you_mean(part, known), causes=causes
            )


def check_ranges(shape: StudentShape, ranges: Ranges) -> dict[str, Array]:
    """Returns ranges as float64 (1,) or (H,). Raises EdgeDistillError for one that is missing or unusable."""
    found = {}
    for name in activations(shape):
        if name not in ranges:
            raise EdgeDistillError(f"no range for '{name}'", got=f"{len(ranges)} ranges", next_step="calibrate again")
        values = np.atleast_1d(np.asarray(ranges[name], np.float64))
        expected = shape.heads if name.split(".")[-1] in PER_HEAD else 1
        if values.shape != (expected,):
            raise EdgeDistillError(f"the range of '{name}' does not fit", got=values.shape, expected=f"({expected},)")
        for head, value in enumerate(values):
            which = f"'{name}'" + (f", head {head}" if expected > 1 else "")
            if not (np.isfinite(value) and value > 0):
                raise EdgeDistillError(
                    f"the range of {which} gives no scale",
                    got=value,
                    expected="a finite number above 0",
                    causes=("the calibration data never move it: a constant or silent input",),
                    next_step="calibrate on data in which the channels move",
                )
        found[name] = values
    return found


def fold(
    shape: StudentShape, weights: Mapping[str, npt.NDArray[np.float32]], ranges: Mapping[str, Array]
) -> tuple[dict[str, Array], dict[str, Array]]:
    """Folds gains and head scales into the weight matrices. Returns these and the new range (1,) of each activation.

    Keys of all heads are brought to the range of the widest head, and queries the other way, which leaves the scores as
    they are. Values and the columns of the output projection are treated in the same way.
    """
    folded = {name: weights[name].astype(np.float64) for name in weight_matrices(shape)}
    limits = {name: ranges[name] for name in activations(shape)}
    folded["readout.latent"] *= weights["norm_out"]
    for i in range(shape.layers):
        layer = f"layers.{i}."
        for gain, names in (("norm_attn", ("wq", "wk", "wv")), ("norm_mlp", ("wgate", "wup"))):
            for name in names:
                folded[layer + name] *= weights[layer + gain]
        k, v = (ranges[layer + part] / ranges[layer + part].max() for part in "kv")
        rows_k, rows_v = (np.repeat(ratio, shape.head_dim) for ratio in (k, v))
        folded[layer + "wq"] *= rows_k[:, None]
        folded[layer + "wk"] /= rows_k[:, None]
        folded[layer + "wv"] /= rows_v[:, None]
        folded[layer + "wo"] *= rows_v
        wide = {"q": ranges[layer + "q"] * k, "k": ranges[layer + "k"], "v": ranges[layer + "v"]}
        wide["context"] = ranges[layer + "context"] / v
        limits |= {layer + name: np.array([values.max()]) for name, values in wide.items()}
    return folded, limits


def fold_moments(shape: StudentShape, moments: Mapping[str, Array], ranges: Mapping[str, Array]) -> dict[str, Array]:
    """Returns second moments (n, n) of activations after `fold`, which divides the context of each head by a ratio."""
    found = dict(moments)
    for i in range(shape.layers):
        v = ranges[f"layers.{i}.v"] / ranges[f"layers.{i}.v"].max()
        ratio = np.repeat(v, shape.head_dim)
        found[f"layers.{i}.context"] = moments[f"layers.{i}.context"] / ratio[:, None] / ratio
    return found


def quantize_groups(
    name: str, w: Array, source_scale: npt.NDArray[np.float32], moments: Array | None
) -> dict[str, npt.NDArray[Any]]:
    """Quantizes a matrix (out, n) to four-bit weights: what `quantize_rows` returns, and a factor for each group."""
    require_finite(name, w)
    scale = round_scales(find_scale(torch.from_numpy(w)).numpy(), name)
    rows, step = torch.from_numpy(w), torch.from_numpy(scale.astype(np.float64))
    rounded = round_to_nearest(rows, step) if moments is None else round_by_moments(rows, step, moments)
    integers, factors = (found.numpy() for found in rounded)
    multiplier = round_scales(scale.astype(np.float64) * source_scale.astype(np.float64), name)
    return {
        name: integers.astype(np.int8),
        name + FACTOR: factors.astype(np.uint8),
        f"{name}.scale": scale,
        f"{name}.multiplier": multiplier,
    }


def require_finite(name: str, w: Array) -> None:
    """Raises EdgeDistillError that names a matrix which is not finite."""
    if not np.isfinite(w).all():
        raise EdgeDistillError(f"'{name}' is not finite", got=f"{np.count_nonzero(~np.isfinite(w))} values")


def quantize_rows(name: str, w: Array, source_scale: npt.NDArray[np.float32]) -> dict[str, npt.NDArray[Any]]:
    """Quantizes a matrix (out, n) to int8 with a scale for each row.

    Returns the integers, the scales, and the multipliers that turn accumulators into floats. A row of zeros, which is
    an output that the weight does not touch, has scale 1.
    """
    require_finite(name, w)
    largest = np.abs(w).max(axis=1)
    scale = round_scales(np.where(largest > 0, largest, LEVELS) / LEVELS, name)
    integers = np.clip(np.rint(w / scale.astype(np.float64)[:, None]), -LEVELS, LEVELS).astype(np.int8)
    multiplier = round_scales(scale.astype(np.float64) * source_scale.astype(np.float64), name)
    return {name: integers, f"{name}.scale": scale, f"{name}.multiplier": multiplier}


def round_scales(values: Array, name: str) -> npt.NDArray[np.float32]:
    """Returns scales as normal float32 numbers. Raises EdgeDistillError where they would vanish or overflow."""
    with np.errstate(over="ignore", under="ignore"):
        scale = values.astype(np.float32)
    tiny = np.finfo(np.float32).tiny
    if not (np.isfinite(scale) & (scale >= tiny)).all():
        raise EdgeDistillError(
            f"'{name}' has no scale in float32",
            got=f"{values.min():g} to {values.max():g}",
            expected=f"{tiny:g} or more, and finite",
            causes=("its values are all but zero, or beyond float32",),
        )
    return scale


def require_no_overflow(model: Int8Model) -> None:
    """Raises EdgeDistillError that names an accumulator which some input could drive beyond 32 bits."""
    for name, bound in bound_accumulators(model).items():
        if bound > INT32_MAX:
            raise EdgeDistillError(
                f"the accumulator of '{name}' can overflow",
                got=f"up to {bound}",
                expected=f"at most {INT32_MAX}",
                causes=("too many channels or taps for one product",),
            )


def bound_accumulators(model: Int8Model) -> dict[str, int]:
    """Returns the largest magnitude that each int32 accumulator can reach with any input in -127 … 127."""
    shape, tensors = model.shape, model.tensors
    bounds = {
        name: LEVELS * int(np.abs(tensors[name].astype(np.int64)).sum(axis=1).max())
        for name in weight_matrices(shape)
        if tensors[name].dtype == np.int8
    }
    for i in range(shape.layers):
        bounds[f"layers.{i}.scores"] = LEVELS * LEVELS * shape.head_dim
        bounds[f"layers.{i}.context"] = LEVELS * LEVELS * shape.window  # the sum of p has a bound 127 times smaller
    return bounds
