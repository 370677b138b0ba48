"""Rows of the accuracy tables are kept by what they depend on, compared over seeds, and held against the gates."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from benchmarks.accuracy.accuracy import (
    CHOICES,
    Seed,
    add_nano,
    choose_shipped,
    find_float_student,
    name_result,
    split_off_day,
)
from benchmarks.accuracy.gates import (
    NANO,
    NEW_DAY,
    Gate,
    choose_gates,
    compare_rows,
    compute_gap_closed,
    judge_gates,
    name_int8,
    summarize_rows,
)
from edgedistill.config import DEFAULT_ALIGNMENT, load_preset
from edgedistill.training.evaluate import Score
from edgedistill.training.search_space import plan_search
from edgedistill.training.study import RunningTrial


def seed_rows(**r2: float) -> dict[str, dict[str, Any]]:
    """Returns rows of one seed, each with the same R² on two sessions."""
    return {row: {"r2": {"first": value, "second": value}} for row, value in r2.items()}


def seed_in(folder: Path, trials: int = 1) -> Seed:
    """Returns a seed in a folder, without its sessions."""
    seed = object.__new__(Seed)
    seed.seed, seed.folder, seed.trials, seed.data = 0, folder, trials, ("sessions",)
    seed.alignment, seed.preset = DEFAULT_ALIGNMENT, load_preset("nano")
    return seed


# ---------------------------------------------------------------- what is kept


def test_a_row_is_measured_again_only_with_other_settings(tmp_path: Path) -> None:
    run, training = seed_in(tmp_path), load_preset("nano").training
    measured = []

    def measure(settings: object) -> object:
        return run.measure_once("row", lambda: {"r2": {"day": measured.append(settings) or len(measured)}}, settings)

    other = replace(training, learning_rate=2 * training.learning_rate)
    assert measure(training) == measure(replace(training)) == {"r2": {"day": 1}}
    assert measure(other) == {"r2": {"day": 2}}
    assert measure(training) == {"r2": {"day": 1}}
    run.data = ("longer sessions",)
    assert measure(training) == {"r2": {"day": 3}}


def test_a_longer_search_finds_the_models_of_a_shorter_one(tmp_path: Path) -> None:
    """Models that the preset's own settings give are shared by rows, and others belong to one row."""
    pytest.importorskip("optuna")
    trained: list[Path] = []

    def train(trial: RunningTrial) -> dict[str, Score]:
        trained.append(trial.folder)
        rate = float(trial.settings["learning_rate"])
        return {"day": Score(rate, (rate,), -rate)}

    training = load_preset("nano").training
    plan = plan_search(training)
    short = seed_in(tmp_path).search_once("student", plan, train, "settings")
    assert trained == [tmp_path / short["model"]]
    assert short["r2"] == {"day": training.learning_rate}
    longer = seed_in(tmp_path, 2).search_once("student", plan, train, "settings")
    assert len(set(trained)) == len(trained) == 2
    assert (longer["trial"], longer["r2"]) == (1, {"day": training.learning_rate / 2})
    assert longer["settings"] == plan.first[1]
    assert trained[1] == tmp_path / longer["model"]
    seed_in(tmp_path, 4).search_once("its row", plan, train, "settings", shared="student")
    assert trained[2:4] == trained[:2]
    assert all(folder.name.startswith("its row-") for folder in trained[4:])


def test_a_student_goes_on_as_the_best_of_its_trials_was_trained(tmp_path: Path) -> None:
    run = seed_in(tmp_path)
    row = {"model": "deployed-1", "settings": {"alignment": "none", "reconstruction": 0.1}}
    found = find_float_student(run, "deployed", row)
    assert found.task.objective.weights == {"reconstruction": 0.1, "alignment": 0.0, "behavior": 1.0}
    assert find_float_student(run, "deployed", {"model": "deployed-1"}).task == run.task("deployed")


# ---------------------------------------------------------------- what ships


@pytest.mark.parametrize("best", ["deployed", "distilled", "supervised_lfp"])
def test_what_ships_is_the_best_student_on_validation(best: str) -> None:
    rows = {
        row: {"r2": {"day": r2}, "validation": 0.6 if row == best else 0.5}
        for row, r2 in (("deployed", 0.1), ("distilled", 0.2), ("supervised_lfp", 0.3))
    }
    rows[name_int8(best)] = {"r2": {"day": 0.7}}
    found = choose_shipped(rows)
    assert found["shipped"] == {"r2": rows[best]["r2"], "validation": 0.6, "chosen": best}
    assert found[name_int8("shipped")] == {"r2": {"day": 0.7}}


def test_nothing_ships_before_all_candidates_are_measured() -> None:
    assert choose_shipped({"deployed": {"r2": {"day": 0.1}, "validation": 0.5}}) == {}


# ---------------------------------------------------------------- gates


def test_a_row_that_a_seed_lacks_is_left_out_of_the_table() -> None:
    table = summarize_rows([seed_rows(a=0.2, b=0.1), seed_rows(a=0.4)])
    assert list(table) == ["a"]
    assert table["a"]["mean"] == pytest.approx(0.3)


def test_differences_are_paired_by_session() -> None:
    rows = {"one": {"r2": {"first": 0.5}}, "all": {"r2": {"first": 0.2, "second": 0.9}}}
    assert compare_rows([rows], "one", "all")["mean"] == pytest.approx(0.3)
    assert compare_rows([rows], "all", None, 0.5)["mean"] == pytest.approx(0.05)


def test_a_result_of_other_seeds_or_of_a_search_has_a_name_of_its_own() -> None:
    assert name_result("nano", 0, 1) == "nano"
    assert name_result("nano-pursuit", 3, 1) == "nano-pursuit-from-seed-3"
    assert name_result("edge", 101, 10) == "edge-from-seed-101-10-trials"


def test_a_linear_decoder_is_averaged_over_the_sessions_of_the_students() -> None:
    rows = split_off_day({"ridge": {"first": 0.5, "second": 0.7, "last": 0.1}}, "last")
    assert rows == {"ridge": {"r2": {"first": 0.5, "second": 0.7}}, "ridge, new day": {"r2": {"last": 0.1}}}


def test_a_gate_in_every_seed_is_missed_by_one_seed() -> None:
    seeds = [seed_rows(deployed=0.8, linear=0.5), seed_rows(deployed=0.5, linear=0.5)]
    gates = [Gate("deployed", "linear", 0.1), Gate("deployed", "linear", 0.0, every_seed=True)]
    assert [gate["ok"] for gate in judge_gates(seeds, gates, {}, None)] == [True, False]


def test_a_gate_without_its_rows_is_neither_met_nor_missed() -> None:
    gates = [Gate("deployed", "supervised_lfp", 0.03), Gate("teacher", None, 0.7)]
    found = judge_gates([seed_rows(deployed=0.8, teacher=0.9), seed_rows(deployed=0.8)], gates, {})
    assert [(gate["ok"], gate["mean"]) for gate in found] == [(None, None)] * 3


def test_a_row_is_compared_with_its_figure_in_the_version_before() -> None:
    gate = Gate("deployed", None, 0.05, former=True)
    for r2, met in ((0.77, True), (0.76, False)):
        found = judge_gates([seed_rows(deployed=r2)], [gate], {"deployed": 0.715}, None)
        assert (found[0]["mean"], found[0]["ok"]) == (pytest.approx(r2 - 0.715), met)


def test_the_share_of_the_gap_is_between_the_student_without_a_teacher_and_the_teacher() -> None:
    rows = seed_rows(distilled=0.7, teacher=0.8, single_session_lfp=0.3)
    shares = {"causal": pytest.approx(0.8), "causal_to_latents": None, "bidirectional": None}
    assert compute_gap_closed([rows]) == shares
    read = seed_rows(distilled=0.7, teacher=0.8, teacher_latents=0.7, single_session_lfp=0.3)
    assert compute_gap_closed([read]) == {**shares, "causal_to_latents": pytest.approx(1.0)}
    assert judge_gates([rows], [], {}, 0.85)[-1]["ok"] is False
    assert judge_gates([rows], [], {}, 0.75)[-1]["ok"] is True


def test_figures_of_the_version_before_are_those_of_one_variant_and_preset() -> None:
    def names(preset: str, variant: str = "reaches", bands: bool = True) -> set[str]:
        return {gate.name for gate in choose_gates(preset, variant, bands)}

    former = {f"{row} over its figure in version 0.1" for row in ("distilled", "deployed", NEW_DAY)}
    assert former <= names("nano")
    assert former.isdisjoint(names("nano", "pursuit"))
    assert former.isdisjoint(names("paper"))
    assert "deployed over ridge_lfp_power" in names("nano")
    assert "deployed over ridge_lfp_power" not in names("nano", bands=False)
    assert f"deployed over {NANO}" in names("edge")
    assert f"deployed over {NANO}" not in names("nano")


def test_edge_is_compared_with_nano_on_the_same_seeds(tmp_path: Path) -> None:
    result, nano = tmp_path / "accuracy-nano.json", [seed_rows(deployed=0.4), seed_rows(deployed=0.5)]
    edge = [seed_rows(deployed=0.6)]
    assert add_nano(edge, [1], result) == edge
    result.write_text(json.dumps({"seeds": [0, 1], "per_seed": nano}))
    assert compare_rows(add_nano(edge, [1], result), "deployed", NANO)["mean"] == pytest.approx(0.1)
    assert add_nano(edge, [2], result) == edge


def test_every_gate_can_be_judged_from_rows_that_are_measured() -> None:
    measured = {*CHOICES, "teacher", "shipped"}
    for gate in (gate for preset in ("nano", "edge") for gate in choose_gates(preset, "reaches", True)):
        for row in (row for row in (gate.row, gate.over) if row is not None and row != NANO):
            assert row.split(", ")[0] in measured | {"ridge_lfp", "kalman_lfp", "ridge_lfp_power", "best_linear_lfp"}
