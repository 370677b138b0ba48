"""Every kind of alignment agrees with its definition, and leaves nothing of itself behind in the student."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from edgedistill.config import ALIGNMENTS, CENTRINGS, Alignment
from edgedistill.errors import ConfigError
from edgedistill.models.student import Student
from edgedistill.models.teacher import PatchAutoencoder
from edgedistill.training.alignment import EPS, MOMENTUM, Aligner, SubspaceAligner, make_aligner, measure_spreads
from edgedistill.training.distill import distill_bidirectional, make_student, train_student
from edgedistill.training.losses import DISTILLED, DISTILLED_WITH_BEHAVIOR, Objective

from .sessions import STUDENT, TEACHER, TRAINING, T, session
from .test_loop import Killed, killer, weights_of

DEEP = replace(STUDENT, layers=2)
K = DEEP.d  # width of a teacher's subspace, where the teacher is at least as wide as the student
NARROW = 5  # where it is not
SESSIONS = [session("a", 0), session("b", 1)]


def numbers(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def by(kind: str, centring: str = "mean", objective: Objective = DISTILLED) -> Objective:
    return replace(objective, aligned_by=Alignment(kind, centring))


def targets(k: int = K) -> dict[str, Tensor]:
    return {s.id: numbers(T, DEEP.layers * k, seed=i) for i, s in enumerate(SESSIONS)}


def aligner_of(kind: str, centring: str = "mean", layers: int | None = None, k: int = K) -> Aligner:
    return make_aligner(by(kind, centring), DEEP, SESSIONS, targets(k), layers)


def subspace(centring: str = "mean", layers: int | None = None, k: int = K) -> SubspaceAligner:
    made = aligner_of("subspace", centring, layers, k)
    assert isinstance(made, SubspaceAligner)
    return made


def turn_maps(aligner: SubspaceAligner, by: float) -> list[Tensor]:
    """Turns every map by some angle, and returns their matrices. The diagonal of some maps of torch holds signs."""
    with torch.no_grad():
        for parameter in aligner.parameters():
            parameter.add_(by * numbers(*parameter.shape, seed=6).fill_diagonal_(0))
    return [turn(torch.eye(DEEP.d)).detach().T for turn in aligner.maps]


class Head:
    """A student whose heads predict what they are given."""

    @staticmethod
    def to_teacher(session: str, latents: torch.Tensor) -> torch.Tensor:
        return latents


def loss_of(aligner: Aligner, layers: Sequence[Tensor], truth: Tensor) -> Tensor:
    student: Any = Head()
    found: Tensor = aligner(student, "a", layers, truth)
    return found


@pytest.mark.parametrize("kind", ["whitened", "cosine"])
def test_an_angle_ignores_scale(kind: str) -> None:
    target, aligner = numbers(2, 30, K), aligner_of(kind)
    assert loss_of(aligner, [3 * target], target) == pytest.approx(0, abs=1e-6)
    assert loss_of(aligner, [-target], target) == pytest.approx(2, abs=1e-6)


def test_mse_is_the_mean_square() -> None:
    target = numbers(2, 30, K)
    assert loss_of(aligner_of("mse"), [target + 2], target) == pytest.approx(4, rel=1e-5)


@pytest.mark.parametrize("kind", ALIGNMENTS)
def test_bins_without_a_target_do_not_change_the_alignment(kind: str) -> None:
    by_layer = kind == "subspace"
    target = numbers(2, 30, DEEP.layers * K if by_layer else K)
    layers = [numbers(2, 30, DEEP.d if by_layer else K, seed=i).requires_grad_() for i in range(DEEP.layers)]
    holes = target.clone()
    holes[:, 10:] = torch.nan
    found = loss_of(aligner_of(kind), layers, holes)
    expected = loss_of(aligner_of(kind), [layer[:, :10] for layer in layers], target[:, :10])
    assert found.item() == pytest.approx(expected.item(), rel=1e-5)
    found.backward()
    assert layers[-1].grad is not None
    assert torch.isfinite(layers[-1].grad).all()
    assert not layers[-1].grad[:, 10:].any()
    nothing = loss_of(aligner_of(kind), layers, torch.full_like(target, torch.nan))
    nothing.backward()
    assert torch.isfinite(nothing)


def test_unknown_names_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"unknown alignment 'cosin'(.|\n)*did you mean 'cosine'"):
        Alignment("cosin")
    with pytest.raises(ConfigError, match=r"unknown centring 'means'(.|\n)*did you mean 'mean'"):
        Alignment("subspace", "means")


# ---------------------------------------------------------------- subspaces, against numpy


def transcribed_loss(
    layers: Sequence[np.ndarray], truth: np.ndarray, maps: Sequence[np.ndarray], spreads: Sequence[float], divide: bool
) -> float:
    """The formulas in numpy: s = R (b - mean of the batch), loss = Σ over layers of mean |s - t|² / spread."""
    total, k = 0.0, len(maps[0])
    for i, (layer, turn) in enumerate(zip(layers, maps, strict=True)):
        b = layer.reshape(-1, layer.shape[-1])
        t = truth.reshape(len(b), -1)[:, i * k : (i + 1) * k]
        centred = b - b.mean(0)
        if divide:
            centred = centred / np.sqrt(b.var(0) + EPS)
        s = np.stack([turn @ row for row in centred])
        total += np.mean(np.sum((s - t) ** 2, 1)) / spreads[i]
    return float(total)


@pytest.mark.parametrize("k", [K, NARROW])
@pytest.mark.parametrize("centring", CENTRINGS)
def test_the_loss_of_subspaces_is_that_of_the_formulas(centring: str, k: int) -> None:
    aligner, truth = subspace(centring, k=k), numbers(3, 40, 2 * k, seed=3)
    layers = [2 * numbers(3, 40, DEEP.d, seed=i) + 1 for i in (4, 5)]
    maps = [turn.double().numpy() for turn in turn_maps(aligner, 1.0)]
    for turn in maps:
        assert np.abs(turn - np.eye(k, DEEP.d)).max() > 0.1
        np.testing.assert_allclose(turn @ turn.T, np.eye(k), atol=1e-5)
    rows = torch.cat([targets(k)[s.id][s.split.train] for s in SESSIONS]).double().numpy()
    spreads = [float(np.mean(np.sum(rows[:, i * k : (i + 1) * k] ** 2, 1))) for i in range(2)]
    np.testing.assert_allclose(aligner.spreads, spreads, rtol=1e-6)
    wide = [layer.double().numpy() for layer in layers]
    expected = transcribed_loss(wide, truth.double().numpy(), maps, spreads, centring == "standardized")
    assert loss_of(aligner, layers, truth).item() == pytest.approx(expected, rel=1e-5)


def test_both_readings_of_the_centring_are_the_published_ones() -> None:
    """The text subtracts a mean; the code calls batch_norm, which keeps running figures for evaluation."""
    rows, later = 3 * numbers(50, DEEP.d) + 2, numbers(20, DEEP.d, seed=1)
    mean, variance = torch.zeros(DEEP.d), torch.ones(DEEP.d)
    divided, only_mean = subspace("standardized"), subspace("mean")
    published = F.batch_norm(rows, mean, variance, training=True, momentum=MOMENTUM, eps=EPS)
    torch.testing.assert_close(divided.centre(0, rows, torch.tensor(len(rows))), published)
    torch.testing.assert_close(only_mean.centre(0, rows, torch.tensor(len(rows))), rows - rows.mean(0))
    for aligner in (divided, only_mean):
        aligner.eval()
        torch.testing.assert_close(aligner.means[0], mean)
    torch.testing.assert_close(
        divided.centre(0, later, torch.tensor(len(later))), F.batch_norm(later, mean, variance, eps=EPS)
    )
    torch.testing.assert_close(only_mean.centre(0, later, torch.tensor(len(later))), later - mean)
    torch.testing.assert_close(divided.means[0], mean)  # evaluation changes nothing


@pytest.mark.parametrize("k", [K, NARROW])
@pytest.mark.parametrize("centring", CENTRINGS)
def test_the_maps_of_a_trained_student_are_found_anew(centring: str, k: int) -> None:
    """A student that is a turned teacher has no loss left. Of several layers the last can be taken alone."""
    truth, aligner = numbers(600, 2 * k), subspace(centring, layers=1, k=k)
    truth = truth - truth.mean(0)
    turn = torch.linalg.qr(numbers(DEEP.d, DEEP.d, seed=1))[0][:, :k]
    activations = truth[:, k:] @ turn.T + 4
    aligner.start_at([activations], truth)
    aligner.eval()
    loss = loss_of(aligner, [activations], truth)
    assert loss < (1e-3 if centring == "mean" else 0.5)
    turn_maps(aligner, 0.2)
    assert loss_of(aligner, [activations], truth) > loss


# ---------------------------------------------------------------- in a training


def run(
    objective: Objective, checkpoint: Path | None = None, kill: int = -1, aligner: Aligner | None = None
) -> Student:
    kept = targets()
    student = make_student(SESSIONS, "lfp", DEEP, 2 * K, seed=4)
    shown = killer(kill)
    return train_student(student, SESSIONS, "lfp", objective, TRAINING, 4, kept, checkpoint, shown, aligner)


@pytest.mark.parametrize("centring", CENTRINGS)
def test_a_run_with_maps_that_was_killed_resumes_to_the_same_bits(centring: str, tmp_path: Path) -> None:
    objective = by("subspace", centring, DISTILLED_WITH_BEHAVIOR)
    whole = subspace(centring)
    undisturbed = weights_of(run(objective, aligner=whole))
    for at in (4, 8):  # between two evaluations, where checkpoints are written
        path, resumed = tmp_path / f"{at}.safetensors", subspace(centring)
        with pytest.raises(Killed):
            run(objective, path, at)
        assert weights_of(run(objective, path, aligner=resumed)) == undisturbed
        assert weights_of(resumed) == weights_of(whole)
    assert whole.means.any()
    for turn in turn_maps(whole, 0.0):
        assert not torch.allclose(turn, torch.eye(K), atol=1e-3)  # it was trained along
        torch.testing.assert_close(turn @ turn.T, torch.eye(K), atol=1e-5, rtol=0)


@pytest.mark.parametrize("kind", ALIGNMENTS)
def test_nothing_of_the_alignment_stays_in_the_student(kind: str) -> None:
    fresh, trained = make_student(SESSIONS, "lfp", DEEP, 2 * K, seed=4), run(by(kind))
    assert weights_of(trained).keys() == weights_of(fresh).keys()
    folded, before = trained.fold("a"), fresh.fold("a")
    assert {n: t.shape for n, t in folded.items()} == {n: t.shape for n, t in before.items()}
    assert any(not torch.equal(folded[name], before[name]) for name in folded)


@pytest.mark.parametrize("kind", ALIGNMENTS)
def test_the_spike_student_and_the_bidirectional_student_are_aligned_too(kind: str) -> None:
    student = make_student(SESSIONS, "spikes", DEEP, 2 * K, seed=4)
    before = weights_of(student)
    objective = by(kind, objective=DISTILLED_WITH_BEHAVIOR)
    assert weights_of(train_student(student, SESSIONS, "spikes", objective, TRAINING, 4, targets())) != before
    size = replace(TEACHER, layers=2)
    patch = distill_bidirectional(SESSIONS, size, TRAINING, 4, targets(), objective=by(kind))
    again = distill_bidirectional(SESSIONS, size, TRAINING, 5, targets(), objective=by(kind))
    assert not [name for name in patch.state_dict() if "aligner" in name]
    assert weights_of(patch) != weights_of(again)


def test_a_bidirectional_student_may_also_tell_the_bins_and_keeps_no_map_for_it(tmp_path: Path) -> None:
    def train(reconstruction: float, checkpoint: Path | None = None, kill: int = -1) -> PatchAutoencoder:
        size, shown = replace(TEACHER, layers=2), killer(kill)
        return distill_bidirectional(
            SESSIONS, size, TRAINING, 4, targets(), checkpoint, shown, by("cosine"), reconstruction=reconstruction
        )

    alone, both = weights_of(train(0.0)), weights_of(train(0.2))
    assert alone.keys() == both.keys()
    assert alone != both
    with pytest.raises(Killed):
        train(0.2, tmp_path / "checkpoint", kill=6)
    assert weights_of(train(0.2, tmp_path / "checkpoint")) == both


def test_every_layer_of_the_student_follows_its_own_subspace() -> None:
    """The gradient of one layer's loss reaches this layer and the ones before it, and no later one."""
    student, aligner = make_student(SESSIONS, "lfp", DEEP, 2 * K, seed=4), subspace()
    bins, truth = numbers(2, 40, 3), numbers(2, 40, 2 * K)
    aligner.spreads = (1.0, float("inf"))
    layers = aligner.layers_of(student, "a", bins)
    assert torch.equal(layers[-1], student("a", bins))
    aligner(student, "a", layers, truth).backward()
    grads = {name: p.grad for name, p in student.named_parameters()}
    first, second = grads["layers.0.mlp.wdown"], grads["layers.1.mlp.wdown"]
    assert first is not None
    assert first.any()
    assert second is None or not second.any()


def test_spreads_are_those_of_the_known_bins() -> None:
    block = torch.ones(10, 2 * K)
    block[:, K:] = 2
    block[5:] = torch.nan
    assert measure_spreads([block, block], K) == [K, 4 * K]
