"""Maps a student's latents to the targets of its teacher. Each session has a map of its own, which only training uses.

A teacher embeds other units on every day, so its outputs of two days are not the same numbers for the same movement.
One map for all days would ask the student for something that its input does not hold.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn

from edgedistill.models.tokenizer import name_parameter


class TeacherHeads(nn.Module):
    """Predicts the `teacher_d` targets of a teacher from the `d` latents of a student, by a linear map a session."""

    def __init__(self, d: int, teacher_d: int, sessions: Iterable[str]) -> None:
        super().__init__()
        self.d, self.teacher_d = d, teacher_d
        self.maps = nn.ModuleDict({name_parameter(session): nn.Linear(d, teacher_d) for session in sessions})

    def forward(self, session: str, latents: Tensor) -> Tensor:
        """Returns (batch, bins, teacher_d) of latents (batch, bins, d)."""
        found: Tensor = self.maps[name_parameter(session)](latents)
        return found

    @torch.no_grad()
    def add(self, session: str) -> None:
        """Gives a session without a map the mean of the others."""
        mean = nn.Linear(self.d, self.teacher_d)
        own, others = mean.state_dict(), [one.state_dict() for one in self.maps.values()]
        for name, tensor in own.items():
            tensor.copy_(torch.stack([other[name] for other in others]).mean(0))
        self.maps[name_parameter(session)] = mean
