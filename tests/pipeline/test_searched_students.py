"""`--trials` ships no student that is worse on validation than the preset's, and goes on after a kill."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest

from edgedistill import pipeline as stages
from edgedistill.config import Alignment
from edgedistill.errors import ConfigError, EdgeDistillError, RecordingError
from edgedistill.pipeline import BuildResult, DistillOptions
from edgedistill.pipeline.assembled import Ingredients
from edgedistill.pipeline.pretrained_student import load_pretrained_student

from .tiny_builds import Killed, options, ran, refused

pytest.importorskip("optuna")


def weights(folder: Path) -> bytes:
    return (folder / "model.safetensors").read_bytes()


def test_a_search_begins_with_the_preset_and_is_no_worse_on_validation(
    home: Path, first: BuildResult, first_work: Path, tmp_path: Path, ingredients: list[Ingredients]
) -> None:
    result = stages.build(options(home, tmp_path / "x.edge", work=first_work, trials=3))
    assert {"search-spike-student", "search-distilled", "search-deployed"} <= ran(result)
    for name in ("deployed", "distilled", "spike-student"):
        (plain,), (search,) = first_work.glob(f"{name}-*"), first_work.glob(f"search-{name}-*")
        assert weights(search / "trial-0") == weights(plain)
        assert not list(search.glob("*/checkpoint.safetensors"))
    before, (parts,) = first.training, ingredients
    searched: Any = parts.provenance["search"]
    assert set(searched) == {"spike_student", "distilled", "deployed"}
    for name, found in searched.items():
        assert [one["trial"] for one in found] == [0, 1, 2]
        (chosen,) = (one for one in found if one["chosen"])
        assert chosen["validation_r2"] >= found[0]["validation_r2"]
        if name != "spike_student":
            assert found[0]["validation_r2"] == before["candidates"][name]
            assert parts.provenance["candidates"][name] == chosen["validation_r2"]
    assert searched["deployed"][2]["settings"]["alignment"] == "none"
    assert result.training == {key: parts.provenance[key] for key in result.training}
    again = stages.build(options(home, tmp_path / "y.edge", work=first_work, trials=3))
    assert not [name for name in ran(again) if name.startswith("search")]
    assert again.training == result.training


@pytest.mark.variant
def test_a_search_that_was_killed_goes_on_with_the_same_bits(
    home: Path, first: BuildResult, first_work: Path, tmp_path: Path, ingredients: list[Ingredients]
) -> None:
    other = Path(shutil.copytree(first_work, tmp_path / "other"))
    undisturbed = stages.build(options(home, tmp_path / "x.edge", work=other, trials=2))

    def kill(name: str, at: int, *_: object) -> None:
        if (name, at) == ("deployed, trial 2 of 2", 4):
            raise Killed

    asked = options(home, tmp_path / "y.edge", work=first_work, trials=2)
    with pytest.raises(Killed):
        stages.build(asked, kill)
    seen: list[tuple[str, int]] = []
    result = stages.build(asked, lambda name, at, *_: seen.append((name, at)))
    assert seen[0] == ("deployed, trial 2 of 2", 5)  # its checkpoint was written at step 4
    assert result.training == undisturbed.training
    assert result.metrics == undisturbed.metrics


@pytest.mark.variant
def test_the_student_on_behavior_alone_may_ship(
    home: Path,
    first: BuildResult,
    first_work: Path,
    tmp_path: Path,
    ingredients: list[Ingredients],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """It is trained for the table with --baselines, and fine-tuned by its own objective."""
    from edgedistill.pipeline import trained

    original = trained.choose_shipped
    monkeypatch.setattr(
        trained, "choose_shipped", lambda found: trained.Choice("supervised_lfp", original(found).validation_r2)
    )
    changes: dict[str, Any] = {"work": first_work, "baselines": True, "recipe": "qat"}
    result = stages.build(options(home, tmp_path / "x.edge", **changes))
    facts = ingredients[0].provenance
    assert (facts["shipped"], facts["learned_from_behavior"], facts["learned_from_teacher"]) == (
        "supervised_lfp",
        True,
        False,
    )
    assert facts["objective"] == {"reconstruction": 0.0, "alignment": 0.0, "behavior": 1.0}
    assert set(result.training["candidates"]) == {"deployed", "distilled", "supervised_lfp"}
    assert result.metrics["deployed_r2"] == result.metrics["supervised_lfp_r2"]


@pytest.mark.variant
def test_every_row_is_searched_alike(
    home: Path, first_work: Path, tmp_path: Path, ingredients: list[Ingredients]
) -> None:
    stages.build(options(home, tmp_path / "x.edge", work=first_work, baselines=True, trials=2, steps=4))
    searched: Any = ingredients[0].provenance["search"]
    rows = {"single_session_lfp", "multi_session_lfp", "supervised_lfp", "distilled_bidirectional"}
    assert set(searched) == {"spike_student", "distilled", "deployed"} | rows
    assert {len(found) for found in searched.values()} == {2}


def test_distill_searches_keeps_its_trials_and_hands_them_to_a_bundle(
    pretrained: Path, tmp_path: Path, ingredients: list[Ingredients]
) -> None:
    days = tuple(pretrained / "data" / f"sim00_day{day:02d}.nwb" for day in (1, 2))
    settings: dict[str, Any] = {"preset": str(pretrained / "tiny.toml"), "steps": 6, "supervised": True}
    summary = stages.distill(DistillOptions(days, pretrained / "teacher", tmp_path / "s", trials=3, **settings))
    (chosen,) = (one for one in summary.search["deployed"] if one["chosen"])
    found = load_pretrained_student(tmp_path / "s")
    assert len(found.trials) == 3
    assert found.trials[chosen["trial"]].settings == chosen["settings"]
    assert found.task.objective.alignment == chosen["settings"].get("alignment_weight", 0.0)
    asked = {"student": tmp_path / "s", "data": days}
    stages.build(options(pretrained, tmp_path / "x.edge", **asked))
    facts = ingredients[0].provenance
    assert facts["search"] == summary.search
    assert facts["objective"] == found.task.objective.weights
    assert "shipped" not in facts


def test_a_student_without_teacher_is_read_as_one(
    pretrained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from dataclasses import replace

    from edgedistill.pipeline.pretrained_student import save_pretrained_student

    found = load_pretrained_student(pretrained / "student")
    alone = replace(found.task, objective=found.task.objective.with_weights(0.0, 0.0, 1.0))
    save_pretrained_student(replace(found, task=alone), tmp_path / "alone")
    assert load_pretrained_student(tmp_path / "alone").task == alone
    assert found.task.objective.alignment > 0


@pytest.mark.usefixtures("untrained")
def test_options_of_a_training_are_refused_where_nothing_is_trained(pretrained: Path, tmp_path: Path) -> None:
    student = {"student": pretrained / "student"}
    refused(
        pretrained,
        tmp_path,
        ConfigError,
        r"--alignment: this build trains no student",
        alignment=Alignment("whitened"),
        **student,
    )
    refused(pretrained, tmp_path, ConfigError, r"--trials 3: this build trains no student", trials=3, **student)
    refused(pretrained, tmp_path, ConfigError, "needs a trial", trials=0)


@pytest.mark.usefixtures("untrained")
def test_a_search_without_labels_to_judge_it_is_refused(
    pretrained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("edgedistill.pipeline.distillation.find_unlabelled_block", lambda session: "test")
    days = (pretrained / "data" / "sim00_day01.nwb", pretrained / "data" / "sim00_day02.nwb")
    asked = DistillOptions(days, pretrained / "teacher", tmp_path / "s", str(pretrained / "tiny.toml"), 6, trials=2)
    with pytest.raises(RecordingError, match=r"--trials chooses settings by what is decoded"):
        stages.distill(asked)


def test_a_search_without_optuna_says_how_to_install_it(
    home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("edgedistill.training.study.find_spec", lambda name: None)
    refused(home, tmp_path, EdgeDistillError, r"edgedistill\[search\]", trials=2)
