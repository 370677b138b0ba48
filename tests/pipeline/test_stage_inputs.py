"""Whatever goes into a kept stage changes its key: every field of a preset, every part of a session, every model."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import fields, replace
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch

from edgedistill.config import DEFAULT_ALIGNMENT, Alignment, Preset
from edgedistill.models.teacher import PatchAutoencoder
from edgedistill.pipeline.cache import Cache, stage_key
from edgedistill.pipeline.linear_fits import fit_linear
from edgedistill.pipeline.ranges import FineTuning, finetune, ranges_from_student
from edgedistill.pipeline.run_context import Provenance, Run
from edgedistill.pipeline.searched_students import Judging, choose_patch_student, choose_student
from edgedistill.pipeline.students import patch_student_from_sessions, student_from_sessions
from edgedistill.pipeline.teacher import fit_window_readout, teacher_from_sessions
from edgedistill.quantization.calibration.ranges import Ranges
from edgedistill.quantization.calibration.recipe import load_recipe
from edgedistill.training.batches import TrainingSession
from edgedistill.training.distill import make_student
from edgedistill.training.student_tasks import STUDENT_TASKS
from edgedistill.training.teacher_targets import TeacherTargets

from ..training.sessions import STUDENT, TEACHER, TRAINING, session

SESSIONS = (session("a", 0), session("b", 1))
PRESET = Preset("tiny", STUDENT, TEACHER, replace(TEACHER, patch=3), TRAINING, replace(TRAINING, steps=24))
MODEL = make_student(SESSIONS, "lfp", STUDENT, 5, seed=4)
torch.manual_seed(0)
TAUGHT_BY = PatchAutoencoder(TEACHER, {s.id: 6 for s in SESSIONS}, counts=True)
RECIPE = load_recipe("qat")
RANGES = Ranges({"x": [1.0]}, RECIPE, 0, "0" * 64, {"a": None}, (), (), ())


class Asked(Exception):
    """Ends a stage when its key is known."""


class Keys(Cache):
    """Ends every stage at once and keeps its key."""

    def _find_or_make(self, name: str, inputs: object, make: Callable[[Path], None]) -> Path:
        raise Asked(name, stage_key(name, inputs, make.__module__))

    def open_folder(self, name: str, inputs: object, module: str) -> tuple[Path, str]:
        raise Asked(name, stage_key(name, inputs, module))


def keys(
    preset: Preset = PRESET,
    sessions: tuple[TrainingSession, ...] = SESSIONS,
    model: Any = MODEL,
    teacher: PatchAutoencoder = TAUGHT_BY,
    alignment: Alignment = DEFAULT_ALIGNMENT,
    recipe: Any = RECIPE,
    ranges: Ranges = RANGES,
    calibrated_on: TrainingSession | None = None,
    decoded: TrainingSession | None = None,
    file: str = "1",
    **run: Any,
) -> dict[str, str]:
    """Returns the key of every kept stage of a build, by name."""
    settings = {"seed": 0, "provenance": Provenance({"a": file, "b": "2"}, {}, training={"device": "cpu"}), **run}
    once = Run(Keys(Path()), preset, **settings)
    more = replace(once, trials=4)
    targets = TeacherTargets(teacher, sessions, preset.teacher_training)
    first, judging = sessions[0], Judging(sessions[:1], "kalman")
    tuning = FineTuning(
        "deployed", STUDENT_TASKS["deployed"], model, ranges, [calibrated_on or first], sessions, targets
    )
    stages: list[Callable[[], object]] = [
        lambda: teacher_from_sessions(once, sessions),
        lambda: fit_window_readout(once, teacher, first),
        *(lambda name=name: student_from_sessions(once, name, sessions, targets, alignment) for name in STUDENT_TASKS),
        lambda: patch_student_from_sessions(once, sessions, targets, alignment),
        *(
            lambda name=name: choose_student(more, name, sessions, targets, alignment, judging)
            for name in STUDENT_TASKS
        ),
        lambda: choose_patch_student(more, sessions, targets, alignment, judging),
        lambda: fit_linear(once, first, decoded or first),
        lambda: ranges_from_student(once, "deployed", model, first, "lfp", recipe),
        lambda: finetune(once, tuning),
    ]
    found = {}
    for stage in stages:
        with pytest.raises(Asked) as asked:
            stage()
        name, key = asked.value.args
        found[name] = key
    assert len(found) == len(stages)
    return found


STUDENTS = {name.replace("_", "-") for name in STUDENT_TASKS} | {"bidirectional"}
SEARCHES = {f"search-{name}" for name in STUDENTS}
OF_LFP = {name for name in STUDENTS | SEARCHES if "spike" not in name} | {"linear-baselines", "calibrate", "finetune"}


@cache
def usual_keys() -> dict[str, str]:
    return keys()


def changed_by(**given: Any) -> set[str]:
    found = keys(**given)
    return {name for name in usual_keys() if found[name] != usual_keys()[name]}


def with_other(held: Any, name: str) -> Any:
    """Returns a copy of a dataclass in which one field has another value, whether or not that value makes sense."""
    value = getattr(held, name)
    made = copy.copy(held)
    other = not value if isinstance(value, bool) else value + 1 if isinstance(value, (int, float)) else ("another",)
    object.__setattr__(made, name, other)
    return made


def with_session(**changes: Any) -> tuple[TrainingSession, ...]:
    return (replace(SESSIONS[0], **changes), SESSIONS[1])


@pytest.mark.parametrize(
    ("section", "stages"),
    [
        ("student", {name for name in STUDENTS | SEARCHES if "bidirectional" not in name}),
        ("patch_student", {"bidirectional", "search-bidirectional"}),
        ("teacher", {"teacher"}),
        ("teacher_training", {"teacher"}),
        ("training", STUDENTS | SEARCHES | {"finetune"}),
    ],
)
def test_presets_that_differ_in_one_field_share_no_stage_that_the_field_is_for(section: str, stages: set[str]) -> None:
    held = getattr(PRESET, section)
    for one in fields(held):
        changed = changed_by(preset=replace(PRESET, **{section: with_other(held, one.name)}))
        assert changed >= stages, one.name
    assert changed_by(preset=replace(PRESET, name="another")) == set()


def test_the_latents_of_a_teacher_depend_on_the_length_of_its_segments() -> None:
    other = replace(PRESET, teacher_training=replace(TRAINING, segment_bins=32))
    assert changed_by(preset=other) == {"teacher", "teacher-readout", "finetune"} | STUDENTS | SEARCHES


def test_every_field_of_a_recipe_counts() -> None:
    for one in fields(RECIPE):
        assert changed_by(recipe=with_other(RECIPE, one.name)) == {"calibrate"}, one.name


def test_the_seed_and_what_trains_count() -> None:
    trained = set(usual_keys()) - {"teacher-readout", "linear-baselines"}
    assert changed_by(seed=1) == trained
    gpu = Provenance({"a": "1", "b": "2"}, {}, training={"device": "some GPU", "repeatable": False})
    assert changed_by(provenance=gpu) == trained


def test_a_unit_of_behavior_counts_where_behavior_does_although_the_scaled_numbers_are_the_same() -> None:
    """Twice the velocity has the same scores, and the read-outs of a session are in its own units."""
    mean, std = SESSIONS[0].scale
    label_free = {"teacher", "distilled", "bidirectional", "unsupervised-lfp"}
    assert changed_by(sessions=with_session(scale=(2 * mean, 2 * std))) == set(usual_keys()) - label_free


def test_what_is_behind_the_lfp_counts_although_the_inputs_are_the_same() -> None:
    source = SESSIONS[0].source
    assert source is not None
    known = source.standardization
    for other in (
        replace(source, present=source.present + 1),
        replace(source, there=~source.there),
        replace(source, standardization=replace(known, std=known.std * 2)),
        replace(source, standardization=replace(known, spatial=replace(known.spatial, sweeps=99))),
        replace(source, standardization=replace(known, spatial=replace(known.spatial, gain=known.spatial.gain * 2))),
    ):
        assert changed_by(sessions=with_session(source=other)) == OF_LFP


def test_the_blocks_and_what_is_valid_count_everywhere() -> None:
    split, valid = SESSIONS[0].split, SESSIONS[0].valid.clone()
    valid[5000] = False
    test = slice(split.test.start + 1, split.test.stop)
    assert changed_by(sessions=with_session(split=replace(split, test=test))) == set(usual_keys())
    assert changed_by(sessions=with_session(valid=valid)) == set(usual_keys())


def test_the_number_of_outputs_counts_for_every_student_because_each_has_a_head() -> None:
    behavior = SESSIONS[0].behavior
    assert behavior is not None
    wider = torch.cat([behavior, behavior[:, :1]], 1)
    assert changed_by(sessions=with_session(behavior=wider)) >= {"distilled", "unsupervised-lfp", "spike-student"}


def test_one_count_changes_all_that_learns_from_spikes() -> None:
    counts = SESSIONS[1].counts
    assert counts is not None
    counts = counts.clone()
    counts[700, 2] += 1
    of_spikes = {"teacher", "finetune"} | STUDENTS | SEARCHES
    assert changed_by(sessions=(SESSIONS[0], replace(SESSIONS[1], counts=counts))) == of_spikes


def test_labels_of_another_session_count_where_a_search_may_choose_targets_by_them() -> None:
    behavior = SESSIONS[1].behavior
    assert behavior is not None
    other = (SESSIONS[0], replace(SESSIONS[1], behavior=behavior.roll(1, 0)))
    assert changed_by(sessions=other) >= {"search-deployed", "search-spike-student", "finetune"}


def test_the_use_of_a_model_counts_beside_its_weights() -> None:
    other = copy.deepcopy(MODEL)
    other.size = replace(STUDENT, window=9)
    assert changed_by(model=other) == {"calibrate", "finetune"}
    teacher = copy.deepcopy(TAUGHT_BY)
    teacher.size = replace(TEACHER, mask_share=0.4)
    assert changed_by(teacher=teacher) == {"teacher-readout", "finetune"} | STUDENTS | SEARCHES


def test_the_sessions_that_ranges_were_found_on_and_their_files_count() -> None:
    lfp = SESSIONS[0].lfp
    assert lfp is not None
    assert changed_by(calibrated_on=replace(SESSIONS[0], lfp=lfp + 1)) == {"finetune"}
    assert changed_by(decoded=replace(SESSIONS[0], lfp=lfp + 1)) == {"linear-baselines"}
    assert changed_by(file="another hash with the same numbers") == {"calibrate"}
    assert changed_by(ranges=replace(RANGES, values={"x": [1.5]})) == {"finetune"}


def test_the_alignment_counts_for_what_is_aligned() -> None:
    assert changed_by(alignment=Alignment("mse")) == STUDENTS | SEARCHES
    assert changed_by() == set()
