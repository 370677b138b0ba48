"""Tests the whole INT8 step in CUDA on the emulated GPU: every integer, float and state has the oracle's bits."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from edgedistill.compile.cuda.model_source import SHARED_BYTES, cuda_sources
from edgedistill.compile.cuda.packing import StepForm, find_packable_parts, packed_weights, threads_of
from edgedistill.compile.cuda.row_layout import RowLayout
from edgedistill.config import StudentShape
from edgedistill.errors import EngineError
from edgedistill.numerics import Int8Model, Oracle
from edgedistill.numerics.tensors import four_bit_parts

from ..numerics.students import ODD, SMALL, largest_four_bit_model, random_bins, random_model, saturated_bins
from . import cuda_steps
from .c_builds import ROOT, facts_of, front_end_of
from .cuda_emulation import compilers, reversed_order, sanitized
from .cuda_steps import EmulatedStep
from .test_c_step import SHAPES, same

NANO = StudentShape(96, 2, d=64, layers=2, heads=4, window=200, ff=256, taps=5, dilation=2, lags=10)
EDGE = StudentShape(96, 2, d=128, layers=4, heads=4, window=200, ff=512, taps=5, dilation=2, lags=10)
PAPER = StudentShape(96, 2, d=256, layers=10, heads=8, window=200, ff=1024, taps=5, dilation=2, lags=10)
MANY = StudentShape(2, 1, d=40, layers=1, heads=20, window=3, ff=8, taps=1, dilation=1, lags=0)  # more heads than warps
LONG = StudentShape(2, 1, d=24, layers=1, heads=3, window=700, ff=8, taps=1, dilation=1, lags=1)  # rounds of slots
TALL = StudentShape(600, 1, d=16, layers=1, heads=1, window=4, ff=1100, taps=1, dilation=1, lags=1)  # many rows
UNEVEN = StudentShape(5, 2, d=21, layers=2, heads=3, window=9, ff=31, taps=3, dilation=2, lags=3)
CHIPS = ("sm_75", "sm_87", "sm_90", "sm_110")
NVCC = shutil.which("nvcc")
FLAGS = ("-std=c++17", "-cubin", "--fmad=false", "--prec-div=true", "--prec-sqrt=true", "--ftz=false", "-Xptxas", "-v")

MOST_PARTS = "embed", "qkv", "out", "gate_up", "down"

Builder = Callable[..., tuple[EmulatedStep, Oracle]]


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Builder:
    """Returns the step and the oracle of a shape at the start of a stream; compiles it once.

    With `packed`, the parts of these names have four-bit weights, which stay packed.
    """
    made: dict[Any, tuple[EmulatedStep, Int8Model]] = {}

    def get(shape: StudentShape, packed: tuple[str, ...] = ()) -> tuple[EmulatedStep, Oracle]:
        if (shape, packed) not in made:
            model = random_model(shape, four=tuple(p for p in four_bit_parts(shape) if p.split(".")[-1] in packed))
            assert find_packable_parts(model) == packed
            step = cuda_steps.build(tmp_path_factory.mktemp("cuda"), model, pack=True)
            made[shape, packed] = step, model
        made[shape, packed][0].reset()
        return made[shape, packed][0], Oracle(made[shape, packed][1])

    return get


def require_same_bits(step: EmulatedStep, oracle: Oracle, bins: npt.NDArray[np.float32], states: bool = True) -> None:
    """Compares a stream with the oracle. With `states`, also compares the state after every bin, not only the last."""
    got = step.run(bins, traced=True, states=states)
    for i in range(len(bins) if states else 0):
        for name, value in oracle.trace(bins[i : i + 1]).items():
            assert same(got[name][i], value.reshape(got[name][i].shape)), f"{name} of bin {i}"
        require_same_state(got["states"][i], oracle)
    for name, value in ({} if states else oracle.trace(bins)).items():
        assert same(got[name], value.reshape(got[name].shape)), name
    require_same_state(step.export(), oracle)


def require_same_state(got: dict[str, npt.NDArray[Any]], oracle: Oracle) -> None:
    wanted = oracle.export_state()
    assert got.keys() == wanted.keys()
    assert all(same(got[name], value) for name, value in wanted.items())


def random_state(oracle: Oracle, pos: int, live: int, seed: int = 3) -> dict[str, npt.NDArray[Any]]:
    rng = np.random.default_rng(seed)
    state = {k: rng.integers(-127, 128, v.shape, np.int8) for k, v in oracle.export_state().items()}
    return state | {"pos": np.array([pos], np.int32), "live": np.array([live], np.int32)}


@pytest.mark.parametrize("shape", [*SHAPES.values(), MANY, TALL], ids=[*SHAPES, "many-heads", "tall"])
def test_every_tensor_and_state_from_a_fresh_start_past_the_wrap(built: Builder, shape: StudentShape) -> None:
    step, oracle = built(shape)
    bins = random_bins(shape, 2 * shape.window + 5)
    bins[3:5] *= 1e4  # saturates
    bins[6] = 0
    require_same_bits(step, oracle, bins)


def test_four_bit_weights_are_read_as_the_int8_weights_that_they_are(tmp_path: Path) -> None:
    model = random_model(SMALL, four=four_bit_parts(SMALL))
    require_same_bits(cuda_steps.build(tmp_path, model), Oracle(model), random_bins(SMALL, 25))


PACKED_SHAPES = {**SHAPES, "uneven": UNEVEN, "many-heads": MANY, "tall": TALL}
FEW = ("wide", "uneven", "tall")  # the others are as many further variants


@pytest.mark.parametrize(
    "shape",
    [pytest.param(s, id=name, marks=() if name in FEW else pytest.mark.variant) for name, s in PACKED_SHAPES.items()],
)
def test_packed_four_bit_weights_have_every_tensor_and_state_past_the_wrap(built: Builder, shape: StudentShape) -> None:
    step, oracle = built(shape, MOST_PARTS)
    bins = random_bins(shape, 2 * shape.window + 5)
    bins[3:5] *= 1e4
    bins[6] = 0
    require_same_bits(step, oracle, bins)


@pytest.mark.parametrize(
    "packed",
    [
        ("embed", "gate_up"),
        ("qkv", "out", "down"),
        *(pytest.param((p,), marks=pytest.mark.variant) for p in MOST_PARTS),
    ],
    ids="-".join,
)
def test_each_part_may_be_packed_beside_int8_parts(built: Builder, packed: tuple[str, ...]) -> None:
    step, oracle = built(UNEVEN, packed)
    require_same_bits(step, oracle, random_bins(UNEVEN, 23))


@pytest.mark.parametrize("shape", [SMALL, pytest.param(UNEVEN, marks=pytest.mark.variant)], ids=["small", "uneven"])
def test_the_largest_packed_sums_have_the_bits_of_the_oracle(tmp_path: Path, shape: StudentShape) -> None:
    model = largest_four_bit_model(shape)
    require_same_bits(cuda_steps.build(tmp_path, model, pack=True), Oracle(model), saturated_bins(shape))


@pytest.mark.parametrize("threads", [32, *(pytest.param(n, marks=pytest.mark.variant) for n in (128, 512, 1024))])
def test_packed_weights_suit_any_number_of_threads(tmp_path: Path, threads: int) -> None:
    shape = replace(UNEVEN, outputs=1)
    model = random_model(shape, four=four_bit_parts(shape))
    step = cuda_steps.build(tmp_path, model, threads=threads, pack=True)
    require_same_bits(step, Oracle(model), random_bins(shape, 14))


def test_factors_of_the_next_layer_come_after_those_of_this_one_are_used(tmp_path: Path) -> None:
    """A layer of 15 passes is all that is read ahead, and its first four share a word of factors."""
    shape = StudentShape(3, 1, d=24, layers=2, heads=1, window=2, ff=8, taps=1, dilation=1, lags=0)
    model = random_model(shape, four=four_bit_parts(shape))
    step = cuda_steps.build(tmp_path, model, threads=32, pack=True)
    require_same_bits(step, Oracle(model), random_bins(shape, 9))


def test_a_part_is_packed_only_if_all_layers_have_four_bits_and_its_rows_are_not_too_long() -> None:
    some = ("embed", "layers.0.qkv", "layers.1.qkv", "layers.0.out", "layers.1.down")
    assert find_packable_parts(random_model(SMALL, four=some)) == ("embed", "qkv")
    assert find_packable_parts(random_model(SMALL)) == ()
    for channels, parts in ((4096, MOST_PARTS), (4097, MOST_PARTS[1:])):
        wide = StudentShape(channels, 1, d=2, layers=1, heads=1, window=2, ff=2, taps=2, dilation=1, lags=0)
        assert find_packable_parts(random_model(wide, four=four_bit_parts(wide))) == parts


@pytest.mark.parametrize(
    ("shape", "packed"),
    [
        pytest.param(NANO, (), id="nano"),
        pytest.param(LONG, (), id="long"),
        pytest.param(NANO, MOST_PARTS, id="nano-four"),
        pytest.param(EDGE, (), id="edge", marks=pytest.mark.variant),
        pytest.param(EDGE, MOST_PARTS, id="edge-four", marks=pytest.mark.variant),
    ],
)
def test_presets_have_the_bits_of_the_oracle_around_the_wrap(
    built: Builder, shape: StudentShape, packed: tuple[str, ...]
) -> None:
    step, oracle = built(shape, packed)
    state = random_state(oracle, shape.window - 33, shape.window - 1)
    step.import_(state)
    oracle.import_state(state)
    require_same_bits(step, oracle, random_bins(shape, 64), states=False)


@pytest.mark.slow
def test_the_student_of_the_paper_has_the_bits_of_the_oracle(built: Builder) -> None:
    step, oracle = built(PAPER)
    require_same_bits(step, oracle, random_bins(PAPER, 3))


def test_goes_on_from_a_state_of_any_age(built: Builder) -> None:
    step, oracle = built(SMALL)
    for live in (0, 1, 5, 8):
        state = random_state(oracle, (3 * live + 2) % 8, live)
        oracle.import_state(state)
        step.import_(state)
        require_same_state(step.export(), oracle)
        require_same_bits(step, oracle, random_bins(SMALL, 20, live))


@pytest.mark.parametrize("packed", [(), MOST_PARTS], ids=["eight", "four"])
def test_the_order_of_threads_changes_nothing(built: Builder, packed: tuple[str, ...]) -> None:
    step, oracle = built(SMALL, packed)
    with reversed_order(step.c):
        require_same_bits(step, oracle, random_bins(SMALL, 25))


@pytest.mark.parametrize("threads", [128, *(pytest.param(n, marks=pytest.mark.variant) for n in (512, 1024))])
def test_the_number_of_threads_changes_nothing(tmp_path: Path, threads: int) -> None:
    model = random_model(SMALL)
    step = cuda_steps.build(tmp_path, model, threads=threads)
    require_same_bits(step, Oracle(model), random_bins(SMALL, 25))


def test_reset_is_a_fresh_start(built: Builder) -> None:
    step, oracle = built(ODD)
    first = step.run(random_bins(ODD, 9))["kinematics"]
    step.reset()
    require_same_state(step.export(), oracle)
    assert same(step.run(random_bins(ODD, 9))["kinematics"], first)


@pytest.mark.skipif("clang++" not in compilers(), reason="clang++ is not installed")
def test_clang_gives_the_same_bits(tmp_path: Path) -> None:
    model = random_model(ODD)
    step = cuda_steps.build(tmp_path, model, compiler="clang++")
    require_same_bits(step, Oracle(model), random_bins(ODD, 12))


@pytest.mark.variant
@pytest.mark.skipif(sanitized() is None, reason="no sanitizers")
@pytest.mark.parametrize("packed", [False, True], ids=["eight", "four"])
def test_sanitizers_find_nothing(tmp_path: Path, packed: bool) -> None:
    """Runs in a process of its own, because the sanitizers must be loaded before numpy."""
    program = (
        "from pathlib import Path; from tests.kernels.test_cuda_step import *\n"
        f"model = random_model(UNEVEN, four=four_bit_parts(UNEVEN) if {packed} else ())\n"
        f"step = cuda_steps.build(Path({str(tmp_path)!r}), model, sanitize=True, pack={packed})\n"
        "require_same_bits(step, Oracle(model), random_bins(UNEVEN, 12))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, env=sanitized(), capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-3000:]


@pytest.mark.skipif(NVCC is None, reason="nvcc is not installed")
@pytest.mark.parametrize("chip", CHIPS)
@pytest.mark.parametrize("packed", [False, pytest.param(True, marks=pytest.mark.variant)], ids=["eight", "four"])
@pytest.mark.parametrize("shape", [NANO, pytest.param(EDGE, marks=pytest.mark.variant)], ids=["nano", "edge"])
def test_nvcc_spills_nothing(tmp_path: Path, shape: StudentShape, packed: bool, chip: str) -> None:
    """Spilled registers would lie in memory, in the way of the stream. Shared memory is what Python computes."""
    model = random_model(shape, four=four_bit_parts(shape) if packed else ())
    cuda_steps.write_sources(tmp_path, model, pack=packed)
    folders = [f"-I{ROOT}/kernels/{name}" for name in ("include", "c", "cuda")]
    command = [str(NVCC), *FLAGS, f"-arch={chip}", cuda_steps.DEFINES[0], "-I.", *folders, str(cuda_steps.SOURCES[0])]
    done = subprocess.run([*command, "-o", "s.cubin"], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    kernels = dict(re.findall(r"properties for (\w+)\s+(.*?)\n", done.stderr))
    assert kernels["ed_student_step"] == "0 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads"
    shared = max(int(size) for size in re.findall(r"(\d+) bytes smem", done.stderr))
    assert shared <= StepForm.of(model, pack=packed).shared_bytes <= shared + 1024


@pytest.mark.parametrize(("rows", "n"), [(128, 480), (384, 128), (512, 128), (21, 31), (600, 20), (7, 2000)])
def test_packing_keeps_every_weight_once(rows: int, n: int) -> None:
    layout = RowLayout(rows, n, 512)
    numbers = np.arange(1, rows + 1, dtype=np.float32)
    found = layout.distribute(numbers)
    assert sorted(found[found > 0]) == list(numbers)
    weights = np.ones((rows, n), np.int8)
    assert np.frombuffer(layout.pack(weights), np.int8).sum() == rows * n


@pytest.mark.parametrize(("rows", "n"), [(128, 480), (384, 128), (21, 31), (7, 2000)])
def test_packing_keeps_every_four_bit_weight_and_factor_once(rows: int, n: int) -> None:
    layout, rng = RowLayout(rows, n, 256, four=True), np.random.default_rng(0)
    factors = rng.integers(1, 16, (rows, -(-n // 32)), np.uint8)
    q = rng.integers(-7, 8, (rows, n), np.int8)
    weights = q * np.repeat(factors, 32, axis=1)[:, :n].astype(np.int8)
    packed = np.frombuffer(layout.pack_four_bits(weights, factors), np.uint8)
    passes = layout.rounds * layout.groups * 16 * -(-rows // layout.groups) * layout.threads
    nibbles = np.concatenate([packed[:passes].view(np.int8) >> 4, (packed[:passes] & 15).astype(np.int8) - 8])
    assert [(nibbles == value).sum() for value in range(-7, 0)] == [(q == value).sum() for value in range(-7, 0)]
    assert (nibbles > 0).sum() == (q > 0).sum()
    assert sorted(packed[passes:][packed[passes:] > 0]) == sorted(factors.ravel())


@pytest.mark.parametrize("shape", [NANO, EDGE, PAPER], ids=["nano", "edge", "paper"])
def test_packed_weights_take_little_more_than_half_the_bytes(shape: StudentShape) -> None:
    model = random_model(shape, four=four_bit_parts(shape))
    whole, packed = (len(packed_weights(model, StepForm.of(model, pack=pack))) for pack in (False, True))
    readout = len(model.tensors["readout.lags"].tobytes()) + 2048
    assert whole / 2 < packed < 0.55 * whole + readout


def test_a_model_that_does_not_fit_is_refused() -> None:
    kept = random_model(SMALL, keep=("layers.1.out",))
    with pytest.raises(EngineError, match=r"layers\.1\.out"):
        cuda_sources(kept, front_end_of(kept), facts_of(kept, front_end_of(kept)))
    wide = StudentShape(1, 1, d=64, layers=1, heads=64, window=2000, ff=8, taps=1, dilation=1, lags=0)
    assert (
        StepForm(wide, threads_of(wide)).shared_bytes > SHARED_BYTES >= StepForm(PAPER, threads_of(PAPER)).shared_bytes
    )
    model = random_model(wide)
    with pytest.raises(EngineError, match="shared memory"):
        cuda_sources(model, front_end_of(model), facts_of(model, front_end_of(model)))
