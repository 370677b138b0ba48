"""The generated C holds exactly the numbers of the model, and works with any name of a model."""

from __future__ import annotations

import re
import struct
from dataclasses import replace
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgedistill.compile.c.literals import c_float, c_string
from edgedistill.compile.c.model_source import bias_by_slot, c_sources
from edgedistill.compile.c.packing import PACKINGS, group_of, packing_of
from edgedistill.compile.model_facts import c_identifier
from edgedistill.config import StudentShape
from edgedistill.errors import EngineError
from edgedistill.frontend import FrontEndConfig
from edgedistill.numerics import Int8Model

from ...kernels.c_builds import facts_of
from ...numerics.students import SMALL, random_model

CONFIG = FrontEndConfig(rate=Fraction(390625, 16), channels=SMALL.channels)


def sources(model: Int8Model, name: str = "a", ops: str = "scalar", **facts: Any) -> dict[str, str]:
    return c_sources(model, CONFIG, replace(facts_of(model, CONFIG, name), **facts), ops)


@given(st.floats(width=32, allow_nan=False, allow_infinity=False))
def test_a_float_is_written_exactly(value: float) -> None:
    text = c_float(value)
    assert re.fullmatch(r"-?0x[01]\.[0-9a-f]+p[-+]\d+f", text)
    assert struct.pack("f", float.fromhex(text[:-1])) == struct.pack("f", value)


@given(st.text())
def test_any_text_survives_as_a_string(text: str) -> None:
    literal = c_string(text)
    inner = re.sub(rb"\\([0-7]{3})", lambda m: bytes([int(m[1], 8)]), literal[1:-1].encode("ascii"))
    assert inner == text.encode()
    assert not re.search(r'[^\\]"|\?|\n', literal[1:-1])


@given(st.text(min_size=1))
def test_any_name_gives_a_symbol(name: str) -> None:
    assert re.fullmatch(r"[0-9A-Za-z_]+", c_identifier(name))


def test_the_header_states_shape_rate_and_variant() -> None:
    text = sources(random_model(), "a-b", "avx2")["model_a_b.h"]
    defines = dict(re.findall(r"#define (ED_\w+) (.+)", text))
    assert {defines[f"ED_{key.upper()}"] for key in ("d", "window")} == {"32", "9"}
    assert defines["ED_RATE_NUMERATOR"] == "UINT64_C(390625)"
    assert defines["ED_RATE_DENOMINATOR"] == "UINT64_C(16)"
    assert defines["ED_OPS_HEADER"] == '"ed_ops_avx2.h"'
    assert defines["ED_MODEL_SYMBOL"] == "ed_model_a_b"
    assert defines["ED_MODEL_DATA"] == '"model_a_b_data.h"'
    assert defines["ED_KEEPS"] == "0"


def test_the_same_model_gives_the_same_text() -> None:
    assert sources(random_model()) == sources(random_model())


def test_a_name_cannot_end_the_comment_that_holds_it() -> None:
    text = sources(random_model(), "*/ int x; /*")["model____int_x____.h"]
    assert text.splitlines()[0].count("*/") == 1


@given(st.integers(2, 40), st.integers(0, 39))
def test_the_bias_lies_by_slot_from_any_bin_on(window: int, slot: int) -> None:
    slot %= window
    by_age = np.arange(window)[None]
    row = bias_by_slot(by_age)[0]
    found = row[window - 1 - slot :][:window]
    assert (found == (slot - np.arange(window)) % window).all()
    assert len(row) >= window - 1 + -(-window // 16) * 16  # a whole vector can be read even from the last offset


@given(st.integers(2, 40), st.integers(0, 39))
def test_the_bias_that_is_stored_once_lies_by_slot_in_two_pieces(window: int, slot: int) -> None:
    slot %= window
    row = bias_by_slot(np.arange(window)[None], once=True)[0]
    assert len(row) == -(-window // 16) * 16
    found = np.concatenate([row[window - 1 - slot :][: slot + 1], row[: window - 1 - slot]])
    assert (found == (slot - np.arange(window)) % window).all()


@given(st.sampled_from(sorted(PACKINGS)), st.integers(1, 24), st.integers(1, 70), st.integers(0, 99))
def test_every_weight_is_where_its_kernel_looks(ops: str, blocks: int, n: int, seed: int) -> None:
    packing, rng = packing_of(ops), np.random.default_rng(seed)
    rows = rng.integers(-127, 128, (16 * blocks, n), np.int8)
    packed = np.frombuffer(packing.pack_matrix(rows), np.uint8) ^ (128 if packing.unsigned else 0)
    together = packing.inputs
    columns = -(-n // together) * together
    assert len(packed) == 16 * blocks * columns
    for _ in range(20):
        o, i = int(rng.integers(16 * blocks)), int(rng.integers(columns))
        at = o * columns + i
        if packing.group:
            size = packing.rows
            group = group_of(16 * blocks // size, packing.group)
            first, block = o // size // group * group, o // size % group
            line = (i // together * group + block) * size + o % size
            at = first * size * columns + line * together + i % together
        assert packed[at].astype(np.int8) == (rows[o, i] if i < n else 0)


@given(st.integers(1, 6), st.integers(1, 70), st.integers(0, 99))
def test_every_four_bit_weight_is_where_helium_looks(blocks: int, n: int, seed: int) -> None:
    rng, groups = np.random.default_rng(seed), -(-n // 32)
    q = rng.integers(-7, 8, (16 * blocks, n), np.int8)
    factors = rng.integers(1, 16, (16 * blocks, groups)).astype(np.uint8)
    rows = (q * np.repeat(factors, 32, axis=1)[:, :n].astype(np.int8)).astype(np.int8)
    packed = np.frombuffer(packing_of("helium").pack_four_bits(rows, factors), np.uint8)
    lines = packed.reshape(4 * blocks, groups, 4 + 4 * 16)
    assert (lines[:, :, :4].transpose(0, 2, 1).reshape(factors.shape) == factors).all()
    signed = lines[:, :, 4:].reshape(4 * blocks, groups, 4, 16).view(np.int8)
    found = np.concatenate([np.left_shift(signed, 4) // 16, signed >> 4], axis=3)  # the low halves, then the high ones
    found = found.transpose(0, 2, 1, 3).reshape(16 * blocks, 32 * groups)
    assert (found[:, :n] == q).all()
    assert not found[:, n:].any()


@pytest.mark.parametrize(
    ("name", "value"), [("embed.weight.multiplier", 2.0**-110), ("embed.bias", 1e-42), ("latent.inv_scale", 2.0**121)]
)
def test_helium_refuses_numbers_that_could_lead_to_denormals(name: str, value: float) -> None:
    tensors = {key: array.copy() for key, array in random_model().tensors.items()}
    assert sources(Int8Model(random_model().shape, tensors), ops="helium")
    tensors["embed.bias"][0] = 0.0  # is fine
    assert sources(Int8Model(random_model().shape, tensors), ops="helium")
    tensors[name][0] = value
    odd = Int8Model(random_model().shape, tensors)
    assert sources(odd, ops="dsp")
    with pytest.raises(EngineError, match=name):
        sources(odd, ops="helium")


@pytest.mark.parametrize("most", [2, 4, 8])
def test_groups_divide_and_keep_pairs(most: int) -> None:
    for blocks in range(1, 200):
        group = group_of(blocks, most)
        assert group <= most
        assert blocks % group == 0
        assert blocks % 2 or group % 2 == 0


def test_too_many_outputs_are_refused() -> None:
    shape = StudentShape(5, 17, d=8, layers=1, heads=1, window=3, ff=8, taps=1, dilation=1, lags=0)
    with pytest.raises(EngineError, match="17"):
        sources(random_model(shape))


@pytest.mark.parametrize(
    "facts", [{"channel_ids": ("a",)}, {"mean": (1.0,)}, {"output_units": ("m",)}, {"std": (1.0, -1.0, 1.0, 1.0, 1.0)}]
)
def test_facts_that_do_not_fit_are_refused(facts: dict[str, Any]) -> None:
    with pytest.raises(EngineError):
        sources(random_model(), **facts)


def test_an_unknown_variant_is_refused() -> None:
    with pytest.raises(EngineError, match="did you mean 'avx2'"):
        sources(random_model(), ops="avx3")
