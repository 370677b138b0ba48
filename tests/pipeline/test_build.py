"""Three short sessions become a bundle, for this machine, a microcontroller, a GPU or as a zip."""

from __future__ import annotations

import io
import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load

from edgedistill import pipeline as stages
from edgedistill.assets import asset_folder
from edgedistill.bench import QUICK, bench
from edgedistill.bench.peers import LaggedRidge
from edgedistill.bundle import open_bundle
from edgedistill.bundle.contents import (
    read_decoder_spec,
    read_deviation_model,
    read_holdout,
    read_ridge,
    read_smoothing_model,
    read_spatial_model,
)
from edgedistill.bundle.spike_student import open_spike_student
from edgedistill.data.bins import file_sha256
from edgedistill.data.recording import open_recording
from edgedistill.errors import ConfigError, DeviceError, EdgeDistillError
from edgedistill.matching import match_recording
from edgedistill.measure.score import score_kinematics
from edgedistill.numerics import Int8Model, Oracle
from edgedistill.pipeline import BuildResult
from edgedistill.pipeline.confidence import LEAST_BINS
from edgedistill.quantization.calibration.ranges import Ranges
from edgedistill.quantization.calibration.recipe import DEFAULT_RECIPE
from edgedistill.runtime import Decoder

from .tiny_builds import CALIBRATED, DAYS, LINEAR, READS, STUDENTS, TEACHER, check_raw_frames, options, ran, refused


def test_a_build_makes_a_bundle_that_decodes(home: Path, first: BuildResult) -> None:
    assert ran(first) == READS | STUDENTS | CALIBRATED | TEACHER | LINEAR
    bundle = open_bundle(first.bundle)
    assert bundle.manifest.session.id == DAYS[-1]
    assert bundle.manifest.metrics == first.metrics
    assert [row.name for row in first.table if row.r2 is not None] == [
        *("teacher_r2", "spike_student_r2", "ridge_spike_r2", "kalman_spike_r2", "deployed_r2"),
        *("int8_r2", "distilled_r2", "ridge_lfp_r2", "kalman_lfp_r2"),
    ]
    gates = {gate.name: gate for gate in first.gates}
    assert gates["int8_r2_drop"].value == first.metrics["deployed_r2"] - first.metrics["int8_r2"]  # type: ignore[operator]
    assert {gate.name for gate in first.gates} == {gate.name for gate in bundle.manifest.gates}
    assert not [path.name for path in home.iterdir() if path.name.startswith(".")]


def test_the_bundle_states_what_a_recording_is_compared_with(home: Path, first: BuildResult) -> None:
    bundle = open_bundle(first.bundle)
    paths = {session: home / "data" / f"{session.replace('-', '_')}.nwb" for session in DAYS}
    with open_recording(paths[DAYS[-1]]) as recording:
        found = bundle.manifest
        assert found.session.start == recording.session_start
        assert found.provenance.series[DAYS[-1]] == {
            "lfp": recording.lfp.series, "units": recording.units.series, "behavior": recording.behavior.series
        }  # fmt: skip
        assert [(c.id, c.label, c.position) for c in found.channels] == [
            (e.id, e.label, e.position) for e in recording.lfp.electrodes
        ]
        assert match_recording(bundle, recording).warnings == ()
    with open_recording(paths[DAYS[0]]) as recording:
        assert "before the bundle's session" in " ".join(match_recording(bundle, recording).warnings)


def test_the_bundle_streams_what_the_build_reported(first: BuildResult) -> None:
    subjects = {s.name: s.fit.r2 for s in bench(open_bundle(first.bundle), replace(QUICK, steps=10)).subjects}
    near = 2e-3  # the INT8 graph need only be near the oracle
    begun = 3e-3  # the filter of the spike student's outputs begins in the holdout, and at the first bin in the build
    for subject, metric, apart in (
        ("lfp-student-fp32", "deployed_r2", 1e-3),
        ("spike-student", "spike_student_r2", begun),
        ("lfp-student-int8", "int8_r2", near),
    ):
        expected, found = first.metrics[metric], subjects[subject]
        assert expected is not None
        assert found is not None
        assert abs(found - expected) < apart, subject


def test_the_holdout_and_the_ridge_are_those_of_the_build(first: BuildResult) -> None:
    bundle = open_bundle(first.bundle)
    spec, holdout = read_decoder_spec(bundle), read_holdout(bundle)
    spatial = read_spatial_model(bundle, spec.front_end)
    assert np.array_equal(spatial.complete(holdout.present, holdout.there), holdout.bins)
    found = read_ridge(bundle, spec.shape)
    assert found.lags == 5
    ridge = LaggedRidge(found)
    guess = np.stack([ridge.step(bin_) for bin_ in holdout.bins])[holdout.score_from :]
    scored = score_kinematics(guess, holdout.kinematics[holdout.score_from :], "the holdout")
    assert scored.r2 == pytest.approx(first.metrics["ridge_lfp_r2"], abs=1e-3)


def test_the_bundle_holds_calibrated_deviations_and_says_on_what_they_rest(first: BuildResult) -> None:
    bundle = open_bundle(first.bundle)
    assert bundle.manifest.confidence == first.confidence
    assert first.confidence.labelled_bins >= LEAST_BINS
    assert first.confidence.note is None
    assert first.to_json()["confidence"]["labelled_bins"] == first.confidence.labelled_bins
    shape, holdout = read_decoder_spec(bundle).shape, read_holdout(bundle)
    model = read_deviation_model(bundle, shape.channels, shape.outputs)
    assert (model.at_rest > 0).all()
    assert (np.diff(model.at_rest, axis=0) >= 0).all()
    spread = np.nanstd(holdout.kinematics[holdout.score_from :], axis=0)
    assert np.sqrt(model.at_rest[-1]) == pytest.approx(spread, rel=0.5)  # all channels lost: nothing is decoded


def test_the_bundle_holds_the_teacher_as_it_would_have_to_run(first: BuildResult) -> None:
    bundle = open_bundle(first.bundle)
    names = ("lfp-student-int8", "spike-teacher", "spike-teacher-published")
    rows = {s.name: s for s in bench(bundle, replace(QUICK, subjects=names, steps=5)).subjects}
    assert rows["spike-teacher"].fit.r2 is not None
    assert rows["spike-teacher-published"].fit.r2 is None
    assert rows["spike-teacher-published"].params > 5e6
    assert len(bundle.read("subjects/spike-teacher-published.onnx")) < 200_000


def test_raw_frames_and_bins_of_the_holdout_agree(first: BuildResult) -> None:
    check_raw_frames(first.bundle)


def test_the_oracle_in_the_bundle_gives_the_bits_of_the_reference(first: BuildResult) -> None:
    bundle, decoder = open_bundle(first.bundle), Decoder.open(first.bundle, "oracle")
    with np.load(io.BytesIO(bundle.read("reference.npz"))) as held:
        start = {name.replace("start_", "state_"): held[name] for name in held if name.startswith("start_")}
        assert start["state_live"] == 19  # the ring is full and has wrapped around
        decoder.import_state(start)
        smoothing = read_smoothing_model(bundle, decoder.shape)
        expected = held["kinematics"] if smoothing is None else smoothing.run(held["kinematics"])
        found = np.stack([decoder.step(bin_) for bin_ in held["bins"]])
        assert (found == expected).all()
        state = decoder.export_state()
        for name in (name for name in held if name.startswith("state_")):
            assert (state[name] == held[name]).all(), name
        model = Int8Model.from_file(decoder.shape, load(bundle.read("student.int8.safetensors")))
        oracle = Oracle(model)
        oracle.import_state({name.removeprefix("state_"): array for name, array in start.items()})
        for name, integers in oracle.trace(held["bins"]).items():
            assert (held[f"int_{name}" if integers.dtype == np.int8 else name] == integers).all(), name


def test_the_c_engine_of_the_bundle_decodes_as_the_oracle_does(first: BuildResult) -> None:
    bundle = open_bundle(first.bundle)
    by_default, oracle = Decoder(bundle), Decoder(bundle, "oracle")
    assert by_default.info.engine == "c"
    with np.load(io.BytesIO(bundle.read("holdout.npz"))) as holdout:
        frames = holdout["frames"][:2000]
    for found, expected in zip(by_default.push(frames), oracle.push(frames), strict=True):
        assert (found.bin, found.end_frame, found.flags) == (expected.bin, expected.end_frame, expected.flags)
        assert (found.kinematics == expected.kinematics).all()
    engines = {s.name: s.engine for s in bench(bundle, replace(QUICK, steps=10)).subjects}
    assert (engines["lfp-student-int8"], engines["onnxruntime-int8"]) == ("c", "onnxruntime")
    assert engines["spike-student-int8"] == "c"


def test_the_spike_student_is_compiled_like_the_decoder(first: BuildResult) -> None:
    view = open_spike_student(open_bundle(first.bundle))
    compiled, oracle = Decoder(view, "c"), Decoder(view, "oracle")
    counts = np.random.default_rng(0).normal(size=(60, len(compiled.info.channel_ids))).astype(np.float32)
    for bin_ in counts:
        assert (compiled.step(bin_) == oracle.step(bin_)).all()


@pytest.mark.skipif(not shutil.which("arm-none-eabi-gcc"), reason="no arm-none-eabi-gcc: Debian's gcc-arm-none-eabi")
def test_a_build_for_a_microcontroller_is_judged_on_its_memory(home: Path, first: BuildResult, tmp_path: Path) -> None:
    (tmp_path / "cortex-m7.toml").write_text(  # without optimization, so that it is compiled soon
        (asset_folder("targets") / "cortex-m7.toml").read_text().replace('"-mthumb"', '"-mthumb", "-O0"')
    )
    result = stages.build(options(home, tmp_path / "x.edge", target=str(tmp_path / "cortex-m7.toml")))
    gates = {gate.name: gate for gate in result.gates}
    assert gates["flash_bytes"].ok
    assert gates["ram_bytes"].ok
    assert "step_p99_us" not in gates  # a time measured on this machine says nothing about the device
    assert list((result.bundle / "build" / "cortex-m7").glob("*.a"))


def test_a_build_for_a_gpu_ends_well_without_one(
    home: Path, first: BuildResult, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The build is complete except for what needs the device: the engine, its time, and the command to run there."""

    def find() -> None:
        raise DeviceError("there is no CUDA driver on this machine")

    monkeypatch.setattr("edgedistill.compile.cuda.chip.find_gpu", find)
    monkeypatch.setattr("edgedistill.runtime.cuda_engine.find_gpu", find)
    result = stages.build(options(home, tmp_path / "x.edge", target="cuda"))
    gates = {gate.name: gate for gate in result.gates}
    assert gates["int8_r2_drop"].ok is not None
    assert (gates["step_p99_us"].ok, gates["step_p99_us"].value) == (None, None)
    assert "nothing is compiled" in str(gates["step_p99_us"].reason)
    told = result.to_json()
    assert told["not_compiled"] == "there is no CUDA driver on this machine"
    assert str(told["next_step"]).startswith(f"edgedistill compile {result.bundle} --target cuda")
    bundle = open_bundle(result.bundle)
    assert bundle.manifest.engine == "cuda"
    folder = result.bundle / "build" / "cuda"
    assert json.loads((folder / "build.json").read_text())["manifest"] == bundle.sha256
    assert (folder / "cuda" / "student_step.cu").is_file()
    assert list((folder / "model").glob("*_weights.h"))


def test_the_ranges_in_the_bundle_say_where_they_come_from(first: BuildResult, home: Path) -> None:
    bundle = open_bundle(first.bundle)
    ranges = Ranges.from_json(json.loads(bundle.read("ranges.json")))
    assert ranges.recipe.name == bundle.manifest.recipe == DEFAULT_RECIPE
    assert ranges.sessions == {DAYS[-1]: file_sha256(home / "data" / "sim00_day03.nwb")}
    assert ranges.windows
    spikes = Ranges.from_json(json.loads(bundle.read("subjects/spike-student/ranges.json")))
    assert spikes.checkpoint_sha256 != ranges.checkpoint_sha256


def test_int8_weights_and_state_are_a_quarter(first: BuildResult) -> None:
    bundle = open_bundle(first.bundle)
    assert {"student.onnx", "student.fp16.onnx", "student.int8.onnx", "student.int8.plugin.onnx"} <= set(bundle.names)
    sizes = bundle.manifest.int8
    assert 0 < sizes.weight_bytes < len(bundle.read("student.safetensors"))
    engines = {name: Decoder(bundle, name) for name in ("onnxruntime", "oracle")}
    whole, eight = (sum(a.nbytes for n, a in d.export_state().items() if "ring" in n) for d in engines.values())
    assert whole == 4 * eight
    assert eight <= sizes.state_bytes


def test_a_kept_part_stays_float32_all_the_way(home: Path, first: BuildResult, tmp_path: Path) -> None:
    recipe = tmp_path / "mine.toml"
    recipe.write_text('name = "mine"\ndescription = "mine"\nmethod = "minmax"\nkeep = ["layers.0.down", "readout"]\n')
    result = stages.build(options(home, tmp_path / "x.zip", recipe=str(recipe)))
    bundle = open_bundle(result.bundle)
    assert bundle.manifest.int8.kept_float32 == ("layers.0.down", "readout")
    refused(home, tmp_path, ConfigError, "did you mean 'mse'", recipe="mes")
    recipe.write_text(recipe.read_text().replace("0.down", "7.down"))
    refused(home, tmp_path, EdgeDistillError, r"layers\.7\.down", recipe=str(recipe))
