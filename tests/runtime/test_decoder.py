"""The outputs of the decoder depend neither on how a stream is cut into calls nor on the future.

States can be moved.
"""

from __future__ import annotations

from dataclasses import replace
from fractions import Fraction
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from benchmarks.cpu.array_models import draw_deviation_model, draw_spatial_model
from edgedistill.bundle import open_bundle, write_bundle
from edgedistill.config import StudentShape
from edgedistill.errors import BundleError, EngineError
from edgedistill.frontend import FrontEnd, FrontEndConfig, Standardization, settling_bins
from edgedistill.pipeline.channel_files import write_channel_files
from edgedistill.quantization.onnx_graph import graph_from_student, list_weight_shapes
from edgedistill.runtime import Decoder, Flag, Output
from edgedistill.runtime.onnx_engine import OnnxEngine

CHANNELS = 4
SHAPE = StudentShape(CHANNELS, 2, 8, 2, 2, 7, 16, 3, 2, 5)
CONFIG = FrontEndConfig(rate=Fraction(48828125, 40000), channels=CHANNELS, highpass_hz=1)  # 1220.7 Hz


SPATIAL, DEVIATION = draw_spatial_model(CONFIG), draw_deviation_model(SHAPE.channels, SHAPE.outputs)


def manifest() -> dict[str, object]:
    return {
        "name": "test",
        "model": SHAPE.to_json(),
        "frontend": CONFIG.to_json(),
        "normalization": {"mean": [0.5] * CHANNELS, "std": [20.0] * CHANNELS},
        "channel_ids": ["a", "b", "c", "d"],
        "outputs": [{"name": "vx", "unit": "cm/s"}, {"name": "vy", "unit": "cm/s"}],
    }


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    rng = np.random.default_rng(0)
    sizes = list_weight_shapes(SHAPE)
    weights = {n: (rng.normal(size=s) / np.sqrt(s[-1])).astype(np.float32) for n, s in sizes.items()}
    target = tmp_path_factory.mktemp("decoder") / "test.edge"
    files = {"student.onnx": graph_from_student(SHAPE, weights).SerializeToString()}
    return write_bundle(target, manifest(), files | write_channel_files(SPATIAL, DEVIATION)).path


@pytest.fixture(scope="module")
def shared(path: Path) -> Decoder:
    """Returns one decoder for many examples. Each example starts with `reset()`, which has a test of its own."""
    return Decoder.open(path)


def inputs_of(frames: np.ndarray, mean: float = 0.5, std: float = 20.0) -> np.ndarray:
    """Returns the models' input (B, C) for frames (n, C)."""
    bins = FrontEnd(CONFIG).push(frames)
    return Standardization(np.full(CHANNELS, mean), np.full(CHANNELS, std), SPATIAL).inputs(bins.values, bins.bad)


def noise(n: int, seed: int = 1) -> np.ndarray:
    return (20 * np.random.default_rng(seed).normal(size=(n, CHANNELS))).astype(np.float32)


def same(found: list[Output], expected: list[Output]) -> bool:
    def facts(o: Output) -> tuple[object, ...]:
        return o.bin, o.end_frame, o.flags, o.bad_channels, o.kinematics.tobytes(), o.deviation.tobytes()

    return [facts(o) for o in found] == [facts(o) for o in expected]


@settings(max_examples=30, deadline=None)
@given(cuts=st.lists(st.integers(0, 900), max_size=12), lost=st.booleans())
def test_any_chunking_gives_the_same_bits(shared: Decoder, cuts: list[int], lost: bool) -> None:
    frames = noise(900)
    frames[300:310, 1] = np.nan
    shared.reset()
    whole = shared.push(frames[:500]) + (shared.gap(37) if lost else []) + shared.push(frames[500:])
    shared.reset()
    edges = sorted({0, 500, 900, *cuts})
    found: list[Output] = []
    for start, stop in pairwise(edges):
        if start == 500 and lost:
            found += shared.gap(20) + shared.gap(17)
        found += shared.push(frames[start:stop])
    assert same(found, whole)


@settings(max_examples=30, deadline=None)
@given(
    at=st.integers(0, 899),
    how=st.sampled_from(["noise", "nan", "inf", "flat", "huge"]),
    seed=st.integers(0, 9),
)
def test_the_future_does_not_change_the_past(shared: Decoder, at: int, how: str, seed: int) -> None:
    frames = noise(900)
    shared.reset()
    before = shared.push(frames)
    others = {"noise": noise(900, seed + 2), "nan": np.nan, "inf": np.inf, "flat": 0.0, "huge": 1e30}
    frames[at:] = others[how] if how != "noise" else noise(900, seed + 2)[at:]
    shared.reset()
    past = [i for i, output in enumerate(before) if output.end_frame < at]
    after = shared.push(frames)
    assert same([after[i] for i in past], [before[i] for i in past])


def test_bins_and_end_frames_follow_the_exact_clock(path: Path) -> None:
    outputs = Decoder.open(path).push(noise(1221))
    assert [o.bin for o in outputs] == list(range(100))
    assert [o.end_frame for o in outputs] == [int(np.ceil((k + 1) * CONFIG.rate / 100)) - 1 for k in range(100)]


def test_push_is_front_end_then_fill_in_then_step_then_deviation(path: Path) -> None:
    pushed, stepped = Decoder.open(path), Decoder.open(path)
    frames = noise(600)
    frames[250:260, 2] = np.nan
    lost = [int(bad.sum()) for bad in FrontEnd(CONFIG).push(frames).bad]
    assert set(lost) == {0, 1}
    for output, value, n in zip(pushed.push(frames), inputs_of(frames), lost, strict=True):
        kinematics = stepped.step(value)
        assert np.array_equal(output.kinematics, kinematics)
        assert np.array_equal(output.deviation, DEVIATION.deviations(kinematics[None], np.array([n]))[0])
    assert np.array_equal(pushed.latent, stepped.latent)


def test_reset_is_a_fresh_decoder(path: Path) -> None:
    used, fresh = Decoder.open(path), Decoder.open(path)
    used.push(noise(777, seed=3))
    used.gap(5)
    used.reset()
    assert same(used.push(noise(500)), fresh.push(noise(500)))


@pytest.mark.parametrize("at", [0, 5, 123, 611])
def test_another_decoder_goes_on_from_an_exported_state(path: Path, at: int) -> None:
    first, second, frames = Decoder.open(path), Decoder.open(path), noise(900)
    second.push(noise(321, seed=7))
    first.push(frames[:at])
    second.import_state(first.export_state())
    assert same(second.push(frames[at:]), first.push(frames[at:]))


def test_a_front_end_state_alone_starts_a_fresh_student(path: Path) -> None:
    first, second, frames = Decoder.open(path), Decoder.open(path), noise(900)
    first.push(frames[:500])
    state = {name: array for name, array in first.export_state().items() if name.startswith("fe_")}
    second.push(noise(50))
    second.import_state(state)
    outputs = second.push(frames[500:])
    assert outputs[0].bin == 40  # bin 40 ends at frame 500 of 1220.7 Hz
    student = Decoder.open(path)
    for output, value in zip(outputs, inputs_of(frames)[40:], strict=True):
        assert np.array_equal(output.kinematics, student.step(value))


def test_a_foreign_state_is_refused_and_changes_nothing(path: Path) -> None:
    decoder, twin = Decoder.open(path), Decoder.open(path)
    frames = noise(400)
    decoder.push(frames[:200])
    twin.push(frames[:200])
    state = decoder.export_state()
    for wrong in (
        {**state, "state_lags": state["state_lags"][:1]},
        {**state, "fe_shaper": state["fe_shaper"][:1]},
        {**state, "fe_clean": state["fe_clean"] + 0.5},
        {**state, "shift_bins": np.array(-1)},
        {**state, "shift_power": state["shift_power"] + np.float32(np.inf)},
    ):
        with pytest.raises(EngineError):
            decoder.import_state(wrong)
    assert same(decoder.push(frames[200:]), twin.push(frames[200:]))


def test_bad_channels_are_filled_in_and_counted_not_errors(path: Path) -> None:
    frames = noise(3000)
    frames[:, 2] = 0  # a dead channel from the start
    frames[1500:1510, 0] = np.nan
    outputs = Decoder.open(path).push(frames)
    assert all(np.isfinite(output.kinematics).all() for output in outputs)
    hit = next(o for o in outputs if o.end_frame >= 1500)
    assert hit.bad_channels == 2
    assert Flag.MASKED in hit.flags
    assert outputs[-1].bad_channels in (1, 2)


def test_what_a_bad_channel_holds_has_no_influence(path: Path) -> None:
    quiet, loud = noise(600), noise(600)
    quiet[:, 1], loud[:, 1] = np.nan, np.inf
    assert same(Decoder.open(path).push(quiet), Decoder.open(path).push(loud))


def test_a_lost_channel_makes_the_deviation_larger(path: Path) -> None:
    frames, lost = noise(900), noise(900)
    lost[300:, 1] = np.nan
    before, after = (np.array([o.deviation for o in Decoder.open(path).push(x)]) for x in (frames, lost))
    assert np.array_equal(before[:24], after[:24])
    assert after[24:].mean() > 1.1 * before[24:].mean()


def leave_out(path: Path, folder: Path, *columns: int) -> Decoder:
    """Returns a decoder of the same student, whose bundle leaves these columns out and does not know them."""
    config = replace(CONFIG, left_out=columns)
    changed = {**manifest(), "frontend": config.to_json()}
    files = {"student.onnx": path / "student.onnx", **write_channel_files(draw_spatial_model(config), DEVIATION)}
    bundle = write_bundle(folder / "less.edge", changed, files)
    assert Decoder.open(bundle.path).frontend_config == config
    return Decoder.open(bundle.path)


@pytest.mark.parametrize("column", [0, 2, 3])
def test_a_left_out_channel_is_neither_used_nor_counted_nor_flagged(path: Path, tmp_path: Path, column: int) -> None:
    decoder, frames = leave_out(path, tmp_path, column), noise(3000)
    lost, floats = frames.copy(), frames.copy()
    lost[:, column] = np.nan
    floats[:, column] += 3000 * np.sin(2 * np.pi * 60 / float(CONFIG.rate) * np.arange(3000))
    lost[1500:1510, 1] = floats[1500:1510, 1] = np.inf
    outputs = decoder.push(floats)
    decoder.reset()
    assert same(decoder.push(lost), outputs)
    for found, expected in zip(outputs, Decoder.open(path).push(lost), strict=True):
        assert found.bad_channels == expected.bad_channels - 1
        assert (Flag.MASKED in found.flags) == (found.bad_channels > 0)
        assert found.flags | Flag.MASKED == expected.flags
    assert {o.bad_channels for o in outputs} == {0, 1}


def test_an_output_is_invalid_if_no_channel_is_good_but_left_out_ones(path: Path, tmp_path: Path) -> None:
    decoder, frames = leave_out(path, tmp_path, 0, 3), noise(600)
    frames[:, 1:3] = np.nan
    outputs = decoder.push(frames)
    assert all(o.flags & Flag.INVALID and o.flags & Flag.GAP and o.bad_channels == 2 for o in outputs)
    decoder.reset()
    frames[:, 2] = noise(600)[:, 2]
    assert not any(Flag.INVALID in o.flags for o in decoder.push(frames))


def test_without_a_usable_channel_outputs_are_invalid_and_finite(path: Path) -> None:
    frames = noise(400)
    frames[range(400), np.arange(400) % CHANNELS] = np.nan  # each frame has samples, and no channel all of a bin's
    for lost, gap in ((np.full((400, CHANNELS), np.nan, np.float32), True), (frames, False)):
        outputs = Decoder.open(path).push(lost)
        assert all(Flag.INVALID in o.flags and o.bad_channels == CHANNELS for o in outputs)
        assert all((Flag.GAP in o.flags) == gap for o in outputs)
        assert all(np.isfinite(o.kinematics).all() and np.isfinite(o.deviation).all() for o in outputs)


def test_an_output_that_is_not_finite_is_invalid(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    decoder = Decoder.open(path)
    assert not any(Flag.INVALID in o.flags for o in decoder.push(noise(100)))
    step = OnnxEngine.step
    monkeypatch.setattr(OnnxEngine, "step", lambda self, values: np.full_like(step(self, values), np.nan))
    assert all(Flag.INVALID in o.flags for o in decoder.push(noise(100)))


def test_absurd_amplitudes_do_not_stay_in_the_state(path: Path) -> None:
    decoder, twin = Decoder.open(path), Decoder.open(path)
    frames = noise(200)
    decoder.push(np.where(np.arange(200)[:, None] == 100, 3e38, frames).astype(np.float32))
    assert np.isfinite(decoder.push(noise(20_000))[-1].kinematics).all()
    decoder.reset()
    assert same(decoder.push(frames), twin.push(frames))


def test_a_gap_flags_every_bin_it_touches_and_time_goes_on(path: Path) -> None:
    decoder = Decoder.open(path)
    outputs = decoder.push(noise(130)) + decoder.gap(25) + decoder.push(noise(200))
    edges = [int(np.ceil(k * CONFIG.rate / 100)) for k in range(len(outputs) + 1)]
    for output in outputs:
        touched = edges[output.bin] < 155 and edges[output.bin + 1] > 130
        assert (Flag.GAP in output.flags) == touched
    assert outputs[-1].end_frame == edges[-1] - 1


def test_warm_up_lasts_the_receptive_field_and_the_settling_time(path: Path) -> None:
    decoder = Decoder.open(path)
    warm = decoder.info.warmup_bins
    assert warm == SHAPE.receptive_field + settling_bins(CONFIG)
    outputs = decoder.push(noise(int((warm + 5) * 12.3)))
    assert [Flag.WARMUP in o.flags for o in outputs] == [o.bin + 1 < warm for o in outputs]


def test_after_a_long_gap_the_output_warms_up_again(path: Path) -> None:
    decoder = Decoder.open(path)
    decoder.push(noise(int(1.1 * decoder.info.warmup_bins * 12.3)))
    assert not decoder.push(noise(100))[-1].flags
    decoder.gap(int(CONFIG.edge(CONFIG.bridged_bins + 3)))
    outputs = decoder.push(noise(int(1.1 * settling_bins(CONFIG) * 12.3)))
    assert Flag.WARMUP in outputs[1].flags
    assert not outputs[-1].flags


def test_int16_samples_are_scaled_once(path: Path) -> None:
    raw = np.random.default_rng(4).integers(-300, 300, size=(500, CHANNELS)).astype(np.int16)
    gain, offset = np.array([0.25, 0.195, 0.5, 0.1]), 3.0
    scaled = (raw * gain + offset).astype(np.float32)
    assert same(Decoder.open(path).push_i16(raw, gain, offset), Decoder.open(path).push(scaled))
    with pytest.raises(EngineError, match="gain_uv"):
        Decoder.open(path).push_i16(raw, gain[:2])
    with pytest.raises(EngineError, match="int16"):
        Decoder.open(path).push_i16(raw.astype(np.int32), gain)


def test_another_days_normalization(path: Path) -> None:
    decoder, reference = Decoder.open(path), Decoder.open(path)
    frames = noise(400)
    decoder.set_normalization([1.0] * CHANNELS, [40.0] * CHANNELS)
    for output, value in zip(decoder.push(frames), inputs_of(frames, 1.0, 40.0), strict=True):
        assert np.array_equal(output.kinematics, reference.step(value))
    for mean, std in (
        ([0.0], [1.0]),
        ([np.nan] * CHANNELS, [1.0] * CHANNELS),
        ([0.0] * CHANNELS, [-1.0] * CHANNELS),
    ):
        with pytest.raises(EngineError):
            decoder.set_normalization(mean, std)


def test_info_names_what_goes_in_and_comes_out(path: Path) -> None:
    info = Decoder.open(path).info
    assert info.rate == CONFIG.rate
    assert info.channel_ids == ("a", "b", "c", "d")
    assert (info.output_names, info.output_units) == (("vx", "vy"), ("cm/s", "cm/s"))
    assert info.sha256 == open_bundle(path).sha256
    assert info.group_delay_ms > 0


@pytest.mark.parametrize("frames", [noise(5)[:, :2], noise(5)[0], np.zeros((5, CHANNELS), int)])
def test_frames_of_another_kind_are_refused(path: Path, frames: np.ndarray) -> None:
    with pytest.raises(EngineError):
        Decoder.open(path).push(frames)


def test_a_bin_that_is_not_finite_is_refused(path: Path) -> None:
    with pytest.raises(EngineError, match="finite"):
        Decoder.open(path).step(np.array([0, np.nan, 0, 0]))


def test_an_unknown_engine_is_answered_with_the_known_ones(path: Path) -> None:
    with pytest.raises(EngineError, match="did you mean 'onnxruntime'"):
        Decoder.open(path, engine="onnxrt")


@pytest.mark.parametrize("change", [{"outputs": []}, {"channel_ids": ["a"]}, {"normalization": {}}, {"name": None}])
def test_a_manifest_that_contradicts_itself_is_refused(path: Path, tmp_path: Path, change: dict) -> None:
    changed = {key: value for key, value in {**manifest(), **change}.items() if value is not None}
    bundle = write_bundle(tmp_path / "odd.edge", changed, {"student.onnx": open_bundle(path).read("student.onnx")})
    with pytest.raises(BundleError, match=r"manifest\.json"):
        Decoder(bundle)


def test_a_zipped_bundle_decodes_the_same(path: Path, tmp_path: Path) -> None:
    files = {name: path / name for name in ("student.onnx", "fill_in.safetensors", "deviation.safetensors")}
    zipped = write_bundle(tmp_path / "test.edge.zip", manifest(), files)
    assert same(Decoder.open(zipped.path).push(noise(300)), Decoder.open(path).push(noise(300)))


def test_two_decoders_do_not_meet(path: Path) -> None:
    a, b, alone = Decoder.open(path), Decoder.open(path), Decoder.open(path)
    frames, found = noise(300), []
    for start in range(0, 300, 50):
        found += a.push(frames[start : start + 50])
        b.push(noise(50, seed=start))
    assert same(found, alone.push(frames))
    assert replace(a.info) == b.info
