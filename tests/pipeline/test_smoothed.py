"""The outputs of a build are smoothed by the filter that decodes the validation block best, or by none."""

from __future__ import annotations

import itertools
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from benchmarks.cpu.array_models import draw_smoothing_model
from edgedistill.bench import QUICK, bench
from edgedistill.bundle import open_bundle
from edgedistill.bundle.contents import (
    SMOOTHING,
    read_decoder_spec,
    read_int8_model,
    read_reference,
    read_ridge,
    read_smoothing_model,
)
from edgedistill.errors import ConfigError
from edgedistill.numerics import Oracle
from edgedistill.pipeline import BuildResult, smoothed
from edgedistill.pipeline import build as run_build
from edgedistill.pipeline.confidence import PieceDecoder, calibrate_deviations
from edgedistill.pipeline.quantized import Int8Student
from edgedistill.pipeline.smoothed import NO_LABELS, NOT_WANTED, decode_session, smooth_ridge, smooth_student
from edgedistill.pipeline.trained import TrainedStudent
from edgedistill.quantization.calibration.range_search import calibrate
from edgedistill.quantization.calibration.recipe import load_recipe
from edgedistill.quantization.deployment import quantize_for_session
from edgedistill.runtime import Decoder
from edgedistill.training.baselines import fit_ridge
from edgedistill.training.batches import TrainingSession
from edgedistill.training.distill import make_student
from edgedistill.training.evaluate import Array, r2_score, unscale_behavior
from edgedistill.training.output_filter import KALMAN, NONE, OutputFilter
from edgedistill.training.student_tasks import STUDENT_TASKS, score_smoothed, score_student

from ..training.sessions import STUDENT, session
from .test_adaptation import adapt, day
from .tiny_builds import options


@pytest.fixture(scope="module")
def own() -> TrainingSession:
    return session()


@pytest.fixture(scope="module")
def student(own: TrainingSession) -> tuple[TrainedStudent, Int8Student]:
    """Returns a student with random weights, whose read-out sees the last bins, in float and in INT8."""
    made = make_student([own], "lfp", STUDENT, 8, 0)
    readout, scored = score_student(made, "deployed", own)
    trained = TrainedStudent("deployed", made, STUDENT_TASKS["deployed"], own, readout, scored.r2)
    ranges = calibrate(made, [own], "lfp", load_recipe("minmax"), 0)
    return trained, Int8Student(ranges, quantize_for_session(made, own, "lfp", readout, ranges))


def test_a_student_that_is_rough_decodes_better_when_it_is_smoothed(
    own: TrainingSession, student: tuple[TrainedStudent, Int8Student]
) -> None:
    trained, int8 = student
    found = smooth_student(trained, int8, KALMAN)
    assert found.smoothing.kind == KALMAN
    assert found.model is not None
    assert found.smoothing.validation_r2 > found.smoothing.raw_validation_r2  # type: ignore[operator]
    assert found.r2 > trained.r2
    assert found.int8_r2 > int8.quantized.score.r2
    model = int8.quantized.model
    raw = Oracle(model).run(own.inputs("lfp").numpy())
    assert decode_session(model, own).astype(np.float32).tobytes() == raw.tobytes()
    test = own.split.test
    scores = r2_score(found.model.run(raw)[test].astype(float), unscale_behavior(own)[test])
    assert found.int8_r2 == pytest.approx(float(np.mean(scores)))


def test_none_is_taken_where_it_is_wanted_or_labels_must_not_be_used(
    student: tuple[TrainedStudent, Int8Student],
) -> None:
    trained, int8 = student
    found = smooth_student(trained, int8, NONE)
    assert (found.model, found.smoothing.kind, found.smoothing.note) == (None, NONE, NOT_WANTED)
    assert (found.r2, found.int8_r2) == (trained.r2, int8.quantized.score.r2)
    blind = TrainedStudent(**{**vars(trained), "may_use_labels": False})
    assert smooth_student(blind, int8, KALMAN).smoothing.note == NO_LABELS
    assert smooth_student(blind, int8, KALMAN).model is None


def test_students_of_the_table_are_smoothed_in_the_same_way(
    own: TrainingSession, student: tuple[TrainedStudent, Int8Student]
) -> None:
    trained, int8 = student
    ours, shipped = score_smoothed(trained.student, "deployed", own, KALMAN), smooth_student(trained, int8, KALMAN)
    assert ours.r2 > trained.r2 + 0.003
    assert ours.r2 == pytest.approx(shipped.r2, abs=0.002)  # whose filter is fitted on the outputs of the integers
    assert score_smoothed(trained.student, "deployed", own, NONE).r2 == trained.r2


def test_a_ridge_is_smoothed_in_the_same_way(own: TrainingSession) -> None:
    ridge = fit_ridge(own.inputs("lfp").double().numpy(), own, lags=[5])
    assert smooth_ridge(ridge, own, NONE) is None
    assert smooth_ridge(ridge, own, KALMAN) is not None


def test_deviations_are_those_of_smoothed_outputs(
    own: TrainingSession, student: tuple[TrainedStudent, Int8Student]
) -> None:
    trained, int8 = student
    model, smooth = int8.quantized.model, smooth_student(trained, int8, KALMAN).model
    assert smooth is not None
    piece, nothing = slice(0, 300), np.zeros(0, np.int64)
    rough, tame = (PieceDecoder(model, own, one).decode(piece, nothing).kinematics for one in (None, smooth))
    assert tame.tobytes() == smooth.run(rough).tobytes()
    tables = [calibrate_deviations(model, own, one).model.at_rest for one in (None, smooth)]
    assert (tables[0] != tables[1]).all()


# ---------------------------------------------------------------- whole builds


def force_filter(monkeypatch: pytest.MonkeyPatch) -> None:
    """Lets every fit take some filter, each another one, because nothing can be decoded in the tiny builds."""
    seeds = itertools.count()

    def fit(decoded: Array, *_: object) -> OutputFilter:
        return OutputFilter(draw_smoothing_model(decoded.shape[1], 2, next(seeds)), 0.2, 0.1, 2, 0.5)

    monkeypatch.setattr(smoothed, "fit_output_filter", fit)


def test_a_bundle_holds_the_filter_and_decodes_with_it(
    home: Path, first: BuildResult, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    force_filter(monkeypatch)
    result = run_build(options(home, tmp_path / "smooth.edge"))
    bundle = open_bundle(result.bundle)
    manifest, shape = bundle.manifest, read_decoder_spec(bundle).shape
    model, reference = read_smoothing_model(bundle, shape), read_reference(bundle)
    assert model is not None
    assert reference is not None
    assert manifest.smoothing == result.smoothing
    assert result.to_json()["smoothing"] == result.smoothing.to_json()  # type: ignore[union-attr]
    assert manifest.smoothing_delay_ms == model.delay_ms(10)
    assert reference.kinematics.tobytes() == read_reference(open_bundle(first.bundle)).kinematics.tobytes()  # type: ignore[union-attr]
    for engine in ("c", "oracle"):
        decoder = Decoder(bundle, engine)
        decoder.import_state({f"state_{name}": array for name, array in reference.start.items()})
        found = np.stack([decoder.step(bin_) for bin_ in reference.bins])
        assert found.tobytes() == model.run(reference.kinematics).tobytes() != reference.kinematics.tobytes()
        assert decoder.info.smoothing_delay_ms == manifest.smoothing_delay_ms
    assert read_ridge(bundle, shape).smoothing is not None
    assert f"subjects/spike-student/{SMOOTHING}" in bundle.names
    rows = {subject.name: subject.fit.r2 for subject in bench(bundle, replace(QUICK, steps=10)).subjects}
    for name, metric, apart in (
        ("lfp-student-fp32", "deployed_r2", 5e-3),
        ("spike-student", "spike_student_r2", 5e-3),
        ("lfp-student-int8", "int8_r2", 5e-3),
    ):
        assert rows[name] == pytest.approx(result.metrics[metric], abs=apart), name
        assert result.metrics[metric] != first.metrics[metric]

    kept = open_bundle(adapt(home, result.bundle, tmp_path / "kept.edge", day(home, 2)).bundle)
    for name in (SMOOTHING, "subjects/ridge.safetensors", "deviation.safetensors"):
        assert kept.read(name) == bundle.read(name)
    assert kept.manifest.smoothing == manifest.smoothing
    assert kept.manifest.smoothing_delay_ms == manifest.smoothing_delay_ms
    anew = open_bundle(adapt(home, result.bundle, tmp_path / "anew.edge", day(home, 2), labels=True).bundle)
    assert anew.read(SMOOTHING) != bundle.read(SMOOTHING)
    assert anew.manifest.smoothing_delay_ms != manifest.smoothing_delay_ms


@pytest.mark.variant
def test_without_smoothing_a_bundle_has_no_filter_and_stays_so(home: Path, first: BuildResult, tmp_path: Path) -> None:
    result = run_build(options(home, tmp_path / "raw.edge", smooth=NONE))
    bundle = open_bundle(result.bundle)
    assert not [name for name in bundle.names if SMOOTHING in name]
    assert bundle.manifest.smoothing is not None
    assert (bundle.manifest.smoothing.kind, bundle.manifest.smoothing.note) == (NONE, NOT_WANTED)
    assert bundle.manifest.smoothing_delay_ms == 0
    shape = read_decoder_spec(bundle).shape
    bins = np.random.default_rng(0).normal(size=(30, shape.channels)).astype(np.float32)
    raw, decoder = Oracle(read_int8_model(bundle, shape)).run(bins), Decoder(bundle, "c")
    assert np.stack([decoder.step(bin_) for bin_ in bins]).tobytes() == raw.tobytes()
    labelled = open_bundle(adapt(home, result.bundle, tmp_path / "day.edge", day(home, 2), labels=True).bundle)
    assert not [name for name in labelled.names if SMOOTHING in name]
    assert labelled.manifest.smoothing == bundle.manifest.smoothing


def test_an_unknown_smoothing_is_refused_by_name(home: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="unknown smoothing 'kalmann'"):
        run_build(options(home, tmp_path / "x.edge", smooth="kalmann"))
