"""Finds the directions of a teacher's activations that move what is decoded from them.

Activations a and gradients c of a decoded number go in, as moments. The basis of a subspace comes out. The formulas are
those of SubDistill (arXiv 2601.05913), where the decoded number is a difference of logits. Here it is each output of a
linear read-out of the teacher's latents in turn, at one bin of a segment, and c is its gradient at every bin.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from edgedistill.models.teacher import PatchAutoencoder

BATCH = 16  # segments


def find_task_matrix(sigma_a: Tensor, sigma_c: Tensor, sigma_ac: Tensor) -> Tensor:
    """Returns M (d, d), positive semidefinite, of E[a aᵀ], E[c cᵀ] and E[a cᵀ], where a is centred and c is not.

    M = Σac + Σacᵀ + 2 √(tr Σc / tr Σa) Σa + 2 √(tr Σa / tr Σc) Σc. Without a gradient it is 0.
    """
    trace_a, trace_c = sigma_a.trace(), sigma_c.trace()
    if trace_a <= 0 or trace_c <= 0:
        return torch.zeros_like(sigma_a)
    ratio = (trace_c / trace_a).sqrt()
    matrix: Tensor = sigma_ac + sigma_ac.T + 2 * ratio * sigma_a + 2 / ratio * sigma_c
    return matrix


def find_leading_directions(matrix: Tensor, k: int) -> Tensor:
    """Returns the `k` eigenvectors (d, k) of a symmetric matrix with the largest eigenvalues, the largest first."""
    ascending: Tensor = torch.linalg.eigh(matrix)[1]
    return ascending.flip(1)[:, :k]


class TaskMoments:
    """Adds up moments of activations and gradients in float64, for each layer and output.

    `means` (layers, d) are subtracted from the activations.
    """

    def __init__(self, means: Tensor, outputs: int) -> None:
        layers, d = means.shape
        self.means, self.rows = means.double(), 0
        self.a = torch.zeros(layers, d, d, dtype=torch.float64)
        self.c, self.ac = (torch.zeros(layers, outputs, d, d, dtype=torch.float64) for _ in range(2))

    def add(self, activations: Tensor, gradients: Tensor) -> None:
        """Adds activations (n, layers, d), and gradients (n, layers, outputs, d) of each output at the same bins."""
        a, c = activations.double() - self.means, gradients.double()
        self.rows += len(a)
        self.a += torch.einsum("nli,nlj->lij", a, a)
        self.c += torch.einsum("nloi,nloj->loij", c, c)
        self.ac += torch.einsum("nli,nloj->loij", a, c)

    def sum_task_matrices(self) -> list[Tensor]:
        """Returns M (d, d) of each layer, summed over the outputs."""
        rows = max(1, self.rows)
        return [
            torch.stack(
                [find_task_matrix(a / rows, c / rows, ac / rows) for c, ac in zip(of_c, of_ac, strict=True)]
            ).sum(0)
            for a, of_c, of_ac in zip(self.a, self.c, self.ac, strict=True)
        ]


def compute_task_gradients(
    teacher: PatchAutoencoder, session: str, segments: Tensor, weight: Tensor, at: Tensor, depths: Sequence[int]
) -> tuple[Tensor, Tensor]:
    """Returns activations (batch, bins, layers, d) of `depths`, and gradients (batch, bins, layers, outputs, d).

    `segments` are (batch, bins, units), and `weight` (outputs, d) reads the teacher's latents at the bins `at`
    (batch,). The gradient is that of a change of all patches at once, which is a change of their mean.
    """
    length, patches = segments.shape[1], teacher.tokenizer.patches[session]
    with torch.enable_grad():
        tokens = teacher.layer_tokens(session, segments)
        latents = teacher.pool(session, tokens[-1], length)
        read = (latents[torch.arange(len(at)), at] @ weight.T).sum(0)  # (outputs,)
        chosen = [tokens[depth] for depth in depths]
        grads = [torch.autograd.grad(output, chosen, retain_graph=True) for output in read]
    pooled = torch.stack([teacher.pool(session, one.detach(), length) for one in chosen], 2)
    each = [torch.stack([patches * teacher.pool(session, one, length) for one in of], 2) for of in grads]
    return pooled, torch.stack(each, 3)


def add_task_moments(
    moments: TaskMoments,
    teacher: PatchAutoencoder,
    session: str,
    segments: Tensor,
    valid: Tensor,
    weight: Tensor,
    depths: Sequence[int],
    random: torch.Generator,
) -> None:
    """Adds the moments of segments (count, bins, units), each with its outputs read at one of its valid bins.

    `valid` is (count, bins). The other bins do not count.
    """
    usable = valid.any(1)
    for part, there in zip(segments[usable].split(BATCH), valid[usable].split(BATCH), strict=True):
        at = torch.multinomial(there.float(), 1, generator=random)[:, 0]
        activations, gradients = compute_task_gradients(teacher, session, part, weight, at, depths)
        moments.add(activations[there], gradients[there])
