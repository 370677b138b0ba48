"""Tests a bare Cortex-M7 under emulation: bits of the oracle, memory of the target, and times that no data changes."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Callable
from dataclasses import replace
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest

from benchmarks.cpu.array_models import draw_smoothing_model
from edgedistill.compile.c.footprint import flash_and_ram, state_bytes
from edgedistill.config import StudentShape
from edgedistill.frontend import FrontEndConfig
from edgedistill.numerics import Oracle
from edgedistill.numerics.tensors import four_bit_parts
from edgedistill.runtime import Flag
from edgedistill.target import load_target

from ..numerics.students import ODD, SMALL, largest_four_bit_model, random_bins, random_model
from . import c_builds, emulated
from .c_builds import front_end_of
from .emulated import (
    KERNELS,
    NANO,
    Program,
    count,
    export,
    import_,
    pushes,
    require_same_bits,
    require_same_outputs,
    reset,
    steps,
)

BARE = KERNELS.parent / "emulation" / "cortex-m"
LINK = ("-nostartfiles", f"-T{BARE}/mps2.ld", "-Wl,--gc-sections", "-Wl,-Map=program.map", "-Wl,--print-memory-usage")
BANDS = ((12.0, 30.0), (30.0, 60.0), (70.0, 150.0), (150.0, 300.0))
NANO_WITH_BANDS = replace(NANO, channels=NANO.channels * (1 + len(BANDS)))
DEPLOYED = pytest.mark.parametrize("shape", [NANO, NANO_WITH_BANDS], ids=["nano", "nano with bands"])
SHAPES = {"small": SMALL, "odd": ODD}
HOST_SHAPES = SHAPES | {
    "window-2": StudentShape(4, 2, d=32, layers=1, heads=1, window=2, ff=16, taps=1, dilation=1, lags=0),
    "wide": StudentShape(33, 3, d=144, layers=1, heads=3, window=37, ff=80, taps=2, dilation=5, lags=2),
}
EMULATOR = (
    *("qemu-system-arm", "-machine", "mps2-an500", "-nographic", "-monitor", "none", "-serial", "none"),
    *("-semihosting-config", "enable=on,target=native"),
    *("-icount", "shift=0"),  # virtual time counts instructions, 1 ns each
    "-kernel",
)
TICK = 40  # instructions (ns) in a tick of SysTick, at 25 MHz
LAYER_WEIGHTS = NANO.layers * (4 * NANO.d**2 + 3 * NANO.d * NANO.ff)  # bytes of int8
STACK_MAX = {NANO: 10 * 1024, NANO_WITH_BANDS: 14 * 1024}  # bytes
ALLOWED = {"memcpy", "memmove", "memset"}  # functions of libc

Built = Callable[..., Program]


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Built:
    """Links firmware of a shape once. One without a trace smooths its outputs."""
    toolchain = emulated.toolchain_of("cortex-m7")
    if not Path(toolchain.run(Path(), toolchain.compiler.command, "-print-file-name=libc.a").strip()).is_absolute():
        pytest.skip("no C library for bare Arm: apt install libnewlib-arm-none-eabi")
    emulated.require(EMULATOR[0], "qemu-system-arm")
    made: dict[tuple[object, ...], Program] = {}

    def get(shape: StudentShape, trace: bool = True, four: tuple[str, ...] = ()) -> Program:
        if (shape, trace, four) not in made:
            model, folder = random_model(shape, four=four), tmp_path_factory.mktemp("cortex-m7")
            bands = BANDS if shape == NANO_WITH_BANDS else ()
            deployed = FrontEndConfig(rate=Fraction(1000), channels=32, left_out=(0, 31), bands=bands)
            config = deployed if shape in STACK_MAX else front_end_of(model)
            options = ("-DED_TEST_BARE", f"-I{BARE}", *(["-DED_TRACE"] if trace else []))
            smoothing = None if trace else draw_smoothing_model(shape.outputs, 2)
            sources = [BARE / "startup.c"]
            file, said = emulated.build(folder, toolchain, model, config, sources, options, LINK, smoothing)
            made[shape, trace, four] = Program(file, (*EMULATOR, str(file)), model, config, toolchain, said, smoothing)
        return made[shape, trace, four]

    return get


# ---------------------------------------------------------------- bits


@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
def test_every_tensor_from_a_fresh_start_past_the_wrap(built: Built, shape: StudentShape) -> None:
    program, bins = built(shape), random_bins(shape, 3 * shape.window + 5)
    bins[7:9] *= 1e4  # saturates
    bins[10] = 0
    oracle, found = program.oracle(), program.run(steps(bins), export(), reset(), steps(bins[:5]))
    expected = oracle.trace(bins)
    require_same_bits(found, expected)
    require_same_bits(found, {name: value[:5] for name, value in expected.items()}, start=len(bins))
    state = program.student(found["state"][0])
    assert all(emulated.same(state[name], value) for name, value in oracle.export_state().items())


def test_three_hundred_steps_of_the_deployed_size(built: Built) -> None:
    """Compares every integer tensor, past the wrap of 200 bins, then on from a state of the oracle at its wrap."""
    program, bins = built(NANO), random_bins(NANO, 400)
    oracle, ahead = program.oracle(), program.oracle()
    ahead.run(random_bins(NANO, 395, seed=5))
    fresh = program.run(export())["state"][0]
    resumed = import_(program.state_of(fresh, ahead.export_state()))
    found = program.run(steps(bins[:300]), resumed, steps(bins[300:]))
    require_same_bits(found, oracle.trace(bins[:300]))
    require_same_bits(found, ahead.trace(bins[300:]), start=300)


def test_three_hundred_steps_with_four_bit_weights(built: Built) -> None:
    """Compares every integer tensor, past the wrap of 200 bins."""
    program, bins = built(NANO, four=four_bit_parts(NANO)), random_bins(NANO, 300)
    bins[7:9] *= 1e4
    require_same_bits(program.run(steps(bins)), program.oracle().trace(bins))


@DEPLOYED
def test_raw_frames_of_the_deployed_size(built: Built, shape: StudentShape) -> None:
    """Includes the front end: 300 bins in uneven chunks, with channels that die, saturate, lose samples or float.

    The running amplitude is raised at the start, so that SHIFTED comes and goes.
    """
    program, rng = built(shape, trace=False), np.random.default_rng(1)
    frames = (25 * rng.standard_normal((3000, NANO.channels))).astype(np.float32)
    frames[300:310, 1] = np.nan
    frames[500:2500, 2] = 4.0
    frames[900, 3] = np.inf
    frames[1500:1600, 4] = 500.0
    frames[2000:2100, 5] = 1e-40  # a denormal
    frames[:, 0] += 3000 * np.sin(2 * np.pi * 0.06 * np.arange(3000)).astype(np.float32)  # left out
    frames[700:, 31] = np.nan  # left out
    stream = program.stream()
    raised = import_(program.shift_soon(program.run(export())["state"][0], stream))
    found, outputs = program.run(raised, pushes(frames, (1, 7, 33, 64)), export()), stream.push(frames)
    require_same_outputs(found["output"], outputs)
    program.require_same_shift(found["state"][0], stream)
    assert len(set(found["output"]["bad_channels"].ravel())) > 2
    assert {bool(output.flags & Flag.SHIFTED) for output in outputs} == {False, True}


def test_smoothed_steps_have_the_bits_of_numpy(built: Built) -> None:
    program, bins = built(NANO, trace=False), random_bins(NANO, 60)
    require_same_bits(program.run(steps(bins)), program.decode(bins))


@pytest.mark.parametrize("shape", HOST_SHAPES.values(), ids=HOST_SHAPES)
@pytest.mark.parametrize("weights", [8, 4])
def test_the_bits_are_the_same_without_the_extension(tmp_path: Path, weights: int, shape: StudentShape) -> None:
    """Runs the same layout on this machine, with the two instructions written out in C."""
    model = random_model(shape, four=four_bit_parts(shape) if weights == 4 else ())
    bins = random_bins(shape, 2 * shape.window + 5)
    engine = _on_this_machine(tmp_path, model)
    assert engine.info.variant == b"dsp"
    found, oracle = engine.run(bins, traced=True), Oracle(model)
    for name, value in oracle.trace(bins).items():
        assert emulated.same(found[name], value), name
    state = engine.unpacked(engine.export())
    assert all(emulated.same(state[name], value) for name, value in oracle.export_state().items())


def test_the_largest_sums_of_four_bit_weights_have_the_bits_of_the_oracle(tmp_path: Path) -> None:
    shape = HOST_SHAPES["wide"]
    model, bins = largest_four_bit_model(shape), random_bins(shape, 30)
    found = _on_this_machine(tmp_path, model).run(bins, traced=True)
    for name, value in Oracle(model).trace(bins).items():
        assert emulated.same(found[name], value), name


@pytest.mark.parametrize("four", [(), four_bit_parts(ODD)], ids=["eight", "four"])
def test_sanitizers_find_nothing(tmp_path: Path, four: tuple[str, ...]) -> None:
    c_builds.write_sources(tmp_path, random_model(ODD, four=four), "dsp")
    files = [KERNELS / "c/ed_api.c", KERNELS / "c/ed_engine.c", Path(__file__).with_name("hostile.c")]
    options = ("-O1", "-fsanitize=address,undefined", "-fno-sanitize-recover=all", '-DED_MODEL_HEADER="model_test.h"')
    program = c_builds.compile_c(tmp_path, "hostile", files, options, "gcc")
    done = subprocess.run([program], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]


def _on_this_machine(folder: Path, model: object) -> c_builds.Engine:
    c_builds.write_sources(folder, model, "dsp")  # type: ignore[arg-type]
    files = [KERNELS / "c/ed_api.c", KERNELS / "c/ed_engine.c", Path(__file__).with_name("trace.c")]
    options = ("-O1", "-DED_TRACE", '-DED_MODEL_HEADER="model_test.h"', "-shared", "-fPIC")
    return c_builds.Engine(c_builds.compile_c(folder, "engine.so", files, options, "gcc"), model)  # type: ignore


# ---------------------------------------------------------------- time


@pytest.mark.parametrize("four", [(), four_bit_parts(NANO)], ids=["eight", "four"])
def test_no_instruction_depends_on_the_data(built: Built, four: tuple[str, ...]) -> None:
    """A cold ring, a full one, zeros, saturation: each step takes as long as any other, to a tick of the clock."""
    program, bins = built(NANO, trace=False, four=four), random_bins(NANO, 220)
    bins[100:110], bins[205:210], bins[210:] = 0, 1e30, -1e-42
    found = program.run(count(1_000_000), steps(bins))
    assert abs(int(found["loop"][0, 0]) * TICK - 2_000_000) <= 2 * TICK  # the clock counts instructions
    ticks = found["ticks"].ravel().astype(int)
    assert ticks.max() - ticks.min() <= 1
    assert 100_000 < ticks.max() * TICK < 1_000_000


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
    assert 0.4 * LAYER_WEIGHTS < saved < 0.5 * LAYER_WEIGHTS
    ticks = [int(one.run(steps(random_bins(NANO, 30)))["ticks"].max()) for one in (eight, four)]
    assert ticks[1] <= ticks[0]
    assert measure_whole_program(four)["flash"] <= 130_000


@DEPLOYED
def test_the_deployed_size_fits_the_target(built: Built, shape: StudentShape) -> None:
    """The linker counts flash and RAM of this firmware, and of one that calls every function. Paint shows the stack."""
    program = built(shape, trace=False)
    used = read_linker_sizes(program)
    require_fits(used["FLASH"], used["RAM"])
    rng = np.random.default_rng(2)
    frames = rng.standard_normal((200, NANO.channels)).astype(np.float32)
    state, stack = program.run(pushes(frames, [10]))["sizes"][0].tolist()
    assert state <= used["RAM"] < state + 256
    assert 1024 < stack < STACK_MAX[shape]
    whole = measure_whole_program(program)
    assert whole["state"] == state
    require_fits(whole["flash"], whole["ram"])


def measure_whole_program(program: Program) -> dict[str, int]:
    """Returns the bytes of state, flash and RAM of a program that calls every function."""
    folder, toolchain = program.file.parent, program.toolchain
    options = (f"-I{KERNELS}/include", f"-I{KERNELS}/c", "-I.", '-DED_MODEL_HEADER="model_test.h"')
    state = state_bytes(folder, toolchain, options)
    whole = flash_and_ram(folder, toolchain, options, ["ed_api.o", "ed_engine.o"], "test", state)
    return {"state": state, **whole}


def read_linker_sizes(program: Program) -> dict[str, int]:
    """Returns the bytes of FLASH and RAM that the linker counted."""
    sizes = re.findall(r"(\w+): +(\d+) (K?)B ", program.said)  # whole kilobytes are printed as such
    return {name: int(size) * (1024 if kilo else 1) for name, size, kilo in sizes}


def require_fits(flash: int, ram: int) -> None:
    gates = load_target("cortex-m7").judge({"flash_bytes": flash, "ram_bytes": ram})
    assert [(gate.limit, gate.ok) for gate in gates if gate.value is not None] == [(524288, True), (163840, True)]


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
