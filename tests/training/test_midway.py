"""The quick R² in the middle of a training tells good latents from poor ones, and ends a training where it should."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from edgedistill.models.teacher import PatchAutoencoder
from edgedistill.training import midway
from edgedistill.training.distill import make_student, train_student
from edgedistill.training.evaluate import stream_latents
from edgedistill.training.few_labels import keep_first_labels
from edgedistill.training.losses import SUPERVISED
from edgedistill.training.midway import score_bidirectional_midway, score_midway, stop_bidirectional, stop_student
from edgedistill.training.pretrain import train_teacher
from edgedistill.training.study import RunningTrial

from .sessions import STUDENT, TEACHER, TRAINING, session

SESSION = session()
BINS = SESSION.inputs("lfp")


def test_better_latents_have_a_better_score_and_labels_outside_its_blocks_do_not_matter() -> None:
    def noisy(scale: float) -> float:
        def latents_of(bins: Tensor) -> Tensor:
            return bins + scale * torch.randn(bins.shape, generator=torch.Generator().manual_seed(0))

        return score_midway(latents_of, BINS, SESSION)

    scores = [noisy(scale) for scale in (0.0, 1.0, 4.0)]
    assert 1 > scores[0] > scores[1] > scores[2]
    behavior = SESSION.behavior
    assert behavior is not None
    changed = behavior.clone()
    changed[SESSION.split.test] = torch.nan
    assert score_midway(lambda bins: bins, BINS, replace(SESSION, behavior=changed)) == scores[0]


def test_few_labels_are_found_and_too_few_say_nothing() -> None:
    few = keep_first_labels(SESSION, 0.2)
    assert 0 < score_midway(lambda bins: bins, BINS, few) < 1
    assert math.isnan(score_midway(lambda bins: bins, BINS, keep_first_labels(SESSION, 0.01)))
    assert math.isnan(score_midway(lambda bins: bins, BINS, replace(SESSION, behavior=None)))


def test_a_student_is_watched_at_every_evaluation_and_ends_where_it_should(tmp_path: Path) -> None:
    """Watching changes no bit of what is trained."""

    class Trial(RunningTrial):
        def evaluate(self, step: int, r2: float) -> bool:
            super().evaluate(step, r2)
            return step == end

    def train(trial: RunningTrial | None, checkpoint: Path | None = None) -> Tensor:
        student = make_student([SESSION], "lfp", STUDENT, 4, seed=1)
        latents = {SESSION.id: torch.zeros(len(BINS), 4)}
        stop = None if trial is None else stop_student(trial, "lfp", SESSION)
        train_student(student, [SESSION], "lfp", SUPERVISED, TRAINING, 1, latents, checkpoint, stop=stop)
        return torch.from_numpy(stream_latents(student, SESSION.id, BINS[:500]))

    end = -1
    watched = Trial(0, {}, tmp_path, None)
    assert torch.equal(train(watched), train(None))
    assert list(watched.evaluations) == [3, 6, 9, 12]
    assert all(math.isfinite(r2) for r2 in watched.evaluations.values())
    end = 6
    stopped = Trial(1, {}, tmp_path, None)
    train(stopped, tmp_path / "checkpoint.safetensors")
    assert list(stopped.evaluations) == [3, 6]
    train(stopped, tmp_path / "checkpoint.safetensors")  # the checkpoint says that it is done
    assert list(stopped.evaluations) == [3, 6]


@pytest.mark.parametrize("fitted", [1000, 6000])
def test_a_teacher_is_watched_too(tmp_path: Path, fitted: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(midway, "FITTED_BINS", fitted)
    trial = RunningTrial(0, {}, tmp_path, None)
    train_teacher([SESSION], TEACHER, TRAINING, 0, stop=stop_bidirectional(trial, "spikes", SESSION, 64))
    assert list(trial.evaluations) == [3, 6, 9, 12]


@pytest.mark.parametrize(
    ("modality", "read"), [("spikes", "compute_teacher_features"), ("lfp", "compute_bidirectional_latents")]
)
def test_a_teacher_is_read_by_its_features_and_another_model_by_its_latents(
    modality: str, read: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    inputs = SESSION.inputs(modality)
    model = PatchAutoencoder(TEACHER, {SESSION.id: inputs.shape[1]}, counts=modality == "spikes")
    expected = score_bidirectional_midway(model, modality, SESSION, 64)
    assert math.isfinite(expected)
    others = {"compute_teacher_features", "compute_bidirectional_latents"} - {read}
    for other in others:
        monkeypatch.setattr(midway, other, None)
    assert score_bidirectional_midway(model, modality, SESSION, 64) == expected
