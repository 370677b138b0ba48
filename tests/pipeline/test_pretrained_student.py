"""A student of an earlier run is restored from its folder with all its facts. Errors name the facts that it lacks."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from edgedistill.config import NO_BANDS, Alignment, BandPower, TrainingConfig
from edgedistill.errors import ConfigError, EdgeDistillError, RecordingError
from edgedistill.pipeline.pretrained_student import (
    SPATIAL_TENSORS,
    PretrainedStudent,
    fit_readouts,
    load_pretrained_student,
    outputs_of,
    save_pretrained_student,
    standardizations_of,
)
from edgedistill.pipeline.run_context import Provenance
from edgedistill.training.batches import training_session_from_bins
from edgedistill.training.distill import make_student
from edgedistill.training.few_labels import FewLabels
from edgedistill.training.student_tasks import STUDENT_TASKS
from edgedistill.training.study import Trial

from ..training.sessions import GAP, STUDENT, session_bins

BINS = [session_bins("day1", 1), session_bins("day2", 2), session_bins("other", 3, first_id=90)]
SESSIONS = [training_session_from_bins(bins, GAP) for bins in BINS]
NEW_DAY = training_session_from_bins(session_bins("day3", 4), GAP)
OUTPUTS = outputs_of(BINS[0])


@pytest.fixture(scope="module")
def trained() -> PretrainedStudent:
    student = make_student(SESSIONS, "lfp", STUDENT, 6, seed=0).eval()
    return PretrainedStudent(
        student=student,
        task_name="deployed",
        task=STUDENT_TASKS["deployed"].with_alignment(Alignment("subspace", "standardized")),
        arrays=student.tokenizer.arrays,
        standardizations=standardizations_of(SESSIONS),
        readouts=fit_readouts(student, SESSIONS),
        outputs=OUTPUTS,
        provenance=Provenance({"day1": "ab"}, {"torch": "2"}),
        finetuned_from="cd",
        band_power=BandPower(((12.0, 30.0),), 50),
        trials=(Trial(0, {"learning_rate": 0.003}, "finished", 0.5, ((50, 0.3), (100, 0.4))),),
    )


@pytest.fixture
def folder(trained: PretrainedStudent, tmp_path: Path) -> Path:
    save_pretrained_student(trained, tmp_path / "student")
    return tmp_path / "student"


def change_facts(folder: Path, **changes: object) -> None:
    """Writes the student's facts with these changes. A fact that is None is removed."""
    path = folder / "model.json"
    facts = json.loads(path.read_text()) | changes
    path.write_text(json.dumps({key: value for key, value in facts.items() if value is not None}))


def test_a_student_of_a_version_without_bands_sees_the_slow_lfp_alone(folder: Path) -> None:
    change_facts(folder, band_power=None)
    assert load_pretrained_student(folder).band_power == NO_BANDS


def test_a_student_comes_back_with_all_it_knows(trained: PretrainedStudent, folder: Path) -> None:
    found = load_pretrained_student(folder)
    assert (found.task_name, found.task, found.outputs) == ("deployed", trained.task, OUTPUTS)
    assert (found.provenance, found.finetuned_from, found.folder) == (trained.provenance, "cd", folder)
    assert found.band_power == trained.band_power
    assert list(found.arrays) == ["day1", "day2", "other"]
    for session in SESSIONS:
        assert found.has_session(session)
        np.testing.assert_array_equal(found.readouts[session.id].weight, trained.readouts[session.id].weight)
        assert found.readouts[session.id].penalty == trained.readouts[session.id].penalty
    assert found.standardizations.keys() == {session.array for session in SESSIONS}
    for array, mine in found.standardizations.items():
        its = trained.standardizations[array]
        for one, other in ((mine.mean, its.mean), (mine.std, its.std)):
            np.testing.assert_array_equal(one, other)
        for name in SPATIAL_TENSORS:
            assert getattr(mine.spatial, name).tobytes() == getattr(its.spatial, name).tobytes()
        assert (mine.spatial.sweeps, mine.spatial.common_average) == (8, True)
    for name, tensor in trained.student.state_dict().items():
        assert torch.equal(found.student.state_dict()[name], tensor), name


def test_a_folder_of_the_version_before_is_read(folder: Path) -> None:
    """Before version 0.1 was released, the key was `behaviour`."""
    change_facts(folder, behavior=None, behaviour=[["hand_x"], ["mm"]])
    found = load_pretrained_student(folder)
    assert found.outputs == (("hand_x",), ("mm",))
    with pytest.raises(EdgeDistillError, match=r"decodes another behavior[\s\S]*hand_x[\s\S]*--behavior"):
        found.require_readout(NEW_DAY, OUTPUTS)
    change_facts(folder, behaviour=[list(part) for part in OUTPUTS])
    assert load_pretrained_student(folder).require_readout(NEW_DAY, OUTPUTS).weight.shape[0] == 2


@pytest.mark.parametrize("loss", ["cosine", "mse"])
def test_a_student_of_the_version_before_followed_whitened_components(folder: Path, loss: str) -> None:
    change_facts(folder, alignment=loss)
    assert load_pretrained_student(folder).task.objective.aligned_by == Alignment("whitened")


def test_facts_that_are_missing_are_empty_and_damaged_ones_are_named(folder: Path) -> None:
    absent = (
        "row",
        "alignment",
        "objective",
        "behavior",
        "readouts",
        "sessions",
        "versions",
        "finetuned_from",
        "trials",
    )
    change_facts(folder, **dict.fromkeys(absent))
    found = load_pretrained_student(folder)
    assert (found.task_name, found.task, found.trials) == ("distilled", STUDENT_TASKS["distilled"], ())
    assert (found.outputs, found.readouts, found.finetuned_from) == (None, {}, None)
    with pytest.raises(EdgeDistillError, match=r"has no read-out[\s\S]*--probe"):
        found.require_readout(NEW_DAY, OUTPUTS)
    for damage in (
        {"row": "nobody"},
        {"readouts": {"day1": {}}},
        {"standardization": {"a": {"mean": [1]}}},
        {"behavior": 3},
        {"objective": {"behavior": "much"}},
        {"objective": {"pleasure": 1.0}},
        {"trials": [{"number": 0}]},
    ):
        sound = {"row": "distilled", "standardization": {}, "readouts": {}, "behavior": None, "objective": None}
        sound["trials"] = None
        change_facts(folder, **sound | damage)
        with pytest.raises(EdgeDistillError, match=r"model\.json does not describe a model"):
            load_pretrained_student(folder)
    for alignment in ("nearby", {"kind": "nearby"}):
        change_facts(folder, behavior=None, alignment=alignment)
        with pytest.raises(ConfigError, match="nearby"):
            load_pretrained_student(folder)


def test_the_same_id_on_another_array_is_another_session(trained: PretrainedStudent) -> None:
    assert not trained.has_session(replace(SESSIONS[0], array="array_of_others"))
    assert not trained.has_session(NEW_DAY)
    seen = trained.without_new_labels([SESSIONS[0], NEW_DAY])
    assert seen[0] is SESSIONS[0]
    assert seen[1].behavior is None
    assert NEW_DAY.behavior is not None


def test_a_student_that_learned_from_few_labels_is_taught_no_more_of_them_later(
    trained: PretrainedStudent, tmp_path: Path
) -> None:
    few = replace(trained, few_labels=FewLabels("day2", 0.1))
    save_pretrained_student(few, tmp_path / "few")
    found = load_pretrained_student(tmp_path / "few")
    assert found.few_labels == few.few_labels
    sessions = [SESSIONS[0], SESSIONS[1], NEW_DAY]
    first, second, new = found.as_taught(sessions)
    assert first.behavior is None
    assert new is NEW_DAY
    train = second.split.train
    assert int(torch.isfinite(second.behavior[train]).all(1).sum()) == 600
    assert int(torch.isfinite(SESSIONS[1].behavior[train]).all(1).sum()) > 600
    assert found.as_taught(sessions, SESSIONS[0])[0] is SESSIONS[0]
    assert trained.as_taught(sessions) == tuple(sessions)


def test_another_day_gets_what_the_last_day_of_its_array_had(trained: PretrainedStudent) -> None:
    assert trained.readout_of(NEW_DAY.array) is trained.readouts["day2"]
    assert trained.readout_of(SESSIONS[2].array) is trained.readouts["other"]
    assert trained.readout_of("array_of_others") is None
    _, seen = trained.adapted_to(NEW_DAY, "none", TrainingConfig())
    assert seen.standardization is SESSIONS[1].standardization


def test_a_student_that_kept_no_model_of_its_array_can_still_read_another_day_afresh(folder: Path) -> None:
    change_facts(folder, standardization=None)
    found = load_pretrained_student(folder)
    assert found.adapted_to(NEW_DAY, "stats", TrainingConfig())[1] is NEW_DAY
    with pytest.raises(RecordingError, match=r"cannot be read as another day[\s\S]*--adapt stats"):
        found.adapted_to(NEW_DAY, "none", TrainingConfig())


def test_adapting_leaves_the_student_as_it_is(trained: PretrainedStudent) -> None:
    before = {name: tensor.clone() for name, tensor in trained.student.state_dict().items()}
    adapted, seen = trained.adapted_to(NEW_DAY, "stats", TrainingConfig())
    assert seen is NEW_DAY
    assert adapted.tokenizer.arrays["day3"] == NEW_DAY.array
    assert "day3" in trained.adapted_to_all([*SESSIONS, NEW_DAY]).tokenizer.channels
    assert "day3" not in trained.student.tokenizer.channels
    after = trained.student.state_dict()
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)


def test_an_array_it_has_not_seen_is_refused(trained: PretrainedStudent) -> None:
    foreign = training_session_from_bins(session_bins("day4", 5, first_id=40), GAP)
    with pytest.raises(RecordingError, match="array the student has not seen"):
        trained.adapted_to(foreign, "stats", TrainingConfig())
    with pytest.raises(RecordingError, match="array the student has not seen"):
        trained.adapted_to_all([SESSIONS[0], foreign])
