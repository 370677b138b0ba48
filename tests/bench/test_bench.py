"""Tests that a bench measures every subject, scores the bins that count, and gives a reason for every null."""

from __future__ import annotations

import io
import json
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest

from edgedistill.bench import (
    QUICK,
    BenchOptions,
    bench,
    score_on_recording,
    select_subjects,
    standardize_counts,
    timing,
)
from edgedistill.bench.extras import estimate_budget
from edgedistill.bench.subjects import LFP_STUDENT, SUBJECTS, open_candidates
from edgedistill.bench.timing import find_meters, measure_candidate_energy
from edgedistill.bundle import Bundle, open_bundle, write_bundle
from edgedistill.bundle.contents import Normalization, read_holdout
from edgedistill.config import TeacherSize
from edgedistill.data.bins import file_sha256
from edgedistill.data.recording import open_recording
from edgedistill.errors import BundleError, ConfigError, EngineError, RecordingError
from edgedistill.machine.description import describe_machine
from edgedistill.matching import match_recording
from edgedistill.measure import closed_loop, robustness, sensors
from edgedistill.measure.score import score_kinematics
from edgedistill.quantization.onnx_graph.teacher_window import make_timing_graph
from edgedistill.report import page_from_results
from edgedistill.target import load_target

from ..bundles import CONFIG, SHAPE, SPIKE_STATISTICS, UNITS, manifest, student_files, write_test_bundle
from ..data.nwb_files import add_behavior, add_lfp, lfp_volts, new_nwb, velocity, whole_session, write

pytestmark = pytest.mark.usefixtures("few_draws")
QUICKLY = replace(QUICK, steps=60)
TEACHER_SIZE = TeacherSize(
    d=16, layers=1, heads=2, ff=16, patch=8, span=4, predictor_layers=1, predictor_d=8, mask_share=0.2
)


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return write_test_bundle(tmp_path_factory.mktemp("subjects") / "test.edge")


def test_students_are_compared_on_the_holdout(bundle: Bundle) -> None:
    result = bench(bundle, QUICKLY)
    found = result.to_json()
    json.dumps(found, allow_nan=False)
    lfp, lfp_int8, spikes, spikes_int8 = found["subjects"]
    assert (lfp["name"], spikes["name"]) == ("lfp-student-fp32", "spike-student")
    assert (lfp_int8["name"], spikes_int8["name"]) == ("lfp-student-int8", "spike-student-int8")
    assert lfp["r2"] > 0.99  # bins before score_from or with NaN would ruin it
    assert 0.95 < lfp_int8["r2"] < lfp["r2"]
    assert spikes["r2"] < 0.5
    for row in found["subjects"]:
        precision = "int8" if row["name"].endswith("int8") else "float32"
        assert (row["engine"], row["precision"], row["steps"]) == ("onnxruntime", precision, 60)
        assert list(row["latency_us"]) == ["p50", "p95", "p99", "p999", "max"]
        assert row["latency_us"]["p50"] > 0
        assert (row["deadline_us"], row["deadline_misses"] <= 60) == (10_000, True)
        assert row["energy_mj_per_step"] is None
        assert row["energy_source"].startswith("not measured")
    assert lfp["artifact_bytes"] == len(bundle.read("student.onnx"))
    assert set(found["ratios"]) >= {"latency_p50", "latency_p99", "params", "artifact_bytes", "state_bytes"}
    assert [gate["name"] for gate in found["gates"]] == ["step_p99_us", "int8_r2_drop"]
    assert found["gates"][1]["value"] == lfp["r2"] - lfp_int8["r2"]
    assert list(found["clock"]) == list(lfp["latency_us"])


def test_sizes_follow_from_the_shape(bundle: Bundle) -> None:
    lfp, eight, *_ = bench(bundle, QUICKLY).subjects
    rings = 2 * SHAPE.layers * SHAPE.heads * (SHAPE.window - 1) * SHAPE.head_dim
    assert lfp.state_bytes == 4 * (rings + SHAPE.lag_rows * SHAPE.channels + 2)
    assert eight.state_bytes == rings + SHAPE.lag_rows * SHAPE.channels + 8
    assert eight.artifact_bytes == len(bundle.read("student.int8.onnx"))
    assert lfp.params * 4 < len(bundle.read("student.safetensors")) < lfp.params * 4 + 10_000


def test_a_bundle_without_spike_student_or_known_target_is_measured_without_them(tmp_path: Path) -> None:
    whole = write_test_bundle(tmp_path / "whole.edge")
    files = {name: whole.read(name) for name in whole.names if not name.startswith("subjects")}
    alone = write_bundle(tmp_path / "alone.zip", manifest(target="board-of-mine"), files)
    result = bench(open_bundle(alone.path), QUICKLY)
    assert [subject.name for subject in result.subjects] == ["lfp-student-fp32", "lfp-student-int8"]
    assert (result.ratios, result.gates, result.subjects[0].deadline_us) == ({}, (), 10_000)
    assert {one.name for one in result.absent} == {"spike-student", "spike-student-int8"}
    assert all("built without models on spikes" in one.reason for one in result.absent)


def test_r2_on_another_recording(bundle: Bundle, tmp_path: Path) -> None:
    with open_recording(whole_session(tmp_path / "s2.nwb", seconds=25)) as recording:
        result = bench(bundle, QUICKLY, match_recording(bundle, recording))
    lfp, eight, *spikes = result.subjects
    assert result.series == result.to_json()["series"] == "processing/ecephys/LFP/ElectricalSeries"
    (warning,) = result.to_json()["warnings"]
    assert "does not state" in warning  # the labels, of which the test bundle has none
    for subject in (lfp, eight):
        assert subject.fit.r2 is not None
        assert subject.fit.r2 < 0.5  # the weights are random and the recording is noise
        assert subject.fit.source.endswith("s2.nwb")
    for subject in spikes:
        assert (subject.fit.r2, "its own session" in subject.fit.source) == (None, True)


def test_every_second_of_a_recording_is_scored_or_left_out_for_a_reason(bundle: Bundle, tmp_path: Path) -> None:
    nwb = new_nwb()
    volts = lfp_volts(seconds=60)
    volts[5000:] *= 10  # from 20 s on
    add_lfp(nwb, volts)
    add_behavior(nwb, velocity()[:4000])
    nwb.add_invalid_time_interval(start_time=10.0, stop_time=12.0)
    with open_recording(write(nwb, tmp_path / "s.nwb")) as recording:
        matched = replace(match_recording(bundle, recording), warnings=())
        fit = score_on_recording(bundle, matched)
        result = bench(bundle, QUICKLY, matched)
    left = dict(fit.coverage.left_out_s)
    assert list(left) == ["warm-up", "invalid times", "no behavior"]
    assert (left["invalid times"], left["no behavior"]) == (pytest.approx(2), pytest.approx(20, abs=0.05))
    assert fit.coverage.kept_s + sum(left.values()) == pytest.approx(60)
    found = result.to_json()
    assert (found["scored_s"], found["left_out_s"]) == (fit.coverage.kept_s, left)
    (late,) = found["warnings"]
    assert "of 6000 bins have another amplitude" in late


def test_r2_on_a_recording_of_the_training_is_not_called_held_out(tmp_path: Path) -> None:
    path = whole_session(tmp_path / "s1.nwb", seconds=25)
    bundle = write_test_bundle(tmp_path / "test.edge", provenance={"sessions": {"s1": file_sha256(path)}})
    with open_recording(path) as recording:
        assert score_on_recording(bundle, match_recording(bundle, recording)).source.endswith(
            "trained on or adapted to: not held out"
        )


@pytest.mark.parametrize("behavior", [None, {"name": "hand_vel"}, {"unit": "m/s"}])
def test_a_recording_without_the_bundles_outputs_is_refused(
    bundle: Bundle, tmp_path: Path, behavior: dict | None
) -> None:
    nwb = new_nwb()
    add_lfp(nwb, lfp_volts())
    if behavior is not None:
        add_behavior(nwb, **behavior)
    path = write(nwb, tmp_path / "s.nwb")
    with open_recording(path) as recording, pytest.raises(RecordingError, match="behavior"):
        score_on_recording(bundle, match_recording(bundle, recording))


def test_counts_are_standardised_as_the_bundle_says() -> None:
    counts = np.random.default_rng(0).poisson(2, size=(50, UNITS)).astype(np.uint8)
    scaled = standardize_counts(counts, Normalization(**SPIKE_STATISTICS))
    assert np.allclose(scaled[:, 0] * 1.5 + 1, counts[:, 0])
    assert not scaled[:, -1].any()
    assert np.array_equal(standardize_counts(counts, None), counts)


@pytest.mark.parametrize(
    ("changes", "message"),
    [({"holdout.npz": None}, r"holdout\.npz"), ({"student.safetensors": b"no"}, "safetensors")],
)
def test_a_bundle_that_lacks_a_part_is_refused_by_its_name(tmp_path: Path, changes: dict, message: str) -> None:
    whole = write_test_bundle(tmp_path / "whole.edge")
    files = {name: whole.read(name) for name in whole.names} | changes
    kept = {name: data for name, data in files.items() if data is not None}
    with pytest.raises(BundleError, match=message):
        bench(write_bundle(tmp_path / "less.edge", manifest(), kept), QUICKLY)


def test_a_fit_needs_ten_seconds_and_outputs_that_vary() -> None:
    truth = np.random.default_rng(1).normal(size=(1000, 2))
    assert score_kinematics(truth, truth, "here").r2 == 1
    assert score_kinematics(np.full_like(truth, truth.mean(0)), truth, "here").r2 == pytest.approx(0)
    assert score_kinematics(truth[1:], truth[1:], "here").r2 is None
    still = truth * [1, 0]
    assert (
        score_kinematics(truth, still, "here").r2,
        "does not vary" in score_kinematics(truth, still, "here").source,
    ) == (
        None,
        True,
    )
    assert score_kinematics(np.zeros((0, 2)), np.zeros((0, 2)), "here").r2 is None


def test_a_machine_is_described_for_json() -> None:
    machine = describe_machine()
    json.dumps(machine, allow_nan=False)
    assert machine["cores"] >= 1
    assert set(machine["versions"]) >= {"python", "numpy", "onnxruntime", "edgedistill"}


def test_the_test_bundle_holds_the_student_it_was_made_from(bundle: Bundle) -> None:
    assert student_files(SHAPE, 0)["student.onnx"] == bundle.read("student.onnx")
    assert CONFIG.channels == SHAPE.channels


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """Makes a bundle with a teacher and with one that is only timed."""
    small = write_test_bundle(tmp_path_factory.mktemp("whole") / "small.edge")
    files = {name: small.read(name) for name in small.names if name != "manifest.json"}
    graph = make_timing_graph(TEACHER_SIZE, UNITS, 12, 2).SerializeToString()
    facts = {name: {"params": 1234, "window": 12} for name in ("spike-teacher", "spike-teacher-published")}
    files |= {"subjects/spike-teacher.onnx": graph, "subjects/spike-teacher-published.onnx": graph}
    files["subjects/teachers.json"] = json.dumps(facts).encode()
    return write_bundle(small.path.with_name("whole.edge"), manifest(), files)


@pytest.fixture(scope="module")
def full(whole: Bundle) -> dict:
    options = BenchOptions(steps=40, closed_loop_s=0.3, energy_s=0, robustness=True, system=True)
    with pytest.MonkeyPatch.context() as patch:
        for levels in ("LOST", "NOISE", "DAYS"):
            patch.setattr(robustness, levels, getattr(robustness, levels)[:2])
        patch.setattr(robustness, "DRAWS", 1)
        patch.setattr(closed_loop, "_require_room", lambda *_: None)  # other tests may make a step slow
        found = bench(whole, options).to_json()
    json.dumps(found, allow_nan=False)
    return found


def test_every_subject_is_there_or_missing_by_name(full: dict) -> None:
    measured = {row["name"] for row in full["subjects"]}
    named = measured | {one["name"] for one in full["absent"]}
    assert named == (set(SUBJECTS) | {"lfp-ridge"}) - {"onnxruntime-int8"}
    assert {"spike-teacher", "spike-teacher-published", "torch-eager", "onnxruntime-dynamic-int8"} <= measured


def test_a_shape_that_was_never_trained_has_a_time_and_no_r2(full: dict) -> None:
    rows = {row["name"]: row for row in full["subjects"]}
    published = rows["spike-teacher-published"]
    assert published["r2"] is None
    assert "never trained" in published["r2_source"]
    assert published["latency_us"]["p50"] > 0
    assert rows["spike-teacher"]["r2"] is not None
    assert full["ratios"]["spike_teacher_published_over_lfp_student_int8"] > 0


def test_every_row_has_the_histogram_of_its_steps(full: dict) -> None:
    for row in full["subjects"]:
        assert sum(row["histogram"]["counts"]) == row["steps"]
        assert len(row["histogram"]["edges_us"]) == len(row["histogram"]["counts"]) + 1
        low, high = min(row["p50_of_parts_us"]), max(row["p50_of_parts_us"])
        assert low <= row["latency_us"]["p50"] * 1.5
        assert high >= row["latency_us"]["p50"] / 1.5


def test_the_closed_loop_has_an_empty_subject_beside_it(full: dict) -> None:
    rows = [row for row in full["subjects"] if row["paced"] is not None]
    assert rows
    for row in rows:
        assert row["paced"]["steps"] == 30
        assert row["paced"]["deadline_misses"] <= 30
    assert full["empty_paced"]["steps"] == 30
    assert all(row["paced_source"].startswith("not measured") for row in full["subjects"] if row["paced"] is None)
    assert full["harness"]["closed_loop"]["policy"] in ("fifo", "other")


def test_the_whole_decoder_is_fed_raw_frames(whole: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(closed_loop, "_require_room", lambda *_: None)
    bundle = with_holdout(whole, "frames.edge", frames=np.zeros((500, 3), np.float32))
    found = bench(bundle, replace(QUICKLY, closed_loop_s=0.2)).to_json()["frames_paced"]
    assert found["steps"] == 20
    assert 0 <= found["empty_deadline_misses"] <= 20
    assert found["signal_to_output_ms"] > found["group_delay_ms"] == 12.0
    assert bench(whole, replace(QUICKLY, closed_loop_s=0.05)).to_json()["frames_paced"] is None


def with_holdout(whole: Bundle, name: str, **arrays: np.ndarray) -> Bundle:
    """Writes the bundle with parts of its holdout replaced."""
    files = {name: whole.read(name) for name in whole.names}
    with np.load(io.BytesIO(files["holdout.npz"])) as stored:
        kept = dict(stored)
    file = io.BytesIO()
    np.savez(file, **kept | arrays)
    return write_bundle(whole.path.with_name(name), manifest(), {**files, "holdout.npz": file.getvalue()})


def test_unknown_movement_gives_nulls_and_still_a_page(whole: Bundle) -> None:
    known = read_holdout(whole).kinematics
    bundle = with_holdout(whole, "unknown.edge", kinematics=np.full_like(known, np.nan))
    found = bench(bundle, replace(QUICKLY, robustness=True)).to_json()
    json.dumps(found, allow_nan=False)
    assert all(row["r2"] is None for row in found["subjects"])
    assert found["robustness"] == []
    assert "not measured" in page_from_results([found], ["unknown"])


def test_engines_that_differ_are_not_put_in_a_ratio(bundle: Bundle) -> None:
    result = bench(bundle, QUICKLY)
    rows = [replace(s, engine="c") if s.name == "lfp-student-int8" else s for s in result.subjects]
    ratios = replace(result, subjects=tuple(rows)).ratios
    assert ratios["latency_p50"] is not None
    for key in ("latency_p50_int8", "latency_p99_int8", "artifact_bytes_int8", "state_bytes_int8"):
        assert ratios[key] is None
        assert result.ratios[key] is not None
    assert ratios["params_int8"] == result.ratios["params_int8"]


@dataclass
class Gpu:
    """A sensor of the GPU."""

    source: str = "NVML: GPU board"
    period_s: float = 0.01
    shortest_s: float = 0.01
    counts_energy: bool = False

    def read(self) -> float:
        return 1000.0


@pytest.mark.parametrize("target", ["host", "cuda", "jetson-orin-nano"])
def test_a_subject_is_measured_by_the_meter_of_its_own_engine(
    bundle: Bundle, target: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sensors, "find_nvml_meter", Gpu)
    monkeypatch.setattr(sensors, "find_rapl_meter", lambda root: "only root may")
    (graph,), _ = open_candidates(bundle, read_holdout(bundle), "onnxruntime-int8", (LFP_STUDENT,))
    on_gpu = replace(graph, name="on the GPU", runs_on="cuda")
    meters = find_meters((graph, on_gpu), load_target(target).power)
    assert isinstance(meters[on_gpu.name], Gpu)
    assert "only root may" in str(meters[graph.name])
    assert measure_candidate_energy(graph, meters[graph.name], 0.02).mj_per_step is None
    assert measure_candidate_energy(on_gpu, meters[on_gpu.name], 0.02, repeats=1).mj_per_step is not None


def test_dynamic_int8_has_the_size_and_precision_of_the_graph_that_ran(full: dict, whole: Bundle) -> None:
    row = next(row for row in full["subjects"] if row["name"] == "onnxruntime-dynamic-int8")
    assert row["precision"] == "int8"
    assert row["artifact_bytes"] != len(whole.read("student.onnx"))


def test_a_subject_too_slow_when_woken_has_no_closed_loop_and_the_bench_goes_on(
    whole: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    def too_slow(*_: object, **__: object) -> None:
        raise EngineError("'frames' is too slow to be paced beside the others")

    monkeypatch.setattr(timing, "time_paced", too_slow)
    bundle = with_holdout(whole, "slow.edge", frames=np.zeros((500, 3), np.float32))
    found = bench(bundle, replace(QUICKLY, closed_loop_s=0.05)).to_json()
    assert (found["empty_paced"], found["frames_paced"]) == (None, None)
    assert all("too slow" in row["paced_source"] for row in found["subjects"])


def test_the_implant_of_a_decoder_with_bands_has_its_electrodes_and_a_rate_that_holds_them(tmp_path: Path) -> None:
    bundle = write_test_bundle(tmp_path / "bands.edge", bands=True)
    rows = {(row.signal, row.decoded): row for row in estimate_budget(bundle, (), {}).rows}
    assert rows["LFP", "outside"].mbit_per_s == pytest.approx(3 * 250 * 16 / 1e6)
    assert rows["LFP below 50 Hz alone", "outside"].mbit_per_s == pytest.approx(3 * 200 * 16 / 1e6)
    with pytest.raises(ConfigError, match="does not hold the bands"):
        estimate_budget(bundle, (), {"lfp_rate_hz": 100})


def test_a_report_can_be_drawn_from_a_full_result(full: dict) -> None:
    assert set(full["trace"]["decoded"]) == {"lfp-student-int8", "spike-student-int8"}
    kinds = ["lost channels", "lost bank", "added noise", "drift, simulated"]
    assert [curve["kind"] for curve in full["robustness"]] == kinds
    assert [row["decoded"] for row in full["system"]["rows"]].count("implant") == 3
    assert full["system"]["assumptions"]["lfp_rate_hz"]["value"] == 250
    assert full["system"]["assumptions"]["lfp_rate_hz"]["source"] == "the rate of the recording"
    assert full["layers"][0]["name"] == "embed"
    page = page_from_results([full], ["whole"])
    assert "spike-teacher-published" in page


def test_an_unknown_subject_is_refused_with_the_nearest_name() -> None:
    assert select_subjects(()) == SUBJECTS
    assert select_subjects(("torch-eager",)) == ("lfp-student-fp32", "lfp-student-int8", "torch-eager")
    assert select_subjects(("lfp-student-int8",)) == ("lfp-student-fp32", "lfp-student-int8")
    with pytest.raises(ConfigError, match="'lfp-student-fp32', which is the same"):
        select_subjects(("onnxruntime-fp32",))
    with pytest.raises(ConfigError, match="torch-eager"):
        select_subjects(("torch-eagr",))
