"""Lets several processes take one training step together, with torch's DistributedDataParallel.

A model and the loss of step n go in. What comes out computes the loss of this process's rows, and adds up gradients
over all processes in `backward`. Weights that belong to one session or array are not in DistributedDataParallel,
because it would send those of all sessions in every step. Those that a step has drawn are added up by themselves.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from edgedistill import ranks
from edgedistill.config import TrainingConfig
from edgedistill.errors import ConfigError, EdgeDistillError
from edgedistill.models.tokenizer import is_named_after_a_session

StepLoss = Callable[[int], Tensor]


class SharedStep(nn.Module):
    """Holds the weights that all sessions share, and calls the loss of a step as its forward pass."""

    def __init__(self, shared: list[nn.Parameter], step_loss: StepLoss) -> None:
        super().__init__()
        self.shared, self.step_loss = nn.ParameterList(shared), step_loss

    def forward(self, step: int) -> Tensor:
        """Returns the loss of step n."""
        with ranks.sharing_a_batch():
            return self.step_loss(step)


def share_steps(model: nn.Module, step_loss: StepLoss, config: TrainingConfig) -> StepLoss:
    """Returns `step_loss`, or with several processes one whose gradients are those of the whole batch.

    Raises ConfigError where a batch holds fewer segments than there are processes.
    """
    if ranks.size() == 1:
        return step_loss
    segments = config.bins_per_step // config.segment_bins
    if segments < ranks.size():
        raise ConfigError(
            "a training step has too few segments for so many processes",
            got=f"{segments} segments ({config.bins_per_step} bins) and {ranks.size()} processes",
            expected="a segment or more for each",
            next_step="start fewer processes, or raise bins_per_step in a preset of your own",
        )
    trained = [(name, weight) for name, weight in model.named_parameters() if weight.requires_grad]
    shared = [weight for name, weight in trained if not is_named_after_a_session(name)]
    # heads that a step does not use get no gradient, as in a single process
    parallel: StepLoss = DistributedDataParallel(
        SharedStep(shared, step_loss), find_unused_parameters=True, gradient_as_bucket_view=True
    )
    return parallel


def require_same_step(step: int) -> None:
    """Raises EdgeDistillError where this process goes on from another checkpoint than the main one."""
    if (expected := ranks.lead(lambda: step)) != step:
        raise EdgeDistillError(
            "the processes of this training do not see the same checkpoint",
            got=f"step {step}",
            expected=f"step {expected}",
            causes=("the machines share no file system, or it shows them other content",),
            next_step="choose a place that all machines share, for --out and for --work",
        )


def add_up_session_gradients(model: nn.Module) -> None:
    """Averages over all processes the gradients of the weights that belong to the session of this step."""
    if ranks.size() == 1:
        return
    drawn = [
        weight.grad
        for name, weight in model.named_parameters()
        if weight.grad is not None and is_named_after_a_session(name)
    ]
    if not drawn:
        return
    summed = ranks.sum_in_place(torch.cat([gradient.flatten() for gradient in drawn])) / ranks.size()
    for gradient, part in zip(drawn, summed.split([gradient.numel() for gradient in drawn]), strict=True):
        gradient.copy_(part.view_as(gradient))
