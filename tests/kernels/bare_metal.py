"""Links a random student into firmware for an emulated board, and holds firmware to the oracle and the numpy stream."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import replace
from fractions import Fraction
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest

from benchmarks.cpu.array_models import draw_smoothing_model
from benchmarks.firmware.boards import PROGRAM, Board
from edgedistill.config import StudentShape
from edgedistill.frontend import FrontEndConfig
from edgedistill.numerics import part_names
from edgedistill.numerics.tensors import four_bit_parts, part_of, weight_matrices
from edgedistill.runtime import Flag
from edgedistill.target import load_target

from ..numerics.students import random_bins, random_model
from . import emulated
from .c_builds import front_end_of
from .emulated import (
    BARE,
    NANO,
    Program,
    export,
    import_,
    pushes,
    require_same_bits,
    require_same_outputs,
    reset,
    steps,
)

LINK = ("-nostartfiles", f"-T{BARE}/mps2.ld", "-Wl,--gc-sections", "-Wl,-Map=program.map", "-Wl,--print-memory-usage")
BANDS = ((12.0, 30.0), (30.0, 60.0), (70.0, 150.0), (150.0, 300.0))
NANO_WITH_BANDS = replace(NANO, channels=NANO.channels * (1 + len(BANDS)))
DEPLOYED = (NANO, NANO_WITH_BANDS)
# bytes of int8 in the matrices that may have four bits
WEIGHTS = sum(
    rows * n for name, ((rows, n), _) in weight_matrices(NANO).items() if part_of(name) in four_bit_parts(NANO)
)
INSTRUCTIONS = 2_000_000  # of the loop that checks a board's clock

Built = Callable[..., Program]


def firmware_of(board: Board, make_folder: Callable[[], Path]) -> Built:
    """Returns a function that links firmware of a shape once. One without a trace smooths its outputs.

    Skips the test where the compiler, its C library or the emulator is missing.
    """
    toolchain = emulated.toolchain_of(board.target)
    if not Path(toolchain.run(Path(), toolchain.compiler.command, "-print-file-name=libc.a").strip()).is_absolute():
        pytest.skip("no C library for bare Arm: apt install libnewlib-arm-none-eabi")
    emulated.require(PROGRAM, "qemu-system-arm")
    made: dict[tuple[object, ...], Program] = {}

    def get(shape: StudentShape, trace: bool = True, four: tuple[str, ...] = (), keep: tuple[str, ...] = ()) -> Program:
        if (shape, trace, four, keep) not in made:
            model, folder = random_model(shape, keep=keep, four=four), make_folder()
            bands = BANDS if shape == NANO_WITH_BANDS else ()
            deployed = FrontEndConfig(rate=Fraction(1000), channels=32, left_out=(0, 31), bands=bands)
            config = deployed if shape in DEPLOYED else front_end_of(model)
            options = ("-DED_TEST_BARE", *(["-DED_TRACE"] if trace else []))
            smoothing = None if trace else draw_smoothing_model(shape.outputs, 2)
            sources = [BARE / "startup.c"]
            file, said = emulated.build(folder, toolchain, model, config, sources, options, LINK, smoothing)
            command = (*board.command, "-kernel", str(file))
            made[shape, trace, four, keep] = Program(file, command, model, config, toolchain, said, smoothing)
        return made[shape, trace, four, keep]

    return get


# ---------------------------------------------------------------- bits


def require_every_tensor_from_a_fresh_start(program: Program) -> None:
    """Compares every integer, output and state with the oracle, past the wrap of the window and after a reset."""
    shape = program.model.shape
    bins = random_bins(shape, 3 * shape.window + 5)
    bins[7:9] *= 1e4  # saturates
    bins[10] = 0
    oracle, found = program.oracle(), program.run(steps(bins), export(), reset(), steps(bins[:5]))
    expected = oracle.trace(bins)
    require_same_bits(found, expected)
    require_same_bits(found, {name: value[:5] for name, value in expected.items()}, start=len(bins))
    state = program.student(found["state"][0])
    assert all(emulated.same(state[name], value) for name, value in oracle.export_state().items())


def require_every_tensor_from_a_fresh_and_a_given_state(program: Program) -> None:
    """Compares 300 steps past the wrap of 200 bins, then 100 more from a state of the oracle at its wrap."""
    bins, ahead = random_bins(NANO, 400), program.oracle()
    ahead.run(random_bins(NANO, 395, seed=5))
    fresh = program.run(export())["state"][0]
    resumed = import_(program.state_of(fresh, ahead.export_state()))
    found = program.run(steps(bins[:300]), resumed, steps(bins[300:]))
    require_same_bits(found, program.oracle().trace(bins[:300]))
    require_same_bits(found, ahead.trace(bins[300:]), start=300)


def require_the_outputs_of_raw_frames(program: Program) -> None:
    """Includes the front end: 300 bins in uneven chunks, with channels that die, saturate, lose samples or float.

    The running amplitude is raised at the start, so that SHIFTED comes and goes.
    """
    rng = np.random.default_rng(1)
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


def require_the_bits_of_a_random_model(built: Built, seed: int) -> None:
    """Draws a shape, which parts have four bits and which stay in float32, states and frames, and compares all outputs.

    Bins are extreme from a fresh start, then from a state of random integers. Frames follow after a reset, in uneven
    chunks, with lost samples, artefacts and channels that die.
    """
    rng = np.random.default_rng(seed)
    shape, four, keep = draw_student(rng)
    program = built(shape, four=four, keep=keep)
    first, then = (make_extreme_bins(rng, 2 * shape.window + 9, shape.channels) for _ in range(2))
    frames, oracle, given = make_extreme_frames(rng, program.config.channels), program.oracle(), program.oracle()
    state = {name: rng.integers(-127, 128, value.shape, np.int8) for name, value in given.export_state().items()}
    slots = shape.window - 1
    state |= {"pos": np.array([rng.integers(slots)], np.int32), "live": np.array([rng.integers(slots + 1)], np.int32)}
    given.import_state(state)
    imported = import_(program.state_of(program.run(export())["state"][0], state))
    chunks = tuple(map(int, rng.integers(1, 65, 7)))
    found = program.run(steps(first), imported, steps(then), export(), reset(), pushes(frames, chunks), export())
    require_same_bits(found, oracle.trace(first))
    require_same_bits(found, given.trace(then), start=len(first))
    after, stream = program.student(found["state"][0]), program.stream()
    assert all(emulated.same(after[name], value) for name, value in given.export_state().items())
    require_same_outputs(found["output"], stream.push(frames))
    program.require_same_shift(found["state"][1], stream)


def draw_student(rng: np.random.Generator) -> tuple[StudentShape, tuple[str, ...], tuple[str, ...]]:
    """Returns a shape of any odd sizes, its parts with four-bit weights and its parts in float32."""
    most = {"channels": 12, "outputs": 3, "layers": 2, "ff": 70, "taps": 4, "dilation": 3}
    sizes = {name: int(rng.integers(1, top + 1)) for name, top in most.items()}
    heads, width = int(rng.integers(1, 4)), int(rng.integers(1, 25))
    window, lags = int(rng.integers(2, 41)), int(rng.integers(6))
    shape = StudentShape(**sizes, d=heads * width, heads=heads, window=window, lags=lags)
    chosen = {part: rng.random() for part in part_names(shape) if not part.endswith("attention")}
    four = tuple(part for part in four_bit_parts(shape) if chosen[part] < 0.6)
    return shape, four, tuple(part for part, value in chosen.items() if value > 0.9)


def make_extreme_bins(rng: np.random.Generator, count: int, channels: int) -> npt.NDArray[np.float32]:
    """Returns bins (count, channels) of which a third saturates, vanishes or is denormal, and one channel is lost."""
    scales = rng.choice([1, 1, 1, 1, 30, 1e4, 1e37, 0, 1e-41], (count, 1))
    bins = (rng.standard_normal((count, channels)) * scales).astype(np.float32)
    bins[count // 2 :, rng.integers(channels)] = 0
    return bins


def make_extreme_frames(rng: np.random.Generator, channels: int) -> npt.NDArray[np.float32]:
    """Returns 600 frames (600, channels) in uV with stretches of any length that no amplifier should send."""
    frames = (25 * rng.standard_normal((600, channels))).astype(np.float32)
    for value in (np.nan, np.inf, -np.inf, 3e38, 1e30, 1e-40, 0.0, 8191.0):
        at = int(rng.integers(len(frames)))
        frames[at : at + int(rng.integers(1, 120)), rng.random(channels) < 0.4] = value
    return frames


# ---------------------------------------------------------------- instructions and memory


def ticks_of_steps(program: Program, board: Board) -> np.ndarray:
    """Returns the ticks of 220 steps: a cold ring, a full one, zeros, saturation, denormals. Checks the clock first."""
    bins = random_bins(program.model.shape, 220)
    bins[100:110], bins[205:210], bins[210:] = 0, 1e30, -1e-42
    found = program.run(emulated.count(INSTRUCTIONS // 2), steps(bins))
    assert abs(board.instructions(int(found["loop"][0, 0])) - INSTRUCTIONS) <= 2 * board.tick
    return np.asarray(found["ticks"].ravel(), np.int64)


def read_linker_sizes(program: Program) -> dict[str, int]:
    """Returns the bytes of FLASH and RAM that the linker counted."""
    sizes = re.findall(r"(\w+): +(\d+) (K?)B ", program.said)  # whole kilobytes are printed as such
    return {name: int(size) * (1024 if kilo else 1) for name, size, kilo in sizes}


def require_fits(target: str, flash: int, ram: int) -> None:
    """Holds flash and RAM to the gates of a target, which allow 512 and 160 KiB."""
    gates = load_target(target).judge({"flash_bytes": flash, "ram_bytes": ram})
    assert [(gate.limit, gate.ok) for gate in gates if gate.value is not None] == [(524288, True), (163840, True)]
