"""What students follow comes from the training blocks, and holds the task where labels may be used."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor

from edgedistill.config import ALIGNMENTS, Alignment
from edgedistill.models.teacher import PatchAutoencoder
from edgedistill.training import teacher_targets
from edgedistill.training.batches import TrainingSession, training_session_from_bins
from edgedistill.training.evaluate import fit_readout
from edgedistill.training.losses import DISTILLED, DISTILLED_WITH_BEHAVIOR, SUPERVISED, Objective
from edgedistill.training.pretrain import compute_bidirectional_latents, compute_teacher_features
from edgedistill.training.teacher_targets import (
    TEACHER_COMPONENTS,
    TeacherTargets,
    compute_subspace_targets,
    compute_targets,
    find_whitening,
    match_layers,
)

from .sessions import GAP, STUDENT, TEACHER, TRAINING, UNITS, T, disturbed, session, session_bins

PLAIN = session()
FEW = 24  # segments in which gradients are taken
SMALL = replace(STUDENT, d=2, layers=2)


@pytest.fixture(autouse=True)
def few_segments(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(teacher_targets, "GRADIENT_SEGMENTS", FEW)


@pytest.fixture(scope="module")
def teacher() -> PatchAutoencoder:
    torch.manual_seed(0)
    return PatchAutoencoder(replace(TEACHER, layers=3), {"s1": UNITS, "s2": UNITS}).eval()


def by(kind: str, objective: Objective = DISTILLED) -> Objective:
    return replace(objective, aligned_by=Alignment(kind))


@pytest.mark.parametrize("kind", ALIGNMENTS)
def test_targets_depend_on_the_training_block_alone(teacher: PatchAutoencoder, kind: str) -> None:
    stop, margin = PLAIN.split.train.stop, TRAINING.segment_bins
    other = training_session_from_bins(disturbed(session_bins(), stop + margin), GAP)
    mine, its = (TeacherTargets(teacher, [one], TRAINING).of(by(kind), SMALL)["s1"] for one in (PLAIN, other))
    assert torch.equal(mine[:stop], its[:stop])
    assert not torch.equal(mine[stop + 2 * margin :], its[stop + 2 * margin :])
    torch.testing.assert_close(mine[:stop].mean(0), torch.zeros(mine.shape[1]), atol=1e-3, rtol=0)


def test_whitened_features_have_unit_covariance(teacher: PatchAutoencoder) -> None:
    train = compute_targets(teacher, [PLAIN], TRAINING)["s1"][PLAIN.split.train]
    covariance = train.T @ train / len(train)
    torch.testing.assert_close(covariance, torch.eye(min(TEACHER.predictor_d, TEACHER_COMPONENTS)), atol=0.02, rtol=0)


def test_whitened_features_are_an_affine_map_of_the_features(teacher: PatchAutoencoder) -> None:
    found = compute_targets(teacher, [PLAIN], TRAINING)["s1"].double()
    features = compute_teacher_features(teacher, "s1", PLAIN.inputs("spikes"), TRAINING.segment_bins).double()
    latents = compute_bidirectional_latents(teacher, "s1", PLAIN.inputs("spikes"), TRAINING.segment_bins).double()
    for read, least, most in ((features, 0.0, 1e-6), (latents, 1e-2, 1.0)):
        known = torch.cat([read, torch.ones(len(read), 1, dtype=torch.float64)], 1)
        left = found - known @ torch.linalg.lstsq(known, found).solution
        assert least <= float(left.square().mean() / found.square().mean()) <= most


def test_a_student_that_learns_behavior_follows_fewer_components(
    teacher: PatchAutoencoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(teacher_targets, "TEACHER_COMPONENTS", 10)
    monkeypatch.setattr(teacher_targets, "COMPONENTS_BESIDE_BEHAVIOR", 4)
    targets = TeacherTargets(teacher, [PLAIN], TRAINING)
    many, few = (targets.of(objective, SMALL)["s1"] for objective in (DISTILLED, DISTILLED_WITH_BEHAVIOR))
    assert (many.shape[1], few.shape[1]) == (10, 4)
    assert torch.equal(many[:, :4], few)


def test_components_that_hardly_vary_are_not_blown_up() -> None:
    variances = torch.tensor([4.0, 4e-4, 4e-10, 0.0], dtype=torch.float64)
    whitening = find_whitening(torch.diag(variances)).double()
    deviations = (whitening.T @ torch.diag(variances) @ whitening).diagonal().sqrt()
    torch.testing.assert_close(deviations[:2], torch.ones(2, dtype=torch.float64), atol=1e-5, rtol=0)
    assert float(deviations[2:].max()) < 0.02
    assert torch.isfinite(find_whitening(torch.zeros(3, 3, dtype=torch.float64))).all()


def test_centred_latents_keep_their_proportions(teacher: PatchAutoencoder) -> None:
    found = compute_targets(teacher, [PLAIN], TRAINING, components=0)["s1"]
    raw = compute_bidirectional_latents(teacher, "s1", PLAIN.inputs("spikes"), TRAINING.segment_bins)
    block = PLAIN.split.train
    centred = raw - raw[block].mean(0)
    torch.testing.assert_close(found, centred / centred[block].square().mean().sqrt(), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize(
    ("student", "teacher", "expected"), [(2, 3, [1, 2]), (4, 4, [0, 1, 2, 3]), (1, 5, [4]), (4, 2, [0, 0, 1, 1])]
)
def test_layers_are_matched_by_their_share_of_the_depth(student: int, teacher: int, expected: list[int]) -> None:
    assert match_layers(student, teacher) == expected


def test_without_labels_a_subspace_is_that_of_the_covariance(teacher: PatchAutoencoder) -> None:
    """Against plain numpy, up to the sign of each direction, for both layers of the student."""
    days = [PLAIN, session("s2", 1)]
    found = compute_subspace_targets(teacher, days, TRAINING, SMALL, labels=False)
    for i, depth in enumerate(match_layers(2, 3)):
        raw = {
            s.id: compute_bidirectional_latents(
                teacher, s.id, s.inputs("spikes"), TRAINING.segment_bins, depths=[depth]
            ).double().numpy()
            for s in days
        }  # fmt: skip
        train = np.vstack([raw[s.id][s.split.train] for s in days])
        centred = train - train.mean(0)
        values, vectors = np.linalg.eigh(centred.T @ centred / len(centred))
        leading = vectors[:, np.argsort(values)[::-1][:2]]
        for s in days:
            expected = (raw[s.id] - train.mean(0)) @ leading
            mine = found[s.id][:, 2 * i : 2 * i + 2].numpy()
            signs = np.sign(np.sum(mine * expected, 0))
            np.testing.assert_allclose(mine, signs * expected, atol=2e-3)


def faint_task(teacher: PatchAutoencoder) -> TrainingSession:
    """Returns a session whose behavior is the direction of the teacher's latents with the least variance."""
    latents = compute_bidirectional_latents(teacher, "s1", PLAIN.inputs("spikes"), TRAINING.segment_bins)
    centred = latents - latents[PLAIN.split.train].mean(0)
    faint = centred @ torch.linalg.svd(centred, full_matrices=False)[2][-1]
    return replace(PLAIN, behavior=(faint / faint.std())[:, None], scale=(np.zeros(1), np.ones(1)))


def decodable(targets: Tensor, day: TrainingSession) -> float:
    assert day.behavior is not None
    return fit_readout(targets.double().numpy(), day.behavior.double().numpy(), day.split).validation_r2


def test_labels_find_a_task_that_hardly_moves_the_teacher(teacher: PatchAutoencoder) -> None:
    """The task is a direction of little variance: the task's subspaces hold it, principal components do not."""
    day = faint_task(teacher)
    targets = TeacherTargets(teacher, [day], TRAINING)
    with_labels = targets.of(by("subspace", DISTILLED_WITH_BEHAVIOR), SMALL)["s1"]
    without = targets.of(by("subspace"), SMALL)["s1"]
    assert decodable(with_labels[:, 2:], day) > 0.95
    assert decodable(without[:, 2:], day) < 0.2


def test_labels_are_used_where_the_objective_has_them(teacher: PatchAutoencoder) -> None:
    unlabelled = replace(PLAIN, behavior=None)
    free = by("subspace")
    mine, its = (TeacherTargets(teacher, [one], TRAINING).of(free, SMALL)["s1"] for one in (PLAIN, unlabelled))
    assert torch.equal(mine, its)
    asked = by("subspace", DISTILLED_WITH_BEHAVIOR)
    assert not torch.equal(TeacherTargets(teacher, [PLAIN], TRAINING).of(asked, SMALL)["s1"], mine)
    assert torch.equal(TeacherTargets(teacher, [unlabelled], TRAINING).of(asked, SMALL)["s1"], mine)  # falls back
    some = {"s1": PLAIN, "s2": replace(session("s2", 1), behavior=None)}
    both = TeacherTargets(teacher, list(some.values()), TRAINING).of(asked, SMALL)
    assert both.keys() == some.keys()
    assert torch.isfinite(both["s2"]).all()


def test_bins_that_are_not_valid_have_no_target_and_no_say(teacher: PatchAutoencoder) -> None:
    valid = torch.ones(T, dtype=torch.bool)
    valid[100:200] = False
    for kind in ALIGNMENTS:
        found = TeacherTargets(teacher, [replace(PLAIN, valid=valid)], TRAINING).of(
            by(kind, DISTILLED_WITH_BEHAVIOR), SMALL
        )
        assert torch.equal(torch.isfinite(found["s1"]).all(1), valid), kind


def test_each_kind_is_computed_once(teacher: PatchAutoencoder) -> None:
    """Those beside behavior are a part of those without it, so the teacher computes both in one pass."""
    starts: list[float] = []
    targets = TeacherTargets(teacher, [PLAIN], TRAINING, starts.append)
    targets.of(by("whitened"), SMALL)
    first = targets.of(by("whitened", DISTILLED_WITH_BEHAVIOR), SMALL)
    assert targets.of(by("whitened", DISTILLED_WITH_BEHAVIOR), STUDENT) is first
    assert targets.of(by("subspace", SUPERVISED), STUDENT) is first  # nothing is aligned
    assert len(starts) == 1
    assert targets.of(by("subspace"), SMALL) is not targets.of(by("subspace", DISTILLED_WITH_BEHAVIOR), SMALL)
    assert len(starts) == 3
