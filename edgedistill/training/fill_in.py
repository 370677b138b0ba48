"""Fills in lost channels of training segments, in PyTorch: the same conditional mean that engines compute step by step.

Standardized segments and the channels that are there come in, the models' input goes out. Engines take a fixed number
of steps towards the solution (docs/numerics.md, "Fill-in and common average"); here it is solved, which is what the
steps come close to.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from edgedistill.frontend import FeatureModel, Standardization


@dataclass(frozen=True, eq=False)
class LfpSource:
    """Holds a session's standardized numbers before fill-in and common average, T bins of F features of C channels."""

    standardization: Standardization
    present: Tensor  # (T, I) float32, 0 where a channel is not there
    there: Tensor  # (T, C) bool

    @property
    def gain(self) -> Tensor:
        """Returns the gain (I,) after the common average, 0 for numbers that are not known."""
        return torch.from_numpy(self.standardization.spatial.gain)

    def slow(self) -> LfpSource:
        """Returns the slow LFP alone, without the log power of bands."""
        return LfpSource(self.standardization.slow(), self.present[:, : self.there.shape[1]], self.there)


def complete(source: LfpSource, segments: Tensor, there: Tensor) -> Tensor:
    """Returns the models' input for standardized segments (batch, bins, I) of the channels `there` (batch, C)."""
    parts = source.standardization.spatial.parts
    each = zip(parts, segments.split(there.shape[1], dim=-1), strict=True)
    return torch.cat([_complete_feature(part, present, there) for part, present in each], dim=-1)


def _complete_feature(model: FeatureModel, segments: Tensor, there: Tensor) -> Tensor:
    """Returns one feature (batch, bins, C) of the models' input."""
    coupling, scale, gain = (torch.from_numpy(part).to(segments) for part in (model.coupling, model.scale, model.gain))
    known = gain > 0
    present = segments * (there & known)[:, None]
    lost = known & ~there
    if bool(lost.any()):
        both = (lost[:, :, None] & lost[:, None, :]).to(coupling)
        system = coupling * both + torch.diag_embed((~lost).to(coupling))
        target = -((present * scale) @ coupling) * lost[:, None]
        solved = torch.linalg.solve(system, target.transpose(1, 2)).transpose(1, 2)
        present = present + solved / scale * lost[:, None]
    if model.common_average and int(known.sum()) > 1:
        present = present - present.sum(-1, keepdim=True) / known.sum()
    return present * gain
