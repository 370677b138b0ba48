"""Defines what a student is trained on: the weights of reconstruction, alignment to the teacher, and behavior.

The weight of the alignment is from Erturk, Hashemi, Shanechi, NeurIPS 2025 (arXiv 2512.12461). The ways to align stand
in `training.alignment`.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from edgedistill.config import DEFAULT_ALIGNMENT, Alignment
from edgedistill.models.batch_rows import mean_where


@dataclass(frozen=True)
class Objective:
    """Holds the weights of the three terms. `hidden_share` of the input bins is hidden (self-supervision)."""

    reconstruction: float = 0.0
    alignment: float = 0.0
    behavior: float = 0.0
    hidden_share: float = 0.0
    aligned_by: Alignment = DEFAULT_ALIGNMENT

    @property
    def weights(self) -> dict[str, float]:
        """Returns the weights of the three terms by name."""
        return {"reconstruction": self.reconstruction, "alignment": self.alignment, "behavior": self.behavior}

    def with_weights(self, reconstruction: float, alignment: float, behavior: float) -> Objective:
        """Returns the objective with other weights of the three terms."""
        return replace(self, reconstruction=reconstruction, alignment=alignment, behavior=behavior)

    @property
    def is_behavior_alone(self) -> bool:
        """Returns whether nothing is learned from bins without labels."""
        return not self.reconstruction and not self.alignment


UNSUPERVISED = Objective(reconstruction=1.0, hidden_share=0.5)
DISTILLED = Objective(reconstruction=0.1, alignment=5.0)
SUPERVISED = Objective(behavior=1.0)
DISTILLED_WITH_BEHAVIOR = Objective(alignment=0.5, behavior=1.0)


def known_mse(guess: Tensor, truth: Tensor) -> Tensor:
    """Returns the mean squared error where the truth is known (not NaN)."""
    known = torch.isfinite(truth)
    return mean_where((guess - torch.nan_to_num(truth)).square(), known)
