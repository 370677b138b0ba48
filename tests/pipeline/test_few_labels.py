"""`--label-minutes` limits what is learned from labels, and nothing else is trained anew for it."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest

from edgedistill import pipeline as stages
from edgedistill.errors import ConfigError
from edgedistill.pipeline import BuildResult, DistillOptions
from edgedistill.pipeline.assembled import Ingredients
from edgedistill.pipeline.pretrained_student import load_pretrained_student
from edgedistill.pipeline.trained import TrainedStudent, choose_shipped
from edgedistill.training.evaluate import Readout, Score, unscale_behavior
from edgedistill.training.student_tasks import STUDENT_TASKS

from .tiny_builds import CALIBRATED, LINEAR, options, ran, refused


def test_a_build_learns_from_the_first_minutes_of_its_session_alone(
    home: Path, first: BuildResult, first_work: Path, tmp_path: Path, ingredients: list[Ingredients]
) -> None:
    result = stages.build(options(home, tmp_path / "x.edge", work=first_work, label_minutes=0.1))
    assert ran(result) == {"deployed", "spike-labels", "spike-student", "teacher-readout"} | CALIBRATED | LINEAR
    (parts,) = ingredients
    session, provenance = parts.session, parts.provenance
    labelled = int(np.isfinite(unscale_behavior(session)[session.settled : session.split.train.stop]).all(1).sum())
    assert provenance["label_minutes"] == 0.1
    assert {"deployed", "distilled", "distilled_few_labels"} <= set(provenance["candidates"])
    if provenance["shipped"] in ("deployed", "distilled"):
        assert labelled > 600
        assert provenance["labels_from_spikes"]["minutes"] == pytest.approx((labelled - 600) / 6000)
        assert provenance["labels_from_spikes"]["decoder"] in ("ridge_spike", "kalman_spike")
    else:
        assert labelled == 600
        assert "labels_from_spikes" not in provenance
    assert result.metrics["deployed_r2"] != first.metrics["deployed_r2"]
    assert result.metrics["ridge_lfp_r2"] != first.metrics["ridge_lfp_r2"]
    assert parts.deviations.confidence.labelled_bins == first.confidence.labelled_bins  # of the validation block


def test_without_labels_a_build_is_refused_and_says_what_to_do(home: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as refusal:
        stages.build(options(home, tmp_path / "x.edge", label_minutes=0))
    assert refusal.value.got == "--label-minutes 0"
    assert "without --probe" in (refusal.value.next_step or "")
    for odd in ("nan", "inf"):
        refused(home, tmp_path, ConfigError, "so many minutes of labels", label_minutes=float(odd))


def test_distill_keeps_a_readout_of_the_session_with_labels(pretrained: Path, tmp_path: Path) -> None:
    days = tuple(pretrained / "data" / f"sim00_day{day:02d}.nwb" for day in (1, 2))
    usual = DistillOptions(
        days,
        pretrained / "teacher",
        tmp_path / "few",
        str(pretrained / "tiny.toml"),
        6,
        supervised=True,
        label_minutes=0.2,
    )
    stages.distill(usual)
    assert list(load_pretrained_student(tmp_path / "few").readouts) == ["sim00-day02"]
    assert list((tmp_path / "few.work").glob("spike-labels-*/record.json"))
    free = DistillOptions(days, pretrained / "teacher", tmp_path / "free", label_minutes=0.2)
    with pytest.raises(ConfigError, match="how much behavior a training sees"):
        stages.distill(free)


def taught(name: str, validation_r2: float) -> TrainedStudent:
    """Returns a student of which only the score of its smoothed outputs is known."""
    readout, smoothed = Readout(np.zeros((2, 3)), np.zeros(2), 1.0, 0.9), Score(0.1, (0.1,), validation_r2)
    task, nothing = STUDENT_TASKS[name], cast(Any, None)
    return TrainedStudent(name, nothing, task, nothing, readout, 0.0, smoothed=smoothed)


@pytest.mark.parametrize(
    ("r2", "ships"),
    [
        ({"distilled": 0.5}, "distilled"),
        ({"distilled": 0.4}, "deployed"),
        ({"distilled": 0.3, "supervised_lfp": 0.45}, "supervised_lfp"),
        ({"distilled": 0.3, "supervised_lfp": math.nan}, "deployed"),
    ],
)
def test_the_student_that_decodes_the_validation_block_better_ships(r2: dict[str, float], ships: str) -> None:
    """What counts are the smoothed outputs, because those are what the device gives out."""
    found = choose_shipped({name: taught(name, value) for name, value in {"deployed": 0.4, **r2}.items()})
    assert found.shipped == ships
    assert found.validation_r2 == {"deployed": 0.4} | {k: None if math.isnan(v) else v for k, v in r2.items()}
