"""Compares a student with the teacher in training, by one of the kinds in `config.ALIGNMENTS`.

What a student is compared with comes from `training.teacher_targets`, one row a bin, NaN where nothing is known. What
comes out is a loss. `make_aligner` gives the student's part of it, which is trained along, stands in the checkpoints of
a training, and is thrown away at its end.

- `whitened` and `cosine`: 1 - cosine between the targets that the student's head predicts and the teacher's.
- `mse`: their mean squared error.
- `subspace`: layer by layer, the squared distance between the teacher's activations in a subspace and the student's
  own, centred and turned by an orthogonal map (SubDistill, arXiv 2601.05913).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.parametrizations import orthogonal

from edgedistill import ranks
from edgedistill.config import StudentSize, TeacherSize
from edgedistill.models.batch_rows import mean_where, total
from edgedistill.models.student import Student
from edgedistill.models.teacher import PatchAutoencoder
from edgedistill.scratch import split_rows
from edgedistill.training.batches import TrainingSession
from edgedistill.training.losses import Objective, known_mse

MOMENTUM, EPS = 0.1, 1e-5  # of the running mean and deviation, as in torch's batch_norm


class LatentAligner(nn.Module):
    """Compares what a student's heads `to_teacher` predict with the targets of the teacher. It has no weights."""

    def __init__(self, squared: bool) -> None:
        super().__init__()
        self.compare = known_mse if squared else cosine_loss

    def layers_of(self, student: Student | PatchAutoencoder, session: str, bins: Tensor) -> list[Tensor]:
        """Returns the latents (batch, bins, d) of the student, which is all that is compared."""
        return [latents_of(student, session, bins)]

    def forward(
        self, student: Student | PatchAutoencoder, session: str, layers: Sequence[Tensor], truth: Tensor
    ) -> Tensor:
        """Returns the loss of the last of `layers` against the truth (batch, bins, k)."""
        assert student.to_teacher is not None
        return self.compare(student.to_teacher(session, layers[-1]), truth)


class SubspaceAligner(nn.Module):
    """Compares layers of a student of width `d` with the teacher's subspaces of width `k`.

    The truth holds a subspace for each layer of the student, side by side. `spreads` is the mean squared length of the
    teacher's part in each of them. With fewer `spreads` than layers, only the last layers are compared.
    """

    def __init__(self, d: int, k: int, spreads: Sequence[float], standardized: bool) -> None:
        super().__init__()
        self.k, self.spreads, self.standardized = k, tuple(spreads), standardized
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)  # a map of fewer rows than columns begins at a random completion
            self.maps = nn.ModuleList(orthogonal(make_identity(d, k)) for _ in spreads)
        self.means: Tensor
        self.variances: Tensor
        self.register_buffer("means", torch.zeros(len(spreads), d))
        self.register_buffer("variances", torch.ones(len(spreads), d))

    def layers_of(self, student: Student | PatchAutoencoder, session: str, bins: Tensor) -> list[Tensor]:
        """Returns the student's activations (batch, bins, d) after each layer."""
        if len(self.spreads) == 1:
            return [latents_of(student, session, bins)]
        return student.layer_latents(session, bins)

    def forward(
        self, student: Student | PatchAutoencoder, session: str, layers: Sequence[Tensor], truth: Tensor
    ) -> Tensor:
        """Returns the sum over layers of the mean of |s - t|² over known bins, as a share of the teacher's spread."""
        known = torch.isfinite(truth).all(-1)
        loss = layers[-1].sum() * 0.0  # has a gradient where no bin is known
        rows = total(known.sum())  # of the whole batch
        if rows == 0:
            return loss
        count = len(self.spreads)
        teacher = truth[known].unflatten(-1, (-1, self.k))[:, -count:]  # (n, layers, k)
        with torch.autocast(truth.device.type, enabled=False):  # a map in bfloat16 is not orthogonal
            for i, layer in enumerate(layers[-count:]):
                own = self.maps[i](self.centre(i, layer[known].float(), rows))
                mean = (own - teacher[:, i]).square().sum() * ranks.shares() / rows
                loss = loss + mean / self.spreads[i]
        return loss

    def centre(self, layer: int, rows: Tensor, count: Tensor) -> Tensor:
        """Returns activations (n, d) without the mean of the batch, or without the running one in evaluation.

        The whole batch, of which this process may hold some rows alone, has `count` rows.
        """
        mean, variance = self.means[layer], self.variances[layer]
        if self.training:
            mean = total(rows.sum(0)) / count
            variance = total((rows - mean).square().sum(0)) / count
            unbiased = variance * (count / (count - 1).clamp(min=1))
            with torch.no_grad():
                self.means[layer].lerp_(mean.to(self.means), MOMENTUM)
                self.variances[layer].lerp_(unbiased.to(self.variances), MOMENTUM)
        centred = rows - mean
        return centred / (variance + EPS).sqrt() if self.standardized else centred

    @torch.no_grad()
    def start_at(self, layers: Sequence[Tensor], truth: Tensor) -> None:
        """Sets maps and means to the best ones for a student that is trained already, given activations (n, d).

        The map is the orthogonal one with the least squared error (Schönemann 1966).
        """
        known = torch.isfinite(truth).all(-1)
        teacher = truth[known].unflatten(-1, (-1, self.k))[:, -len(self.spreads) :]
        for i, layer in enumerate(layers[-len(self.spreads) :]):
            rows = layer[known]
            self.means[i], self.variances[i] = rows.mean(0), rows.var(0)
            centred = rows - self.means[i]
            if self.standardized:
                centred = centred / (self.variances[i] + EPS).sqrt()
            left, _, right = torch.linalg.svd(teacher[:, i].T @ centred, full_matrices=False)
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(0)
                cast(nn.Linear, self.maps[i]).weight = left @ right


Aligner = LatentAligner | SubspaceAligner


def make_aligner(
    objective: Objective,
    size: StudentSize | TeacherSize,
    sessions: Sequence[TrainingSession],
    teacher_latents: Mapping[str, Tensor] | None,
    layers: int | None = None,
) -> Aligner:
    """Returns the student's part of the alignment, for a student of `size` and what it is compared with.

    Only the last `layers` are compared, all by default. Kinds other than `subspace` compare the latents alone.
    """
    kind = objective.aligned_by.kind
    if kind != "subspace" or not objective.alignment or teacher_latents is None:
        return LatentAligner(squared=kind == "mse")
    k = next(iter(teacher_latents.values())).shape[1] // size.layers
    spreads = measure_spreads([teacher_latents[s.id][s.split.train] for s in sessions], k)
    standardized = objective.aligned_by.centring == "standardized"
    return SubspaceAligner(size.d, k, spreads[-(layers or size.layers) :], standardized)


def measure_spreads(blocks: Sequence[Tensor], k: int) -> list[float]:
    """Returns the mean squared length of each subspace of width `k` in blocks (T, layers * k), over known bins."""
    total, count = torch.zeros(blocks[0].shape[1] // k, dtype=torch.float64), 0
    for block in blocks:
        for part in split_rows(slice(0, len(block)), block.shape[1]):
            rows = block[part][torch.isfinite(block[part]).all(-1)]
            total += rows.unflatten(-1, (-1, k)).square().sum(-1).double().sum(0)
            count += len(rows)
    spreads: list[float] = (total / count).clamp(min=1e-12).tolist()
    return spreads


def make_identity(d: int, k: int) -> nn.Linear:
    """Returns a map (k, d) that keeps the first `k` of `d` numbers."""
    layer = nn.Linear(d, k, bias=False)
    nn.init.eye_(layer.weight)
    return layer


def latents_of(student: Student | PatchAutoencoder, session: str, bins: Tensor) -> Tensor:
    """Returns the latents (batch, bins, d) of a student of either kind."""
    found: Tensor = (student.latents if isinstance(student, PatchAutoencoder) else student)(session, bins)
    return found


def cosine_loss(guess: Tensor, truth: Tensor) -> Tensor:
    """Returns 1 - mean cosine between (batch, bins, d) and the truth, over the bins whose truth is not NaN."""
    known = torch.isfinite(truth).all(-1)
    cosines = F.cosine_similarity(guess, torch.nan_to_num(truth), dim=-1)
    return 1 - mean_where(cosines, known)
