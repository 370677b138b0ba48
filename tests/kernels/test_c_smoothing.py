"""Smoothed outputs in C have the bits of numpy, whatever a student gives. Without a filter nothing is compiled in."""

from __future__ import annotations

import ctypes
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from benchmarks.cpu.array_models import draw_smoothing_model
from edgedistill.compile.c.array_source import smoothing_tables
from edgedistill.compile.c.model_source import c_sources
from edgedistill.numerics import Oracle
from edgedistill.numerics.smoothing import OutputSmoother, SmoothingModel
from edgedistill.runtime.c_state import read_smoothing, state_dtype
from edgedistill.runtime.stream import NumpyStream

from ..numerics.students import SMALL, random_bins, random_model
from .c_builds import Engine, build, compile_c, compilers, facts_of, front_end_of, pointer

SIZE, STATE = -2, -7
MODEL = random_model(SMALL)
CONFIG = front_end_of(MODEL)
SMOOTHING = draw_smoothing_model(SMALL.outputs, 2)
STATES = len(SMOOTHING.keep)
DTYPE = state_dtype(SMALL, CONFIG, STATES)
HARNESS = """
#define ED_D 16 /* which ed_math.h needs */
#define ED_OUTPUTS {outputs}
#define ED_SMOOTHING_STATES {states}
#include "ed_math.h"
{tables}
#include "ed_smoothing.h"
int known(const float *state);
int known(const float *state) {{ return ed_is_smoothing_state(state); }}
void smooth(float *state, const float *raw, float *kinematics, long n);
void smooth(float *state, const float *raw, float *kinematics, long n) {{
    for (long i = 0; i < n; i++) ed_smooth(state, raw + i * ED_OUTPUTS, kinematics + i * ED_OUTPUTS);
}}
"""


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> Engine:
    return build(tmp_path_factory.mktemp("smooth"), MODEL, smoothing=SMOOTHING)


@pytest.fixture(autouse=True)
def fresh(engine: Engine) -> None:
    assert engine.init(engine.memory) == 0


def compile_filter(folder: Path, model: SmoothingModel, level: str = "-O3", compiler: str = "gcc") -> Any:
    """Compiles the filter alone, so that any raw values can be given to it."""
    sizes = {"outputs": model.outputs, "states": len(model.keep), "tables": smoothing_tables(model)}
    (folder / "filter.c").write_text(HARNESS.format(**sizes))
    return ctypes.CDLL(str(compile_c(folder, "filter.so", ["filter.c"], (level, "-shared", "-fPIC"), compiler)))


def hostile_outputs(n: int, outputs: int, seed: int = 0) -> np.ndarray[Any, Any]:
    """Returns raw outputs (n, K) with values that are not finite, at limits, of any bits, and silence."""
    rng = np.random.default_rng(seed)
    raw = rng.normal(size=(n, outputs)).astype(np.float32)
    odd = np.array([np.nan, np.inf, -np.inf, 2.0**80, -(2.0**80), 2.0**80 * 1.0000002, 3e38, 1e-45, -0.0], np.float32)
    where = rng.random(raw.shape)
    raw[where < 0.02] = rng.choice(odd, np.count_nonzero(where < 0.02))
    bits = rng.integers(0, 2**32, raw.shape, dtype=np.uint32).view(np.float32)
    raw[where > 0.98] = bits[where > 0.98]
    raw[n // 2 : n // 2 + n // 4] = 0
    return raw


@pytest.mark.filterwarnings("ignore:invalid value")  # of a signalling NaN among the bits
@pytest.mark.parametrize(("outputs", "order"), [(1, 1), (1, 2), (2, 1), (2, 2), (3, 2), (16, 2)])
@pytest.mark.parametrize(("compiler", "level"), [("gcc", "-O3"), ("clang", "-O1")])
def test_any_raw_outputs_are_smoothed_to_the_bits_of_numpy(
    tmp_path: Path, outputs: int, order: int, compiler: str, level: str
) -> None:
    if compiler not in compilers():
        pytest.skip(f"no {compiler}")
    model, raw = draw_smoothing_model(outputs, order), hostile_outputs(20_000, outputs)
    c, found = compile_filter(tmp_path, model, level, compiler), np.full_like(raw, 7)
    state, smoother = np.zeros(len(model.keep), np.float32), OutputSmoother(model)
    c.smooth(pointer(state), pointer(raw), pointer(found), ctypes.c_long(len(raw)))
    with np.errstate(all="ignore"):
        expected = smoother.run(raw)
    assert found.tobytes() == expected.tobytes()
    assert state.tobytes() == smoother.export_state()["state"].tobytes()
    assert np.isfinite(state).all()


def test_a_filter_that_is_silent_ends_in_zeros(tmp_path: Path) -> None:
    eye, still = np.eye(2, dtype=np.float32), np.zeros(2, np.float32)
    c = compile_filter(tmp_path, SmoothingModel(eye * np.float32(0.5), eye, still, still))
    state, raw, found = np.ones(2, np.float32), np.zeros((101, 2), np.float32), np.ones((101, 2), np.float32)
    c.smooth(pointer(state), pointer(raw), pointer(found), ctypes.c_long(100))
    assert state.tolist() == [2.0**-100] * 2
    c.smooth(pointer(state), pointer(raw), pointer(found), ctypes.c_long(1))
    assert state.tolist() == [0.0] * 2


def test_the_steps_of_a_whole_engine_are_those_of_the_oracle_smoothed(engine: Engine) -> None:
    bins = random_bins(SMALL, 2000)
    bins[500:520] *= 1e4  # saturates
    raw = Oracle(MODEL).run(bins)
    found = engine.run(bins, states=True)
    assert found["kinematics"].tobytes() == SMOOTHING.run(raw).tobytes()
    assert (found["kinematics"] != raw).any()
    smoother = OutputSmoother(SMOOTHING)
    for row, state in zip(raw, found["states"].view(DTYPE)[:, 0], strict=True):
        smoother.step(row)
        assert read_smoothing(state)["state"].tobytes() == smoother.export_state()["state"].tobytes()


def test_raw_kinematics_are_those_of_the_student(engine: Engine) -> None:
    c, bins, raw = engine.c, random_bins(SMALL, 3), np.full(SMALL.outputs, 7, np.float32)

    def told() -> list[float]:
        assert c.ed_raw_kinematics(engine.decoder, pointer(raw), ctypes.c_size_t(SMALL.outputs)) == 0
        return [float(value) for value in raw]

    assert told() == [0.0] * SMALL.outputs
    expected, kinematics = Oracle(MODEL).run(bins), np.zeros(SMALL.outputs, np.float32)
    for bin_, row in zip(bins, expected, strict=True):
        assert c.ed_step(engine.decoder, pointer(np.ascontiguousarray(bin_)), pointer(kinematics)) == 0
        assert told() == row.tolist()
    assert c.ed_raw_kinematics(engine.decoder, pointer(raw), ctypes.c_size_t(SMALL.outputs + 1)) == SIZE
    assert c.ed_raw_kinematics(engine.decoder, None, ctypes.c_size_t(SMALL.outputs)) == -1
    assert raw.tolist() == expected[-1].tolist()
    engine.reset()
    assert told() == [0.0] * SMALL.outputs


def test_a_state_moves_in_the_middle_of_a_stream_and_a_reset_forgets_it(engine: Engine) -> None:
    bins = random_bins(SMALL, 80)
    whole = engine.run(bins)["kinematics"]
    engine.reset()
    engine.run(bins[:33])
    state = engine.export()
    engine.run(bins[::-1].copy())
    assert engine.import_(state) == 0
    assert engine.export().tobytes() == state.tobytes()
    assert engine.run(bins[33:])["kinematics"].tobytes() == whole[33:].tobytes()
    engine.reset()
    assert engine.run(bins)["kinematics"].tobytes() == whole.tobytes()


@pytest.mark.parametrize("wrong", [np.nan, np.inf, -np.inf, 2.0**80 * 1.0000002, -(2.0**81), 1e-45, 2.0**-101])
@pytest.mark.parametrize("at", range(STATES))
def test_a_state_that_no_stream_comes_to_is_refused_and_changes_nothing(engine: Engine, at: int, wrong: float) -> None:
    engine.run(random_bins(SMALL, 20))
    state = engine.export()
    damaged, memory = state.copy(), engine.memory.copy()
    damaged.view(DTYPE)["smoothing"][0, at] = wrong
    assert engine.import_(damaged) == STATE
    assert (engine.memory == memory).all()
    for right in (0.0, -0.0, 2.0**80, -(2.0**-100)):
        damaged.view(DTYPE)["smoothing"][0, at] = right
        assert engine.import_(damaged) == 0
    assert engine.import_(state) == 0


def test_a_state_of_an_engine_that_does_not_smooth_is_refused(engine: Engine, tmp_path: Path) -> None:
    plain = build(tmp_path, MODEL)
    state = np.zeros(engine.info.export_bytes, np.uint8)
    state[: plain.info.export_bytes] = plain.export()
    state[8:16] = np.array([len(state)], np.uint64).view(np.uint8)  # the size, as this engine writes it
    assert engine.import_(state) == STATE
    assert engine.import_(engine.export()) == 0


def test_info_tells_the_filter(engine: Engine) -> None:
    assert engine.info.smoothing_states == STATES
    assert engine.info.smoothing_delay_ms == SMOOTHING.delay_ms(10)
    assert engine.export().view(DTYPE)["smoothing_states"].tolist() == [STATES]


def test_deviations_and_flags_are_those_of_the_smoothed_kinematics(engine: Engine) -> None:
    facts = facts_of(MODEL, CONFIG, smoothing=SMOOTHING)
    stream = NumpyStream(CONFIG, facts.spatial, facts.deviation, Oracle(MODEL), facts.warmup_bins, SMOOTHING)
    stream.set_normalization(np.array(facts.mean), np.array(facts.std))
    frames = (30 * np.random.default_rng(2).standard_normal((900, SMALL.channels))).astype(np.float32)
    expected = stream.push(frames)
    from .test_c_api import push

    made = [output for part in np.split(frames, [1, 8, 300, 777]) for output in push(engine, part)[1]]
    assert len(made) == len(expected) == 90
    for one, other in zip(made, expected, strict=True):
        assert list(one.kinematics[: SMALL.outputs]) == other.kinematics.tolist()
        assert list(one.deviation[: SMALL.outputs]) == other.deviation.tolist()
        lost = np.array([one.bad_channels])
        assert one.bad_channels == 0
        again = facts.deviation.deviations(other.kinematics[None], lost)[0]
        assert again.tobytes() == other.deviation.tobytes()


def test_without_a_filter_the_sources_and_the_bits_are_those_of_before(tmp_path: Path) -> None:
    plain = c_sources(MODEL, CONFIG, facts_of(MODEL, CONFIG), "scalar")
    assert not any("smoothing" in text.lower() for text in plain.values())
    smooth = c_sources(MODEL, CONFIG, facts_of(MODEL, CONFIG, smoothing=SMOOTHING), "scalar")
    for file, text in smooth.items():
        lines = iter(text.split("\n"))
        assert all(line in lines for line in plain[file].split("\n"))  # in this order
        assert text != plain[file]
    engine, bins = build(tmp_path, MODEL), random_bins(SMALL, 50)
    assert engine.run(bins)["kinematics"].tobytes() == Oracle(MODEL).run(bins).tobytes()
    assert engine.export().view(state_dtype(SMALL, CONFIG))["smoothing"].shape == (1, 0)
    assert engine.info.smoothing_states == 0
