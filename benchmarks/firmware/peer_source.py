"""Writes a student as the tables that CMSIS-NN's operators read.

An INT8 student goes in, and the C text of peer_model.h comes out. Multipliers become the fixed-point numbers of
TensorFlow Lite. Four-bit weights lose the factors of their groups, because arm_fully_connected_s4 has one scale for a
whole matrix: the table says what such a layer costs, and not what it would decode.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import numpy.typing as npt

from edgedistill.compile.c.literals import c_array_body
from edgedistill.numerics import Int8Model
from edgedistill.numerics.four_bits import FACTOR, four_bits_of, pack_nibbles

Array = npt.NDArray[Any]

SCORE_SCALE = 1 / 8  # of the scores of attention in int8, so that they reach from -16 to 16


def peer_source(model: Int8Model, calls: int) -> str:
    """Returns the text of peer_model.h."""
    shape = model.shape
    sizes = {key.upper(): value for key, value in shape.to_json().items()} | {"CALLS": calls}
    multiplier, shift = fixed_point(SCORE_SCALE * 2**26)
    sizes |= {"SOFTMAX_MULTIPLIER": multiplier, "SOFTMAX_SHIFT": shift, "SOFTMAX_LEAST": -(31 * 2**26 >> shift)}
    text = [f"#define {name} {value}" for name, value in sizes.items()]
    one = {"embedding": ("embed.weight",), "readout_latent": ("readout.latent",), "readout_lags": ("readout.lags",)}
    for name, parts in one.items():
        text.append(f"static const matrix {name} = {_add_matrix(text, name, model, parts)};")
    layers, biases = [], []
    for i in range(shape.layers):
        parts_of = (("wq", "wk", "wv"), ("wo",), ("wgate", "wup"), ("wdown",))
        names = [tuple(f"layers.{i}.{part}" for part in parts) for parts in parts_of]
        layers.append("{" + ", ".join(_add_matrix(text, f"l{i}_{k}", model, n) for k, n in enumerate(names)) + "}")
        bias = model.tensors[f"layers.{i}.age_bias"].ravel() / SCORE_SCALE
        biases.append("{" + c_array_body(str(int(v)) for v in np.clip(np.rint(bias), -128, 127)) + "}")
    text.append(f"static const matrix layers[LAYERS][4] = {{{', '.join(layers)}}};")
    text.append(f"static const int8_t age_bias[LAYERS][HEADS * WINDOW] = {{{', '.join(biases)}}};")
    return "\n".join([*text, ""])


def fixed_point(value: float) -> tuple[int, int]:
    """Returns a multiplier of 31 bits and a shift to the left, with value = multiplier / 2**31 * 2**shift."""
    mantissa, shift = math.frexp(value)
    multiplier = round(mantissa * 2**31)
    return (multiplier // 2, shift + 1) if multiplier == 2**31 else (multiplier, shift)


def _add_matrix(text: list[str], name: str, model: Int8Model, parts: tuple[str, ...]) -> str:
    """Adds the tables of matrices that read the same input, stacked, and returns the struct that names them."""
    four = all(part + FACTOR in model.tensors for part in parts)
    weights = [model.tensors[part] for part in parts]
    rows, n = sum(len(w) for w in weights), weights[0].shape[1]
    # An output fills the range of int8 if its deviation is a quarter of that of as many random inputs.
    scale = 32 * math.sqrt(n)
    real = np.concatenate([1 / (scale * np.abs(w).astype(np.float64).max(axis=1, initial=1)) for w in weights])
    if four:
        q = [four_bits_of(w, model.tensors[part + FACTOR]) for w, part in zip(weights, parts, strict=True)]
        packed, real = pack_nibbles(np.concatenate(q) & 15).view(np.int8), np.array([1 / (7 * scale)])
    else:
        packed = np.concatenate(weights)
    multiplier, shift = zip(*map(fixed_point, real.tolist()), strict=True)
    text.append(f"_Alignas(4) static const int8_t {name}_w[] = {{\n{c_array_body(map(str, packed.ravel()))}}};")
    for part, values in (("multiplier", multiplier), ("shift", shift)):
        text.append(f"static const int32_t {name}_{part}[] = {{\n{c_array_body(map(str, values))}}};")
    return f"{{{name}_w, {name}_multiplier, {name}_shift, {rows}, {n}, {int(four)}}}"
