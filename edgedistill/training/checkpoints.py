"""Writes and reads checkpoints: one safetensors file from which a training run resumes with the same bits.

The inputs are model, optimizer, `FitState` and the best weights so far. The output is the file, and all of them again.
"""

from __future__ import annotations

import json
import math
from dataclasses import asdict, dataclass, field
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from edgedistill.config import TrainingConfig
from edgedistill.errors import EdgeDistillError
from edgedistill.files import atomic_write

# "step" is kept for each parameter, because a session's tokenizer is only updated in steps that drew the session
MOMENTS = ("step", "exp_avg", "exp_avg_sq")


@dataclass
class FitState:
    """Holds where a run stands. All of it is in the checkpoint."""

    step: int = 0
    best_loss: float = math.inf
    best_step: int = 0
    bad_evaluations: int = 0
    done: bool = False
    history: list[tuple[int, float]] = field(default_factory=list)  # step, validation loss


def write_checkpoint(
    path: Path,
    model: nn.Module,
    optimizer: torch.optim.AdamW,
    config: TrainingConfig,
    state: FitState,
    best: dict[str, Tensor],
) -> None:
    """Writes weights, best weights, moments and state to one safetensors file, as a whole file. Raises OutputError."""
    names = {id(p): n for n, p in model.named_parameters()}
    tensors = {f"model.{n}": t.detach().contiguous() for n, t in model.state_dict().items()}
    tensors |= {f"best.{n}": t.contiguous() for n, t in best.items()}
    for parameter, moments in optimizer.state.items():
        tensors |= {f"{k}.{names[id(parameter)]}": moments[k].contiguous() for k in MOMENTS}
    facts = {"state": json.dumps(asdict(state)), "config": json.dumps(asdict(config))}
    with atomic_write(path, "the checkpoint", next_step=f"df -h {path.parent}") as partial:
        try:
            save_file(tensors, partial, metadata=facts)
        except SafetensorError as error:  # safetensors reports a full disk this way
            raise OSError(str(error)) from error


def read_checkpoint(
    path: Path, model: nn.Module, optimizer: torch.optim.AdamW, config: TrainingConfig
) -> tuple[FitState, dict[str, Tensor]]:
    """Puts model and optimizer where the checkpoint left them, and returns its state and best weights.

    Raises EdgeDistillError where the file is damaged or belongs to a run with other settings.
    """
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
