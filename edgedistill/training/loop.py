"""The one training loop: AdamW, warm-up and cosine, clipping, early stopping, and a checkpoint to go on from.

Comes in: a model, the loss of step n, the validation loss. Goes out: the model at its best, and a checkpoint
file. A step's randomness depends on (seed, step) alone, so a run that was killed and started again ends, on a
CPU, with the same bits as one that was not.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from edgedistill.config import TrainingConfig
from edgedistill.errors import EdgeDistillError, OutputError
from edgedistill.training.batches import training_device

# "step" is a parameter's own: a session's tokenizer is only updated in the steps that drew the session
MOMENTS = ("step", "exp_avg", "exp_avg_sq")
Progress = Callable[[int, int, float, float], None]  # step, steps, loss, learning rate


@dataclass
class FitState:
    """Where a run stands; all of it is in the checkpoint."""

    step: int = 0
    best_loss: float = math.inf
    best_step: int = 0
    bad_evaluations: int = 0
    done: bool = False
    history: list[tuple[int, float]] = field(default_factory=list)  # (step, validation loss)


def fit(
    model: nn.Module,
    step_loss: Callable[[int], Tensor],
    validation_loss: Callable[[], float],
    config: TrainingConfig,
    checkpoint: Path | None = None,
    progress: Progress | None = None,
) -> FitState:
    """Trains `model` in place and leaves it at its best validation loss.

    Resumes from `checkpoint` where it exists. A loss that is not finite raises EdgeDistillError.
    """
    model.to(training_device())
    optimizer = adamw(model, config)
    state, best = FitState(), snapshot(model)
    if checkpoint is not None and checkpoint.exists():
        state, best = read_checkpoint(checkpoint, model, optimizer, config)
    model.train()
    while not state.done:
        rate = learning_rate(config, state.step)
        loss = train_step(model, optimizer, step_loss, state.step, rate, config.clip_norm)
        state.step += 1
        if state.step % config.eval_every == 0 or state.step == config.steps:
            best = evaluate_step(model, validation_loss, config, state, best)
            if checkpoint is not None:
                write_checkpoint(checkpoint, model, optimizer, config, state, best)
        if progress is not None:
            progress(state.step, config.steps, loss, rate)
    model.load_state_dict(best)
    model.eval().cpu()
    return state


def adamw(model: nn.Module, config: TrainingConfig) -> torch.optim.AdamW:
    """Weight decay on matrices only: norms, biases and age biases are left alone."""
    matrices = [p for n, p in model.named_parameters() if p.ndim >= 2 and "bias" not in n]
    others = [p for n, p in model.named_parameters() if p.ndim < 2 or "bias" in n]
    groups = [
        {"params": matrices, "weight_decay": config.weight_decay},
        {"params": others, "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=config.learning_rate, betas=(0.9, 0.95))


def learning_rate(config: TrainingConfig, step: int) -> float:
    """Linear warm-up, then half a cosine down to 5 % of the peak."""
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
) -> float:
    """One optimizer step; returns the training loss."""
    for group in optimizer.param_groups:
        group["lr"] = rate
    optimizer.zero_grad()
    device = next(model.parameters()).device.type
    with torch.autocast(device, torch.bfloat16, enabled=device == "cuda"):
        loss = step_loss(step)
    loss.backward()
    nn.utils.clip_grad_norm_(model.parameters(), clip_norm)
    value = loss.item()
    require_finite(value, "loss", step)
    optimizer.step()
    return value


def require_finite(value: float, what: str, step: int) -> None:
    """A run that has left the numbers does not come back."""
    if not math.isfinite(value):
        raise EdgeDistillError(
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
    """Validates, keeps the best weights, decides whether to stop."""
    model.eval()
    with torch.no_grad():
        loss = validation_loss()
    require_finite(loss, "validation loss", state.step)  # else the untrained model would count as the best
    model.train()
    state.history.append((state.step, loss))
    if loss < state.best_loss:
        state.best_loss, state.best_step, state.bad_evaluations = loss, state.step, 0
        best = snapshot(model)
    else:
        state.bad_evaluations += 1
    state.done = state.step >= config.steps or state.bad_evaluations >= config.patience
    return best


def snapshot(model: nn.Module) -> dict[str, Tensor]:
    """A copy of the weights."""
    return {name: tensor.detach().clone() for name, tensor in model.state_dict().items()}


def write_checkpoint(
    path: Path,
    model: nn.Module,
    optimizer: torch.optim.AdamW,
    config: TrainingConfig,
    state: FitState,
    best: dict[str, Tensor],
) -> None:
    """Weights, best weights, moments and state in one safetensors file, replaced whole."""
    names = {id(p): n for n, p in model.named_parameters()}
    tensors = {f"model.{n}": t.detach().contiguous() for n, t in model.state_dict().items()}
    tensors |= {f"best.{n}": t.contiguous() for n, t in best.items()}
    for parameter, moments in optimizer.state.items():
        tensors |= {f"{k}.{names[id(parameter)]}": moments[k].contiguous() for k in MOMENTS}
    facts = {"state": json.dumps(asdict(state)), "config": json.dumps(asdict(config))}
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        save_file(tensors, partial, metadata=facts)
        partial.replace(path)
    except (OSError, SafetensorError) as error:
        raise OutputError(
            f"cannot write the checkpoint {path}",
            got=str(error),
            causes=["the disk is full", "the folder is read-only"],
            next_step=f"df -h {path.parent}",
        ) from error
    finally:
        partial.unlink(missing_ok=True)


def read_checkpoint(
    path: Path, model: nn.Module, optimizer: torch.optim.AdamW, config: TrainingConfig
) -> tuple[FitState, dict[str, Tensor]]:
    """Puts model and optimizer where the checkpoint left them; returns its state and best weights."""
    try:
        with safe_open(path, "pt") as file:
            facts = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            device = next(model.parameters()).device
            tensors = {n: t if n.startswith("step.") else t.to(device) for n, t in tensors.items()}
    except (OSError, SafetensorError) as error:
        raise EdgeDistillError(
            f"the checkpoint {path} is damaged", got=str(error), next_step=f"rm {path}, and start again"
        ) from error
    shapes = {n: t.shape for n, t in model.state_dict().items()}
    kept = {n.removeprefix("model."): t.shape for n, t in tensors.items() if n.startswith("model.")}
    if "config" not in facts or json.loads(facts["config"]) != asdict(config) or kept != shapes:
        raise EdgeDistillError(
            f"the checkpoint {path} is of a run with other settings", next_step="use another --out folder"
        )
    model.load_state_dict({n: tensors[f"model.{n}"] for n in shapes})
    state = FitState(**json.loads(facts["state"]))
    for name, parameter in model.named_parameters():
        if f"exp_avg.{name}" in tensors:
            optimizer.state[parameter] = {k: tensors[f"{k}.{name}"] for k in MOMENTS}
    return state, {n: tensors[f"best.{n}"] for n in model.state_dict()}
