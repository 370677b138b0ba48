"""A search keeps the best of its trials, stops poor ones, and goes on after a kill as if there had been none."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import replace
from importlib import util
from pathlib import Path

import pytest

from edgedistill.errors import ConfigError, EdgeDistillError
from edgedistill.training.loop import DivergedError
from edgedistill.training.study import (
    DIVERGED,
    FINISHED,
    STOPPED,
    DamagedStudyError,
    Dimension,
    RunningTrial,
    StudyDesign,
    Trial,
    find_best,
    require_trials,
    run_study,
)

pytest.importorskip("optuna")

SPACE = (
    Dimension("rate", 0.001, 1.0, log=True),
    Dimension("kind", choices=("near", "far", "none")),
    Dimension("weight", 0.0, 2.0, unless=("kind", "none")),
)
FIRST = ({"rate": 0.5, "kind": "far", "weight": 1.0}, {"rate": 0.25, "kind": "none"})
PLAN = StudyDesign(SPACE, FIRST, seed=3)
STEPS = (10, 20, 30)


class Killed(BaseException):
    """Stands for Ctrl-C, as an exception that no code catches."""


def quality(trial: RunningTrial) -> float:
    """Returns an R² that is best at a rate of 0.03 with the kind `near`."""
    bonus = {"near": 0.3, "far": 0.1, "none": 0.0}[str(trial.settings["kind"])]
    return 0.5 + bonus - 0.2 * abs(math.log10(float(trial.settings["rate"]) / 0.03))


def train(trial: RunningTrial) -> float:
    """Stands for a training with three evaluations."""
    for step in STEPS:
        if trial.evaluate(step, quality(trial) - 1 / step):
            return math.nan
    return quality(trial)


def searched(
    folder: Path, trials: int = 12, plan: StudyDesign = PLAN, by: Callable[[RunningTrial], float] = train
) -> tuple[Trial, ...]:
    return run_study(folder / "study.json", plan, trials, by, lambda number: folder / f"trial-{number}")


def test_the_first_trials_are_those_of_the_plan_and_the_best_is_no_worse(tmp_path: Path) -> None:
    trials = searched(tmp_path)
    assert [trial.number for trial in trials] == list(range(12))
    assert [trial.settings for trial in trials[:2]] == list(FIRST)
    best = find_best(trials)
    assert trials[0].validation_r2 is not None
    assert best.validation_r2 is not None
    assert best.validation_r2 > trials[0].validation_r2
    assert best.settings["kind"] == "near"
    assert all(("weight" in trial.settings) == (trial.settings["kind"] != "none") for trial in trials)
    assert all(0.001 <= float(trial.settings["rate"]) <= 1 for trial in trials)


def test_poor_trials_are_stopped_at_an_evaluation_and_not_scored(tmp_path: Path) -> None:
    trials = searched(tmp_path)
    stopped = [trial for trial in trials if trial.state == STOPPED]
    assert stopped
    json.dumps([trial.to_json() for trial in trials])
    for trial in stopped:
        assert trial.validation_r2 is None
        assert trial.number >= 3
        step, r2 = trial.evaluations[-1]
        finished = sorted(dict(other.evaluations)[step] for other in trials[: trial.number] if other.state == FINISHED)
        assert r2 < finished[len(finished) // 2]
    spared = searched(tmp_path / "spared", plan=replace(PLAN, spared_steps=31))
    assert {trial.state for trial in spared} == {FINISHED}


def test_the_same_seed_gives_the_same_search_and_another_seed_another(tmp_path: Path) -> None:
    assert searched(tmp_path / "a") == searched(tmp_path / "b")
    assert searched(tmp_path / "a") != searched(tmp_path / "c", plan=replace(PLAN, seed=4))


@pytest.mark.parametrize(
    ("at", "step"),
    [(1, 10), (4, 20), *(pytest.param(at, step, marks=pytest.mark.variant) for at in (0, 5, 7) for step in STEPS)],
)
def test_a_search_killed_in_any_trial_goes_on_as_if_it_had_not_been(at: int, step: int, tmp_path: Path) -> None:
    """The evaluations before the kill are kept with the checkpoint of the trial, and are not made again."""
    undisturbed = searched(tmp_path / "undisturbed", 8)
    seen: list[tuple[int, int]] = []

    def killed(trial: RunningTrial) -> float:
        for now in STEPS:
            if trial.evaluate(now, quality(trial) - 1 / now):
                return math.nan
            if (trial.number, now) == (at, step):
                raise Killed
        return quality(trial)

    def resumed(trial: RunningTrial) -> float:
        seen.append((trial.number, len(trial.evaluations)))
        return train(trial)

    try:
        searched(tmp_path / "killed", 8, by=killed)
    except Killed:
        assert searched(tmp_path / "killed", 8, by=resumed) == undisturbed
        assert seen[0] == (at, STEPS.index(step) + 1)
    else:  # that trial is stopped before the step
        assert undisturbed[at].state == STOPPED
        assert undisturbed[at].evaluations[-1][0] <= step


def test_a_longer_search_begins_with_a_shorter_one_and_a_shorter_one_is_a_part_of_it(tmp_path: Path) -> None:
    long = searched(tmp_path / "long", 8)
    assert searched(tmp_path / "short", 5) == long[:5]
    assert searched(tmp_path / "short", 8) == long
    trained: list[int] = []
    assert searched(tmp_path / "long", 5, by=lambda trial: trained.append(trial.number) or 0.0) == long[:5]
    assert not trained


def test_a_trial_that_diverges_is_noted_unless_it_is_the_preset(tmp_path: Path) -> None:
    def diverge(trial: RunningTrial) -> float:
        if trial.number in bad:
            raise DivergedError("training diverged at step 7")
        return train(trial)

    bad = {1, 4}
    trials = searched(tmp_path, 6, by=diverge)
    assert [trial.number for trial in trials if trial.state == DIVERGED] == [1, 4]
    assert find_best(trials).number not in bad
    bad = {0}
    with pytest.raises(DivergedError):
        searched(tmp_path / "other", 6, by=diverge)


def test_without_any_score_the_first_trial_is_taken(tmp_path: Path) -> None:
    trials = searched(tmp_path, 3, by=lambda trial: math.nan)
    assert [trial.validation_r2 for trial in trials] == [None] * 3
    assert find_best(trials).number == 0


def test_a_study_of_another_search_is_refused_and_so_is_a_damaged_one(tmp_path: Path) -> None:
    searched(tmp_path, 2)
    path = tmp_path / "study.json"
    with pytest.raises(DamagedStudyError, match="of a search with other settings"):
        searched(tmp_path, 2, plan=replace(PLAN, seed=9))
    with pytest.raises(DamagedStudyError, match="of a search with other settings"):
        run_study(path, PLAN, 2, train, lambda number: tmp_path / f"trial-{number}", key="other data")
    text = path.read_text()
    whole = json.loads(text)
    better = [{**trial, "validation_r2": 0.99} for trial in whole["trials"]]
    damages = ("{", "[" * 5000, json.dumps({**whole, "trials": better}), json.dumps({**whole, "running": None}))
    for damage in (*damages, text.replace(f'"sha256": "{whole["sha256"]}",', "")):
        path.write_text(damage)
        with pytest.raises(DamagedStudyError, match=r"is damaged[\s\S]*start again"):
            searched(tmp_path, 2)


@pytest.mark.parametrize("kill", [False, True], ids=["whole", "killed"])
def test_a_trial_whose_files_are_lost_is_trained_again_with_its_settings(kill: bool, tmp_path: Path) -> None:
    """The other trials stay, and so does what was judged of the trial that a kill had interrupted."""
    undisturbed = searched(tmp_path / "undisturbed", 8)
    lost = next(trial.number for trial in undisturbed if trial.number > 1 and trial.state == FINISHED)
    later = next(trial.number for trial in undisturbed if trial.number > lost)
    folder, seen = tmp_path / "lost", list[tuple[int, int]]()

    def killed(trial: RunningTrial) -> float:
        trial.evaluate(STEPS[0], quality(trial) - 1 / STEPS[0])
        raise Killed

    def counted(trial: RunningTrial) -> float:
        seen.append((trial.number, len(trial.evaluations)))
        return train(trial)

    searched(folder, later)
    if kill:
        with pytest.raises(Killed):
            searched(folder, 8, by=killed)
    found = run_study(
        *(folder / "study.json", PLAN, 8, counted, lambda number: folder / f"trial-{number}"),
        is_whole=lambda number: number != lost,
    )
    assert found == undisturbed
    assert seen[0] == (lost, 0)
    if kill:
        assert (later, 1) in seen or undisturbed[later].evaluations[-1][0] == STEPS[0]
    assert searched(folder, 8) == undisturbed


def test_a_budget_below_one_and_a_search_without_optuna_are_refused(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    with pytest.raises(ConfigError, match="needs a trial"):
        require_trials(0)
    monkeypatch.setattr("edgedistill.training.study.find_spec", lambda name: None)
    with pytest.raises(EdgeDistillError, match=r"optuna[\s\S]*edgedistill\[search\]"):
        require_trials(2)
    assert len(searched(tmp_path, 1)) == 1
    monkeypatch.undo()
    assert util.find_spec("optuna") is not None
