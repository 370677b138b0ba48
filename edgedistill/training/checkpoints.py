"""Writes and reads checkpoints: one safetensors file from which a training run resumes with the same bits.

The inputs are model, optimizer, `FitState` and the best weights so far. The output is the file, and all of them again.
The file holds a hash of its content and names the training it belongs to, so that no other one goes on from it.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from edgedistill.config import TrainingConfig
from edgedistill.errors import EdgeDistillError
from edgedistill.files import atomic_write
from edgedistill.models.files import hash_tensors

# "step" is kept for each parameter, because a session's tokenizer is only updated in steps that drew the session
MOMENTS = ("step", "exp_avg", "exp_avg_sq")
KEYED = re.compile(r"-[0-9a-f]{16}(\.partial)?$")  # the name of a folder that ends in a hash of all that goes in


class UnusableCheckpointError(EdgeDistillError):
    """Reports a checkpoint that is damaged or of another training, with which no training can go on."""


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
    facts = {
        "state": json.dumps(asdict(state)),
        "config": json.dumps(asdict(config)),
        "training": name_training(path),
    }
    facts["sha256"] = hash_checkpoint_file(tensors, facts)
    with atomic_write(path, "the checkpoint", next_step=f"df -h {path.parent}") as partial:
        try:
            save_file(tensors, partial, metadata=facts)
        except SafetensorError as error:  # safetensors reports a full disk this way
            raise OSError(str(error)) from error


def read_checkpoint(
    path: Path, model: nn.Module, optimizer: torch.optim.AdamW, config: TrainingConfig
) -> tuple[FitState, dict[str, Tensor]]:
    """Puts model and optimizer where the checkpoint left them, and returns its state and best weights.

    Raises UnusableCheckpointError where the file is damaged or belongs to another training, and then changes nothing.
    """
    facts, tensors = _read(path)
    expected = {n: t.shape for n, t in model.state_dict().items()}
    shapes = {n.removeprefix("model."): t.shape for n, t in tensors.items() if n.startswith("model.")}
    found = (facts["training"], json.loads(facts["config"]), shapes)
    if found != (name_training(path), asdict(config), expected):
        raise UnusableCheckpointError(f"the checkpoint {path} is of another training", got=facts["training"])
    device = next(model.parameters()).device
    tensors = {n: t if n.startswith("step.") else t.to(device) for n, t in tensors.items()}
    model.load_state_dict({n: tensors[f"model.{n}"] for n in expected})
    for name, parameter in model.named_parameters():
        if f"exp_avg.{name}" in tensors:
            optimizer.state[parameter] = {k: tensors[f"{k}.{name}"] for k in MOMENTS}
    return FitState(**json.loads(facts["state"])), {n: tensors[f"best.{n}"] for n in expected}


def name_training(path: Path) -> str:
    """Returns the name of the training that a checkpoint at `path` belongs to.

    It is the path of its folder from that of its stage on, whose name ends in a hash of all that goes in. A checkpoint
    outside of such a folder is named by its own folder.
    """
    folders = path.parts[:-1]
    first = next((at for at, name in enumerate(folders) if KEYED.search(name)), len(folders) - 1)
    return "/".join(folders[max(first, 0) :])


def hash_checkpoint_file(tensors: Mapping[str, Tensor], facts: Mapping[str, str]) -> str:
    """Returns the SHA-256 over all tensors and facts of a checkpoint, except for the hash itself."""
    told = json.dumps({key: facts[key] for key in ("state", "config", "training")})
    return hash_tensors(tensors, told)


def _read(path: Path) -> tuple[dict[str, str], dict[str, Tensor]]:
    """Returns facts and tensors of a checkpoint whose content has the hash that it holds."""
    try:
        if path.is_symlink():
            raise OSError("it is a link")
        with safe_open(path, "pt") as file:
            facts: dict[str, str] = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        if facts["sha256"] != hash_checkpoint_file(tensors, facts):
            raise ValueError("its content was changed")
    except (OSError, SafetensorError, KeyError, ValueError, TypeError) as error:
        raise UnusableCheckpointError(f"the checkpoint {path} is damaged", got=str(error)) from error
    return facts, tensors
