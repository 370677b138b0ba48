"""A build runs only the stages whose inputs have changed, and continues where it was killed."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks.cpu.small_builds import write_preset
from edgedistill import pipeline as stages
from edgedistill.bundle import open_bundle
from edgedistill.data.candidates import SeriesNames
from edgedistill.pipeline import BuildResult
from edgedistill.runtime import Decoder
from edgedistill.training import teacher_targets

from .tiny_builds import CALIBRATED, LINEAR, READS, STUDENTS, TEACHER, Killed, options, ran


def return_other_last_bits(monkeypatch: pytest.MonkeyPatch) -> None:
    """Makes the teacher's features differ in their last bits whenever they are computed, as on a GPU."""
    exact = teacher_targets.compute_teacher_features

    def inexact(*parts: Any, **named: Any) -> torch.Tensor:
        features = exact(*parts, **named)
        return features * (1 + 1e-6 * torch.rand_like(features))

    monkeypatch.setattr(teacher_targets, "compute_teacher_features", inexact)


@pytest.mark.usefixtures("unwritten")
def test_a_recipe_that_fine_tunes_is_resumed_and_kept(
    home: Path, first: BuildResult, first_work: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def kill(name: str, at: int, *_: object) -> None:
        if (name, at) == ("finetune", 3):
            raise Killed

    asked = options(home, tmp_path / "x.zip", recipe="qat", work=first_work)
    with pytest.raises(Killed):
        stages.build(asked, kill)
    result = stages.build(asked)
    assert ran(result) >= {"finetune", "finetune-spike-student"}
    assert not ran(result) & STUDENTS
    assert result.metrics["int8_r2"] is not None
    return_other_last_bits(monkeypatch)
    assert ran(stages.build(replace(asked, out=tmp_path / "y.zip"))) == set()


def test_the_same_again_runs_nothing_and_gives_the_same_and_a_zip_decodes_on_onnxruntime(
    home: Path, first: BuildResult, monkeypatch: pytest.MonkeyPatch
) -> None:
    return_other_last_bits(monkeypatch)
    again = stages.build(options(home, home / "again.zip"))
    assert ran(again) == set()
    assert "teacher latents" not in {stage.name for stage in again.stages}  # nothing asks for them
    assert again.metrics == first.metrics
    for name in ("student.safetensors", "holdout.npz", "reference.npz"):
        assert open_bundle(again.bundle).read(name) == open_bundle(first.bundle).read(name), name
    assert Decoder.open(again.bundle).info.engine == "onnxruntime"


BEHAVIOR_ALONE = {"spike-student", "deployed"}  # the distilled student does not use behavior


@pytest.mark.usefixtures("unwritten")
@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"line_hz": 61.0}, READS | LINEAR | {"distilled", "deployed", "calibrate"}),
        pytest.param(
            {"names": SeriesNames(behavior="cursor_pos")},
            READS | BEHAVIOR_ALONE | CALIBRATED | LINEAR | {"teacher-readout"},
            marks=pytest.mark.variant,
        ),
        pytest.param({"session": "sim00-day01"}, CALIBRATED | LINEAR | {"teacher-readout"}, marks=pytest.mark.variant),
        pytest.param({"seed": 1}, STUDENTS | CALIBRATED | TEACHER, marks=pytest.mark.variant),
        pytest.param({"preset": "wide"}, STUDENTS | CALIBRATED, marks=pytest.mark.variant),
        ({"recipe": "entropy"}, CALIBRATED),
    ],
    ids=["line frequency", "behavior", "session", "seed", "student size", "recipe"],
)
def test_a_change_runs_what_depends_on_it(
    home: Path, first_work: Path, tmp_path: Path, changes: dict[str, Any], expected: set[str]
) -> None:
    if "preset" in changes:
        changes = {"preset": str(write_preset(tmp_path / "wide.toml", d=12))}
    assert ran(stages.build(options(home, tmp_path / "other.edge", work=first_work, **changes))) == expected


@pytest.mark.usefixtures("unwritten")
def test_another_file_is_read_and_learned_from(home: Path, first_work: Path, tmp_path: Path) -> None:
    data = tmp_path / "data"
    data.mkdir()
    for path in sorted((home / "data").iterdir())[:2]:
        (data / path.name).write_bytes(path.read_bytes())
    result = stages.build(options(home, tmp_path / "x.edge", data=(data,), work=first_work))
    assert ran(result) == STUDENTS | CALIBRATED | TEACHER | LINEAR


@pytest.mark.parametrize(("stage", "step"), [pytest.param("teacher", 3, marks=pytest.mark.variant), ("distilled", 6)])
def test_a_killed_build_goes_on(home: Path, first: BuildResult, tmp_path: Path, stage: str, step: int) -> None:
    def kill(name: str, at: int, *_: object) -> None:
        if (name, at) == (stage, step):
            raise Killed

    seen: list[tuple[str, int]] = []
    for kept in (home / "work").glob("read-*"):
        shutil.copytree(kept, tmp_path / "work" / kept.name)
    asked = options(home, tmp_path / "x.zip", work=tmp_path / "work")
    with pytest.raises(Killed):
        stages.build(asked, kill)
    assert not asked.out.exists()
    (unfinished,) = (tmp_path / "work").glob("*.partial")
    assert (unfinished / "checkpoint.safetensors").exists()
    result = stages.build(asked, lambda name, at, *_: seen.append((name, at)))
    assert [at for name, at in seen if name == stage] == list(range(step + 1, 7))
    assert not list((tmp_path / "work").glob("*.partial"))
    assert result.metrics == first.metrics
    mine, its = open_bundle(asked.out), open_bundle(first.bundle)
    assert mine.read("student.safetensors") == its.read("student.safetensors")
