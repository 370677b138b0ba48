"""The whole stream in C has the bits of `NumpyStream`, its states and deviations too, for any faults and gaps."""

from __future__ import annotations

from fractions import Fraction
from functools import cache
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from benchmarks.cpu.array_models import draw_deviation_model, draw_smoothing_model, draw_spatial_model
from edgedistill.compile.c.model_source import c_sources
from edgedistill.config import StudentShape
from edgedistill.errors import EngineError
from edgedistill.frontend import FrontEndConfig
from edgedistill.numerics import Oracle
from edgedistill.runtime import Flag, Output
from edgedistill.runtime.abi_engine import AbiEngine
from edgedistill.runtime.c_abi import load_library
from edgedistill.runtime.c_engine import start_decoder
from edgedistill.runtime.stream import NumpyStream

from ..numerics.students import random_model
from .c_builds import FLAGS, KERNELS, compile_c, compilers, facts_of, runs_here

# Rules that act, filters that settle and a receptive field that fills within a few bins, so that every flag comes up.
BANDS = ((12, 30), (70, 150), (160, 390))
SHORT = {"flat_s": 0.05, "recover_s": 0.04, "bridged_s": 0.05, "highpass_hz": 8, "lowpass_hz": 60}
FIRST = ("one channel", "follows", "decimated, follows", "bands")  # of these configurations; others are variants
CONFIGS = {
    "five": FrontEndConfig(Fraction(1000), 5, **SHORT),
    "one channel": FrontEndConfig(Fraction(250), 1, line_hz=0, **SHORT),
    "follows": FrontEndConfig(Fraction(1000), 19, follow_s=10, left_out=(0, 7), **SHORT),
    "decimated, follows": FrontEndConfig(Fraction(390625, 16), 9, follow_s=20, **SHORT),
    "no sweeps": FrontEndConfig(Fraction(2000), 33, fill_sweeps=0, common_average=False, **SHORT),
    "one sweep": FrontEndConfig(Fraction(1000), 18, fill_sweeps=1, **{**SHORT, "bridged_s": 0}),
    "whole vectors": FrontEndConfig(Fraction(1000), 48, follow_s=10, **SHORT),
    "bands": FrontEndConfig(Fraction(1000), 17, bands=BANDS, follow_s=10, left_out=(0, 7), **SHORT),
    "bands, one channel": FrontEndConfig(Fraction(500), 1, bands=BANDS[:1], line_hz=0, **SHORT),
    "bands, decimated": FrontEndConfig(Fraction(30000), 3, bands=BANDS, follow_s=20, **SHORT),
    "bands, 2 kHz": FrontEndConfig(Fraction(2000), 33, bands=BANDS[1:], common_average=False, **SHORT),
}
VARIANTS = [ops for ops in ("scalar", "avx2", "avx512") if runs_here(ops)]
SMOOTHED = {
    "five": 1,
    "follows": 2,
    "decimated, follows": 2,
    "whole vectors": 1,
    "bands": 2,
}  # order of the filter of the outputs
UNKNOWN = {"five": (3,), "whole vectors": (0, 17, 47)}


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Returns the stream of a configuration in C and in numpy."""

    @cache
    def get(name: str, ops: str, compiler: str = "gcc", level: str = "-O1") -> tuple[AbiEngine, NumpyStream]:
        config, folder = CONFIGS[name], tmp_path_factory.mktemp("c-stream")
        shape = StudentShape(config.inputs, 2, 16, 2, 2, 9, 32, 3, 2, 4)
        model = random_model(shape)
        facts = facts_of(model, config)
        changes: dict[str, Any] = {"spatial": draw_spatial_model(config, 1, UNKNOWN.get(name, ())), "warmup_bins": 60}
        changes["smoothing"] = draw_smoothing_model(2, SMOOTHED[name]) if name in SMOOTHED else None
        facts = type(facts)(**{**vars(facts), **changes})
        for file, text in c_sources(model, config, facts, ops).items():
            (folder / file).write_text(text)
        sources = [KERNELS / "c/ed_api.c", KERNELS / "c/ed_engine.c"]
        options = (*FLAGS[ops], level, '-DED_MODEL_HEADER="model_test.h"', "-shared", "-fPIC")
        library = compile_c(folder, "engine.so", sources, options, compiler)
        opened = start_decoder(load_library(library.name, library.read_bytes()), "test")
        stream = NumpyStream(config, facts.spatial, facts.deviation, Oracle(model), facts.warmup_bins, facts.smoothing)
        return AbiEngine(opened, shape, config), stream

    def fresh(*names: str) -> tuple[AbiEngine, NumpyStream]:
        found = get(*names)
        for stream in found:
            stream.set_normalization(*normalization(CONFIGS[names[0]]))
            stream.reset()
        return found

    return fresh


def normalization(config: FrontEndConfig) -> tuple[np.ndarray, np.ndarray]:
    """Returns mean and deviation (I,) that fit a recording. One band of one channel has no deviation."""
    index = np.arange(config.inputs)
    slow = index < config.channels
    std = np.where(slow, 20.0 + index % 5, 1.0 + index % 3)
    std[config.channels + 1 : config.channels + 2] = 0
    return np.where(slow, index % 7 - 3.0, 6.0 + index % 2), std


def recording(config: FrontEndConfig, bins: int, seed: int) -> np.ndarray:
    """Returns frames (n, C) float32 in which channels break, die, saturate, jump and come back, and frames are lost."""
    rng, n = np.random.default_rng(seed), config.edge(bins)
    offsets = rng.normal(scale=300, size=config.channels)
    x = (rng.normal(scale=50, size=(n, config.channels)) + offsets).astype(np.float32)
    for channel in range(config.channels):
        a, b = np.sort(rng.integers(0, n, 2))
        b = min(b, a + 30 * config.edge(1))
        part = x[a:b, channel]
        hostile = rng.integers(0, 2**32, b - a, dtype=np.uint32).view(np.float32)
        small = rng.choice(np.array([1e-45, -1e-40, 1e-38, -0.0], np.float32), b - a)
        large = rng.choice(np.array([3.4e38, -3.4e38, 1e30, -1e30], np.float32), b - a)
        faults = (np.nan, np.inf, 60, 0, 1e7 * part, 1e-4 * part.clip(-1, 1), hostile, small, large)
        fault = rng.integers(0, 2 * len(faults))
        if fault < len(faults):
            x[a:b, channel] = faults[fault]
    for first in rng.integers(0, n, 3):
        x[first : first + rng.integers(1, 3 * config.edge(1))] = np.nan
    return x


def require_same(found: list[Output], expected: list[Output]) -> None:
    def facts(o: Output) -> tuple[object, ...]:
        return o.bin, o.end_frame, o.flags, o.bad_channels, o.kinematics.tobytes(), o.deviation.tobytes()

    assert [facts(o) for o in found] == [facts(o) for o in expected]


def require_same_states(found: dict[str, np.ndarray], expected: dict[str, np.ndarray]) -> None:
    """Checks all numbers, and all bits but the sign of a zero of a range, which numpy leaves open."""
    assert list(found) == list(expected)
    for name, array in expected.items():
        assert (found[name].dtype, found[name].shape) == (array.dtype, array.shape), name
        np.testing.assert_array_equal(found[name], array, err_msg=name)
        if not name.startswith(("fe_low", "fe_high", "fe_pending")):
            assert found[name].tobytes() == array.tobytes(), name


def drive(config: FrontEndConfig, c: AbiEngine, python: NumpyStream, seed: int) -> set[Flag]:
    """Pushes a recording in chunks, with gaps, integers, other statistics and moved states. Returns the flags seen."""
    rng, x, at, seen = np.random.default_rng(seed), recording(config, 220, seed), 0, set()
    offset, gain = np.full(config.channels, -1.0), rng.uniform(0.1, 0.3, config.channels)
    while at < len(x):
        n, what = int(rng.choice([1, 3, 7, 50, 400, 1000])), rng.random()
        part = np.ascontiguousarray(x[at : at + n])
        if what < 0.12:
            calls = [stream.gap(n) for stream in (c, python)]
        elif what < 0.2:
            whole = np.nan_to_num(part, nan=3, posinf=9, neginf=0).clip(-32768, 32767).astype(np.int16)
            calls = [stream.push_i16(whole, gain, offset) for stream in (c, python)]
        else:
            with np.errstate(invalid="ignore"):  # a signalling NaN becomes a quiet one
                calls = [stream.push(part) for stream in (c, python)]
        at += n
        require_same(*calls)
        seen |= {flag for output in calls[0] for flag in Flag if flag in output.flags} | {o.flags for o in calls[0]}
        if rng.random() < 0.3:
            states = [stream.export_stream() for stream in (c, python)]
            require_same_states(*states)
            if rng.random() < 0.5:
                c.import_stream(states[1])
                python.import_stream(states[0])
        if rng.random() < 0.05:
            mean, std = normalization(config)
            std = np.float32(std * rng.uniform(0.5, 3, config.inputs) * (rng.random(config.inputs) > 0.1))
            for stream in (c, python):
                stream.set_normalization(mean, np.float64(std))
    return seen


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[] if name in FIRST else pytest.mark.variant) for name in CONFIGS]
)
def test_any_stream_has_the_bits_of_numpy(pair: Any, name: str) -> None:
    c, python = pair(name, VARIANTS[-1])
    seen: set[Flag] = set()
    for seed in range(3):
        for stream in (c, python):
            stream.reset()
        seen |= drive(CONFIGS[name], c, python, seed)
    assert {Flag.WARMUP, Flag.GAP, Flag.MASKED, Flag.INVALID} <= seen
    assert any(not flags & (Flag.WARMUP | Flag.GAP) for flags in seen)  # statistics and amplitude were followed


@pytest.mark.parametrize(
    ("name", "ops", "compiler", "level"),
    [
        ("follows", "scalar", "gcc", "-O3"),
        ("one sweep", "avx2", "clang", "-O1"),
        ("bands, decimated", "avx512", "clang", "-O3"),
        ("bands, decimated", "scalar", "gcc", "-O0"),
        *(
            pytest.param(*further, marks=pytest.mark.variant)
            for further in (
                ("decimated, follows", "scalar", "gcc", "-O0"),
                ("whole vectors", "avx2", "gcc", "-O1"),
                ("follows", "avx512", "clang", "-O3"),
                ("one channel", "scalar", "clang", "-O1"),
                ("bands", "scalar", "gcc", "-O3"),
                ("bands", "avx2", "clang", "-O1"),
                ("bands, 2 kHz", "avx2", "gcc", "-O3"),
                ("decimated, follows", "avx512", "gcc", "-O3"),
            )
        ),
    ],
)
def test_every_width_of_vectors_and_compiler_gives_the_same_bits(
    pair: Any, name: str, ops: str, compiler: str, level: str
) -> None:
    if not runs_here(ops) or compiler not in compilers():
        pytest.skip(f"no {ops}, or no {compiler}")
    drive(CONFIGS[name], *pair(name, ops, compiler, level), 7)


@settings(deadline=None, max_examples=12)
@given(st.sampled_from(["one channel", "decimated, follows"]), st.integers(0, 219), st.integers(0, 99), st.data())
def test_the_future_never_changes_the_past(pair: Any, name: str, k: int, seed: int, data: st.DataObject) -> None:
    config, (c, _) = CONFIGS[name], pair(name, VARIANTS[-1])
    x = recording(config, 220, seed)
    with np.errstate(invalid="ignore"):
        outputs = c.push(x)[:k]
        c.reset()
        changed = x.copy()
        changed[config.edge(k) :, data.draw(st.sampled_from([slice(None), slice(0, 1)]))] = data.draw(
            st.sampled_from([np.nan, np.inf, 0.0, 1e6, -3e38])
        )
        require_same(c.push(changed)[:k], outputs)


@pytest.mark.parametrize(
    "name", ["follows", "decimated, follows", "bands", pytest.param("bands, decimated", marks=pytest.mark.variant)]
)
def test_an_extreme_state_goes_on_as_in_numpy(pair: Any, name: str) -> None:
    """Filters and statistics at their limits: channels are bad where nothing can be said, and nothing overflows."""
    config, (c, python) = CONFIGS[name], pair(name, VARIANTS[-1])
    x = np.random.default_rng(0).normal(scale=30, size=(config.edge(150), config.channels)).astype(np.float32)
    c.push(x[: config.edge(50) + 3])
    state, rng = c.export_stream(), np.random.default_rng(1)
    state["fe_shaper"] = 2.0**256 * rng.choice([-1.0, 0, 1e-80, 1], state["fe_shaper"].shape)
    state["fe_clean"] = rng.choice([0.0, config.recover_bins, config.settled_bins], config.channels)
    if config.bands:
        state["fe_bands"] = 2.0**256 * rng.choice([-1.0, 0, 1e-80, 1], state["fe_bands"].shape)
        state["fe_power"] = rng.choice([2.0**-20, 1.0, 2.0**512], state["fe_power"].shape)
    state["statistics_mean"] = 2.0**256 * rng.choice([-1.0, 0, 1e-77, 1], config.inputs)
    state["statistics_std"] = 2.0**256 * rng.choice([0, 1e-300, 1e-77, 1], config.inputs)
    state["seen"] = np.array(10**6)
    for stream in (c, python):
        stream.import_stream(state)
    require_same(c.push(x[config.edge(50) + 3 :]), python.push(x[config.edge(50) + 3 :]))
    require_same_states(c.export_stream(), python.export_stream())
    assert np.isfinite(c.export_stream()["statistics_std"]).all()


def test_models_that_do_not_fit_are_refused() -> None:
    config = CONFIGS["five"]
    model = random_model(StudentShape(5, 2, 16, 2, 2, 9, 32, 3, 2, 4))
    facts = facts_of(model, config)
    wide = draw_spatial_model(FrontEndConfig(Fraction(1000), 6))
    other = draw_spatial_model(FrontEndConfig(Fraction(1000), 5, fill_sweeps=3))
    for changes, mentions in (
        ({"spatial": wide}, "'coupling' does not fit"),
        ({"spatial": other}, "other settings than the front end"),
        ({"deviation": draw_deviation_model(5, 3)}, "'at_rest' does not fit"),
        ({"smoothing": draw_smoothing_model(3, 1)}, "the filter of the outputs does not fit"),
    ):
        with pytest.raises(EngineError, match=mentions):
            c_sources(model, config, type(facts)(**{**vars(facts), **changes}), "scalar")
