"""Tests 64-bit Arm under emulation: every integer and every float of the step has the bits of the oracle."""

from __future__ import annotations

import subprocess
from collections.abc import Callable
from dataclasses import replace
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest

from benchmarks.cpu.array_models import draw_smoothing_model
from edgedistill.config import StudentShape
from edgedistill.numerics.tensors import four_bit_parts
from edgedistill.runtime import Flag
from edgedistill.target import load_target

from ..numerics.students import ODD, SMALL, random_bins, random_model
from . import emulated
from .c_builds import BANDED, front_end_of
from .emulated import NANO, Program, export, import_, pushes, require_same_bits, require_same_outputs, reset, steps

SHAPES = {
    "small": SMALL,
    "odd": ODD,  # heads of 7 dims
    "window-2": StudentShape(4, 2, d=32, layers=1, heads=1, window=2, ff=16, taps=1, dilation=1, lags=0),
    "wide": StudentShape(33, 3, d=144, layers=1, heads=3, window=37, ff=80, taps=2, dilation=5, lags=2),
}
KEPT = ("embed", "layers.0.gate_up", "layers.1.qkv", "layers.1.out", "layers.1.down", "readout")
FUSED = ("fmla", "fmls", "fmadd", "fmsub", "fnmadd", "fnmsub")

Built = Callable[..., Program]


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Built:
    """Compiles the program of a shape once, some as deployed and most with less optimization, which is quicker.

    One without a trace smooths its outputs.
    """
    toolchain = emulated.toolchain_of("aarch64")
    run = toolchain.compiler.run
    emulated.require(run[0], "qemu-user")
    made: dict[tuple[object, ...], Program] = {}

    def get(
        shape: StudentShape,
        keep: tuple[str, ...] = (),
        trace: bool = True,
        four: tuple[str, ...] = (),
        **changes: object,
    ) -> Program:
        key = (shape, keep, trace, four, *changes.values())
        if key not in made:
            model, folder = random_model(shape, keep=keep, four=four), tmp_path_factory.mktemp("aarch64")
            config = replace(front_end_of(model), **changes)  # type: ignore[arg-type]
            options, smoothing = (("-DED_TRACE",), None) if trace else ((), draw_smoothing_model(shape.outputs, 2))
            if key not in ((SMALL, (), True, ()), (NANO, (), True, ())):  # the others give the same bits
                options = (*options, "-O1")
            file, _ = emulated.build(folder, toolchain, model, config, compile_options=options, smoothing=smoothing)
            made[key] = Program(file, (*run, str(file)), model, config, toolchain, smoothing=smoothing)
        return made[key]

    return get


@pytest.mark.parametrize(
    "shape",
    [pytest.param(shape, marks=pytest.mark.variant if name == "window-2" else []) for name, shape in SHAPES.items()],
    ids=SHAPES,
)
def test_every_tensor_from_a_fresh_start_past_the_wrap(built: Built, shape: StudentShape) -> None:
    program, bins = built(shape), random_bins(shape, 3 * shape.window + 5)
    bins[7:9] *= 1e4  # saturates
    bins[10] = 0
    oracle, found = program.oracle(), program.run(steps(bins), export())
    require_same_bits(found, oracle.trace(bins))
    state = program.student(found["state"][0])
    assert all(emulated.same(state[name], value) for name, value in oracle.export_state().items())


@pytest.mark.parametrize("shape", [pytest.param(ODD, marks=pytest.mark.variant), SHAPES["wide"]], ids=["odd", "wide"])
def test_four_bit_weights_have_the_bits_of_the_oracle(built: Built, shape: StudentShape) -> None:
    program, bins = built(shape, four=four_bit_parts(shape)), random_bins(shape, 2 * shape.window)
    bins[7:9] *= 1e4
    require_same_bits(program.run(steps(bins)), program.oracle().trace(bins))


def test_four_bits_beside_eight_and_float32_have_the_bits_of_the_oracle(built: Built) -> None:
    program, bins = built(SMALL, KEPT, four=("layers.0.qkv", "layers.1.gate_up")), random_bins(SMALL, 30)
    require_same_bits(program.run(steps(bins)), program.oracle().trace(bins))


@pytest.mark.variant
def test_parts_kept_in_float32_have_the_bits_of_the_oracle(built: Built) -> None:
    program, bins = built(SMALL, KEPT), random_bins(SMALL, 30)
    require_same_bits(program.run(steps(bins)), program.oracle().trace(bins))


def test_goes_on_from_a_state_of_any_age(built: Built) -> None:
    program, rng, bins = built(SMALL), np.random.default_rng(3), random_bins(SMALL, 4 * 20)
    fresh = program.run(export())["state"][0]
    oracles, records = [program.oracle() for _ in range(4)], []
    for i, (oracle, live) in enumerate(zip(oracles, (0, 1, 5, 8), strict=True)):
        state = {k: rng.integers(-127, 128, v.shape, np.int8) for k, v in oracle.export_state().items()}
        state |= {"pos": np.array([rng.integers(8)], np.int32), "live": np.array([live], np.int32)}
        oracle.import_state(state)
        records += [import_(program.state_of(fresh, state)), steps(bins[20 * i : 20 * i + 20]), export()]
    found = program.run(*records)
    for i, oracle in enumerate(oracles):
        require_same_bits(found, oracle.trace(bins[20 * i : 20 * i + 20]), start=20 * i)
        state = program.student(found["state"][i])
        assert all(emulated.same(state[name], value) for name, value in oracle.export_state().items())


def test_reset_is_a_fresh_start(built: Built) -> None:
    program, bins = built(ODD), random_bins(ODD, 9)
    found = program.run(export(), steps(bins), reset(), export(), steps(bins))
    assert emulated.same(*found["state"])
    assert emulated.same(found["kinematics"][:9], found["kinematics"][9:])


def test_chunking_of_frames_does_not_change_the_bits(built: Built) -> None:
    program, rng = built(SMALL), np.random.default_rng(1)
    frames = (25 * rng.standard_normal((1200, SMALL.channels))).astype(np.float32)
    frames[300:310, 1] = np.nan
    frames[500:800, 2] = 4.0  # a dead channel
    frames[900, 3] = np.inf
    found = program.run(pushes(frames, (1, 7, 33, 64)))
    require_same_outputs(found["output"], program.stream().push(frames))


@pytest.mark.parametrize(
    "changes",
    [pytest.param({}, marks=pytest.mark.variant), {"rate": Fraction(2000), "follow_s": 10.0}],
    ids=["1 kHz", "2 kHz, follows"],
)
def test_bands_have_the_bits_of_numpy(built: Built, changes: dict[str, object]) -> None:
    program, rng = built(BANDED, trace=False, **changes), np.random.default_rng(1)
    frames = (25 * rng.standard_normal((1200, program.config.channels))).astype(np.float32)
    frames[300:310, 1] = np.nan
    frames[500:800, 2] = 4.0  # a dead channel
    frames[900, 3] = np.inf
    stream = program.stream()
    raised = import_(program.shift_soon(program.run(export())["state"][0], stream))
    found = program.run(raised, pushes(frames, (1, 7, 33, 64)))
    require_same_outputs(found["output"], stream.push(frames))


def test_the_running_amplitude_has_the_bits_of_numpy(built: Built) -> None:
    program, rng, stream = built(SMALL, trace=False), np.random.default_rng(1), built(SMALL, trace=False).stream()
    frames = (25 * rng.standard_normal((2000, SMALL.channels))).astype(np.float32)
    frames[300:310, 1] = np.nan
    frames[900:1200] *= 1e-20
    raised = import_(program.shift_soon(program.run(export())["state"][0], stream))
    found, outputs = program.run(raised, pushes(frames, (1, 7, 33, 64)), export()), stream.push(frames)
    require_same_outputs(found["output"], outputs)
    program.require_same_shift(found["state"][0], stream)
    assert {bool(output.flags & Flag.SHIFTED) for output in outputs} == {False, True}


def test_smoothed_steps_have_the_bits_of_numpy(built: Built) -> None:
    program, bins = built(SMALL, trace=False), random_bins(SMALL, 300)
    require_same_bits(program.run(steps(bins)), program.decode(bins))


def test_the_deployed_size_has_the_bits_of_the_oracle(built: Built) -> None:
    """Compares all tensors, past the wrap of its 200 bins."""
    program, bins = built(NANO), random_bins(NANO, 420)
    require_same_bits(program.run(steps(bins)), program.oracle().trace(bins))


@pytest.mark.variant
def test_ten_thousand_steps_of_the_deployed_size(built: Built) -> None:
    program, bins = built(NANO, trace=False), random_bins(NANO, 10_000)
    found = program.run(steps(bins), timeout=500)
    require_same_bits(found, program.oracle().trace(bins, ()) | program.decode(bins))


def test_no_product_is_fused_into_a_sum(built: Built) -> None:
    program = built(SMALL)
    code = program.toolchain.run(program.file.parent, program.toolchain.tool("objdump"), "-d", "ed_engine.o")
    mnemonics = {fields[2] for line in code.splitlines() if len(fields := line.split("\t")) > 2}
    assert "sdot" in mnemonics
    assert not mnemonics.intersection(FUSED)


def test_clang_gives_the_same_bits(tmp_path: Path, built: Built) -> None:
    """Links clang's objects with the rest by the target's own compiler."""
    emulated.require("clang", "clang")
    program, bins = built(SMALL), random_bins(SMALL, 40)
    folder, toolchain = program.file.parent, program.toolchain
    ours = ("-Werror", f"-I{emulated.KERNELS}/include", f"-I{emulated.KERNELS}/c", '-DED_MODEL_HEADER="model_test.h"')
    flags = (*toolchain.flags, *ours, "-DED_TRACE", "-I.", "-c", str(emulated.KERNELS / "c/ed_engine.c"))
    command = ("clang", "--target=aarch64-linux-gnu", *flags, "-o", str(tmp_path / "ed_engine.o"))
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    objects = ("ed_api.o", "emulated.o", str(tmp_path / "ed_engine.o"))
    toolchain.run(folder, toolchain.compiler.command, *objects, "-o", str(tmp_path / "program"))
    other = replace(program, file=tmp_path / "program", command=(*program.command[:-1], str(tmp_path / "program")))
    require_same_bits(other.run(steps(bins)), program.oracle().trace(bins))


def test_the_emulator_is_named_by_the_target() -> None:
    compiler = load_target("aarch64").compiler
    assert compiler is not None
    assert compiler.run[0] == "qemu-aarch64"
