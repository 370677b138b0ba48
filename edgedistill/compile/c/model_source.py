"""Writes a bundle's INT8 student as C: model_NAME.h with its shape, and model_NAME_data.h with its numbers.

The integers, the front end, the facts of the manifest and the variant of the kernels go in. Two texts come out, with
which kernels/c/ed_engine.c is compiled. Packed weights are written as 64-bit words, because they compile a hundred
times faster than the same weights as single bytes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from edgedistill.compile.c.literals import c_array_body, c_comment, c_float, c_word
from edgedistill.compile.c.model_header import header_name, host_tables, model_header
from edgedistill.compile.c.packing import BLOCK, LINE, Packing, packing_of, pad
from edgedistill.compile.model_facts import ModelFacts
from edgedistill.errors import EngineError
from edgedistill.frontend import FrontEndConfig
from edgedistill.numerics import Int8Model
from edgedistill.numerics.four_bits import FACTOR

Array = npt.NDArray[Any]
LEAST, MOST_INVERSE = 2.0**-103, 2.0**120  # of what Helium's floats compute with (ed_ops_helium.h)


@dataclass(frozen=True, eq=False)
class Matrix:
    """Holds a matrix of whole blocks of rows, as int8 with a multiplier for each row, or as float32 without."""

    rows: Array  # (out, n)
    multiplier: Array | None  # (out,)
    factors: Array | None = None  # (out, groups) of four-bit weights


def c_sources(model: Int8Model, front_end: FrontEndConfig, facts: ModelFacts, ops: str) -> dict[str, str]:
    """Returns texts by file name, for the variant `ops` of the inner loops.

    Raises EngineError for a student that the C engine cannot hold and for a variant that does not exist.
    """
    packing, data = packing_of(ops), header_name(facts, "data")
    if ops == "helium":
        require_no_denormals(model)
    defines: dict[str, object] = {"MODEL_DATA": f'"{data}"', "BIAS_ONCE": int(packing.bias_once)}
    defines |= {"FOURS": 1} if model.four else {}
    return {
        header_name(facts): model_header(model, front_end, facts, ops, defines, group=packing.group),
        data: _data_text(model, front_end, facts, packing),
    }


def require_no_denormals(model: Int8Model) -> None:
    """Raises EngineError for a student in whose step denormals could change a bit, because Helium flushes them."""
    for name, array in model.tensors.items():
        sizes = np.abs(np.asarray(array, np.float64))
        if name.endswith((".multiplier", "embed.bias")):
            fine = (sizes == 0) | (sizes >= LEAST)
        elif name.endswith(".inv_scale"):
            fine = sizes <= MOST_INVERSE
        else:
            continue
        if not fine.all():
            raise EngineError(
                f"the variant 'helium' cannot hold '{name}', because its vectors flush denormals to zero",
                got=float(sizes[~fine][0]),
                expected=f"0 or at least {LEAST:g}, and inverse scales of at most {MOST_INVERSE:g}",
                causes=("units of the data in which values are extremely small",),
                next_step='ops = "dsp" and a chip without MVE (-mcpu=cortex-m55+nomve) in [compiler] of a target file',
            )


def bias_by_slot(age_bias: Array, once: bool = False) -> Array:
    """Returns the attention bias (H, W) in the order of ring slots instead of ages, as (H, BIAS_ROW).

    Entry j is the bias of age (W - 1 - j) mod W. For every bin, the biases in the order of the slots are then
    contiguous. With `once` each age is there once, and the biases of a bin are two contiguous pieces.
    """
    window = age_bias.shape[1]
    row = -(-(window if once else 2 * window + 15) // BLOCK) * BLOCK
    return age_bias[:, (window - 1 - np.arange(row)) % window]


@dataclass
class _Tables:
    """Collects the data file: packed weights in the order in which a step reads them, everything else as text."""

    packing: Packing
    weights: bytearray = field(default_factory=bytearray)
    text: list[str] = field(default_factory=list)

    def add_floats(self, name: str, values: Array) -> str:
        """Adds a float32 table and returns its name."""
        flat = np.asarray(values, np.float32).ravel()
        self.text.append(
            f"static const ED_ALIGNED float {name}[{len(flat)}] = {{\n{c_array_body(map(c_float, flat))}}};"
        )
        return name

    def add_integers(self, packed: bytes) -> str:
        """Adds packed weights and returns a C expression for their address."""
        at = len(self.weights)
        self.weights += packed + bytes(-len(packed) % LINE)
        return f"(const int8_t *)ed_weights + {at}"

    def add_matrix(self, name: str, matrix: Matrix) -> str:
        """Adds a matrix of whole blocks of rows and returns it as a struct ed_matrix."""
        if matrix.multiplier is None:
            return self._add_float_matrix(name, matrix.rows)
        multipliers = self.add_floats(f"{name}_m", matrix.multiplier)
        if matrix.factors is None:
            return f"{{{self.add_integers(self.packing.pack_matrix(matrix.rows))}, {multipliers}, 0, 0}}"
        packed = self.add_integers(self.packing.pack_four_bits(matrix.rows, matrix.factors))
        return f"{{0, {multipliers}, 0, {packed.replace('int8_t', 'uint8_t')}}}"

    def add_few_rows(self, name: str, matrix: Matrix) -> str:
        """Adds a read-out, which has fewer rows than a block, and returns it as a struct ed_matrix."""
        if matrix.multiplier is None:
            return self._add_float_matrix(name, matrix.rows)
        packed = self.add_integers(self.packing.pack_few_rows(matrix.rows))
        return f"{{{packed}, {self.add_floats(f'{name}_m', matrix.multiplier)}, 0, 0}}"

    def _add_float_matrix(self, name: str, rows: Array) -> str:
        return f"{{0, 0, {self.add_floats(f'{name}_f', pad(rows, columns=BLOCK))}, 0}}"


def _data_text(model: Int8Model, front_end: FrontEndConfig, facts: ModelFacts, packing: Packing) -> str:
    """Returns the text of model_NAME_data.h. Parts are added in the order in which a step reads them."""
    t, data = model.tensors, _Tables(packing)
    embedding = data.add_matrix("ed_embedding", _stack(model, ["embed.weight"]))
    layers = [_add_layer(model, data, i) for i in range(model.shape.layers)]
    readouts = [
        f"static const struct ed_matrix {name} = {data.add_few_rows(name, _read_matrix(model, f'readout.{part}'))};"
        for part, name in (("latent", "ed_readout_latent"), ("lags", "ed_readout_lags"))
    ]
    data.add_floats("ed_embed_bias", pad(t["embed.bias"][None], columns=BLOCK))
    data.add_floats("ed_readout_bias", t["readout.bias"])
    words = np.frombuffer(bytes(data.weights) or bytes(8), "<u8")
    scalars = {"bin_inv": "bin.inv_scale", "bin_scale": "bin.scale", "latent_inv": "latent.inv_scale"}
    parts = [
        f"/* Generated by edgedistill: the numbers of {c_comment(facts.name)}. */",
        f"static const ED_ALIGNED uint64_t ed_weights[{len(words)}] = {{\n{c_array_body(map(c_word, words))}}};",
        *data.text,
        f"static const struct ed_matrix ed_embedding = {embedding};",
        *readouts,
        f"static const struct ed_layer ed_layers[{len(layers)}] = {{\n{''.join(layers)}}};",
        *(f"#define ed_{name} {c_float(t[tensor][0])}" for name, tensor in scalars.items()),
        host_tables(front_end, facts),
    ]
    return "\n".join(parts)


def _add_layer(model: Int8Model, data: _Tables, i: int) -> str:
    """Adds the matrices of one layer and returns it as a struct ed_layer."""
    name, t = f"layers.{i}.", model.tensors
    parts = {
        "qkv": _stack(model, [f"{name}w{part}" for part in "qkv"]),
        "out": _stack(model, [f"{name}wo"]),
        "gate_up": _alternate(_stack(model, [f"{name}wgate", f"{name}wup"])),
        "down": _stack(model, [f"{name}wdown"]),
    }
    fields = {part: data.add_matrix(f"ed_{i}_{part}", stack) for part, stack in parts.items()}
    fields["age_bias"] = data.add_floats(f"ed_{i}_age_bias", bias_by_slot(t[f"{name}age_bias"], data.packing.bias_once))
    for activation in ("attn", "q", "k", "v", "context", "mlp", "hidden"):
        fields[f"{activation}_inv"] = c_float(t[f"{name}{activation}.inv_scale"][0])
    fields |= {"score_scale": c_float(t[f"{name}score_scale"][0]), "v_scale": c_float(t[f"{name}v.scale"][0])}
    return "    {\n" + "".join(f"        .{key} = {value},\n" for key, value in fields.items()) + "    },\n"


def _read_matrix(model: Int8Model, name: str) -> Matrix:
    """Returns a matrix of the student as it is, without padding."""
    tensors = model.tensors
    return Matrix(tensors[name], tensors.get(f"{name}.multiplier"), tensors.get(name + FACTOR))


def _stack(model: Int8Model, names: Sequence[str]) -> Matrix:
    """Stacks matrices that read the same input, each padded to whole blocks of rows."""
    parts = [_read_matrix(model, name) for name in names]
    multipliers = [pad(one.multiplier[None], columns=BLOCK)[0] for one in parts if one.multiplier is not None]
    factors = [pad(one.factors, rows=BLOCK, value=1) for one in parts if one.factors is not None]
    return Matrix(
        np.concatenate([pad(one.rows, rows=BLOCK) for one in parts]),
        np.concatenate(multipliers) if multipliers else None,
        np.concatenate(factors) if factors else None,
    )


def _alternate(matrix: Matrix) -> Matrix:
    """Reorders two stacked matrices so that their blocks alternate."""
    turn = np.arange(len(matrix.rows)).reshape(2, -1, BLOCK).swapaxes(0, 1).ravel()
    multiplier, factors = (None if part is None else part[turn] for part in (matrix.multiplier, matrix.factors))
    return Matrix(matrix.rows[turn], multiplier, factors)
