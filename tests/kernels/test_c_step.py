"""Tests the INT8 step in C, in every variant of this CPU: all integers, floats and states have the oracle's bits."""

from __future__ import annotations

import subprocess
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from edgedistill.config import StudentShape
from edgedistill.numerics import Int8Model, Oracle
from edgedistill.numerics.tensors import four_bit_parts
from edgedistill.quantization.integers import bound_accumulators

from ..numerics.students import (
    ODD,
    SMALL,
    largest_four_bit_model,
    random_bins,
    random_model,
    saturated_bins,
    without_lags,
)
from . import c_builds
from .c_builds import Engine, build

VARIANTS = [
    pytest.param(
        ops,
        marks=[
            pytest.mark.skipif(not c_builds.runs_here(ops), reason=f"this CPU lacks {ops}"),
            *([pytest.mark.variant] if ops in ("dsp", "helium") else []),  # run on emulated boards in any case
        ],
    )
    for ops in c_builds.FLAGS
]
SHAPES = {
    "small": SMALL,
    "odd": ODD,
    "window-2": StudentShape(4, 2, d=32, layers=1, heads=1, window=2, ff=16, taps=1, dilation=1, lags=0),
    "narrow": StudentShape(1, 16, d=8, layers=1, heads=2, window=5, ff=3, taps=1, dilation=1, lags=4),
    "wide": StudentShape(33, 3, d=144, layers=1, heads=3, window=37, ff=80, taps=2, dilation=5, lags=2),
}
MIXED = ("embed", "layers.0.gate_up", "layers.1.qkv", "layers.1.out", "layers.1.down", "readout")
OTHERS = ("layers.0.qkv", "layers.0.out", "layers.0.down", "layers.1.gate_up")

Builder = Callable[..., tuple[Engine, Int8Model]]


def plain_first(variants: Sequence[Any]) -> list[Any]:
    """Returns the first variant for every run of the tests, and the others as further variants."""
    first, *others = variants
    return [
        first,
        *(pytest.param(*one.values, marks=[*one.marks, pytest.mark.variant], id=one.id) for one in others),
    ]


def shapes_of_variants(*also: str) -> Iterator[Any]:
    """Yields each shape with each variant.

    The smallest window is tried in plain C and in the variants `also`, elsewhere only with the further variants.
    """
    for name, shape in SHAPES.items():
        for variant in VARIANTS:
            (ops,) = variant.values
            further = name == "window-2" and ops not in ("scalar", *also)
            marks = [*variant.marks, *([pytest.mark.variant] if further else [])]
            yield pytest.param(shape, ops, marks=marks, id=f"{name}-{ops}")


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Builder:
    """Returns an engine of a shape and variant at the start of a stream; compiles it once.

    The engine of SMALL is optimized, with eight bits and with four. The others are compiled as fast as it goes.
    """
    made: dict[tuple[Any, ...], tuple[Engine, Int8Model]] = {}

    def get(
        shape: StudentShape, ops: str, keep: tuple[str, ...] = (), four: tuple[str, ...] = (), **options: Any
    ) -> tuple[Engine, Int8Model]:
        if shape == SMALL and not keep and four in ((), four_bit_parts(SMALL)):
            options = {"options": ("-O1",)} | options
        key = (shape, ops, keep, four, *options.values())
        if key not in made:
            model = random_model(shape, keep=keep, four=four)
            made[key] = build(tmp_path_factory.mktemp("c"), model, ops, **options), model
        made[key][0].reset()
        return made[key]

    return get


def require_same_bits(engine: Engine, oracle: Oracle, bins: npt.NDArray[np.float32], states: bool = True) -> None:
    got = engine.run(bins, traced=True, states=states)
    if states:
        for i in range(len(bins)):
            oracle_bin = oracle.trace(bins[i : i + 1])
            for name, value in oracle_bin.items():
                assert same(got[name][i], value), f"{name} of bin {i}"
            state = engine.unpacked(got["states"][i])
            assert all(same(state[name], value) for name, value in oracle.export_state().items()), f"state {i}"
    else:
        for name, value in oracle.trace(bins).items():
            assert same(got[name], value), name


def same(got: npt.NDArray[Any], wanted: npt.NDArray[Any]) -> bool:
    """Tells whether all bits are equal, so that the sign of a zero counts."""
    return got.dtype == wanted.dtype and got.tobytes() == np.ascontiguousarray(wanted).tobytes()


@pytest.mark.parametrize(("shape", "ops"), list(shapes_of_variants("avx512")))
def test_every_tensor_and_state_from_a_fresh_start_past_the_wrap(built: Builder, shape: StudentShape, ops: str) -> None:
    engine, model = built(shape, ops)
    bins = random_bins(shape, 3 * shape.window + 5)
    bins[7:9] *= 1e4  # saturates
    bins[10] = 0
    require_same_bits(engine, Oracle(model), bins)


@pytest.mark.parametrize("ops", VARIANTS)
@pytest.mark.parametrize("keep", [MIXED, OTHERS], ids=["mixed", "others"])
def test_parts_kept_in_float32_have_the_bits_of_the_oracle(built: Builder, keep: tuple[str, ...], ops: str) -> None:
    engine, model = built(SMALL, ops, keep)
    assert set(model.keep) == set(keep)
    require_same_bits(engine, Oracle(model), random_bins(SMALL, 30))


@pytest.mark.parametrize(("shape", "ops"), list(shapes_of_variants()))
def test_four_bit_weights_have_the_bits_of_the_oracle(built: Builder, shape: StudentShape, ops: str) -> None:
    engine, model = built(shape, ops, four=four_bit_parts(shape))
    bins = random_bins(shape, 3 * shape.window + 5)
    bins[7:9] *= 1e4
    require_same_bits(engine, Oracle(model), bins)


@pytest.mark.parametrize("ops", VARIANTS)
@pytest.mark.parametrize("four", [OTHERS, MIXED[:-1]], ids=["others", "mixed"])
def test_four_and_eight_bits_side_by_side_have_the_bits_of_the_oracle(
    built: Builder, four: tuple[str, ...], ops: str
) -> None:
    engine, model = built(SMALL, ops, keep=("layers.1.out",) if four == OTHERS else (), four=four)
    assert set(model.four) == set(four)
    require_same_bits(engine, Oracle(model), random_bins(SMALL, 30))


@pytest.mark.parametrize("ops", VARIANTS)
def test_the_largest_sums_of_four_bit_weights_have_the_bits_of_the_oracle(tmp_path: Path, ops: str) -> None:
    shape = SHAPES["wide"]
    model, bins = largest_four_bit_model(shape), saturated_bins(shape)
    seen = Oracle(model).trace(bins)
    assert (seen["layers.0.attn"] == 127).all()
    assert (np.abs(seen["layers.0.hidden"]) == 127).all()
    assert (seen["bin"][-shape.taps * shape.dilation :] == -127).all()
    require_same_bits(build(tmp_path, model, ops), Oracle(model), bins)


def test_helium_keeps_the_sums_of_very_many_inputs_within_32_bits(tmp_path: Path) -> None:
    """It sums 16 times the products of four-bit weights, which 10,400 inputs could lead beyond 32 bits."""
    shape = StudentShape(104, 1, d=16, layers=1, heads=1, window=2, ff=16, taps=100, dilation=1, lags=0)
    model = largest_four_bit_model(shape)
    assert 16 * bound_accumulators(model)["embed.weight"] > 2**31
    require_same_bits(build(tmp_path, model, "helium"), Oracle(model), saturated_bins(shape), states=False)


def test_a_readout_of_the_latents_alone_has_the_bits_of_the_oracle(tmp_path: Path) -> None:
    model = without_lags(random_model())
    require_same_bits(build(tmp_path, model, "scalar"), Oracle(model), random_bins(SMALL, 30))


@pytest.mark.parametrize("ops", VARIANTS)
def test_goes_on_from_a_state_of_any_age(built: Builder, ops: str) -> None:
    engine, model = built(SMALL, ops)
    oracle, rng = Oracle(model), np.random.default_rng(3)
    for live in (0, 1, 5, 8):
        state = {k: rng.integers(-127, 128, v.shape, np.int8) for k, v in oracle.export_state().items()}
        state |= {"pos": np.array([rng.integers(8)], np.int32), "live": np.array([live], np.int32)}
        oracle.import_state(state)
        assert engine.import_(engine.packed(state)) == 0
        assert all(same(engine.unpacked(engine.export())[name], value) for name, value in state.items())
        require_same_bits(engine, oracle, random_bins(SMALL, 20, live))


@pytest.mark.parametrize("ops", VARIANTS)
def test_a_state_of_one_variant_goes_on_in_another(built: Builder, ops: str) -> None:
    first, _ = built(SMALL, "scalar")
    first.run(random_bins(SMALL, 23))
    state = first.export()
    after = first.run(random_bins(SMALL, 20, 1))
    engine, _ = built(SMALL, ops)
    assert engine.import_(state) == 0
    assert same(engine.run(random_bins(SMALL, 20, 1))["kinematics"], after["kinematics"])


@pytest.mark.parametrize("ops", VARIANTS)
def test_reset_is_a_fresh_start(built: Builder, ops: str) -> None:
    engine, _ = built(ODD, ops)
    fresh = engine.export()
    first = engine.run(random_bins(ODD, 9))["kinematics"]
    engine.reset()
    assert (engine.export() == fresh).all()
    assert same(engine.run(random_bins(ODD, 9))["kinematics"], first)


@pytest.mark.skipif("clang" not in c_builds.compilers(), reason="clang is not installed")
@pytest.mark.parametrize("ops", plain_first(VARIANTS))
def test_clang_gives_the_same_bits(built: Builder, ops: str) -> None:
    engine, model = built(SMALL, ops, four=OTHERS, compiler="clang", options=("-O3",))
    require_same_bits(engine, Oracle(model), random_bins(SMALL, 40), states=False)


@pytest.fixture(scope="module")
def thousands() -> tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]]:
    """Returns bins of SMALL and what the oracle decodes of them."""
    bins = random_bins(SMALL, 3000)
    return bins, Oracle(random_model(SMALL)).run(bins)


@pytest.mark.parametrize("ops", VARIANTS)
def test_thousands_of_steps_have_the_bits_of_the_oracle(
    built: Builder, thousands: tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]], ops: str
) -> None:
    bins, expected = thousands
    assert same(built(SMALL, ops)[0].run(bins)["kinematics"], expected)


@pytest.mark.slow
@pytest.mark.parametrize("ops", VARIANTS)
def test_a_million_steps_have_the_bits_of_the_oracle(built: Builder, ops: str) -> None:
    engine, model = built(SMALL, ops, four=OTHERS, options=("-O3",))
    oracle = Oracle(model)
    for seed in range(20):
        bins = random_bins(SMALL, 50_000, seed)
        assert same(engine.run(bins)["kinematics"], oracle.run(bins)), seed
    state = engine.unpacked(engine.export())
    assert all(same(state[name], value) for name, value in oracle.export_state().items())


@pytest.mark.parametrize("ops", plain_first(VARIANTS))
@pytest.mark.parametrize(
    "four", [(), pytest.param(four_bit_parts(ODD), marks=pytest.mark.variant)], ids=["eight", "four"]
)
def test_sanitizers_find_nothing(tmp_path: Path, four: tuple[str, ...], ops: str) -> None:
    model = random_model(ODD, four=four)
    c_builds.write_sources(tmp_path, model, ops)
    sources = [c_builds.KERNELS / "c/ed_api.c", c_builds.KERNELS / "c/ed_engine.c", Path(__file__).parent / "hostile.c"]
    options = ("-O1", "-g", "-fsanitize=address,undefined", "-fno-sanitize-recover=all", *c_builds.FLAGS[ops])
    define = '-DED_MODEL_HEADER="model_test.h"'
    program = c_builds.compile_c(tmp_path, "hostile", sources, (*options, define), "gcc")
    done = subprocess.run([program], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]


def test_variants_name_themselves(built: Builder) -> None:
    variants = {built(SMALL, ops)[0].info.variant for ops in c_builds.FLAGS if c_builds.runs_here(ops)}
    assert len(variants) == sum(c_builds.runs_here(ops) for ops in c_builds.FLAGS)
