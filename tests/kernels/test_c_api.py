"""Tests the C ABI: what it refuses, leaves untouched and links to, and frames through the whole decoder."""

from __future__ import annotations

import ctypes
import re
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgedistill.bundle.build_record import ABI_VERSION
from edgedistill.frontend.stream import MOST_FRAMES
from edgedistill.numerics import Oracle
from edgedistill.runtime.c_state import state_dtype
from edgedistill.runtime.stream import NumpyStream

from ..numerics.students import SMALL, random_bins, random_model
from . import c_builds
from .c_builds import Engine, Output, aligned, build, pointer

NULL, SIZE, ALIGN, COUNT, CAPACITY, VALUE, STATE, GAIN, DECODER, UNSUPPORTED = range(-1, -11, -1)
MODEL = random_model(SMALL)
CONFIG = c_builds.front_end_of(MODEL)
size_t = ctypes.c_size_t


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> Engine:
    return build(tmp_path_factory.mktemp("c"), MODEL)


@pytest.fixture(autouse=True)
def fresh(engine: Engine) -> None:
    assert engine.init(engine.memory) == 0


def frames_like(n: int, seed: int = 0) -> np.ndarray[Any, Any]:
    return (30 * np.random.default_rng(seed).standard_normal((n, SMALL.channels))).astype(np.float32)


def push(engine: Engine, frames: np.ndarray[Any, Any] | int, capacity: int | None = None) -> tuple[int, list[Output]]:
    """Pushes frames (n, C) as float32 or int16, or a number of lost ones."""
    c, n = engine.c, frames if isinstance(frames, int) else len(frames)
    due = c.ed_outputs_for(engine.decoder, size_t(n)) if capacity is None else capacity
    outputs, made = (Output * max(due, 1))(), size_t(77)
    rest = (size_t(n), outputs, size_t(due), ctypes.byref(made))
    if isinstance(frames, int):
        error = c.ed_gap_outputs(engine.decoder, *rest)
    else:
        call = c.ed_push if frames.dtype == np.float32 else c.ed_push_i16
        error = call(engine.decoder, pointer(np.ascontiguousarray(frames)), *rest)
    assert made.value == 77 if error else made.value <= due
    return error, list(outputs[: 0 if error else made.value])


def test_the_header_is_c_and_cpp(tmp_path: Path) -> None:
    source = '#include "edgedistill.h"\nint main(void) { return ed_strerror(ED_OK) == 0; }\n'
    for name, compiler, extra in (("a.c", "gcc", ("-pedantic",)), ("a.cc", "g++", ("-pedantic", "-std=c++11"))):
        (tmp_path / name).write_text(source)
        command = [compiler, "-Wall", "-Wextra", "-Werror", *extra, f"-I{c_builds.KERNELS}/include", "-c", name]
        subprocess.run(command, cwd=tmp_path, check=True)


def test_info_says_what_a_caller_needs(engine: Engine) -> None:
    info, facts = engine.info, c_builds.facts_of(MODEL, CONFIG)
    assert (info.channels, info.outputs, info.latent, info.bin_ms) == (SMALL.channels, SMALL.outputs, SMALL.d, 10)
    assert (info.abi_version, info.inputs) == (ABI_VERSION, SMALL.channels)
    assert (info.smoothing_states, info.smoothing_delay_ms) == (0, 0.0)
    assert (info.rate_numerator, info.rate_denominator) == (1000, 1)
    assert (info.warmup_bins, info.group_delay_ms) == (facts.warmup_bins, facts.group_delay_ms)
    assert [info.channel_ids[i].decode() for i in range(info.channels)] == list(facts.channel_ids)
    assert [info.output_names[i].decode() for i in range(info.outputs)] == list(facts.output_names)
    assert [info.output_units[i].decode() for i in range(info.outputs)] == list(facts.output_units)
    assert info.manifest_sha256.decode() == facts.manifest_sha256
    assert engine.c.ed_state_bytes(engine.model) == info.state_bytes
    again = engine.c.ed_info_get(engine.decoder).contents
    assert ctypes.addressof(again) == ctypes.addressof(info)


def test_every_code_has_a_sentence(engine: Engine) -> None:
    said = [engine.c.ed_strerror(code).decode() for code in range(0, -17, -1)]
    assert len(set(said)) == len(said)
    assert engine.c.ed_strerror(-99) == engine.c.ed_strerror(5) == b"unknown error code"
    header = (c_builds.KERNELS / "include/edgedistill.h").read_text()
    assert {int(code) for code in re.findall(r"ED_ERROR_\w+ = (-\d+)", header)} == set(range(-1, -17, -1))


def test_init_refuses_memory_that_cannot_hold_a_decoder(engine: Engine) -> None:
    c, model, decoder, size = engine.c, engine.model, ctypes.c_void_p(), engine.info.state_bytes
    memory = aligned(size + 64)
    before = memory.copy()
    out = ctypes.byref(decoder)
    assert c.ed_init(None, pointer(memory), size_t(size), out) == NULL
    assert c.ed_init(model, None, size_t(size), out) == NULL
    assert c.ed_init(model, pointer(memory), size_t(size), None) == NULL
    assert c.ed_init(model, pointer(memory), size_t(size - 1), out) == SIZE
    assert c.ed_init(model, pointer(memory), size_t(0), out) == SIZE
    assert c.ed_init(model, pointer(memory[8:]), size_t(size), out) == ALIGN
    assert decoder.value is None
    assert (memory == before).all()


def test_null_and_foreign_memory_are_refused_everywhere(engine: Engine) -> None:
    c, x, n = engine.c, aligned(4096), ctypes.byref(size_t())
    p, one, many = pointer(x), size_t(1), size_t(4096)
    calls = [
        (c.ed_push, p, one, p, many, n), (c.ed_push_i16, p, one, p, many, n), (c.ed_gap_outputs, one, p, many, n),
        (c.ed_gap, one), (c.ed_step, p, p), (c.ed_set_normalization, p, p), (c.ed_set_gain, p, p),
        (c.ed_latent, p, one), (c.ed_raw_kinematics, p, one), (c.ed_state_export, p, one), (c.ed_state_import, p, one),
    ]  # fmt: skip
    for call, *arguments in calls:
        assert call(None, *arguments) == NULL
        assert call(p, *arguments) == DECODER
    assert not c.ed_info_get(None)
    assert not c.ed_info_get(p)
    assert not c.ed_model_info(None)
    assert c.ed_state_bytes(None) == c.ed_outputs_for(None, one) == c.ed_outputs_for(p, one) == 0
    c.ed_reset(None)
    c.ed_reset(p)
    c.ed_close(None)
    assert c.ed_open(b"folder", n) == UNSUPPORTED
    assert c.ed_open(None, n) == NULL
    assert (x == 0xA5).all()


def test_bad_arguments_leave_the_stream_untouched(engine: Engine) -> None:
    c, d, info = engine.c, engine.decoder, engine.info
    push(engine, frames_like(995))
    before, memory = engine.export(), engine.memory.copy()
    frames, made, outputs = pointer(frames_like(20)), ctypes.byref(size_t()), (Output * 4)()
    bin_, kinematics = random_bins(SMALL, 1)[0], np.zeros(2, np.float32)
    ones, p = np.ones(SMALL.channels, np.float32), pointer
    doubles = np.ones(SMALL.channels)
    for wild in (np.nan, np.inf, -np.inf):
        changed, wide = bin_.copy(), doubles.copy()
        changed[-1] = wide[-1] = wild
        assert c.ed_step(d, p(changed), p(kinematics)) == VALUE
        assert c.ed_set_normalization(d, p(changed), p(ones)) == VALUE
        assert c.ed_set_normalization(d, p(ones), p(changed)) == VALUE
        assert c.ed_set_gain(d, p(wide), p(doubles)) == VALUE
        assert c.ed_set_gain(d, p(doubles), p(wide)) == VALUE
    assert c.ed_set_normalization(d, p(ones), p(-ones)) == VALUE
    for error, wanted in (
        (c.ed_push(d, None, size_t(20), outputs, size_t(4), made), NULL),
        (c.ed_push(d, frames, size_t(20), None, size_t(4), made), NULL),
        (c.ed_push(d, frames, size_t(20), outputs, size_t(4), None), NULL),
        (c.ed_push(d, frames, size_t(0), outputs, size_t(4), made), COUNT),
        (c.ed_push(d, frames, size_t(-1), outputs, size_t(4), made), COUNT),
        (c.ed_push(d, frames, size_t(20), outputs, size_t(1), made), CAPACITY),
        (c.ed_push(d, frames, size_t(20), outputs, size_t(0), made), CAPACITY),
        (c.ed_push_i16(d, frames, size_t(20), outputs, size_t(4), made), GAIN),
        (c.ed_gap(d, size_t(0)), COUNT),
        (c.ed_gap(d, size_t(-5)), COUNT),
        (c.ed_gap_outputs(d, size_t(20), outputs, size_t(1), made), CAPACITY),
        (c.ed_step(d, None, p(kinematics)), NULL),
        (c.ed_step(d, p(bin_), None), NULL),
        (c.ed_set_normalization(d, None, p(ones)), NULL),
        (c.ed_set_gain(d, p(doubles), None), NULL),
        (c.ed_latent(d, None, size_t(SMALL.d)), NULL),
        (c.ed_latent(d, p(kinematics), size_t(SMALL.d - 1)), SIZE),
        (c.ed_state_export(d, None, size_t(info.export_bytes)), NULL),
        (c.ed_state_export(d, p(before.copy()), size_t(info.export_bytes - 1)), SIZE),
        (c.ed_state_import(d, p(before), size_t(info.export_bytes + 1)), SIZE),
        (c.ed_state_import(d, p(aligned(info.export_bytes + 8)[4:]), size_t(info.export_bytes)), ALIGN),
    ):
        assert error == wanted
    assert (engine.memory == memory).all()
    assert (engine.export() == before).all()


@settings(deadline=None, max_examples=60)
@given(st.data())
def test_a_damaged_state_is_refused_and_changes_nothing(engine: Engine, data: st.DataObject) -> None:
    engine.run(random_bins(SMALL, 12))
    state, header = engine.export(), c_builds.HEADER.itemsize
    name = data.draw(st.sampled_from([n for n in c_builds.HEADER.names or () if n not in ("seen", "reserved")]))
    wrong = data.draw(st.sampled_from([-1, 8, 9, 255, 2**31 - 1]))
    damaged, memory = state.copy(), engine.memory.copy()
    field = damaged[:header].view(c_builds.HEADER)
    value = np.array(wrong).astype(c_builds.HEADER[name])
    if name in ("pos", "live"):
        field[name] = wrong if wrong != 8 or name == "pos" else 9
    else:
        field[name] = value if value != field[name][0] else value + 1
    assert engine.import_(damaged) == STATE
    at = data.draw(st.integers(header, header + 4 * SMALL.heads * 8 * SMALL.head_dim + SMALL.lag_rows * 5 - 1))
    damaged = state.copy()
    damaged[at] = 0x80
    assert engine.import_(damaged) == STATE
    assert (engine.memory == memory).all()
    assert engine.import_(state) == 0


@pytest.mark.parametrize(
    ("name", "wrong"),
    [
        *(("shift_power", power) for power in (np.nan, np.inf, -np.inf, -1e-45, 0.0, 256.00002)),
        *(("shift_bins", bins) for bins in (1001, 2**31, 2**32 - 1)),
        *(("lost_bins", bins) for bins in (-1, CONFIG.bridged_bins + 2)),
        *(("clean", bins) for bins in (-1, 0.5, CONFIG.settled_bins + 1, np.nan)),
        *(("shaper", state) for state in (np.nan, np.inf, 1e90, 1e-31)),
        *(("frame", frame) for frame in (-1, MOST_FRAMES + 1, 2**63 - 1, 2**63 - 8, 2**63 - 100, -(2**63))),
        *(("seen", bins) for bins in (MOST_FRAMES + 1, 2**63, 2**64 - 1)),
        *(("pos", slot) for slot in (-1, SMALL.window - 1, 2**31 - 1)),
        *(("live", slots) for slots in (-1, SMALL.window, -(2**31))),
        *(("pending_gap", gap) for gap in (-1, 2, 2**62)),
        *((name, uv) for name in ("lowest", "highest") for uv in (np.nan, np.inf, -np.inf, 1e39, 1e-300, 0.1)),
        *(("low", uv) for uv in (np.nan, np.inf, -np.inf, 3e38)),
        *(("high", uv) for uv in (np.nan, np.inf, -np.inf, -3e38)),
        *(("pending", uv) for uv in (1.0, np.nan)),  # of a row that has no frame yet
        *((name, 1) for name in ("fill", "reserved", "smoothing_states")),
    ],
)
def test_a_number_that_no_stream_comes_to_is_refused_and_changes_nothing(
    engine: Engine, name: str, wrong: float
) -> None:
    push(engine, frames_like(200))
    state, dtype = engine.export(), state_dtype(SMALL, CONFIG)
    damaged, memory = state.copy(), engine.memory.copy()
    field = damaged.view(dtype)[name].reshape(-1)
    assert field.size
    field[-1:] = wrong  # of the channels, the last
    assert engine.import_(damaged) == STATE
    assert (engine.memory == memory).all()
    assert engine.import_(state) == 0


def test_a_stream_ends_at_the_most_frames_that_can_be_counted(engine: Engine) -> None:
    c, d, made = engine.c, engine.decoder, ctypes.byref(size_t())
    state = engine.export()
    state.view(state_dtype(SMALL, CONFIG))["frame"] = MOST_FRAMES - 25
    state.view(state_dtype(SMALL, CONFIG))["seen"] = MOST_FRAMES
    assert engine.import_(state) == 0
    first = MOST_FRAMES // 10
    before, frames, outputs = engine.memory.copy(), pointer(frames_like(26)), (Output * 9)()
    assert c.ed_outputs_for(d, size_t(26)) == 0
    assert c.ed_push(d, frames, size_t(26), outputs, size_t(9), made) == COUNT
    assert c.ed_gap_outputs(d, size_t(26), outputs, size_t(9), made) == COUNT
    assert c.ed_gap(d, size_t(26)) == COUNT
    assert c.ed_push(d, frames, size_t(2**40), outputs, size_t(9), made) == COUNT
    assert (engine.memory == before).all()
    assert [output.bin for output in push(engine, frames_like(25))[1]] == [first - 3, first - 2, first - 1]
    assert c.ed_gap(d, size_t(1)) == COUNT
    last = engine.export()
    assert last.view(state_dtype(SMALL, CONFIG))["seen"] == MOST_FRAMES
    assert engine.import_(last) == 0


def test_outputs_stay_within_the_capacity_even_if_memory_was_overwritten(engine: Engine) -> None:
    c, d, frame = engine.c, engine.decoder, 0x123456789ABC0 * 10
    state = engine.export()
    state.view(state_dtype(SMALL, CONFIG))["frame"] = frame
    assert engine.import_(state) == 0
    (at,) = np.flatnonzero(engine.memory.view(np.uint64) == frame)[:1]
    assert engine.memory.view(np.uint64)[at + 1] == frame // 10
    engine.memory.view(np.uint64)[at + 1] += 3  # the bin in progress: fewer outputs seem to be due
    due, made = c.ed_outputs_for(d, size_t(50)), size_t()
    assert due == 2
    outputs = np.full((due + 4) * ctypes.sizeof(Output), 0xA5, np.uint8)
    assert c.ed_push(d, pointer(frames_like(50)), size_t(50), pointer(outputs), size_t(due), ctypes.byref(made)) == (
        DECODER
    )
    assert made.value == due
    assert (outputs[due * ctypes.sizeof(Output) :] == 0xA5).all()
    assert c.ed_gap(d, size_t(1)) == DECODER


def test_shifted_is_set_kept_in_a_gap_and_forgotten_with_the_old_scale(engine: Engine) -> None:
    assert engine.import_(shifting(engine, bins=998)) == 0
    assert [output.flags for output in push(engine, frames_like(40))[1]] == [0, 16, 16, 16]
    assert [output.flags for output in push(engine, 30)[1]] == [2 + 4 + 8 + 16] * 3
    shifted = engine.export().view(state_dtype(SMALL, CONFIG))[0]
    assert engine.run(random_bins(SMALL, 3))["kinematics"].any()
    after = engine.export().view(state_dtype(SMALL, CONFIG))[0]
    assert (shifted["shift_power"] == after["shift_power"]).all()
    assert (shifted["shift_bins"], after["shift_bins"]) == (1000, 1000)
    ones = np.ones(SMALL.channels, np.float32)
    assert engine.c.ed_set_normalization(engine.decoder, pointer(ones), pointer(-ones)) == VALUE
    assert engine.export().view(state_dtype(SMALL, CONFIG))[0]["shift_bins"] == 1000
    assert engine.c.ed_set_normalization(engine.decoder, pointer(ones), pointer(ones)) == 0
    fresh = engine.export().view(state_dtype(SMALL, CONFIG))[0]
    assert (fresh["shift_bins"], fresh["shift_power"].tolist()) == (0, [1.0] * SMALL.channels)
    assert engine.import_(shifting(engine, bins=998)) == 0
    engine.reset()
    fresh = engine.export().view(state_dtype(SMALL, CONFIG))[0]
    assert (fresh["shift_bins"], fresh["shift_power"].tolist()) == (0, [1.0] * SMALL.channels)


def shifting(engine: Engine, bins: int) -> np.ndarray[Any, Any]:
    """Returns a state whose filters have settled and whose amplitude has been outside for `bins` bins."""
    state = engine.export()
    record = state.view(state_dtype(SMALL, CONFIG))
    record["seen"], record["shift_bins"], record["shift_power"] = 10**6, bins, 17
    record["clean"], record["lost_bins"] = CONFIG.settled_bins, 0
    return state


@settings(deadline=None, max_examples=15)
@given(st.lists(st.integers(1, 70), min_size=1, max_size=8), st.integers(0, 5))
def test_frames_to_outputs_equal_the_stream_in_numpy(engine: Engine, chunks: list[int], seed: int) -> None:
    assert engine.init(engine.memory) == 0
    frames = frames_like(sum(chunks), seed)
    frames[3:, 1] = np.nan
    frames[40:43] = np.nan
    facts = c_builds.facts_of(MODEL, CONFIG)
    stream = NumpyStream(CONFIG, facts.spatial, facts.deviation, Oracle(MODEL), facts.warmup_bins)
    stream.set_normalization(np.array(facts.mean), np.array(facts.std))
    at = 0
    for chunk in chunks:
        part = frames[at : at + chunk]
        at += chunk
        lost = chunk == 13
        wanted = stream.gap(chunk) if lost else stream.push(part)
        error, outputs = push(engine, chunk if lost else part)
        assert error == 0
        assert len(outputs) == len(wanted)
        for output, expected in zip(outputs, wanted, strict=True):
            facts_of_both = [(one.bin, one.end_frame, one.bad_channels, int(one.flags)) for one in (output, expected)]
            assert facts_of_both[0] == facts_of_both[1]
            for name in ("kinematics", "deviation"):
                values = np.array(getattr(output, name), np.float32)
                assert values[:2].tobytes() == getattr(expected, name).tobytes()
                assert not values[2:].any()


def test_with_bands_a_bin_has_every_feature_and_a_frame_every_channel(tmp_path: Path) -> None:
    engine, shape = build(tmp_path, random_model(c_builds.BANDED)), c_builds.BANDED
    c, info, channels = engine.c, engine.info, shape.channels // 3
    assert (info.channels, info.inputs) == (channels, shape.channels)
    assert [info.channel_ids[i] for i in range(channels)] == [b"ch %d" % i for i in range(channels)]
    kinematics, bin_ = np.zeros(2, np.float32), random_bins(shape, 1)[0]
    assert c.ed_step(engine.decoder, pointer(bin_), pointer(kinematics)) == 0
    assert kinematics.tobytes() == Oracle(random_model(shape)).step(bin_).tobytes()
    for call in (c.ed_step, c.ed_set_normalization):
        bin_[-1] = np.nan
        assert call(engine.decoder, pointer(np.abs(bin_)), pointer(np.abs(bin_))) == VALUE
    mean, std = np.zeros(shape.channels, np.float32), np.ones(shape.channels, np.float32)
    assert c.ed_set_normalization(engine.decoder, pointer(mean), pointer(std)) == 0
    std[-1] = -1
    assert c.ed_set_normalization(engine.decoder, pointer(mean), pointer(std)) == VALUE
    gain = np.r_[np.ones(channels), np.full(channels, np.nan)]
    assert c.ed_set_gain(engine.decoder, pointer(gain), pointer(gain)) == 0


def test_warmup_ends_and_an_array_without_a_channel_is_invalid(engine: Engine) -> None:
    warm = engine.info.warmup_bins
    _, outputs = push(engine, frames_like(10 * warm))
    assert [output.flags for output in outputs] == [1] * (warm - 1) + [0]
    hostile = frames_like(10)
    hostile[range(10), np.arange(10) % SMALL.channels] = np.nan  # each frame has samples, and no channel all of them
    _, outputs = push(engine, hostile)
    assert outputs[0].flags == 2 + 8
    _, outputs = push(engine, np.full((10, SMALL.channels), np.nan, np.float32))
    assert outputs[0].flags == 2 + 4 + 8
    assert np.isfinite(outputs[0].kinematics[:2]).all()


def test_normalization_and_gain_outlive_a_reset(engine: Engine) -> None:
    c, frames = engine.c, frames_like(40)
    whole = np.round(frames * 4).astype(np.int16)
    gain, offset = np.full(SMALL.channels, 0.25), np.full(SMALL.channels, 1.5)
    mean, std = np.float32([1, 2, 3, 4, 5]), np.float32([9, 0, 7, 6, 5])
    assert c.ed_set_gain(engine.decoder, pointer(gain), pointer(offset)) == 0
    assert c.ed_set_normalization(engine.decoder, pointer(mean), pointer(std)) == 0
    first = [list(output.kinematics) for output in push(engine, whole)[1]]
    engine.reset()
    assert [list(output.kinematics) for output in push(engine, whole)[1]] == first
    engine.reset()
    again = push(engine, (whole * 0.25 + 1.5).astype(np.float32))[1]
    assert [list(output.kinematics) for output in again] == first


def test_a_gap_whose_outputs_are_dropped_still_moves_the_stream(engine: Engine) -> None:
    push(engine, frames_like(25))
    push(engine, 33)
    kept = engine.export()
    engine.reset()
    push(engine, frames_like(25))
    assert engine.c.ed_gap(engine.decoder, size_t(33)) == 0
    assert (engine.export() == kept).all()


def test_two_models_link_into_one_program_that_allocates_nothing(tmp_path: Path) -> None:
    objects = []
    for name, seed in (("one", 1), ("two", 2)):
        c_builds.write_sources(tmp_path, random_model(SMALL, seed), "scalar", name)
        define = ("-c", f'-DED_MODEL_HEADER="model_{name}.h"')
        objects.append(c_builds.compile_c(tmp_path, f"{name}.o", [c_builds.KERNELS / "c/ed_engine.c"], define, "gcc"))
    objects.append(c_builds.compile_c(tmp_path, "api.o", [c_builds.KERNELS / "c/ed_api.c"], ["-c"], "gcc"))
    c_builds.compile_c(tmp_path, "both.so", objects, ["-shared"], "gcc")
    symbols = subprocess.run(["nm", "-g", *objects], capture_output=True, text=True, check=True).stdout
    defined = set(re.findall(r"\b[TDRB] (\w+)", symbols))
    assert defined == set(re.findall(r"\b(ed_\w+)\(", (c_builds.KERNELS / "include/edgedistill.h").read_text())) - {
        "ed_info_get()"
    } | {"ed_model_one", "ed_model_two"}
    assert set(re.findall(r"\bU (\w+)", symbols)) - defined <= {"memcpy", "memmove", "memset", "memcmp"}
    assert not re.findall(r"\b[dDbBC] (?!ed_model_)\w+", symbols)  # there is no writable variable


def test_a_stream_lives_in_the_memory_of_the_caller(engine: Engine) -> None:
    """Two decoders of one model are independent."""
    memory, other = aligned(engine.info.state_bytes), ctypes.c_void_p()
    assert engine.init(memory, ctypes.byref(other)) == 0
    alone = engine.run(random_bins(SMALL, 10))["kinematics"]
    engine.reset()
    first, kinematics = np.zeros_like(alone), np.zeros(2, np.float32)
    for i, bin_ in enumerate(random_bins(SMALL, 10)):
        assert engine.c.ed_step(other, pointer(random_bins(SMALL, 1, i)[0]), pointer(kinematics)) == 0
        assert engine.c.ed_step(engine.decoder, pointer(bin_), pointer(first[i])) == 0
    assert first.tobytes() == alone.tobytes()
