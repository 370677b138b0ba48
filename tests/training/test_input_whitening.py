"""A student that learns behavior begins with whitened inputs, and ends as a plain map of bins."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from edgedistill.config import load_preset
from edgedistill.training import input_whitening
from edgedistill.training.distill import make_student
from edgedistill.training.input_whitening import (
    SHRINKAGE,
    compute_second_moments,
    compute_whitening,
    whitened_inputs,
)
from edgedistill.training.student_tasks import STUDENT_TASKS, train_task

from .sessions import STUDENT, TRAINING, T, session

SESSIONS = [session("a", 0), session("b", 1), session("c", 2, channels=4)]
LAGS = [tap * STUDENT.dilation for tap in range(STUDENT.taps)]
LATENTS = {s.id: torch.randn(T, 5, generator=torch.Generator().manual_seed(3)) for s in SESSIONS}


def stack_by_hand(bins: np.ndarray, block: range) -> np.ndarray:
    return np.array([np.concatenate([bins[t - lag] for lag in LAGS]) for t in block])


def test_moments_are_those_of_the_training_blocks_of_all_sessions() -> None:
    rows = [
        stack_by_hand(s.lfp.double().numpy(), range(s.settled + LAGS[-1], s.split.train.stop)) for s in SESSIONS[:2]
    ]
    x = np.concatenate(rows)
    np.testing.assert_allclose(compute_second_moments(SESSIONS[:2], LAGS), x.T @ x / len(x), rtol=1e-9, atol=1e-12)


def test_moments_of_long_recordings_are_those_of_bins_spread_over_them(monkeypatch: pytest.MonkeyPatch) -> None:
    one = SESSIONS[0]
    first = one.settled + LAGS[-1]
    monkeypatch.setattr(input_whitening, "MOST_BINS", 100)
    spacing = -(-(one.split.train.stop - first) // 100)
    x = stack_by_hand(one.lfp.double().numpy(), range(first, one.split.train.stop, spacing))
    assert len(x) <= 100
    np.testing.assert_allclose(compute_second_moments([one], LAGS), x.T @ x / len(x), rtol=1e-9, atol=1e-12)


def test_bins_that_are_not_valid_do_not_count() -> None:
    one = SESSIONS[0]
    valid, lfp = one.valid.clone(), one.lfp.clone()
    valid[300:350] = False
    lfp[300:350] = 1e6
    spoiled = compute_second_moments([replace(one, valid=valid, lfp=lfp)], [0])
    x = np.delete(one.lfp.double().numpy()[: one.split.train.stop], range(300, 350), 0)[one.settled :]
    np.testing.assert_allclose(spoiled, x.T @ x / len(x), rtol=1e-9, atol=1e-12)


def test_whitened_inputs_vary_nearly_alike_in_all_directions() -> None:
    rng = np.random.default_rng(0)
    root = rng.normal(size=(6, 6)) * 10.0 ** np.arange(6)
    moments = root @ root.T
    w = compute_whitening(moments)
    np.testing.assert_allclose(w, w.T, rtol=1e-9)
    after = w @ moments @ w.T
    assert np.trace(after) == pytest.approx(np.trace(moments))
    variances, directions = np.linalg.eigh(moments)
    shrunk = (1 - SHRINKAGE) * variances + SHRINKAGE * variances.mean()
    expected = directions @ np.diag(variances / shrunk) @ directions.T
    np.testing.assert_allclose(after / np.trace(after), expected / np.trace(expected), atol=1e-6)


@pytest.mark.parametrize("moments", [np.zeros((3, 3)), np.eye(3)], ids=["silent", "white"])
def test_silent_and_white_inputs_stay_as_they_are(moments: np.ndarray) -> None:
    np.testing.assert_allclose(compute_whitening(moments), np.eye(3), atol=1e-12)


def test_directions_without_variance_are_left_out() -> None:
    rng = np.random.default_rng(0)
    x = rng.normal(size=(500, 4))
    x = np.column_stack([x - x.mean(1, keepdims=True), np.zeros(500)])  # a common average, and a dead channel
    moments = x.T @ x / len(x)
    w = compute_whitening(moments)
    np.testing.assert_allclose(w[4], 0, atol=1e-12)
    np.testing.assert_allclose(w @ [1, 1, 1, 1, 0], 0, atol=1e-6)
    np.testing.assert_allclose(np.linalg.matrix_rank(w), 3)
    assert np.trace(w @ moments @ w) == pytest.approx(np.trace(moments))


def test_a_training_that_fails_leaves_a_plain_map() -> None:
    student = make_student(SESSIONS, "lfp", STUDENT, 5, seed=0)
    with pytest.raises(ValueError, match="diverged"), whitened_inputs(student.tokenizer, SESSIONS):
        raise ValueError("diverged")
    assert not student.tokenizer.turns


def test_a_student_without_any_label_is_trained_as_before(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr("edgedistill.training.student_tasks.whitened_inputs")
    unlabelled = [replace(one, behavior=None) for one in SESSIONS]
    nano = replace(load_preset("nano"), student=STUDENT)
    train_task(STUDENT_TASKS["deployed"], unlabelled, nano, replace(TRAINING, steps=1), 0, LATENTS)


def test_the_map_afterwards_is_the_product() -> None:
    student = make_student(SESSIONS, "lfp", STUDENT, 5, seed=0)
    drawn = {name: weight.detach().clone() for name, weight in student.tokenizer.base.items()}
    bins = SESSIONS[0].lfp[None, :100]
    with whitened_inputs(student.tokenizer, SESSIONS), torch.no_grad():
        within = student.tokenizer("a", bins)
    assert not student.tokenizer.turns
    torch.testing.assert_close(student.tokenizer("a", bins), within, rtol=1e-4, atol=1e-4)
    for array in {s.array for s in SESSIONS}:
        sessions = [s for s in SESSIONS if s.array == array]
        name = next(name for name in drawn if name.endswith(array.removeprefix("s_")[-8:]))
        w = torch.from_numpy(compute_whitening(compute_second_moments(sessions, LAGS))).float()
        torch.testing.assert_close(student.tokenizer.base[name].detach(), drawn[name] @ w)


def test_wide_arrays_stay_as_they_are(monkeypatch: pytest.MonkeyPatch) -> None:
    student = make_student(SESSIONS, "lfp", STUDENT, 5, seed=0)
    monkeypatch.setattr(input_whitening, "MOST_INPUTS", len(LAGS) * 3)
    with whitened_inputs(student.tokenizer, SESSIONS):
        assert list(student.tokenizer.turns) == [SESSIONS[0].array]


@pytest.mark.parametrize("task", ["supervised_lfp", "deployed", "distilled", "unsupervised_lfp", "spike_student"])
def test_only_students_of_lfp_that_learn_behavior_are_whitened(task: str, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []
    whole = input_whitening.whitened_inputs
    monkeypatch.setattr(
        "edgedistill.training.student_tasks.whitened_inputs", lambda *given: seen.append(given) or whole(*given)
    )
    student = train_task(
        STUDENT_TASKS[task],
        SESSIONS,
        replace(load_preset("nano"), student=STUDENT),
        replace(TRAINING, steps=1),
        0,
        LATENTS,
    )
    assert bool(seen) == (task in ("supervised_lfp", "deployed"))
    assert not student.tokenizer.turns


def test_a_training_that_was_killed_goes_on_to_the_same_student(tmp_path: Path) -> None:
    def train(checkpoint: Path | None, kill: int = -1) -> dict[str, bytes]:
        def progress(step: int, *_: object) -> None:
            if step == kill:
                raise KeyboardInterrupt

        size = replace(load_preset("nano"), student=STUDENT)
        task = STUDENT_TASKS["supervised_lfp"]
        student = train_task(task, SESSIONS, size, TRAINING, 4, LATENTS, checkpoint, progress)
        return {name: weight.numpy().tobytes() for name, weight in student.state_dict().items()}

    undisturbed, path = train(None), tmp_path / "checkpoint.safetensors"
    with pytest.raises(KeyboardInterrupt):
        train(path, kill=7)
    assert train(path) == undisturbed
    assert train(path) == undisturbed, "a finished training is read again"
