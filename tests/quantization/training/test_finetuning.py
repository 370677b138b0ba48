"""Fine-tuning is never worse than before, resumes to the bit, and returns ranges that fit the weights."""

from __future__ import annotations

from copy import deepcopy
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from edgedistill.config import CENTRINGS, Alignment
from edgedistill.models.student import Student
from edgedistill.quantization.calibration.activations import compute_activations
from edgedistill.quantization.calibration.recipe import FineTune
from edgedistill.quantization.training.fake_quant import FakeQuantStudent
from edgedistill.quantization.training.finetuning import (
    align_trained,
    compute_mean_loss,
    finetune_student,
    shorten_schedule,
)
from edgedistill.training.alignment import make_aligner
from edgedistill.training.distill import make_student, train_student
from edgedistill.training.evaluate import stream_latents
from edgedistill.training.loop import Progress
from edgedistill.training.losses import DISTILLED_WITH_BEHAVIOR

from ...training.sessions import STUDENT, TRAINING, T, session

SESSIONS = [session("a", 0), session("b", 1)]
TEACHER_LATENTS = {s.id: torch.randn(T, 5, generator=torch.Generator().manual_seed(3)) for s in SESSIONS}
OBJECTIVE = DISTILLED_WITH_BEHAVIOR
TUNING = FineTune(steps=10, learning_rate=3e-3)
Ranges = dict[str, list[float]]


class Killed(BaseException):
    """Stands for Ctrl-C, which no code catches."""


def killer(at: int) -> Progress:
    def progress(step: int, steps: int, loss: float, rate: float) -> None:
        if step == at:
            raise Killed

    return progress


@pytest.fixture(scope="module")
def student() -> Student:
    fresh = make_student(SESSIONS, "lfp", STUDENT, 5, seed=4)
    return train_student(fresh, SESSIONS, "lfp", OBJECTIVE, TRAINING, 4, TEACHER_LATENTS)


@pytest.fixture(scope="module")
def ranges(student: Student) -> Ranges:
    found = compute_activations(student, "a", SESSIONS[0].inputs("lfp")[None, :2000])
    largest = {n: x.abs().amax((0, 2, 3)) if x.ndim == 4 else x.abs().max()[None] for n, x in found.items()}
    return {name: values.tolist() for name, values in largest.items()}


def tuned(
    student: Student, ranges: Ranges, tuning: FineTune = TUNING, checkpoint: Path | None = None, kill: int = -1
) -> tuple[Student, Ranges]:
    arguments = ("lfp", OBJECTIVE, TRAINING, tuning, 7, TEACHER_LATENTS, checkpoint, killer(kill))
    return finetune_student(student, ranges, SESSIONS, *arguments)


def loss_of(student: Student, ranges: Ranges, teacher_latents: dict[str, Tensor] = TEACHER_LATENTS) -> float:
    """Returns the loss of the integers on the validation blocks."""
    rounded, aligner = FakeQuantStudent(student, ranges), make_aligner(OBJECTIVE, STUDENT, SESSIONS, teacher_latents)
    return compute_mean_loss(rounded, SESSIONS, "lfp", OBJECTIVE, teacher_latents, TRAINING, aligner)


def bits(model: nn.Module) -> dict[str, bytes]:
    return {n: t.numpy().tobytes() for n, t in model.state_dict().items()}


@pytest.mark.parametrize("learn_scales", [False, True], ids=["frozen", "learned"])
def test_fine_tuning_lowers_the_loss_of_the_integers(student: Student, ranges: Ranges, learn_scales: bool) -> None:
    before = bits(student)
    after, compute_ranges = tuned(student, ranges, replace(TUNING, learn_scales=learn_scales))
    assert loss_of(after, compute_ranges) < loss_of(student, ranges)
    assert bits(student) == before  # it trained a copy
    assert not after.training
    assert compute_ranges.keys() == ranges.keys()
    if not learn_scales:
        assert compute_ranges == ranges


def test_learned_ranges_move_but_not_against_each_other(student: Student, ranges: Ranges) -> None:
    _, after = tuned(student, ranges)
    factors = {name: np.divide(after[name], ranges[name]) for name in ranges}
    assert factors["bin"] == 1  # the lagged bins of the read-out have the same range
    assert all(np.ptp(factor) < 1e-12 for factor in factors.values())  # heads keep their ratios
    assert sum(abs(float(factor[0]) - 1) > 1e-6 for factor in factors.values()) > len(ranges) / 2


@pytest.mark.parametrize("learning_rate", [1e-30, 1.0], ids=["nothing happens", "everything breaks"])
def test_fine_tuning_never_returns_a_worse_student(student: Student, ranges: Ranges, learning_rate: float) -> None:
    """Where no evaluation is better, weights and ranges come back as they were."""
    after, compute_ranges = tuned(student, ranges, FineTune(4, learning_rate, learn_scales=learning_rate == 1))
    assert loss_of(after, compute_ranges) <= loss_of(student, ranges)
    if learning_rate == 1:
        assert bits(after) == bits(student)
        assert compute_ranges == ranges


def test_a_run_killed_after_any_step_resumes_to_the_same_bits(student: Student, ranges: Ranges, tmp_path: Path) -> None:
    undisturbed, ranges_undisturbed = tuned(student, ranges)
    assert bits(undisturbed) != bits(student)
    for at in range(1, TUNING.steps + 1):
        path = tmp_path / f"{at}.safetensors"
        with pytest.raises(Killed):
            tuned(student, ranges, checkpoint=path, kill=at)
        after, compute_ranges = tuned(student, ranges, checkpoint=path)
        assert bits(after) == bits(undisturbed), f"killed after step {at}"
        assert compute_ranges == ranges_undisturbed


def test_fine_tuning_follows_the_teacher(student: Student, ranges: Ranges) -> None:
    other = {name: latents.flip(1) for name, latents in TEACHER_LATENTS.items()}
    arguments = ("lfp", OBJECTIVE, TRAINING, TUNING, 7, other)
    after, compute_ranges = finetune_student(student, ranges, SESSIONS, *arguments)
    assert bits(after) != bits(tuned(student, ranges)[0])
    assert loss_of(after, compute_ranges, other) < loss_of(student, ranges, other)


@pytest.mark.parametrize("centring", CENTRINGS)
def test_a_student_that_followed_subspaces_goes_on_with_its_latents(
    student: Student, ranges: Ranges, centring: str
) -> None:
    """The maps of the training were thrown away. The best ones are found anew, or the student would be turned."""
    objective = replace(OBJECTIVE, aligned_by=Alignment("subspace", centring))
    turn = torch.linalg.qr(torch.randn(STUDENT.d, STUDENT.d, generator=torch.Generator().manual_seed(5)))[0]
    latents = {s.id: torch.from_numpy(stream_latents(student, s.id, s.inputs("lfp"))).float() for s in SESSIONS}
    mean = torch.cat([latents[s.id][s.split.train] for s in SESSIONS]).mean(0)
    targets = {name: (values - mean) @ turn for name, values in latents.items()}  # a teacher that is reached already

    def loss(tuned: Student, found: Ranges) -> float:
        aligner = align_trained(tuned, SESSIONS, "lfp", alone, targets)
        rounded = FakeQuantStudent(deepcopy(tuned), found)
        return compute_mean_loss(rounded, SESSIONS, "lfp", alone, targets, TRAINING, aligner)

    alone = replace(objective, behavior=0.0, alignment=1.0)
    assert loss(student, ranges) < (0.05 if centring == "mean" else 1.0)
    before = bits(student)
    arguments = ("lfp", objective, TRAINING, TUNING, 7, targets)
    after, found = finetune_student(student, ranges, SESSIONS, *arguments)
    assert bits(student) == before != bits(after)
    assert bits(finetune_student(student, ranges, SESSIONS, *arguments)[0]) == bits(after)
    assert found.keys() == ranges.keys()


def test_fine_tuning_does_not_round_kept_parts(student: Student, ranges: Ranges) -> None:
    arguments = ("lfp", OBJECTIVE, TRAINING, TUNING, 7, TEACHER_LATENTS)
    after, _ = finetune_student(student, ranges, SESSIONS, *arguments, keep=("embed", "layers.0.down"))
    assert bits(after) != bits(tuned(student, ranges)[0])


def test_the_schedule_is_short_and_keeps_the_rest() -> None:
    schedule = shorten_schedule(TRAINING, FineTune(50, 1e-4))
    assert (schedule.steps, schedule.learning_rate, schedule.weight_decay, schedule.eval_every) == (50, 1e-4, 0, 10)
    assert (schedule.bins_per_step, schedule.noise) == (TRAINING.bins_per_step, TRAINING.noise)
    assert shorten_schedule(TRAINING, FineTune(1)).eval_every == 1
