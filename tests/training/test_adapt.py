"""Each mode of adaptation decodes another day as it says, and changes nothing else in the student."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from edgedistill.errors import ConfigError, RecordingError
from edgedistill.models.student import Student
from edgedistill.models.tokenizer import name_parameter
from edgedistill.training.adapt import adapt
from edgedistill.training.batches import TrainingSession, training_session_from_bins
from edgedistill.training.distill import make_student, train_student
from edgedistill.training.losses import UNSUPERVISED

from .sessions import GAP, STUDENT, TRAINING, session, session_bins

OLD = session("old", 0)
NEW = session("new", 1)


@pytest.fixture
def student() -> Student:
    """Returns a student after a few training steps, so that left-over gradients and moments would show."""
    made = make_student([OLD], "lfp", STUDENT, 4, seed=0)
    return train_student(made, [OLD], "lfp", UNSUPERVISED, TRAINING, 0)


def adapted(student: Student, mode: str, to: TrainingSession = NEW) -> TrainingSession:
    return adapt(student, to, mode, OLD.standardization, replace(TRAINING, eval_every=25))


def weights(student: Student) -> dict[str, torch.Tensor]:
    return {n: t.clone() for n, t in student.state_dict().items()}


def test_training_leaves_the_deviations_of_sessions_alone(student: Student) -> None:
    assert not any(bool(own.any()) for own in student.tokenizer.deviation.values())
    assert all(bool(base.any()) for base in student.tokenizer.base.values())


@pytest.mark.parametrize("mode", ["none", "stats", "tokenizer"])
def test_only_the_deviation_of_the_new_session_changes(student: Student, mode: str) -> None:
    before, trainable = weights(student), [n for n, p in student.named_parameters() if p.requires_grad]
    adapted(student, mode)
    after = weights(student)
    own = f"tokenizer.deviation.{name_parameter('new')}"
    assert set(after) - set(before) == {own}
    assert all(torch.equal(after[name], before[name]) for name in before)
    assert after[own].any() == (mode == "tokenizer")
    now_trainable = [n for n, p in student.named_parameters() if p.requires_grad and n != own]
    assert now_trainable == trainable
    assert student("new", NEW.inputs("lfp")[None, :50]).shape == (1, 50, STUDENT.d)


def test_mode_stats_keeps_the_days_own_standardization(student: Student) -> None:
    assert adapted(student, "stats") is NEW


def test_mode_none_reads_the_day_as_the_old_one(student: Student) -> None:
    made, bins = adapted(student, "none"), session_bins("new", 1)
    assert bins.lfp is not None
    assert bins.bad is not None
    expected = OLD.standardization.inputs(bins.lfp, bins.bad)
    np.testing.assert_allclose(made.inputs("lfp").numpy(), expected, atol=1e-4)
    assert made.standardization is OLD.standardization
    assert NEW.standardization is not OLD.standardization


def test_mode_none_fills_in_lost_bins_as_the_old_array_would(student: Student) -> None:
    bins = session_bins("new", 1)
    assert bins.lfp is not None
    assert bins.bad is not None
    bad = bins.bad.copy()
    bad[5000:5100, 1] = True
    bad[6000:6100] = True
    made = adapted(student, "none", training_session_from_bins(replace(bins, bad=bad), GAP))
    expected = OLD.standardization.inputs(bins.lfp[5000:5100], bad[5000:5100])
    np.testing.assert_allclose(made.inputs("lfp")[5000:5100].numpy(), expected, atol=1e-4)
    assert not made.inputs("lfp")[6000:6100].any()


def test_mode_none_needs_the_model_of_the_old_array(student: Student) -> None:
    with pytest.raises(RecordingError, match="cannot be read as another day") as caught:
        adapt(student, NEW, "none", None, TRAINING)
    assert "--adapt stats" in str(caught.value.next_step)


def test_mode_tokenizer_learns_a_deviation_and_is_deterministic(student: Student) -> None:
    adapted(student, "tokenizer")
    name = name_parameter("new")
    first = student.tokenizer.deviation[name].detach().clone()
    adapted(student, "tokenizer")
    assert torch.equal(student.tokenizer.deviation[name], first)
    assert 0 < first.abs().max() < 1


def test_an_unknown_array_is_refused_and_nothing_is_added(student: Student) -> None:
    before = weights(student)
    for other in (session("new", 1, channels=4), session("new", 1, first_id=7)):
        with pytest.raises(RecordingError, match="array the student has not seen"):
            adapted(student, "stats", other)
    assert weights(student).keys() == before.keys()
    assert "new" not in student.tokenizer.channels


def test_an_unknown_mode_is_refused(student: Student) -> None:
    with pytest.raises(ConfigError, match="did you mean 'tokenizer'"):
        adapted(student, "tokeniser")
