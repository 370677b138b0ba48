"""Sensitivity finds the part that loses R², from the validation block alone."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor

from edgedistill.errors import RecordingError
from edgedistill.models.student import Student
from edgedistill.numerics import part_names
from edgedistill.quantization.calibration.activations import compute_activations
from edgedistill.quantization.sensitivity import compute_validation_r2, rank_parts, round_readout
from edgedistill.training.batches import TrainingSession
from edgedistill.training.distill import make_student, train_student
from edgedistill.training.evaluate import Readout, compute_mean_r2, r2_score, read_out
from edgedistill.training.losses import SUPERVISED
from edgedistill.training.student_tasks import STUDENT_TASKS, compute_features, score_student

from ..training.sessions import STUDENT, TRAINING, session

SIZE = replace(STUDENT, layers=2)
SESSION = session()
PARTS = part_names(SIZE.shape(1, 1))
Ranges = dict[str, list[float]]


@pytest.fixture(scope="module")
def student() -> Student:
    fresh = make_student([SESSION], "lfp", SIZE, 5, seed=4)
    schedule = replace(TRAINING, steps=60, eval_every=30)
    return train_student(fresh, [SESSION], "lfp", SUPERVISED, schedule, 4).requires_grad_(False)


@pytest.fixture(scope="module")
def readout(student: Student) -> Readout:
    return score_student(student, "deployed", SESSION)[0]


@pytest.fixture(scope="module")
def ranges(student: Student) -> Ranges:
    found = compute_activations(student, SESSION.id, SESSION.inputs("lfp")[None, :4000])
    largest = {n: x.abs().amax((0, 2, 3)) if x.ndim == 4 else x.abs().max()[None] for n, x in found.items()}
    return {name: values.tolist() for name, values in largest.items()}


def test_every_part_is_ranked_once_with_the_largest_loss_first(
    student: Student, ranges: Ranges, readout: Readout
) -> None:
    ranking = rank_parts(student, ranges, SESSION, "lfp", readout)
    assert {part for part, _ in ranking} == set(PARTS)
    assert len(ranking) == len(PARTS)
    lost = [drop for _, drop in ranking]
    assert lost == sorted(lost, reverse=True)
    assert all(abs(drop) < 0.02 for drop in lost)  # eight bits of a fair range cost little


def test_four_bit_weights_are_ranked_with_four_bits(student: Student, ranges: Ranges, readout: Readout) -> None:
    four = ("layers.0.gate_up", "layers.1.qkv")
    eight = dict(rank_parts(student, ranges, SESSION, "lfp", readout))
    found = dict(rank_parts(student, ranges, SESSION, "lfp", readout, four))
    assert {part for part in PARTS if found[part] != eight[part]} == set(four)


CLIPPED = {
    "layers.0.attn": "layers.0.qkv",
    "layers.1.v": "layers.1.attention",
    "layers.1.context": "layers.1.out",
    "layers.0.mlp": "layers.0.gate_up",
    "layers.1.hidden": "layers.1.down",
    "latent": "readout",
}


@pytest.mark.parametrize("name", CLIPPED)
def test_a_bad_range_affects_its_own_part_alone(student: Student, ranges: Ranges, readout: Readout, name: str) -> None:
    """Nearly all of an activation is clipped, and only the part that reads it loses R²."""
    bad = {**ranges, name: [0.01 * value for value in ranges[name]]}
    fair, found = (dict(rank_parts(student, r, SESSION, "lfp", readout)) for r in (ranges, bad))
    assert {part for part in PARTS if fair[part] != found[part]} == {CLIPPED[name]}


@pytest.mark.parametrize("name", ["layers.0.attn", "layers.1.v", "layers.1.context", "latent"])
def test_the_part_with_a_bad_range_is_ranked_first(
    student: Student, ranges: Ranges, readout: Readout, name: str
) -> None:
    """The test uses activations on which the student depends. This small student hardly uses its MLP."""
    bad = {**ranges, name: [0.01 * value for value in ranges[name]]}
    (first, lost), (_, second) = rank_parts(student, bad, SESSION, "lfp", readout)[:2]
    assert first == CLIPPED[name]
    assert lost > 2 * max(second, 0) + 1e-4


def test_the_range_of_bins_affects_embedding_and_readout(student: Student, ranges: Ranges, readout: Readout) -> None:
    bad = {**ranges, "bin": [0.01 * ranges["bin"][0]]}
    assert {part for part, _ in rank_parts(student, bad, SESSION, "lfp", readout)[:2]} == {"embed", "readout"}


def test_with_no_part_quantized_r2_is_that_of_the_float_student(
    student: Student, ranges: Ranges, readout: Readout
) -> None:
    """The stream starts a run-up before the block and not at the first bin, since only the receptive field matters."""
    features = compute_features(student, STUDENT_TASKS["deployed"], SESSION)
    block, behavior = SESSION.split.validation, SESSION.behavior
    assert behavior is not None
    mean, std = SESSION.scale
    truth = behavior[block].double().numpy() * std + mean
    expected = compute_mean_r2(r2_score(read_out([readout], features, block)[0], truth))
    assert compute_validation_r2(student, ranges, SESSION, "lfp", readout, ()) == pytest.approx(expected, abs=1e-5)


def changed(where: slice, change: Callable[[Tensor], Tensor]) -> TrainingSession:
    lfp, behavior = SESSION.inputs("lfp").clone(), SESSION.behavior
    assert behavior is not None
    behavior = behavior.clone()
    lfp[where], behavior[where] = change(lfp[where]), change(behavior[where])
    return replace(SESSION, lfp=lfp, behavior=behavior)


def test_the_test_block_does_not_change_the_ranking(student: Student, ranges: Ranges, readout: Readout) -> None:
    other = changed(slice(SESSION.split.validation.stop, None), torch.zeros_like)
    assert rank_parts(student, ranges, other, "lfp", readout) == rank_parts(student, ranges, SESSION, "lfp", readout)


def test_a_block_in_which_nothing_moves_raises_an_error(student: Student, ranges: Ranges, readout: Readout) -> None:
    still = changed(SESSION.split.validation, torch.ones_like)
    with pytest.raises(RecordingError, match=f"session {SESSION.id}: no behavior moves in its validation block"):
        rank_parts(student, ranges, still, "lfp", readout)


def test_a_readout_is_rounded_row_by_row_with_the_gain_in_it(student: Student, readout: Readout) -> None:
    weight = torch.from_numpy(readout.weight).float()
    rounded = round_readout(weight, student)
    d, gain = SIZE.d, student.norm_out
    for part, factor in ((slice(0, d), gain), (slice(d, None), torch.ones(()))):
        folded, found = weight[:, part] * factor, rounded[:, part] * factor
        scale = folded.abs().amax(1, keepdim=True) / 127
        steps = (found / scale).numpy()
        np.testing.assert_allclose(steps, np.rint(steps), atol=1e-3)
        assert ((found - folded).abs() <= 0.501 * scale).all()
