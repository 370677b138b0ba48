"""Finds the four-bit form of a weight matrix: a scale for each row, a factor for each group of inputs, and integers.

A float matrix goes in. The integers that come out are of the form that `numerics.four_bits` defines. They are rounded
to nearest, or column by column as in GPTQ (Frantar 2022, arXiv:2210.17323), where each column makes up for the errors
of those before it, as far as the second moments of the inputs allow. Training and deployment share these functions.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.nn import functional as F

from edgedistill.numerics.four_bits import GROUP, MOST, MOST_FACTOR, count_groups

# Shares of a group's largest magnitude at which its range may end. The one with the least squared error is taken.
SHARES = (1.0, 0.94, 0.88, 0.82, 0.76, 0.7)
DAMPING = 0.01  # of the mean second moment, added to all, so that the matrix has an inverse


def find_scale(w: Tensor) -> Tensor:
    """Returns the scale (out,) of each row of w (out, n), at which 7 * 15 reaches its largest value. 1 for zeros."""
    largest = w.abs().amax(1)
    most = float(MOST * MOST_FACTOR)
    return torch.where(largest > 0, largest, most) / most


def find_factors(w: Tensor, scale: Tensor) -> Tensor:
    """Returns the factor (out, groups) of each group of w (out, n) with the least squared error, in the type of w."""
    grouped, row = split_groups(w), scale[:, None]
    ideal = grouped.abs().amax(2) / (MOST * row)
    best = torch.full_like(ideal, MOST_FACTOR)
    least = torch.full_like(ideal, torch.inf)
    for share in SHARES:
        factors = (ideal * share).round().clamp(1, MOST_FACTOR)
        step = (factors * row)[:, :, None]
        error = (grouped - (grouped / step).round().clamp(-MOST, MOST) * step).square().sum(2)
        best, least = torch.where(error < least, factors, best), torch.minimum(error, least)
    return best


def split_groups(w: Tensor) -> Tensor:
    """Returns w (out, n) as (out, groups, 32), filled with zeros."""
    grouped: Tensor = F.pad(w, (0, -w.shape[1] % GROUP)).unflatten(1, (count_groups(w.shape[1]), GROUP))
    return grouped


def spread(factors: Tensor, inputs: int) -> Tensor:
    """Returns the factor of each weight (out, inputs) from those of the groups (out, groups)."""
    return factors.repeat_interleave(GROUP, 1)[:, :inputs]


def round_to_nearest(w: Tensor, scale: Tensor) -> tuple[Tensor, Tensor]:
    """Returns integers q * factor (out, n) of w, and the factors (out, groups), both in the type of w."""
    factors = find_factors(w, scale)
    each = spread(factors, w.shape[1])
    return (w / (each * scale[:, None])).round().clamp(-MOST, MOST) * each, factors


def round_by_moments(w: Tensor, scale: Tensor, moments: npt.NDArray[np.float64]) -> tuple[Tensor, Tensor]:
    """Returns what `round_to_nearest` does, with the least error of the outputs in place of that of the weights.

    `moments` (n, n) are the second moments of the inputs. An input that never moves takes no part.
    """
    w, n = w.clone(), w.shape[1]
    damped = moments + DAMPING * max(float(np.diag(moments).mean()), 1e-30) * np.eye(n)
    upper = torch.from_numpy(np.linalg.cholesky(np.linalg.inv(damped)).T.copy()).to(w.dtype)
    integers, found = torch.empty_like(w), []
    for start in range(0, n, GROUP):
        stop = min(start + GROUP, n)
        factors = find_factors(w[:, start:stop], scale)
        found.append(factors)
        step = factors[:, 0] * scale
        for i in range(start, stop):
            q = (w[:, i] / step).round().clamp(-MOST, MOST)
            integers[:, i] = q * factors[:, 0]
            error = (w[:, i] - q * step) / upper[i, i]
            w[:, i + 1 :] -= error[:, None] * upper[i, i + 1 :]
    return integers, torch.cat(found, 1)
