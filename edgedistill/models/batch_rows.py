"""Draws the random numbers of a batch and takes means over it, where a process computes some of its rows.

A draw is made for the whole batch, and a mean is divided by the count of the whole batch. What comes out therefore does
not depend on how many processes share the batch.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from edgedistill import ranks


@dataclass(frozen=True)
class RowDraws:
    """Draws from `random` for a batch of so many rows, and returns the rows of this process."""

    random: torch.Generator
    batch: int  # rows of the whole batch
    rows: slice  # rows of this process

    def rand(self, *shape: int) -> Tensor:
        """Draws numbers from 0 to 1 (rows, …)."""
        return torch.rand(self.batch, *shape, generator=self.random)[self.rows]

    def randn(self, *shape: int) -> Tensor:
        """Draws normal numbers (rows, …)."""
        return torch.randn(self.batch, *shape, generator=self.random)[self.rows]

    def randint(self, low: int, high: int, *shape: int) -> Tensor:
        """Draws whole numbers from `low` to `high` - 1 (rows, …)."""
        return torch.randint(low, high, (self.batch, *shape), generator=self.random)[self.rows]


def draws_of_share(random: torch.Generator, batch: int) -> RowDraws:
    """Returns the draws of this process's share of a batch."""
    return RowDraws(random, batch, ranks.share(batch))


def draws_of_all(random: torch.Generator, batch: int) -> RowDraws:
    """Returns the draws of a batch that this process computes as a whole."""
    return RowDraws(random, batch, slice(0, batch))


class _Sum(torch.autograd.Function):
    @staticmethod
    def forward(ctx: object, part: Tensor) -> Tensor:
        return ranks.sum_in_place(part.clone())

    @staticmethod
    def backward(ctx: object, gradient: Tensor) -> Tensor:
        return ranks.sum_in_place(gradient.clone())


def total(part: Tensor) -> Tensor:
    """Returns a sum over this process's rows as the sum over the whole batch. Its gradient is added up as well."""
    if ranks.shares() == 1:
        return part
    summed: Tensor = _Sum.apply(part)  # type: ignore[no-untyped-call]
    return summed


def mean_where(values: Tensor, counted: Tensor) -> Tensor:
    """Returns the mean of `values` over the whole batch where `counted` is 1, and 0 where nothing is.

    In a step of several processes it is this process's part, times their number. The mean over the processes is then
    the mean over the batch, and so are its gradients.
    """
    count = total(counted.detach().sum())
    return (values * counted).sum() * ranks.shares() / count.clamp(min=1)
