"""Builds work with a student, a teacher or ranges of an earlier run, on the same days and on others."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import h5py
import pytest
import torch

from edgedistill import pipeline as stages
from edgedistill.bench import QUICK, bench
from edgedistill.bundle import open_bundle
from edgedistill.bundle.contents import read_decoder_spec
from edgedistill.config import Alignment
from edgedistill.errors import ConfigError, EdgeDistillError
from edgedistill.models.files import load_student, save_student
from edgedistill.pipeline import BuildResult, DistillOptions, trained
from edgedistill.pipeline.assembled import Ingredients
from edgedistill.pipeline.calibration import CalibrationOptions, calibrate_run
from edgedistill.quantization.calibration.ranges import Ranges, read_ranges
from edgedistill.training.losses import DISTILLED, DISTILLED_WITH_BEHAVIOR, Objective

from .tiny_builds import DAYS, LINEAR, READS, check_raw_frames, options, ran, refused


def test_ranges_of_a_file_need_their_own_student(pretrained: Path, first: BuildResult, tmp_path: Path) -> None:
    day = (pretrained / "data" / "sim00_day02.nwb",)
    calibrate_run(CalibrationOptions(pretrained / "student", day, tmp_path / "ranges.json", "minmax"))
    asked = {"ranges": tmp_path / "ranges.json", "student": pretrained / "student"}
    result = stages.build(options(pretrained, tmp_path / "x.zip", **asked))
    bundle = open_bundle(result.bundle)
    assert bundle.manifest.recipe == "minmax"
    written = Ranges.from_json(json.loads(bundle.read("ranges.json")))
    assert written.values == read_ranges(tmp_path / "ranges.json").values
    assert not written.recipe.refit_readout  # labels of another day must not be used
    refused(pretrained, tmp_path, EdgeDistillError, "no --student", ranges=tmp_path / "ranges.json")
    other = load_student(pretrained / "student")[0]
    with torch.no_grad():
        other.norm_out.mul_(2)
    save_student(other, tmp_path / "other", load_student(pretrained / "student")[1])
    refused(
        pretrained, tmp_path, EdgeDistillError, "made for another student", **{**asked, "student": tmp_path / "other"}
    )


@pytest.mark.usefixtures("untrained")
@pytest.mark.parametrize(
    ("mode", "probe"),
    [
        ("none", False),
        pytest.param("stats", False, marks=pytest.mark.variant),
        ("tokenizer", False),
        pytest.param("stats", True, marks=pytest.mark.variant),
    ],
)
def test_a_pretrained_student_decodes_another_day(
    pretrained: Path, first: BuildResult, tmp_path: Path, mode: str, probe: bool
) -> None:
    out = tmp_path / "x.zip"
    result = stages.build(options(pretrained, out, student=pretrained / "student", adapt=mode, probe=probe))
    assert ran(result) <= {"calibrate"} | READS | LINEAR
    manifest = open_bundle(out).manifest
    assert manifest.session is not None
    assert manifest.provenance is not None
    assert (manifest.session.id, manifest.provenance.others["adapt"]) == (DAYS[2], mode)
    _, facts = load_student(pretrained / "student")
    (old_mean,) = (stored["mean"] for stored in facts["standardization"].values())
    assert (list(read_decoder_spec(open_bundle(out)).normalization.mean) == old_mean) == (mode == "none")
    expected = result.metrics["deployed_r2"]
    measured = bench(open_bundle(out), replace(QUICK, steps=10)).subjects[0].fit.r2
    assert expected is not None
    assert measured is not None
    assert abs(measured - expected) < 1e-3
    check_raw_frames(out)


@pytest.mark.usefixtures("untrained")
def test_another_day_needs_no_units_and_trains_nothing(pretrained: Path, first: BuildResult, tmp_path: Path) -> None:
    day = Path(shutil.copy(pretrained / "data" / "sim00_day03.nwb", tmp_path))
    with h5py.File(day, "r+") as file:
        del file["units"]
    changes = {"data": (day,), "student": pretrained / "student", "follow_s": 300.0}
    result = stages.build(options(pretrained, tmp_path / "x.zip", **changes))
    bundle = open_bundle(result.bundle)
    assert [name for name in bundle.names if name.startswith("subjects/")] == ["subjects/ridge.safetensors"]
    assert [name for name, r2 in result.metrics.items() if r2 is not None] == [
        *("deployed_r2", "int8_r2", "ridge_lfp_r2", "kalman_lfp_r2")
    ]
    assert read_decoder_spec(bundle).front_end.follow_s == 300
    reasons = {one.name: one.reason for one in bench(bundle, replace(QUICK, steps=10)).absent}
    assert "built without models on spikes" in reasons["spike-student"]
    refused(pretrained, tmp_path, ConfigError, "follow the signal this fast", **{**changes, "follow_s": 3.0})


@pytest.mark.parametrize("asked", [pytest.param("spikes", marks=pytest.mark.variant), "baselines"])
def test_models_on_spikes_are_trained_where_asked(
    pretrained: Path,
    first: BuildResult,
    tmp_path: Path,
    ingredients: list[Ingredients],
    asked: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    smoothed: list[tuple[object, ...]] = []
    original = trained.score_raw_and_smoothed
    monkeypatch.setattr(trained, "score_raw_and_smoothed", lambda *args: smoothed.append(args[1::2]) or original(*args))
    changes = {"student": pretrained / "student", asked: True}
    result = stages.build(options(pretrained, tmp_path / "x.zip", **changes))
    assert ingredients[0].spikes is not None
    assert result.metrics["teacher_r2"] is not None
    assert result.metrics["spike_student_r2"] is not None
    others = ["unsupervised_lfp", "unsupervised_lfp", "supervised_lfp"] if asked == "baselines" else []
    assert smoothed == [(name, "kalman") for name in ("spike_student", *others)]


def test_no_label_of_another_day_has_a_say_in_the_integers(
    pretrained: Path, tmp_path: Path, ingredients: list[Ingredients]
) -> None:
    recipe, data = tmp_path / "few.toml", tmp_path / "data"
    recipe.write_text('name = "few"\ndescription = "few"\nmethod = "minmax"\nwindows = 6\nwindow_bins = 64\n')
    shutil.copytree(pretrained / "data", data)
    with h5py.File(data / "sim00_day03.nwb", "r+") as file:
        velocity = file["processing/behavior/Velocity/cursor_vel/data"]
        velocity[...] = velocity[()][::-1]
    for folder in (pretrained / "data", data):
        changes = {"data": (folder,), "student": pretrained / "student", "recipe": str(recipe)}
        stages.build(options(pretrained, tmp_path / "x.edge", **changes))
    mine, its = (one.lfp.int8 for one in ingredients)
    assert mine.quantized.score != its.quantized.score
    assert mine.ranges.windows == its.ranges.windows
    for name, tensor in mine.quantized.model.tensors.items():
        assert (tensor == its.quantized.model.tensors[name]).all(), name


def test_a_pretrained_student_is_fine_tuned_by_its_own_objective(
    pretrained: Path, tmp_path: Path, ingredients: list[Ingredients], monkeypatch: pytest.MonkeyPatch
) -> None:
    objectives: list[Objective] = []

    def tuned(student: Any, ranges: Any, sessions: Any, modality: str, objective: Objective, *_: object) -> Any:
        objectives.append(objective)
        return student, {name: [2 * value for value in values] for name, values in ranges.items()}

    days = tuple(pretrained / "data" / f"sim00_day{day:02d}.nwb" for day in (1, 2))
    settings: dict[str, Any] = {"preset": str(pretrained / "tiny.toml"), "steps": 6, "alignment": Alignment("mse")}
    stages.distill(DistillOptions(days, pretrained / "teacher", tmp_path / "student", **settings))
    monkeypatch.setattr("edgedistill.pipeline.ranges.finetune_student", tuned)
    asked = {"data": days, "student": tmp_path / "student", "recipe": "qat", "spikes": True}
    refused(pretrained, tmp_path, ConfigError, "needs its teacher", **asked)
    assert not objectives
    stages.build(options(pretrained, tmp_path / "x.edge", teacher=pretrained / "teacher", **asked))
    assert objectives == [replace(DISTILLED, aligned_by=Alignment("mse")), DISTILLED_WITH_BEHAVIOR]
    ranges = ingredients[0].lfp.int8.ranges
    assert [row["range"] for row in ranges.table] == [max(values) for values in ranges.values.values()]


@pytest.mark.variant
def test_every_student_of_a_build_is_aligned_by_the_kind_that_was_asked_for(
    pretrained: Path, tmp_path: Path, ingredients: list[Ingredients]
) -> None:
    """The student of `distill` goes on by its own kind, and the students of the build by that of the build."""
    days = tuple(pretrained / "data" / f"sim00_day{day:02d}.nwb" for day in (1, 2))
    settings: dict[str, Any] = {"preset": str(pretrained / "tiny.toml"), "steps": 6, "supervised": True}
    own = Alignment("subspace", "standardized")
    stages.distill(DistillOptions(days, pretrained / "teacher", tmp_path / "student", alignment=own, **settings))
    asked = {"data": days, "teacher": pretrained / "teacher", "recipe": "qat", "alignment": Alignment("subspace")}
    stages.build(options(pretrained, tmp_path / "x.edge", **asked))
    stages.build(options(pretrained, tmp_path / "y.edge", student=tmp_path / "student", spikes=True, **asked))
    fresh, earlier = ingredients
    assert fresh.provenance["alignment"] == {"kind": "subspace", "centring": "mean"}
    assert earlier.provenance["alignment"] == {"kind": "subspace", "centring": "standardized"}


@pytest.mark.usefixtures("unwritten")
def test_a_pretrained_teacher_is_used(pretrained: Path, first: BuildResult, tmp_path: Path) -> None:
    days = tuple(pretrained / "data" / f"sim00_day{day:02d}.nwb" for day in (1, 2))
    result = stages.build(options(pretrained, tmp_path / "x.edge", data=days, teacher=pretrained / "teacher"))
    assert "teacher" not in {stage.name for stage in result.stages}
    assert result.metrics["teacher_r2"] is not None
