"""Tests a bare Cortex-M55 under emulation: bits of the oracle, memory of the target, and half the M7's instructions."""

from __future__ import annotations

import re

import pytest

from benchmarks.firmware.boards import CORTEX_M7, CORTEX_M55
from edgedistill.config import StudentShape
from edgedistill.numerics.tensors import four_bit_parts

from ..numerics.students import ODD, SMALL, random_bins
from . import bare_metal
from .bare_metal import (
    WEIGHTS,
    Built,
    firmware_of,
    read_linker_sizes,
    require_every_tensor_from_a_fresh_and_a_given_state,
    require_every_tensor_from_a_fresh_start,
    require_fits,
    require_the_bits_of_a_random_model,
    require_the_outputs_of_raw_frames,
    ticks_of_steps,
)
from .emulated import NANO, require_same_bits, steps

SHAPES = pytest.mark.parametrize("shape", [pytest.param(SMALL, marks=pytest.mark.variant), ODD], ids=["small", "odd"])
SEEDS = (10, *(pytest.param(seed, marks=pytest.mark.variant) for seed in range(11, 20)))
ALLOWED = {"memcpy", "memmove", "memset"}  # functions of libc


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Built:
    return firmware_of(CORTEX_M55, lambda: tmp_path_factory.mktemp("cortex-m55"))


# ---------------------------------------------------------------- bits


@SHAPES
def test_every_tensor_from_a_fresh_start_past_the_wrap(built: Built, shape: StudentShape) -> None:
    require_every_tensor_from_a_fresh_start(built(shape))


@SHAPES
def test_every_tensor_with_four_bit_weights(built: Built, shape: StudentShape) -> None:
    require_every_tensor_from_a_fresh_start(built(shape, four=four_bit_parts(shape)))


def test_every_tensor_with_parts_in_float32(built: Built) -> None:
    """The residual stream may then hold any number, and is added to without vectors."""
    require_every_tensor_from_a_fresh_start(built(SMALL, keep=("embed", "layers.0.out", "layers.1.down")))


def test_three_hundred_steps_of_the_deployed_size(built: Built) -> None:
    require_every_tensor_from_a_fresh_and_a_given_state(built(NANO))


def test_three_hundred_steps_with_four_bit_weights(built: Built) -> None:
    """Compares every integer tensor, past the wrap of 200 bins."""
    program, bins = built(NANO, four=four_bit_parts(NANO)), random_bins(NANO, 300)
    bins[7:9] *= 1e4
    bins[20:22] *= 1e-41  # denormals
    require_same_bits(program.run(steps(bins)), program.oracle().trace(bins))


@pytest.mark.parametrize(
    "shape",
    [NANO, pytest.param(bare_metal.NANO_WITH_BANDS, marks=pytest.mark.variant)],
    ids=["nano", "nano with bands"],
)
def test_raw_frames_of_the_deployed_size(built: Built, shape: StudentShape) -> None:
    require_the_outputs_of_raw_frames(built(shape, trace=False))


@pytest.mark.variant
def test_raw_frames_with_four_bit_weights(built: Built) -> None:
    require_the_outputs_of_raw_frames(built(NANO, trace=False, four=four_bit_parts(NANO)))


@pytest.mark.parametrize("seed", SEEDS)
def test_random_models_states_and_frames(built: Built, seed: int) -> None:
    require_the_bits_of_a_random_model(built, seed)


# ---------------------------------------------------------------- instructions and memory


@pytest.mark.parametrize("four", [(), four_bit_parts(NANO)], ids=["eight", "four"])
def test_half_the_instructions_of_a_cortex_m7_at_most_whatever_the_data(
    built: Built, tmp_path_factory: pytest.TempPathFactory, four: tuple[str, ...]
) -> None:
    """A cold ring, a full one, zeros, saturation: each step takes as long as any other, to two ticks of the clock."""
    ticks = ticks_of_steps(built(NANO, trace=False, four=four), CORTEX_M55)
    assert ticks.max() - ticks.min() <= 2
    other = firmware_of(CORTEX_M7, lambda: tmp_path_factory.mktemp("cortex-m7"))
    theirs = ticks_of_steps(other(NANO, trace=False, four=four), CORTEX_M7)
    assert 20_000 < CORTEX_M55.instructions(ticks.max()) < 0.5 * CORTEX_M7.instructions(theirs.min())


def test_the_deployed_size_fits_the_target(built: Built) -> None:
    eight, four = (read_linker_sizes(built(NANO, trace=False, four=parts)) for parts in ((), four_bit_parts(NANO)))
    require_fits("cortex-m55", eight["FLASH"], eight["RAM"])
    assert 0.4 * WEIGHTS < eight["FLASH"] - four["FLASH"] < 0.5 * WEIGHTS


def test_only_memcpy_and_memset_come_from_the_c_library(built: Built) -> None:
    text = (built(NANO, trace=False).file.parent / "program.map").read_text()
    members = re.findall(r"libc[\w.-]*\.a\((?:lib_a-)?([\w-]+)\.o\)", text.split("Memory Configuration")[0])
    assert {re.sub(r"(-stub|-armv7m|-armv7-m)$", "", member) for member in members} <= ALLOWED
