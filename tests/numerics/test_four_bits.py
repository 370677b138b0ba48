"""A four-bit matrix is an int8 matrix of its form, packs into half the bytes, and comes back as it was."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from safetensors.numpy import load, save

from edgedistill.config import StudentShape
from edgedistill.errors import BundleError
from edgedistill.numerics import Int8Model
from edgedistill.numerics.four_bits import (
    count_groups,
    find_form_fault,
    four_bits_of,
    pack_nibbles,
    spread_factors,
    unpack_nibbles,
)
from edgedistill.numerics.tensors import four_bit_parts

from .students import ODD, SMALL, random_model

PARTS = ("layers.0.qkv", "layers.1.down")
Tensors = dict[str, Any]


def draw_matrix(rows: int, n: int, seed: int) -> tuple[Any, Any, Any]:
    rng = np.random.default_rng(seed)
    q, factors = rng.integers(-7, 8, (rows, n)), rng.integers(1, 16, (rows, count_groups(n)))
    return q.astype(np.int8), factors.astype(np.uint8), (q * spread_factors(factors, n)).astype(np.int8)


@given(st.integers(1, 4), st.integers(1, 100), st.integers(0, 99))
def test_nibbles_and_integers_come_back(rows: int, n: int, seed: int) -> None:
    q, factors, weights = draw_matrix(rows, n, seed)
    packed = pack_nibbles(q + 8)
    assert packed.shape == (rows, -(-n // 2))
    assert (unpack_nibbles(packed, n) == q + 8).all()
    assert find_form_fault(weights, factors) is None
    assert (four_bits_of(weights, factors) == q).all()


@pytest.mark.parametrize(
    ("at", "value", "factor", "says"),
    [
        ((1, 40), 8, 3, "8 with the factor 3"),  # is no multiple
        ((1, 40), 24, 3, "24 with the factor 3"),  # is 8 * 3
        ((1, 40), -24, 3, "-24 with the factor 3"),
        ((0, 0), 0, 0, "a factor of 0"),
        ((0, 0), 0, 16, "a factor of"),
    ],
)
def test_a_matrix_that_is_not_of_the_form_is_found(at: tuple[int, int], value: int, factor: int, says: str) -> None:
    _, factors, weights = draw_matrix(2, 50, 0)
    columns = slice(32 * (at[1] // 32), 32 * (at[1] // 32) + 32)
    weights[at[0], columns], factors[at[0], at[1] // 32] = 0, factor
    weights[at] = value
    assert says in str(find_form_fault(weights, factors))


@pytest.mark.parametrize("shape", [SMALL, ODD], ids=["small", "odd"])
@pytest.mark.parametrize("four", [PARTS, None], ids=["some", "all"])
def test_a_student_comes_back_from_a_file_of_fewer_bytes(shape: StudentShape, four: tuple[str, ...] | None) -> None:
    parts = tuple(part for part in (four or four_bit_parts(shape)) if part in four_bit_parts(shape))
    model, eight = random_model(shape, four=parts), random_model(shape)
    data = save(model.to_file())
    back = Int8Model.from_file(shape, load(data))
    assert back.four == parts
    assert back.tensors.keys() == model.tensors.keys()
    assert all(np.array_equal(back.tensors[name], array) for name, array in model.tensors.items())
    assert save(back.to_file()) == data
    assert model.weight_bytes < eight.weight_bytes
    assert len(data) < len(save(eight.to_file()))


def test_a_file_of_int8_weights_is_what_it_was() -> None:
    model = random_model()
    assert model.four == ()
    assert save(model.to_file()) == save(dict(model.tensors))


NAME = "layers.0.wk"


def drop(tensors: Tensors) -> None:
    del tensors[NAME + ".factor_nibbles"]


def drop_weights(tensors: Tensors) -> None:
    del tensors[NAME + ".nibbles"]


def double(tensors: Tensors) -> None:
    tensors[NAME] = np.zeros((32, 32), np.int8)


def narrow(tensors: Tensors) -> None:
    tensors[NAME + ".nibbles"] = tensors[NAME + ".nibbles"][:, 1:].copy()


def signed(tensors: Tensors) -> None:
    tensors[NAME + ".nibbles"] = tensors[NAME + ".nibbles"].view(np.int8)


def too_low(tensors: Tensors) -> None:
    tensors[NAME + ".nibbles"][3, 5] &= 0x0F  # -8


def no_factor(tensors: Tensors) -> None:
    tensors[NAME + ".factor_nibbles"][2] = 0


def beyond(tensors: Tensors) -> None:
    tensors[NAME + ".factor_nibbles"][2] |= 0x10  # a second factor of a row that has one


def as_eight(tensors: Tensors) -> None:
    del tensors[NAME + ".nibbles"], tensors[NAME + ".factor_nibbles"]
    tensors[NAME] = np.zeros((32, 32), np.int8)  # one matrix of a stack that is read in one pass


@pytest.mark.parametrize(
    "damage",
    [drop, drop_weights, double, narrow, signed, too_low, no_factor, beyond, as_eight],
    ids=lambda f: f.__name__,
)
def test_a_file_that_is_not_of_the_form_is_refused_by_name(damage: Any) -> None:
    tensors = {name: array.copy() for name, array in random_model(four=PARTS).to_file().items()}
    Int8Model.from_file(SMALL, tensors)
    damage(tensors)
    with pytest.raises(BundleError, match=r"layers\.0\.wk"):
        Int8Model.from_file(SMALL, tensors)


def test_an_int8_matrix_that_claims_a_form_it_has_not_is_refused_by_name() -> None:
    tensors = {name: array.copy() for name, array in random_model(four=PARTS).tensors.items()}
    tensors[NAME][0, 0] = 113
    with pytest.raises(BundleError, match=r"'layers\.0\.wk' is not a four-bit matrix"):
        Int8Model(SMALL, tensors)


def test_the_readout_has_no_four_bit_form() -> None:
    tensors = dict(random_model().tensors)
    tensors["readout.latent.factor"] = np.ones((2, 1), np.uint8)
    with pytest.raises(BundleError, match=r"readout\.latent\.factor"):
        Int8Model(SMALL, tensors)
