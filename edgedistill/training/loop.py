"""Runs the training loop of all models: AdamW, warm-up and cosine, clipping, early stopping, checkpoints.

The inputs are a model, the loss of step n, and the validation loss. The output is the model at its lowest validation
loss. The randomness of a step depends on (seed, step) alone, so a run that was stopped and resumed from its checkpoint
ends, on a CPU, with the same bits as an uninterrupted one.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable
from pathlib import Path
from time import monotonic
from typing import NamedTuple

import torch
from torch import Tensor, nn

from edgedistill import ranks
from edgedistill.config import TrainingConfig
from edgedistill.errors import EdgeDistillError
from edgedistill.training.batches import find_training_device
from edgedistill.training.checkpoints import FitState, UnusableCheckpointError, read_checkpoint, write_checkpoint
from edgedistill.training.freed_memory import keep_freed_memory
from edgedistill.training.run_log import LOG, RunLog, now
from edgedistill.training.shared_steps import add_up_session_gradients, require_same_step, share_steps

logger = logging.getLogger(__name__)

Progress = Callable[[int, int, float, float], None]  # step, steps, loss, learning rate


class Verdict(NamedTuple):
    """Holds what somebody who watches a training finds at an evaluation."""

    r2: float  # on validation; NaN where it is not known
    ends: bool  # whether the training ends there


Stop = Callable[[int], Verdict]  # is given the step of an evaluation


class DivergedError(EdgeDistillError):
    """Reports a training whose loss is no longer finite."""


def fit(
    model: nn.Module,
    step_loss: Callable[[int], Tensor],
    validation_loss: Callable[[], float],
    config: TrainingConfig,
    checkpoint: Path | None = None,
    progress: Progress | None = None,
    stop: Stop | None = None,
) -> FitState:
    """Trains `model` in place and leaves it at its lowest validation loss.

    Resumes from `checkpoint` where it exists, and starts anew where that is damaged or of another training. Several
    processes (`ranks`) take every step together, and end with the model that one would have trained, up to rounding.
    `stop` is called at every evaluation, with the model in evaluation mode. Raises DivergedError when a loss is not
    finite.
    """
    model.to(find_training_device())
    optimizer = make_optimizer(model, config)
    state, best = FitState(), copy_weights(model)
    if checkpoint is not None and ranks.lead(checkpoint.exists):
        try:
            state, best = read_checkpoint(checkpoint, model, optimizer, config)
        except UnusableCheckpointError as error:
            logger.warning("%s (%s): this training starts anew", error.what, error.got)
            if ranks.is_main():
                checkpoint.unlink(missing_ok=True)
    require_same_step(state.step)
    log = open_log(checkpoint, config, state)
    model.train()
    step_loss = share_steps(model, step_loss, config)
    with keep_freed_memory():
        while not state.done:
            rate, start, evaluation = compute_learning_rate(config, state.step), monotonic(), None
            loss, norm = train_step(model, optimizer, step_loss, state.step, rate, config.clip_norm)
            state.step += 1
            if log is not None:
                log.note_step(loss, norm, monotonic() - start)
            if state.step % config.eval_every == 0 or state.step == config.steps:
                best = evaluate_step(model, validation_loss, config, state, best)
                verdict = Verdict(math.nan, False) if stop is None else ask_watcher(model, stop, state.step)
                state.done = verdict.ends or state.done
                evaluation = {"validation_loss": state.history[-1][1], "validation_r2": verdict.r2}
                if checkpoint is not None and ranks.is_main():
                    write_checkpoint(checkpoint, model, optimizer, config, state, best)
            if log is not None:
                log.write_step(state.step, rate, evaluation)
            if progress is not None:
                progress(state.step, config.steps, loss, rate)
    if log is not None:
        log.append({"end": state.step, "best_step": state.best_step, "time": now()})
    model.load_state_dict(best)
    model.eval().cpu()
    return state


def open_log(checkpoint: Path | None, config: TrainingConfig, state: FitState) -> RunLog | None:
    """Returns the log beside the checkpoint, or None without one, for a process that is not the main one, or where the
    training is over already.
    """
    if checkpoint is None or not ranks.is_main() or state.done:
        return None
    return RunLog(checkpoint.with_name(LOG), config, state.step)


def make_optimizer(model: nn.Module, config: TrainingConfig) -> torch.optim.AdamW:
    """Returns AdamW with weight decay on matrices. Norms, biases, age biases and orthogonal maps have none."""
    named = list(model.named_parameters())
    spared = {n for n, p in named if p.ndim < 2 or "bias" in n or "parametrizations" in n}
    matrices = [p for n, p in named if n not in spared]
    others = [p for n, p in named if n in spared]
    groups = [
        {"params": matrices, "weight_decay": config.weight_decay},
        {"params": others, "weight_decay": 0.0},
    ]
    fused = all(parameter.device.type == "cpu" for _, parameter in named)  # it goes over each weight once
    return torch.optim.AdamW(groups, lr=config.learning_rate, betas=(0.9, 0.95), fused=fused)


def compute_learning_rate(config: TrainingConfig, step: int) -> float:
    """Returns the rate of one step: linear warm-up, then half a cosine down to 5 % of the peak."""
    warmup = max(1, round(config.warmup_share * config.steps))
    if step < warmup:
        return config.learning_rate * (step + 1) / warmup
    share = (step - warmup) / max(1, config.steps - warmup)
    return config.learning_rate * (0.05 + 0.95 * 0.5 * (1 + math.cos(math.pi * share)))


def train_step(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    step_loss: Callable[[int], Tensor],
    step: int,
    rate: float,
    clip_norm: float,
) -> tuple[float, float]:
    """Takes one optimizer step and returns the training loss, and the norm of its gradient before it is clipped."""
    for group in optimizer.param_groups:
        group["lr"] = rate
    optimizer.zero_grad()
    device = next(model.parameters()).device.type
    with torch.autocast(device, torch.bfloat16, enabled=device == "cuda"):
        loss = step_loss(step)
    loss.backward()
    add_up_session_gradients(model)
    norm = nn.utils.clip_grad_norm_(model.parameters(), clip_norm)
    value = ranks.sum_in_place(loss.detach()).item() / ranks.size()
    require_finite(value, "loss", step)
    optimizer.step()
    return value, norm.item()


def require_finite(value: float, what: str, step: int) -> None:
    """Raises DivergedError when training has diverged."""
    if not math.isfinite(value):
        raise DivergedError(
            f"training diverged at step {step}",
            got=f"{what} {value}",
            causes=["the learning rate is too high", "the recording holds values far outside its range"],
            next_step="lower [training] learning_rate in a preset of your own",
        )


def evaluate_step(
    model: nn.Module,
    validation_loss: Callable[[], float],
    config: TrainingConfig,
    state: FitState,
    best: dict[str, Tensor],
) -> dict[str, Tensor]:
    """Validates, keeps the best weights, decides whether to stop, and returns the best weights."""
    model.eval()
    with torch.no_grad():
        loss = validation_loss()
    require_finite(loss, "validation loss", state.step)  # NaN would leave the untrained model as the best
    model.train()
    state.history.append((state.step, loss))
    if loss < state.best_loss:
        state.best_loss, state.best_step, state.bad_evaluations = loss, state.step, 0
        best = copy_weights(model)
    else:
        state.bad_evaluations += 1
    state.done = state.step >= config.steps or state.bad_evaluations >= config.patience
    return best


def ask_watcher(model: nn.Module, stop: Stop, step: int) -> Verdict:
    """Returns what `stop` says of this evaluation."""
    model.eval()
    with torch.no_grad():
        verdict = ranks.lead(lambda: stop(step))
    model.train()
    return verdict


def copy_weights(model: nn.Module) -> dict[str, Tensor]:
    """Returns a copy of the weights."""
    return {name: tensor.detach().clone() for name, tensor in model.state_dict().items()}
