"""Tests the tables that CMSIS-NN's operators read in the benchmark of the firmware."""

from __future__ import annotations

import re

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from benchmarks.firmware.cmsis_nn import find_sources
from benchmarks.firmware.peer_source import fixed_point, peer_source
from edgedistill.numerics.four_bits import FACTOR, four_bits_of
from edgedistill.numerics.tensors import four_bit_parts

from ..numerics.students import SMALL, random_model


@given(st.floats(1e-9, 1e9))
def test_a_fixed_point_multiplier_is_the_number(value: float) -> None:
    multiplier, shift = fixed_point(value)
    assert 2**30 <= multiplier < 2**31
    assert multiplier * 2.0 ** (shift - 31) == pytest.approx(value, rel=2**-30)


def test_the_layers_of_eight_bits_stand_row_by_row() -> None:
    model = random_model(SMALL)
    text = peer_source(model, 1)
    stacked = np.concatenate([model.tensors[f"layers.0.{name}"] for name in ("wq", "wk", "wv")])
    assert read_table(text, "l0_0_w") == stacked.ravel().tolist()
    assert len(read_table(text, "l0_0_multiplier")) == len(stacked)


def test_two_weights_of_four_bits_share_a_byte() -> None:
    model = random_model(SMALL, four=four_bit_parts(SMALL))
    text = peer_source(model, 1)
    packed = np.array(read_table(text, "l0_1_w"), np.int8).reshape(SMALL.d, -1)
    low, high = (packed.astype(np.uint8) << 4).view(np.int8) >> 4, packed >> 4
    expected = four_bits_of(model.tensors["layers.0.wo"], model.tensors["layers.0.wo" + FACTOR])
    assert (np.stack([low, high], axis=2).reshape(SMALL.d, -1)[:, : SMALL.d] == expected).all()
    assert len(read_table(text, "l0_1_multiplier")) == 1


def test_a_folder_without_sources_is_named() -> None:
    with pytest.raises(SystemExit, match="CMSIS_NN"):
        find_sources(None)


def read_table(text: str, name: str) -> list[int]:
    """Returns the numbers of one array."""
    found = re.search(rf" {name}\[\] = {{(.*?)}};", text, re.DOTALL)
    assert found
    return [int(number) for number in found[1].replace("\n", " ").split(",") if number.strip()]
