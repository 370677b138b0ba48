"""The settings of a search begin with those of the preset, and a trial's settings are what is trained."""

from __future__ import annotations

from dataclasses import replace

import pytest

from edgedistill.config import ALIGNMENTS, Alignment, TrainingConfig, load_preset
from edgedistill.training.losses import DISTILLED, DISTILLED_WITH_BEHAVIOR, SUPERVISED, UNSUPERVISED, Objective
from edgedistill.training.search_space import NO_TEACHER, objective_with, plan_search, training_with

CONFIG = load_preset("nano").training


@pytest.mark.parametrize("objective", [DISTILLED_WITH_BEHAVIOR, DISTILLED, SUPERVISED, UNSUPERVISED])
def test_trial_0_is_the_preset_and_trial_1_differs_in_its_rate_alone(objective: Objective) -> None:
    plan = plan_search(CONFIG, objective)
    own, slower = plan.first[:2]
    assert training_with(CONFIG, own) == CONFIG
    assert objective_with(objective, own) == objective_with(objective, slower) == objective
    assert training_with(CONFIG, slower) == replace(CONFIG, learning_rate=CONFIG.learning_rate / 2)


def test_only_where_behavior_is_learned_the_teacher_may_be_left_out() -> None:
    """What is left without the teacher is the objective of the student on behavior alone."""
    without = plan_search(CONFIG, DISTILLED_WITH_BEHAVIOR).first[2]
    assert objective_with(DISTILLED_WITH_BEHAVIOR, without).is_behavior_alone
    assert objective_with(DISTILLED_WITH_BEHAVIOR, without).weights == SUPERVISED.weights
    assert training_with(CONFIG, without) == CONFIG
    kinds = {d.name: d.choices for d in plan_search(CONFIG, DISTILLED_WITH_BEHAVIOR).space}["alignment"]
    assert kinds == (*ALIGNMENTS, NO_TEACHER)
    for objective in (DISTILLED, SUPERVISED, UNSUPERVISED):
        plan = plan_search(CONFIG, objective)
        assert len(plan.first) == 2
        assert all(NO_TEACHER not in dimension.choices for dimension in plan.space)


def test_what_means_nothing_for_a_row_is_not_searched() -> None:
    schedule = {"learning_rate", "weight_decay", "damaged_share"}
    names = {kind: {d.name for d in plan_search(CONFIG, kind).space} for kind in (DISTILLED, SUPERVISED)}
    assert names[SUPERVISED] == schedule
    assert names[DISTILLED] == schedule | {"alignment", "reconstruction"}  # only ratios of weights matter
    bidirectional = plan_search(CONFIG, replace(DISTILLED, reconstruction=0.0))
    assert {d.name for d in bidirectional.space} == schedule | {"alignment"}
    assert {d.name for d in plan_search(load_preset("nano").teacher_training).space} == schedule - {"damaged_share"}
    assert {d.name for d in plan_search(CONFIG, augmented=False).space} == schedule - {"damaged_share"}


def test_settings_of_a_trial_are_what_is_trained_and_the_same_kind_keeps_its_centring() -> None:
    settings = {"learning_rate": 0.01, "weight_decay": 0.2, "damaged_share": 0.1}
    found = training_with(CONFIG, settings)
    assert found == replace(CONFIG, **settings)
    base = replace(DISTILLED_WITH_BEHAVIOR, aligned_by=Alignment("subspace", "standardized"))
    drawn = {"alignment_weight": 2.0, "reconstruction": 0.1}
    same = objective_with(base, {"alignment": "subspace", **drawn})
    other = objective_with(base, {"alignment": "mse", **drawn})
    assert same.aligned_by == base.aligned_by
    assert other.aligned_by == Alignment("mse")
    assert same.weights == other.weights == {"reconstruction": 0.1, "alignment": 2.0, "behavior": 1.0}


@pytest.mark.parametrize("own", [{"weight_decay": 0.0}, {"weight_decay": 0.9}, {"damaged_share": 0.8}])
def test_the_settings_of_a_preset_of_ones_own_lie_in_the_space(own: dict[str, float]) -> None:
    config = replace(TrainingConfig(), **own)
    objective = Objective(reconstruction=0.3, alignment=9.0, behavior=1.0)
    plan = plan_search(config, objective)
    for settings in plan.first:
        for dimension in plan.space:
            if dimension.name not in settings:
                continue
            value = settings[dimension.name]
            if dimension.choices:
                assert value in dimension.choices
            else:
                assert dimension.low <= float(value) <= dimension.high
                assert not dimension.log or dimension.low > 0
