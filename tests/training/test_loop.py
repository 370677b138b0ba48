"""A run that was killed and resumed ends with the bits of an uninterrupted one."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file
from torch import Tensor, nn

from edgedistill.config import TrainingConfig
from edgedistill.errors import EdgeDistillError, OutputError
from edgedistill.models.student import Student
from edgedistill.training.checkpoints import FitState
from edgedistill.training.distill import make_student, train_student
from edgedistill.training.loop import Progress, compute_learning_rate, fit, make_optimizer
from edgedistill.training.losses import DISTILLED_WITH_BEHAVIOR, UNSUPERVISED, Objective
from edgedistill.training.pretrain import train_teacher
from edgedistill.training.run_log import LOG

from .sessions import STUDENT, TEACHER, TRAINING, T, session

SESSIONS = [session("a", 0), session("b", 1), session("c", 2, channels=4)]
TEACHER_LATENTS = {s.id: torch.randn(T, 5, generator=torch.Generator().manual_seed(3)) for s in SESSIONS}


class Killed(BaseException):
    """Stands for Ctrl-C or a power cut, which no code catches."""


def killer(at: int) -> Progress:
    def progress(step: int, steps: int, loss: float, rate: float) -> None:
        if step == at:
            raise Killed

    return progress


def run_student(
    objective: Objective, config: TrainingConfig, checkpoint: Path | None = None, kill: int = -1
) -> Student:
    student = make_student(SESSIONS, "lfp", STUDENT, 5, seed=4)
    return train_student(student, SESSIONS, "lfp", objective, config, 4, TEACHER_LATENTS, checkpoint, killer(kill))


def weights_of(model: nn.Module) -> dict[str, bytes]:
    return {n: t.numpy().tobytes() for n, t in model.state_dict().items()}


@pytest.mark.parametrize("objective", [UNSUPERVISED, DISTILLED_WITH_BEHAVIOR], ids=["label-free", "distilled"])
def test_a_run_killed_after_any_step_resumes_to_the_same_bits(objective: Objective, tmp_path: Path) -> None:
    """With three sessions in twelve steps a tokenizer is updated in some steps only, and keeps moments of its own."""
    undisturbed = weights_of(run_student(objective, TRAINING))
    for at in range(1, TRAINING.steps + 1):
        path = tmp_path / f"{at}.safetensors"
        with pytest.raises(Killed):
            run_student(objective, TRAINING, path, at)
        assert weights_of(run_student(objective, TRAINING, path)) == undisturbed, f"killed after step {at}"


@settings(max_examples=4, deadline=None)
@given(kills=st.lists(st.integers(1, 12), max_size=4))
def test_a_run_killed_several_times_resumes_to_the_same_bits(
    kills: list[int], tmp_path_factory: pytest.TempPathFactory
) -> None:
    path = tmp_path_factory.mktemp("kills") / "checkpoint.safetensors"
    for at in kills:
        with suppress(Killed):
            run_student(UNSUPERVISED, TRAINING, path, at)
    assert weights_of(run_student(UNSUPERVISED, TRAINING, path)) == weights_of(run_student(UNSUPERVISED, TRAINING))


def test_a_killed_teacher_run_resumes_to_the_same_bits(tmp_path: Path) -> None:
    undisturbed = weights_of(train_teacher(SESSIONS, TEACHER, TRAINING, 0))
    path = tmp_path / "checkpoint.safetensors"
    with pytest.raises(Killed):
        train_teacher(SESSIONS, TEACHER, TRAINING, 0, path, killer(7))
    assert weights_of(train_teacher(SESSIONS, TEACHER, TRAINING, 0, path)) == undisturbed


def test_another_seed_gives_other_weights() -> None:
    first = train_teacher(SESSIONS, TEACHER, TRAINING, 0)
    assert weights_of(train_teacher(SESSIONS, TEACHER, TRAINING, 0)) == weights_of(first)
    assert weights_of(train_teacher(SESSIONS, TEACHER, TRAINING, 1)) != weights_of(first)


def test_a_kill_while_the_checkpoint_is_written_leaves_the_old_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "checkpoint.safetensors"
    undisturbed = weights_of(run_student(UNSUPERVISED, TRAINING))
    with pytest.raises(Killed):
        run_student(UNSUPERVISED, TRAINING, path, 4)
    before = path.read_bytes()

    def half(tensors: object, target: Path, metadata: object) -> None:
        target.write_bytes(before[: len(before) // 2])
        raise Killed

    with monkeypatch.context() as patched:
        patched.setattr("edgedistill.training.checkpoints.save_file", half)
        with pytest.raises(Killed):
            run_student(UNSUPERVISED, TRAINING, path)
    assert {p.name for p in tmp_path.iterdir()} == {path.name, LOG}
    assert path.read_bytes() == before
    assert weights_of(run_student(UNSUPERVISED, TRAINING, path)) == undisturbed


# ---------------------------------------------------------------- a model of one number


class Number(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.x = nn.Parameter(torch.zeros(1))


def follow(losses: Sequence[float], config: TrainingConfig) -> tuple[Number, FitState]:
    """Trains with validation losses that are `losses`, in order."""
    model, remaining = Number(), list(losses)
    config = replace(config, eval_every=1)
    return model, fit(model, lambda _: (model.x - 1).square().sum(), lambda: remaining.pop(0), config)


def test_early_stopping_keeps_the_state_of_the_best_evaluation() -> None:
    config = replace(TRAINING, steps=50, patience=3, warmup_share=0.0)
    model, state = follow([5, 4, 3, 3.5, 3.1, 3.0], config)
    assert (state.step, state.best_step, state.best_loss) == (6, 3, 3)
    assert model.x.item() != 0
    assert [step for step, _ in state.history] == [1, 2, 3, 4, 5, 6]
    assert not model.training


def test_the_weights_are_those_of_the_best_evaluation() -> None:
    seen: list[float] = []
    model, losses = Number(), [3.0, 1.0, 2.0, 2.0, 2.0]

    def validate() -> float:
        seen.append(model.x.item())
        return losses[len(seen) - 1]

    fit(model, lambda _: (model.x - 1).square().sum(), validate, replace(TRAINING, steps=5, eval_every=1))
    assert model.x.item() == seen[1]
    assert len(set(seen)) == 5


def test_a_finished_run_is_not_run_again(tmp_path: Path) -> None:
    path = tmp_path / "c.safetensors"
    model = Number()
    loss: Callable[[int], Tensor] = lambda _: (model.x - 1).square().sum()  # noqa: E731
    fit(model, loss, lambda: loss(0).item(), TRAINING, path)
    again = Number()

    def forbidden(step: int) -> Tensor:
        raise AssertionError("no step is left")

    assert fit(again, forbidden, lambda: 0.0, TRAINING, path).step == TRAINING.steps
    assert torch.equal(again.x, model.x)


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_loss_that_is_not_finite_raises_an_error(value: float, tmp_path: Path) -> None:
    model, path = Number(), tmp_path / "c.safetensors"
    with pytest.raises(EdgeDistillError, match=r"diverged at step 4(.|\n)*learning_rate"):
        fit(
            model,
            lambda step: model.x.sum() * (value if step == 4 else 1),
            lambda: 1.0,
            replace(TRAINING, eval_every=2),
            path,
        )
    assert torch.isfinite(model.x).all()
    with pytest.raises(EdgeDistillError, match="validation loss"):
        fit(Number(), lambda _: model.x.sum(), lambda: value, TRAINING)


def flip(path: Path, at: int) -> None:
    content = bytearray(path.read_bytes())
    content[at] ^= 1
    path.write_bytes(content)


@pytest.mark.parametrize("damage", ["cut", "flipped weight", "flipped state", "text", "foreign", "link"])
def test_a_damaged_checkpoint_is_named_and_the_training_starts_anew(
    damage: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    undisturbed, path = weights_of(run_student(UNSUPERVISED, TRAINING)), tmp_path / "c.safetensors"
    with pytest.raises(Killed):
        run_student(UNSUPERVISED, TRAINING, path, 4)
    if damage == "cut":
        path.write_bytes(path.read_bytes()[:-100])
    elif damage == "flipped weight":
        flip(path, -100)
    elif damage == "flipped state":
        flip(path, path.read_bytes().index(b'"step') + len(b'"step') + len(b'\\": ') - 1)
    elif damage == "text":
        path.write_text("not a checkpoint")
    elif damage == "link":
        path.symlink_to(path.rename(tmp_path / "elsewhere"))
    else:
        save_file({"x": torch.zeros(1)}, path)
    seen: list[int] = []
    student = make_student(SESSIONS, "lfp", STUDENT, 5, seed=4)
    latents, shown = TEACHER_LATENTS, lambda step, *_: seen.append(step)
    train_student(student, SESSIONS, "lfp", UNSUPERVISED, TRAINING, 4, latents, path, shown)
    assert weights_of(student) == undisturbed
    assert seen[0] == 1
    assert "c.safetensors is damaged" in caplog.text
    assert "starts anew" in caplog.text


def test_a_checkpoint_of_another_training_is_named_and_not_continued(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path, kept = tmp_path / "c.safetensors", tmp_path / "kept"
    with pytest.raises(Killed):
        run_student(UNSUPERVISED, TRAINING, path, 4)
    path.rename(kept)
    other = replace(TRAINING, learning_rate=1e-3)
    own = tmp_path / f"stage-{'0' * 16}.partial" / "trial-1" / path.name  # the same settings, and other data
    own.parent.mkdir(parents=True)
    for place, config in ((path, other), (own, TRAINING)):
        place.write_bytes(kept.read_bytes())
        assert weights_of(run_student(UNSUPERVISED, config, place)) == weights_of(run_student(UNSUPERVISED, config))
    wider = make_student(SESSIONS, "lfp", replace(STUDENT, d=16), 5, seed=4)
    path.write_bytes(kept.read_bytes())
    train_student(wider, SESSIONS, "lfp", UNSUPERVISED, TRAINING, 4, TEACHER_LATENTS, path)
    assert caplog.text.count("is of another training") == 3


def test_a_checkpoint_goes_on_where_the_work_folder_was_moved(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    stage, name = f"stage-{'0' * 16}.partial", "c.safetensors"
    before, after = (tmp_path / work / stage for work in ("before", "after"))
    with pytest.raises(Killed):
        run_student(UNSUPERVISED, TRAINING, before / name, 4)
    before.parent.rename(after.parent)
    assert weights_of(run_student(UNSUPERVISED, TRAINING, after / name)) == weights_of(
        run_student(UNSUPERVISED, TRAINING)
    )
    assert not caplog.text


def test_a_checkpoint_that_cannot_be_written_raises_an_output_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(OutputError, match="the log of the training could not be written"):
        run_student(UNSUPERVISED, TRAINING, tmp_path / "file" / "c.safetensors")


@given(steps=st.integers(1, 500), warmup=st.floats(0, 1))
def test_the_learning_rate_warms_up_and_then_falls(steps: int, warmup: float) -> None:
    config = replace(TRAINING, steps=steps, warmup_share=warmup)
    rates = [compute_learning_rate(config, step) for step in range(steps)]
    top = max(1, round(warmup * steps))
    assert all(0 < rate <= config.learning_rate * (1 + 1e-12) for rate in rates)
    assert rates[:top] == sorted(rates[:top])
    assert rates[top:] == sorted(rates[top:], reverse=True)
    assert rates[min(top, steps) - 1] == pytest.approx(config.learning_rate if top <= steps else rates[-1])
    assert compute_learning_rate(config, steps) == pytest.approx(0.05 * config.learning_rate) or top == steps


def test_norms_and_biases_have_no_weight_decay() -> None:
    student = make_student(SESSIONS, "lfp", STUDENT, 5, seed=0)
    decayed, spared = make_optimizer(student, TRAINING).param_groups
    names = {id(p): n for n, p in student.named_parameters()}
    assert len(decayed["params"]) + len(spared["params"]) == len(names)
    assert spared["weight_decay"] == 0
    assert {"norm_out", "tokenizer.bias", "layers.0.age_bias"} <= {names[id(p)] for p in spared["params"]}
    assert {"layers.0.wq", "to_bins.weight"} <= {names[id(p)] for p in decayed["params"]}
