"""Defines what a student is trained on: the weights of reconstruction, alignment to the teacher, and behavior.

The alignment and its weight are from Erturk, Hashemi, Shanechi, NeurIPS 2025 (arXiv 2512.12461).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from edgedistill.errors import ConfigError, did_you_mean

ALIGNMENTS = ("cosine", "mse")


@dataclass(frozen=True)
class Objective:
    """Holds the weights of the three terms. `hidden_share` of the input bins is hidden (self-supervision)."""

    reconstruction: float = 0.0
    alignment: float = 0.0
    behavior: float = 0.0
    hidden_share: float = 0.0
    alignment_kind: str = "cosine"

    def __post_init__(self) -> None:
        if self.alignment_kind not in ALIGNMENTS:
            raise ConfigError(
                f"unknown alignment '{self.alignment_kind}'",
                expected=did_you_mean(self.alignment_kind, ALIGNMENTS),
            )

    @property
    def is_behavior_alone(self) -> bool:
        """Returns whether nothing is learned from bins without labels."""
        return not self.reconstruction and not self.alignment


UNSUPERVISED = Objective(reconstruction=1.0, hidden_share=0.5)
DISTILLED = Objective(reconstruction=0.1, alignment=5.0)
SUPERVISED = Objective(behavior=1.0)
DISTILLED_WITH_BEHAVIOR = Objective(alignment=0.5, behavior=1.0)


def alignment_loss(guess: Tensor, truth: Tensor, kind: str) -> Tensor:
    """Compares (batch, bins, d) with the teacher's latents: 1 - mean cosine over bins, or mean squared error.

    Bins whose truth is NaN do not count.
    """
    if kind == "mse":
        return known_mse(guess, truth)
    known = torch.isfinite(truth).all(-1)
    cosines = F.cosine_similarity(guess, torch.nan_to_num(truth), dim=-1)
    return 1 - (cosines * known).sum() / known.sum().clamp(min=1)


def known_mse(guess: Tensor, truth: Tensor) -> Tensor:
    """Returns the mean squared error where the truth is known (not NaN)."""
    known = torch.isfinite(truth)
    return ((guess - torch.nan_to_num(truth)).square() * known).sum() / known.sum().clamp(min=1)
