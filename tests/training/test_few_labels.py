"""With few labels nothing depends on a label that was withheld, and every training step that can learn does."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from edgedistill.config import TrainingConfig
from edgedistill.models.student import Student
from edgedistill.training.baselines import fit_linear_baselines, fit_spike_decoder
from edgedistill.training.batches import TrainingSession, training_session_from_bins
from edgedistill.training.distill import make_student, train_student
from edgedistill.training.evaluate import compute_mean_r2, r2_score, unscale_behavior
from edgedistill.training.few_labels import (
    are_labels_scarce,
    fill_in_labels,
    keep_first_labels,
    select_labelled,
    withhold_labels,
)
from edgedistill.training.losses import DISTILLED_WITH_BEHAVIOR, SUPERVISED, Objective
from edgedistill.training.student_tasks import score_student

from .sessions import GAP, STUDENT, TRAINING, T, session, session_bins

TEACHER_LATENTS = {name: torch.randn(T, 5, generator=torch.Generator().manual_seed(3)) for name in ("a", "b")}


def train_block(made: TrainingSession) -> np.ndarray:
    """Returns which bins (T,) of the training block have a label."""
    known = np.isfinite(unscale_behavior(made)).all(1)
    return known & (np.arange(T) < made.split.train.stop)


def train(sessions: tuple[TrainingSession, ...], objective: Objective, config: TrainingConfig) -> list[float]:
    """Returns the loss of each step."""
    losses: list[float] = []
    student = make_student(sessions, "lfp", STUDENT, 5, seed=1)
    watch = lambda step, steps, loss, rate: losses.append(loss)  # noqa: E731
    train_student(student, sessions, "lfp", objective, config, 1, TEACHER_LATENTS, progress=watch)
    return losses


def test_the_first_minutes_of_known_behavior_are_kept() -> None:
    bins = session_bins()
    assert bins.behavior is not None
    holes = bins.behavior.copy()
    holes[500:900] = np.nan
    made = training_session_from_bins(replace(bins, behavior=holes), GAP)
    found = keep_first_labels(made, 0.1)
    kept = np.flatnonzero(train_block(found))
    expected = np.flatnonzero(train_block(made))
    np.testing.assert_array_equal(kept, expected[expected >= made.settled][:600])
    before, after = unscale_behavior(made), unscale_behavior(found)
    np.testing.assert_allclose(after[kept], before[kept], atol=1e-5)
    stop = made.split.train.stop
    np.testing.assert_allclose(after[stop:], before[stop:], atol=1e-5)
    assert found.behavior is not None
    np.testing.assert_allclose(found.behavior[kept].numpy().mean(0), 0, atol=1e-5)
    np.testing.assert_allclose(found.behavior[kept].numpy().std(0), 1, atol=1e-5)


def test_all_labels_are_kept_where_there_are_fewer_than_asked_for() -> None:
    made = session()
    found = keep_first_labels(made, 1e3)
    assert (train_block(found)[made.settled :] == train_block(made)[made.settled :]).all()


def test_without_a_number_of_minutes_nothing_changes() -> None:
    sessions = (session("a"), session("b", 1))
    assert withhold_labels(sessions, sessions[1], None) == sessions


@pytest.mark.parametrize("objective", [SUPERVISED, DISTILLED_WITH_BEHAVIOR], ids=["behavior alone", "deployed"])
def test_a_withheld_label_changes_nothing(objective: Objective) -> None:
    bins = session_bins("b", 1)
    assert bins.behavior is not None
    wrong = bins.behavior.copy()
    stop = training_session_from_bins(bins, GAP).split.train.stop
    wrong[1000:stop] = 77 - wrong[1000:stop]  # 0.1 minutes end before

    def fitted(behavior: np.ndarray, other: TrainingSession) -> tuple[Student, TrainingSession]:
        target = training_session_from_bins(replace(bins, behavior=behavior), GAP)
        sessions = withhold_labels((other, target), target, 0.1)
        student = make_student(sessions, "lfp", STUDENT, 5, seed=1)
        return train_student(student, sessions, "lfp", objective, TRAINING, 1, TEACHER_LATENTS), sessions[1]

    other = session("a")
    assert other.behavior is not None
    mine, seen = fitted(bins.behavior, other)
    its, seen_too = fitted(wrong, replace(other, behavior=3 - other.behavior))
    for name, tensor in mine.state_dict().items():
        torch.testing.assert_close(tensor, its.state_dict()[name], rtol=0, atol=1e-5)  # float32 of another scale
    weights = [score_student(student, "deployed", day)[0].weight for student, day in ((mine, seen), (its, seen_too))]
    np.testing.assert_allclose(*weights, atol=1e-3)
    one, two = fit_linear_baselines(seen, "lfp"), fit_linear_baselines(seen_too, "lfp")
    for name, baseline in one.items():
        np.testing.assert_allclose(baseline.decoded, two[name].decoded, atol=1e-3)


def test_spikes_label_the_rest_of_the_training_block() -> None:
    whole = session()
    few = keep_first_labels(whole, 0.8)
    name, labeller = fit_spike_decoder(few)
    assert name in ("ridge_spike", "kalman_spike")
    filled = fill_in_labels(few, labeller.decoded)
    known, now, truth = (unscale_behavior(one) for one in (few, filled, whole))
    train = slice(few.settled, few.split.train.stop)
    rest = np.arange(T)[train][~np.isfinite(known[train]).all(1)]
    assert len(rest) > 600
    np.testing.assert_allclose(now[rest], labeller.decoded[rest], atol=1e-4)
    assert compute_mean_r2(r2_score(now[rest], truth[rest])) > 0.3
    others = np.setdiff1d(np.arange(T), rest)
    np.testing.assert_array_equal(now[others], known[others])
    assert filled.scale is few.scale


def test_a_withheld_label_does_not_change_what_spikes_say() -> None:
    bins = session_bins()
    assert bins.behavior is not None
    wrong = bins.behavior.copy()
    wrong[1000 : training_session_from_bins(bins, GAP).split.train.stop] = 55
    both = [training_session_from_bins(replace(bins, behavior=one), GAP) for one in (bins.behavior, wrong)]
    filled = [
        fill_in_labels(few, fit_spike_decoder(few)[1].decoded) for few in (keep_first_labels(s, 0.1) for s in both)
    ]
    one, two = map(unscale_behavior, filled)
    np.testing.assert_allclose(one, two, atol=1e-3)  # float32 of another scale


def test_a_bin_that_is_not_valid_is_not_labelled() -> None:
    few = keep_first_labels(session(), 0.1)
    valid = few.valid.clone()
    valid[2000:2100] = False
    filled = fill_in_labels(replace(few, valid=valid), np.zeros((T, 2)))
    assert torch.isnan(filled.behavior[2000:2100]).all()
    assert torch.isfinite(filled.behavior[1900:2000]).all()


def test_labels_are_scarce_below_half_of_what_training_can_use() -> None:
    sessions = (session("a"), session("b", 1))
    assert not are_labels_scarce(sessions)
    assert are_labels_scarce(withhold_labels(sessions, sessions[1], 0.5))
    whole = keep_first_labels(sessions[0], 1e3)
    assert not are_labels_scarce([whole])


def test_segments_with_labels_are_drawn_where_labels_are_scarce() -> None:
    sessions = (session("a"), session("b", 1))
    few = withhold_labels(sessions, sessions[1], 0.05)  # 300 bins
    assert [s.id for s in select_labelled(few)] == ["b"]
    config = replace(TRAINING, steps=30, eval_every=30)
    assert min(train(few, SUPERVISED, config)) > 0  # a batch without a label has no loss
    behavior_alone = replace(DISTILLED_WITH_BEHAVIOR, alignment=1e-9)
    losses = train(few, behavior_alone, config)
    assert min(losses[1::2]) > 1e-4
    assert np.median(losses[::2]) < 1e-4


def test_a_stretch_of_labels_that_is_shorter_than_a_segment_is_drawn_too() -> None:
    few = withhold_labels((session("a"),), session("a"), None)
    few = (keep_first_labels(few[0], 0.02),)  # 120 bins
    config = replace(TRAINING, steps=10, eval_every=10, segment_bins=400, bins_per_step=800)
    assert min(train(few, SUPERVISED, config)) > 0
