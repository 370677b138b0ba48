"""The C engine gives the oracle's bits for any stream. It refuses libraries for another bundle or chip."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgedistill.bundle import Bundle, build_record, open_bundle
from edgedistill.bundle.build_record import build_folder
from edgedistill.bundle.contents import read_int8_model, read_smoothing_model
from edgedistill.compile.c.library import compile_c_library
from edgedistill.compile.c.toolchain import VARIANTS
from edgedistill.errors import DeviceError, EngineError
from edgedistill.machine.processor import read_architecture, read_cpu_features
from edgedistill.numerics import Oracle
from edgedistill.runtime import Decoder, Flag, Output, c_engine

from ..compile.engines import SHAPES, compile_quickly, copy_builds, quick_host, target_with, write_engine_bundle
from .streams import ARRAYS, frames_of, one_call, same, shift_soon, state_equal

KINDS = ("slow", "fast")
RUNNABLE = [
    name
    for name, variant in VARIANTS.items()
    if variant.architecture in (None, read_architecture()) and read_cpu_features().issuperset(variant.requires)
]


@pytest.fixture(scope="module")
def bundles(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Bundle]:
    """Returns bundles that are compiled for this machine."""
    folder = tmp_path_factory.mktemp("c-engine")
    made = {kind: write_engine_bundle(folder / f"{kind}.edge", kind) for kind in KINDS}
    for bundle in made.values():
        compile_c_library(bundle, quick_host("native"))
    return made


@pytest.fixture(scope="module")
def pairs(bundles: dict[str, Bundle]) -> dict[str, tuple[Decoder, Decoder]]:
    """Returns the C engine and the oracle. Examples begin with `reset()`, which is tested on its own."""
    return {kind: (Decoder(bundle, "c"), Decoder(bundle, "oracle")) for kind, bundle in bundles.items()}


@dataclass(frozen=True, eq=False)
class Answer:
    """Frames, what the oracle makes of them, and its state behind them."""

    frames: np.ndarray
    outputs: list[Output]
    state: dict[str, Any]


@pytest.fixture(scope="module")
def expected(bundles: dict[str, Bundle]) -> Callable[[str], tuple[Answer, Answer]]:
    """Returns the answers to a stream of each kind, and to one in which SHIFTED comes and goes."""

    @cache
    def answer(kind: str) -> tuple[Answer, Answer]:
        oracle, frames = Decoder(bundles[kind], "oracle"), frames_of(kind, 4000)
        before = Answer(frames, oracle.push(frames), oracle.export_state())
        shift_soon(oracle)
        frames = frames.copy()
        frames[2000:3000] *= 1e-20  # so that squares would be denormal
        return before, Answer(frames, oracle.push(frames), oracle.export_state())

    return answer


@pytest.fixture
def copied(bundles: dict[str, Bundle], tmp_path: Path, session_cache: Path, own_cache: Path) -> Bundle:
    """Returns a compiled bundle that a test may damage, as well as its build in a cache of its own."""
    copy_builds(bundles["slow"], session_cache, own_cache)
    return open_bundle(shutil.copytree(bundles["slow"].path, tmp_path / "copied.edge"))


# ---------------------------------------------------------------- the oracle's bits


COUNTS = st.sampled_from([0, 1, 2, 3, 7, 12, 13, 40, 160, 400])
CALLS = st.sampled_from(["push"] * 5 + ["gap", "int16", "float64", "step", "normalization", "reset"])


@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=15, deadline=None)
@given(calls=st.lists(st.tuples(CALLS, COUNTS), max_size=14), seed=st.integers(0, 99))
def test_any_stream_gives_the_bits_of_the_oracle(
    pairs: dict[str, tuple[Decoder, Decoder]], kind: str, calls: list[tuple[str, int]], seed: int
) -> None:
    compiled, oracle = pairs[kind]
    for decoder in (compiled, oracle):
        decoder.reset()
        decoder.set_normalization(np.full(ARRAYS[kind].channels, 0.5), np.full(ARRAYS[kind].channels, 20))
        if seed % 2:
            shift_soon(decoder)
    for at, (what, count) in enumerate(calls):
        frames = frames_of(kind, max(count, 1), seed + at)[:count]
        found, expected = (one_call(decoder, what, frames) for decoder in (compiled, oracle))
        assert same(found, expected)
        assert compiled.latent.tobytes() == oracle.latent.tobytes()
    assert state_equal(compiled.export_state(), oracle.export_state())


@settings(max_examples=15, deadline=None)
@given(counts=st.lists(COUNTS, max_size=14), imported=st.booleans(), seed=st.integers(0, 99))
def test_frames_that_are_taken_at_once_give_the_same_bits(
    pairs: dict[str, tuple[Decoder, Decoder]], counts: list[int], imported: bool, seed: int
) -> None:
    compiled, oracle = pairs["fast"]
    config, frame = compiled.frontend_config, 0
    assert config.decimation > 1
    for decoder in (compiled, oracle):
        decoder.reset()
    compiled.take_frames_at_once()
    if imported:  # with frames that wait
        frame = 333
        oracle.push(frames_of("fast", frame, seed))
        compiled.import_state(oracle.export_state())
    for at, count in enumerate(counts):
        frames = frames_of("fast", max(count, 1), seed + at)[:count]
        what, frame = ("gap" if at % 5 == 4 else "push"), frame + count
        assert same(*(one_call(decoder, what, frames) for decoder in (compiled, oracle)))
    rest = config.edge(config.bin_of(frame) + 1) - frame
    if frame != config.edge(config.bin_of(frame)):
        with pytest.raises(EngineError, match="within a bin"):
            compiled.export_state()
        last = frames_of("fast", rest, seed)
        assert same(compiled.push(last), oracle.push(last))
    assert state_equal(compiled.export_state(), oracle.export_state())
    compiled.reset()
    assert compiled.push(frames_of("fast", 1, seed)) == []
    assert len(compiled.export_state()["fe_pending"]) == 1  # as without


OPTIMIZED = [
    *(pytest.param("slow", "gcc", ops, marks=pytest.mark.variant) for ops in RUNNABLE),
    ("fast", "gcc", "native"),
    ("fast", "clang", "native"),
]


@pytest.mark.parametrize(("kind", "command", "ops"), OPTIMIZED)
def test_every_variant_of_this_machine_gives_the_same_bits(
    bundles: dict[str, Bundle],
    expected: Callable[[str], tuple[Answer, Answer]],
    tmp_path: Path,
    kind: str,
    command: str,
    ops: str,
) -> None:
    bundle = open_bundle(shutil.copytree(bundles[kind].path, tmp_path / "copy.edge"))
    compile_c_library(bundle, target_with("host", command=command, ops=ops))
    compiled, (before, after) = Decoder(bundle, "c"), expected(kind)
    assert same(compiled.push(before.frames), before.outputs)
    assert state_equal(compiled.export_state(), before.state)
    shift_soon(compiled)
    assert same(compiled.push(after.frames), after.outputs)
    assert state_equal(compiled.export_state(), after.state)
    assert len({Flag.SHIFTED in output.flags for output in after.outputs}) == 2


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("at", [0, 5, 13, 611])
def test_a_stream_moves_between_the_engines(bundles: dict[str, Bundle], kind: str, at: int) -> None:
    bundle, frames = bundles[kind], frames_of(kind, at + {"slow": 300, "fast": 1000}[kind])

    def begin(decoder: Decoder) -> Decoder:
        decoder.push(frames[:at])
        shift_soon(decoder)
        decoder.gap(2)
        decoder.push(frames[at : at + 3])
        return decoder

    outputs = begin(Decoder(bundle, "oracle")).push(frames[at + 3 :])
    for ours, theirs in (("c", "oracle"), ("oracle", "c"), ("c", "c")):
        first, second = begin(Decoder(bundle, ours)), Decoder(bundle, theirs)
        second.push(frames_of(kind, 121, seed=7))
        second.import_state(first.export_state())
        assert state_equal(second.export_state(), first.export_state())
        assert same(second.push(frames[at + 3 :]), outputs)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    "part",
    [
        *("fe_", "state_", "smoothing_"),
        *(pytest.param(p, marks=pytest.mark.variant) for p in ("seen", "shift_", "statistics_")),
    ],
)
def test_a_part_that_is_left_out_starts_fresh(bundles: dict[str, Bundle], kind: str, part: str) -> None:
    oracle = Decoder(bundles[kind], "oracle")
    oracle.push(frames_of(kind, 700))
    shift_soon(oracle)
    state = {name: array for name, array in oracle.export_state().items() if not name.startswith(part)}
    compiled = Decoder(bundles[kind], "c")
    compiled.push(frames_of(kind, 300))
    for decoder in (compiled, oracle):
        decoder.set_normalization(np.full(ARRAYS[kind].channels, 0.3), np.full(ARRAYS[kind].channels, 17.1))
        decoder.import_state(state)
    assert state_equal(compiled.export_state(), oracle.export_state())
    more = frames_of(kind, 500, seed=2)
    assert same(compiled.push(more), oracle.push(more))


@pytest.mark.parametrize("engine", ["c", "oracle"])
def test_a_foreign_state_is_refused_and_changes_nothing(bundles: dict[str, Bundle], engine: str) -> None:
    decoder, twin, frames = (*(Decoder(bundles["slow"], engine) for _ in range(2)), frames_of("slow", 800))
    for one in (decoder, twin):
        one.push(frames[:400])
    state = decoder.export_state()
    ring = state["state_ring_k_0"]
    for wrong in (
        {**state, "state_lags": state["state_lags"][:1]},
        {**state, "fe_shaper": state["fe_shaper"][:1]},
        {**state, "state_pos": np.array([99], np.int32)},
        {**state, "state_live": np.array([-1], np.int32)},
        {**state, "state_ring_k_0": np.full_like(ring, -128)},
        {**state, "state_ring_k_0": ring.astype(np.int32)},
        {**state, "fe_shaper": state["fe_shaper"] * np.nan},
        {**state, "fe_shaper": np.full_like(state["fe_shaper"], 1e90)},
        {**state, "fe_clean": state["fe_clean"] + 0.5},
        {**state, "fe_clean": state["fe_clean"] + ARRAYS["slow"].settled_bins + 1},
        {**state, "fe_clean": np.full_like(state["fe_clean"], -1)},
        {**state, "fe_lost_bins": np.array(ARRAYS["slow"].bridged_bins + 2)},
        {**state, "fe_lost_bins": np.array(-1)},
        {**state, "fe_highest": state["fe_highest"] * np.nan},
        {**state, "shift_power": state["shift_power"] * np.float32(np.nan)},
        {**state, "shift_power": state["shift_power"][:2]},
        {**state, "shift_bins": np.array(1001)},
        {**state, "smoothing_state": np.zeros(2, np.float32)},  # this bundle does not smooth
        {name: array for name, array in state.items() if name != "state_ring_v_1"},
    ):
        with pytest.raises(EngineError):
            decoder.import_state(wrong)
    assert same(decoder.push(frames[400:]), twin.push(frames[400:]))


def test_samples_finer_than_float32_do_not_go_to_c(bundles: dict[str, Bundle]) -> None:
    decoder = Decoder(bundles["slow"], "c")
    decoder.push(frames_of("slow", 400))
    state = decoder.export_state()
    with pytest.raises(EngineError, match="finer than float32"):
        decoder.import_state({**state, "fe_low": state["fe_low"] - 1e-9})  # still below fe_high


@pytest.mark.parametrize("engine", ["c", "oracle"])
def test_statistics_that_cannot_be_are_refused_and_change_nothing(bundles: dict[str, Bundle], engine: str) -> None:
    decoder = Decoder(bundles["fast"], engine)
    decoder.push(frames_of("fast", 900))
    state = decoder.export_state()
    mean, std = state["statistics_mean"], state["statistics_std"]
    for wrong in (
        {"statistics_mean": mean * np.nan},
        {"statistics_mean": np.full_like(mean, -1e90)},
        {"statistics_std": -std},
        {"statistics_std": np.full_like(std, np.inf)},
        {"statistics_std": std.astype(np.float32)},
        {"statistics_std": std[:2]},
    ):
        with pytest.raises(EngineError, match="statistics_"):
            decoder.import_state(state | wrong)
    with pytest.raises(EngineError, match="statistics_std"):
        decoder.import_state({name: array for name, array in state.items() if name != "statistics_std"})
    assert state_equal(decoder.export_state(), state)


@pytest.mark.parametrize("engine", ["c", "oracle"])
def test_a_state_of_the_filter_that_cannot_be_is_refused_and_changes_nothing(
    bundles: dict[str, Bundle], engine: str
) -> None:
    decoder = Decoder(bundles["fast"], engine)
    decoder.push(frames_of("fast", 900))
    state = decoder.export_state()
    found = state["smoothing_state"]
    assert found.any()
    for wrong in (found * np.float32(np.nan), found + np.float32(1e30), found * 0 + np.float32(1e-40), found[:1]):
        with pytest.raises(EngineError, match="smoothing_state"):
            decoder.import_state({**state, "smoothing_state": wrong})
    assert state_equal(decoder.export_state(), state)


def test_outputs_of_frames_and_of_bins_are_smoothed_and_the_delay_is_told(bundles: dict[str, Bundle]) -> None:
    decoder, bins = Decoder(bundles["fast"], "c"), np.random.default_rng(0).normal(size=(50, 5)).astype(np.float32)
    model = read_smoothing_model(bundles["fast"], SHAPES["fast"])
    assert model is not None
    raw = Oracle(read_int8_model(bundles["fast"], SHAPES["fast"])).run(bins)
    assert np.stack([decoder.step(bin_) for bin_ in bins]).tobytes() == model.run(raw).tobytes() != raw.tobytes()
    assert decoder.info.smoothing_delay_ms == model.delay_ms(10) != 0
    assert Decoder(bundles["slow"], "c").info.smoothing_delay_ms == 0


def test_statistics_follow_and_a_reset_goes_back_to_those_that_were_set(bundles: dict[str, Bundle]) -> None:
    decoders = Decoder(bundles["fast"], "c"), Decoder(bundles["fast"], "oracle")
    frames = (5 * np.random.default_rng(0).normal(size=(8000, 5))).astype(np.float32)
    mean, std = np.arange(5.0), np.full(5, 30.0)
    for decoder in decoders:
        decoder.set_normalization(mean, std)
        shift_soon(decoder, bins=1000)
        decoder.push(frames)
    states = [decoder.export_state() for decoder in decoders]
    assert state_equal(*states)
    used = [0, 2, 3]  # the others are left out, so that they are never there
    assert (states[0]["statistics_std"][used] < 26).all()
    assert states[0]["statistics_std"][[1, 4]].tolist() == [30, 30]
    for decoder in decoders:
        decoder.reset()
        assert decoder.export_state()["statistics_mean"].tolist() == mean.tolist()
        assert decoder.export_state()["statistics_std"].tolist() == std.tolist()


def test_the_engine_alone_has_the_face_of_the_others(bundles: dict[str, Bundle]) -> None:
    decoder, oracle = Decoder(bundles["slow"], "c"), Decoder(bundles["slow"], "oracle")
    engine = c_engine.open_c_engine(bundles["slow"], SHAPES["slow"], ARRAYS["slow"])
    assert engine.precision == "int8"
    assert (engine.info.name.decode(), engine.info.channel_ids[1].decode()) == ("slow-1", 'ch "1" µ')
    for bin in np.random.default_rng(0).normal(size=(40, 3)).astype(np.float32):
        expected = oracle.step(bin)
        assert engine.step(bin).tobytes() == decoder.step(bin).tobytes() == expected.tobytes()
    other = c_engine.open_c_engine(bundles["slow"], SHAPES["slow"], ARRAYS["slow"])
    other.import_state(engine.export_state())
    assert np.array_equal(other.step(bin), engine.step(bin))
    engine.reset()
    assert not engine.latent.any()
    with pytest.raises(EngineError, match="one bin"):
        engine.step(np.zeros(7, np.float32))


def test_nothing_is_no_error_and_all_bad_is_invalid(bundles: dict[str, Bundle]) -> None:
    decoder = Decoder(bundles["fast"], "c")
    assert decoder.push(np.zeros((0, 5), np.float32)) == decoder.gap(0) == []
    outputs = decoder.push(np.full((400, 5), np.nan, np.float32))
    assert all(Flag.INVALID in o.flags and o.bad_channels == 3 for o in outputs)  # the other two are left out
    assert all(np.isfinite(o.kinematics).all() for o in outputs)


# ---------------------------------------------------------------- refusals before loading


def edit(bundle: Bundle, change: Callable[[dict[str, Any]], object]) -> None:
    path = build_folder(bundle, "host") / "build.json"
    record = json.loads(path.read_text())
    change(record)
    path.write_text(json.dumps(record))


REASONS: list[tuple[Callable[[dict[str, Any]], object], str]] = [
    (lambda r: r.update(code="0" * 64), "compiled from other sources"),
    (lambda r: r["files"].update({"libed_slow_1.so": "0" * 64}), "'libed_slow_1.so' was changed"),
    (lambda r: r.update(manifest="0" * 64), "another bundle"),
    (lambda r: r.update(abi=1), "ABI 1"),
    (lambda r: r.update(format=99), "newer edgedistill"),
    (lambda r: r.update(library="libed_slow_1.a"), "firmware"),
    (lambda r: r.pop("files"), "'build.json' is damaged"),
    (lambda r: r["fingerprint"].update(architecture="s390x"), "another chip"),
    (lambda r: r["fingerprint"]["requires"].append("amx_of_tomorrow"), "needs amx_of_tomorrow"),
    (lambda r: r.update(tools={"sh": "/bin/sh 1 1"}), "compiled by another 'sh'"),
    (lambda r: r["files"].update({"gone.so": "0" * 64}), "'gone.so' is missing"),
]


@pytest.mark.parametrize(
    ("change", "mentions"),
    [*REASONS[:2], *(pytest.param(*reason, marks=pytest.mark.variant) for reason in REASONS[2:])],
)
def test_a_build_that_does_not_fit_is_made_again_with_a_line_that_says_why(
    copied: Bundle,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    change: Callable[[dict[str, Any]], object],
    mentions: str,
) -> None:
    compile_quickly(monkeypatch)
    edit(copied, change)
    frames = frames_of("slow", 300)
    assert same(Decoder(copied, "c").push(frames), Decoder(copied, "oracle").push(frames))
    (line,) = caplog.messages
    assert line.startswith(f"compiling the C engine of {copied.path}")
    assert mentions in line
    caplog.clear()
    Decoder(copied, "c")
    assert not caplog.messages


def test_a_changed_library_is_not_loaded(
    copied: Bundle, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    compile_quickly(monkeypatch)
    library = build_folder(copied, "host") / "libed_slow_1.so"
    data = bytearray(library.read_bytes())
    data[len(data) // 2] ^= 1
    library.write_bytes(data)
    Decoder(copied, "c")
    assert "'libed_slow_1.so' was changed after it was compiled" in caplog.text
    assert library.read_bytes() != data


def test_a_library_that_the_system_refuses_is_an_error_of_ours(copied: Bundle) -> None:
    library = build_folder(copied, "host") / "libed_slow_1.so"
    library.write_bytes(b"no library")
    edit(copied, lambda r: r["files"].update({library.name: build_record.hashlib.sha256(b"no library").hexdigest()}))
    with pytest.raises(EngineError, match="cannot be loaded"):
        Decoder(copied, "c")


def test_without_a_build_one_is_made_outside_the_bundle(
    tmp_path: Path, own_cache: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    compile_quickly(monkeypatch)
    bundle = write_engine_bundle(tmp_path / "new.edge", "slow")
    before, frames = sorted(bundle.path.rglob("*")), frames_of("slow", 300)
    assert same(Decoder(bundle, "c").push(frames), Decoder(bundle, "oracle").push(frames))
    assert caplog.messages == [f"compiling the C engine of {bundle.path} for this machine, once (a few seconds)"]
    assert sorted(bundle.path.rglob("*")) == before
    assert build_folder(bundle, "host").is_dir()


def test_without_a_compiler_it_is_named(tmp_path: Path, own_cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bundle = write_engine_bundle(tmp_path / "new.edge", "slow")
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(DeviceError, match="needs the C compiler 'gcc'") as caught:
        Decoder(bundle, "c")
    assert "apt install gcc" in str(caught.value.next_step)


def test_a_build_for_another_target_that_this_machine_can_run_is_used(
    copied: Bundle, caplog: pytest.LogCaptureFixture
) -> None:
    """A user may compile for a target of their own, on the machine that it describes."""
    folder = build_folder(copied, "host")
    shutil.copytree(folder, folder.with_name("my-board"))
    edit(copied, lambda r: r["fingerprint"].update(architecture="s390x"))
    frames = frames_of("slow", 300)
    assert same(Decoder(copied, "c").push(frames), Decoder(copied, "oracle").push(frames))
    assert not caplog.messages


def test_two_bundles_and_a_library_compiled_anew_live_in_one_process(tmp_path: Path) -> None:
    frames, path, decoders = frames_of("slow", 400), tmp_path / "one.edge", []
    for seed in (1, 2):  # the same name and the same path, but other weights
        shutil.rmtree(path, ignore_errors=True)
        bundle = write_engine_bundle(path, "slow", "one", seed)
        compile_c_library(bundle, quick_host())
        decoders.append((Decoder(bundle, "c"), Decoder(bundle, "oracle")))
    found = [(compiled.push(frames), oracle.push(frames)) for compiled, oracle in decoders]
    assert all(same(*pair) for pair in found)
    assert not same(found[0][0], found[1][0])
