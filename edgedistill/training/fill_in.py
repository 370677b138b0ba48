"""Fills in lost channels of training segments, in PyTorch: the same conditional mean that engines compute step by step.

Standardized segments and the channels that are there come in, the models' input goes out. Engines take a fixed number
of steps towards the solution (docs/numerics.md, "Fill-in and common average"); here it is solved, which is what the
steps come close to.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from edgedistill.frontend import Standardization


@dataclass(frozen=True, eq=False)
class LfpSource:
    """Holds a session's standardized channels before fill-in and common average, T bins of C channels."""

    standardization: Standardization
    present: Tensor  # (T, C) float32, 0 where a channel is not there
    there: Tensor  # (T, C) bool

    @property
    def gain(self) -> Tensor:
        """Returns the gain (C,) after the common average, 0 for channels that are not known."""
        return torch.from_numpy(self.standardization.spatial.gain)


def complete(source: LfpSource, segments: Tensor, there: Tensor) -> Tensor:
    """Returns the models' input for standardized segments (batch, bins, C), of which `there` (batch, C) is used."""
    spatial = source.standardization.spatial
    coupling, scale, gain = (
        torch.from_numpy(part).to(segments) for part in (spatial.coupling, spatial.scale, spatial.gain)
    )
    known = gain > 0
    present = segments * (there & known)[:, None]
    lost = known & ~there
    if bool(lost.any()):
        both = (lost[:, :, None] & lost[:, None, :]).to(coupling)
        system = coupling * both + torch.diag_embed((~lost).to(coupling))
        target = -((present * scale) @ coupling) * lost[:, None]
        solved = torch.linalg.solve(system, target.transpose(1, 2)).transpose(1, 2)
        present = present + solved / scale * lost[:, None]
    if spatial.common_average and int(known.sum()) > 1:
        present = present - present.sum(-1, keepdim=True) / known.sum()
    return present * gain
