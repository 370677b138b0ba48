"""Tests a bare Cortex-M7 under emulation: bits of the oracle, memory of the target, and times that no data changes."""

from __future__ import annotations

import re

import numpy as np
import pytest

from benchmarks.firmware.boards import CORTEX_M7
from edgedistill.compile.c.footprint import flash_and_ram, state_bytes
from edgedistill.config import StudentShape
from edgedistill.numerics.tensors import four_bit_parts

from ..numerics.students import ODD, SMALL, random_bins
from .bare_metal import (
    NANO_WITH_BANDS,
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
from .emulated import KERNELS, NANO, Program, pushes, require_same_bits, steps

SEEDS = (0, *(pytest.param(seed, marks=pytest.mark.variant) for seed in range(1, 6)))
DEPLOYED = pytest.mark.parametrize(
    "shape", [NANO, pytest.param(NANO_WITH_BANDS, marks=pytest.mark.variant)], ids=["nano", "nano with bands"]
)
STACK_MAX = {NANO: 10 * 1024, NANO_WITH_BANDS: 14 * 1024}  # bytes
ALLOWED = {"memcpy", "memmove", "memset"}  # functions of libc


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Built:
    return firmware_of(CORTEX_M7, lambda: tmp_path_factory.mktemp("cortex-m7"))


# ---------------------------------------------------------------- bits


@pytest.mark.parametrize("shape", [pytest.param(SMALL, marks=pytest.mark.variant), ODD], ids=["small", "odd"])
def test_every_tensor_from_a_fresh_start_past_the_wrap(built: Built, shape: StudentShape) -> None:
    require_every_tensor_from_a_fresh_start(built(shape))


def test_three_hundred_steps_of_the_deployed_size(built: Built) -> None:
    require_every_tensor_from_a_fresh_and_a_given_state(built(NANO))


def test_three_hundred_steps_with_four_bit_weights(built: Built) -> None:
    """Compares every integer tensor, past the wrap of 200 bins."""
    program, bins = built(NANO, four=four_bit_parts(NANO)), random_bins(NANO, 300)
    bins[7:9] *= 1e4
    require_same_bits(program.run(steps(bins)), program.oracle().trace(bins))


@DEPLOYED
def test_raw_frames_of_the_deployed_size(built: Built, shape: StudentShape) -> None:
    require_the_outputs_of_raw_frames(built(shape, trace=False))


@pytest.mark.parametrize("seed", SEEDS)
def test_random_models_states_and_frames(built: Built, seed: int) -> None:
    require_the_bits_of_a_random_model(built, seed)


def test_smoothed_steps_have_the_bits_of_numpy(built: Built) -> None:
    program, bins = built(NANO, trace=False), random_bins(NANO, 60)
    require_same_bits(program.run(steps(bins)), program.decode(bins))


# ---------------------------------------------------------------- time


@pytest.mark.parametrize("four", [(), four_bit_parts(NANO)], ids=["eight", "four"])
def test_no_instruction_depends_on_the_data(built: Built, four: tuple[str, ...]) -> None:
    """A cold ring, a full one, zeros, saturation: each step takes as long as any other, to a tick of the clock."""
    ticks = ticks_of_steps(built(NANO, trace=False, four=four), CORTEX_M7)
    assert ticks.max() - ticks.min() <= 1
    assert 100_000 < CORTEX_M7.instructions(ticks.max()) < 1_000_000


@DEPLOYED
def test_a_bin_of_frames_costs_the_same_whatever_channels_do_and_less_where_frames_are_lost(
    built: Built, shape: StudentShape
) -> None:
    """A bin with channels that break, die or are far too large takes as many instructions as one without."""
    program, rng = built(shape, trace=False), np.random.default_rng(0)
    frames = (25 * rng.standard_normal((600, NANO.channels))).astype(np.float32)
    frames[100:110, 3], frames[150:170, 5:20] = np.nan, np.inf
    frames[300:320] *= 1e-41
    frames[330:340], frames[400:410], frames[450:460, 1] = 0, 3e38, 1e30
    frames[500:520] = np.nan
    ticks = program.run(pushes(frames, [10]))["push"].ravel().astype(int)
    lost = np.isin(np.arange(60), (50, 51))
    assert ticks[~lost].max() - ticks[~lost].min() < (0.003 if shape == NANO else 0.005) * ticks.max()
    assert ticks[lost].max() < ticks[~lost].min()


# ---------------------------------------------------------------- memory


def test_four_bit_weights_take_half_the_flash_and_no_more_instructions(built: Built) -> None:
    eight, four = (built(NANO, trace=False, four=parts) for parts in ((), four_bit_parts(NANO)))
    saved = read_linker_sizes(eight)["FLASH"] - read_linker_sizes(four)["FLASH"]
    assert 0.4 * WEIGHTS < saved < 0.5 * WEIGHTS
    ticks = [int(one.run(steps(random_bins(NANO, 30)))["ticks"].max()) for one in (eight, four)]
    assert ticks[1] <= ticks[0]
    assert measure_whole_program(four)["flash"] <= 130_000


@DEPLOYED
def test_the_deployed_size_fits_the_target(built: Built, shape: StudentShape) -> None:
    """The linker counts flash and RAM of this firmware, and of one that calls every function. Paint shows the stack."""
    program = built(shape, trace=False)
    used = read_linker_sizes(program)
    require_fits("cortex-m7", used["FLASH"], used["RAM"])
    rng = np.random.default_rng(2)
    frames = rng.standard_normal((200, NANO.channels)).astype(np.float32)
    state, stack = program.run(pushes(frames, [10]))["sizes"][0].tolist()
    assert state <= used["RAM"] < state + 256
    assert 1024 < stack < STACK_MAX[shape]
    whole = measure_whole_program(program)
    assert whole["state"] == state
    require_fits("cortex-m7", whole["flash"], whole["ram"])


def measure_whole_program(program: Program) -> dict[str, int]:
    """Returns the bytes of state, flash and RAM of a program that calls every function."""
    folder, toolchain = program.file.parent, program.toolchain
    options = (f"-I{KERNELS}/include", f"-I{KERNELS}/c", "-I.", '-DED_MODEL_HEADER="model_test.h"')
    state = state_bytes(folder, toolchain, options)
    whole = flash_and_ram(folder, toolchain, options, ["ed_api.o", "ed_engine.o"], "test", state)
    return {"state": state, **whole}


def test_weights_lie_in_flash_and_rings_in_ram(built: Built) -> None:
    program = built(NANO, trace=False)
    toolchain, folder = program.toolchain, program.file.parent
    listed = toolchain.run(folder, toolchain.tool("nm"), "-S", "program").splitlines()
    found = {fields[3]: (int(fields[0], 16), int(fields[1], 16)) for line in listed if len(fields := line.split()) == 4}
    weights, (memory, size) = found["ed_weights"], found["memory"]
    assert weights[0] + weights[1] <= 512 * 1024
    assert weights[1] > 140_000
    assert 0x20000000 <= memory < memory + size <= 0x20000000 + 176 * 1024
    mutable = toolchain.run(folder, toolchain.tool("size"), "-A", "ed_engine.o", "ed_api.o")
    assert not [line for line in mutable.splitlines() if re.match(r"\.(data|bss)[\w.]* +[1-9]", line)]


def test_only_memcpy_and_memset_come_from_the_c_library(built: Built) -> None:
    text = (built(NANO, trace=False).file.parent / "program.map").read_text()
    members = re.findall(r"libc[\w.-]*\.a\((?:lib_a-)?([\w-]+)\.o\)", text.split("Memory Configuration")[0])
    assert {re.sub(r"(-stub|-armv7m|-armv7-m)$", "", member) for member in members} <= ALLOWED
