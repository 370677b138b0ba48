"""Computes what students are compared with: the teacher's features or latents, in the form of an alignment.

A teacher and sessions go in. Targets (T, k) of each session come out, NaN in the bins that are not valid. All their
statistics come from the training blocks.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from time import monotonic

import numpy as np
import torch
from torch import Tensor

from edgedistill import ranks
from edgedistill.config import StudentSize, TeacherSize, TrainingConfig
from edgedistill.models.teacher import PatchAutoencoder
from edgedistill.scratch import allocate, split_rows
from edgedistill.training.batches import TrainingSession, find_unlabelled_block, make_generator
from edgedistill.training.evaluate import fit_readout
from edgedistill.training.losses import Objective
from edgedistill.training.pretrain import compute_bidirectional_latents, compute_teacher_features
from edgedistill.training.subspace import TaskMoments, add_task_moments, find_leading_directions

TEACHER_COMPONENTS = 128
COMPONENTS_BESIDE_BEHAVIOR = 64  # for a student that learns behavior too (docs/decisions.md, 103)
LEAST_DEVIATION = 1e-3  # of a component, as a share of the largest; a smaller one holds nothing, and is not blown up
GRADIENT_SEGMENTS = 512  # segments over all sessions in which gradients are taken

Targets = dict[str, Tensor]  # session id -> (T, k)


@dataclass(frozen=True)
class TargetForm:
    """Says which targets a student is compared with: equal forms of one teacher are equal targets."""

    kind: str  # "whitened", "cosine", "mse" or "subspace"
    labels: bool = False  # whether labels choose the directions
    layers: int = 0  # of the student, where it is compared layer by layer
    d: int = 0
    components: int = 0  # of `whitened`, at most


def form_of_targets(objective: Objective, size: StudentSize | TeacherSize) -> TargetForm:
    """Returns the form of the targets of a student of `size` that is trained for `objective`."""
    kind = objective.aligned_by.kind if objective.alignment else "whitened"  # the head is there without a use, too
    if kind == "whitened":
        return TargetForm(kind, components=COMPONENTS_BESIDE_BEHAVIOR if objective.behavior else TEACHER_COMPONENTS)
    if kind != "subspace":
        return TargetForm(kind)
    return TargetForm(kind, objective.behavior > 0, size.layers, size.d)


class TeacherTargets:
    """Holds a teacher and the sessions of a training, and computes each kind of target once."""

    def __init__(
        self,
        teacher: PatchAutoencoder,
        sessions: Sequence[TrainingSession],
        config: TrainingConfig,
        computed: Callable[[float], None] = lambda seconds: None,
    ) -> None:
        """Keeps what targets are computed from. `computed` is called with the seconds that a computation took."""
        self.teacher, self.sessions, self.config, self.computed = teacher, tuple(sessions), config, computed
        self._found: dict[TargetForm, Targets] = {}

    def of(self, objective: Objective, size: StudentSize | TeacherSize) -> Targets:
        """Returns the targets of each session for a student of `size`. Labels are used only where `objective` does."""
        return self._of_form(form_of_targets(objective, size), size)

    def _of_form(self, form: TargetForm, size: StudentSize | TeacherSize) -> Targets:
        if 0 < form.components < TEACHER_COMPONENTS:  # the first of all components, which are computed once
            if form not in self._found:
                whole = self._of_form(replace(form, components=TEACHER_COMPONENTS), size)
                self._found[form] = {session: part[:, : form.components] for session, part in whole.items()}
        elif form not in self._found:
            start = monotonic()
            self._found[form] = (
                compute_subspace_targets(self.teacher, self.sessions, self.config, size, form.labels)
                if form.kind == "subspace"
                else compute_targets(self.teacher, self.sessions, self.config, form.components)
            )
            self.computed(monotonic() - start)
        return self._found[form]


def compute_targets(
    teacher: PatchAutoencoder,
    sessions: Sequence[TrainingSession],
    config: TrainingConfig,
    components: int = TEACHER_COMPONENTS,
) -> Targets:
    """Returns the teacher's features or latents of every session. No labels are used.

    They are centred, because a constant direction makes every cosine high and every gradient small. They are at most so
    many leading principal `components` of the features over all training blocks, each with unit variance, because what
    moves the hand is a small part of what the population does. With 0 components they are all d numbers of the latents,
    divided by one deviation, so that their mean variance is 1.
    """
    compute, length = (compute_teacher_features if components else compute_bidirectional_latents), config.segment_bins
    rows = {s.id: compute(teacher, s.id, s.inputs("spikes"), length) for s in sessions}

    def fit() -> tuple[Tensor, Tensor]:
        means, covariances = measure_activations(sessions, {name: found[:, None] for name, found in rows.items()})
        if components:
            return means[0].float(), find_whitening(covariances[0], components)
        deviation = covariances[0].diagonal().mean().sqrt().clamp(min=1e-6)
        return means[0].float(), (torch.eye(means.shape[1], dtype=torch.float64) / deviation).float()

    mean, maps = ranks.lead(fit)  # other hardware may find other directions
    return {s.id: map_rows(rows[s.id], s.valid, lambda part: (part - mean) @ maps) for s in sessions}


def find_whitening(covariance: Tensor, components: int = TEACHER_COMPONENTS) -> Tensor:
    """Returns the map (d, k) to leading principal components of features, each divided by its deviation.

    A component that hardly varies stays small. The largest number of a direction is positive, so that the same
    covariance always gives the same signs.
    """
    variances, directions = torch.linalg.eigh(covariance)  # the smallest first
    kept = min(components, len(variances))
    scale = variances.flip(0)[:kept].clamp(min=0).sqrt()
    scale = scale.clamp(min=max(1e-6, LEAST_DEVIATION * float(scale[0])))
    leading = directions.flip(1)[:, :kept]
    largest = leading.gather(0, leading.abs().argmax(0, keepdim=True))
    whitening: Tensor = (leading * largest.sign() / scale).float()
    return whitening


def map_rows(latents: Tensor, valid: Tensor, change: Callable[[Tensor], Tensor]) -> Tensor:
    """Returns latents (T, …) after `change`, which takes some rows at a time to (n, k), with NaN where not valid (T,).

    They lie where `allocate` puts them.
    """
    width = change(latents[:1]).shape[1]
    found = torch.from_numpy(allocate((len(latents), width), np.float32))
    for part in split_rows(slice(0, len(latents)), latents[0].numel()):
        found[part] = change(latents[part]).masked_fill(~valid[part, None], torch.nan)
    return found


def match_layers(student: int, teacher: int) -> list[int]:
    """Returns, for each of the student's layers, the teacher's layer at the same share of the depth; last to last."""
    return [-(-(layer + 1) * teacher // student) - 1 for layer in range(student)]


def compute_subspace_targets(
    teacher: PatchAutoencoder,
    sessions: Sequence[TrainingSession],
    config: TrainingConfig,
    size: StudentSize | TeacherSize,
    labels: bool,
) -> Targets:
    """Returns, for each layer of a student side by side, Uᵀ(a - μ) of the teacher's activations a at that depth.

    U are the leading directions of the task where `labels` of a session can be used, and of the covariance otherwise.
    They are as many as the student is wide, and at most as many as the teacher is.
    """
    depths = match_layers(size.layers, teacher.size.layers)
    activations = {
        s.id: compute_bidirectional_latents(
            teacher, s.id, s.inputs("spikes"), config.segment_bins, depths=depths
        ).unflatten(1, (len(depths), -1))
        for s in sessions
    }

    def fit() -> tuple[Tensor, Tensor]:
        means, covariances = measure_activations(sessions, activations)
        matrices = list(covariances)
        labelled = [s for s in sessions if find_unlabelled_block(s) in (None, "test")] if labels else []
        if labelled:
            task = measure_task(teacher, labelled, activations, means, config, depths)
            matrices = [m if m.any() else sigma_a for m, sigma_a in zip(task, covariances, strict=True)]
        k = min(size.d, teacher.size.d)
        return means, torch.stack([find_leading_directions(matrix, k) for matrix in matrices]).float()

    means, basis = ranks.lead(fit)  # (layers, d) and (layers, d, k)

    def project(rows: Tensor) -> Tensor:
        return torch.einsum("tld,ldk->tlk", rows - means.float(), basis).flatten(1)

    return {s.id: map_rows(activations[s.id], s.valid, project) for s in sessions}


def read_training(sessions: Sequence[TrainingSession], activations: Mapping[str, Tensor]) -> Iterator[Tensor]:
    """Yields the activations (n, layers, d) of valid bins of all training blocks in float64, some rows at a time."""
    for s in sessions:
        held = activations[s.id]
        for part in split_rows(s.split.train, held[0].numel()):
            yield held[part][s.valid[part]].double()


def measure_activations(
    sessions: Sequence[TrainingSession], activations: Mapping[str, Tensor]
) -> tuple[Tensor, Tensor]:
    """Returns means (layers, d) and covariances (layers, d, d) of activations (T, layers, d) over training blocks."""
    layers, d = next(iter(activations.values())).shape[1:]
    total, count = torch.zeros(layers, d, dtype=torch.float64), 0
    for rows in read_training(sessions, activations):
        total, count = total + rows.sum(0), count + len(rows)
    means, covariances = total / count, torch.zeros(layers, d, d, dtype=torch.float64)
    for rows in read_training(sessions, activations):
        for layer in range(layers):
            centred = rows[:, layer] - means[layer]
            covariances[layer] += centred.T @ centred / count
    return means, covariances


def measure_task(
    teacher: PatchAutoencoder,
    sessions: Sequence[TrainingSession],
    activations: Mapping[str, Tensor],
    means: Tensor,
    config: TrainingConfig,
    depths: Sequence[int],
) -> list[Tensor]:
    """Returns the task's matrix M (d, d) at each depth.

    Each session has a read-out of its own: ridge from the latents to its z-scored behavior.
    """
    outputs = max(s.behavior.shape[1] for s in sessions if s.behavior is not None)
    moments, random = TaskMoments(means, outputs), make_generator(0, -1)
    for s in sessions:
        assert s.behavior is not None
        latents = activations[s.id][:, -1].numpy()
        readout = fit_readout(latents, s.behavior.double().numpy(), s.split, s.settled)
        weight = torch.zeros(outputs, latents.shape[1])
        weight[: len(readout.weight)] = torch.from_numpy(readout.weight)
        block = s.split.train
        length = min(config.segment_bins, block.stop - block.start)
        starts = torch.linspace(block.start, block.stop - length, max(1, GRADIENT_SEGMENTS // len(sessions))).long()
        at = starts[:, None] + torch.arange(length)
        add_task_moments(moments, teacher, s.id, s.inputs("spikes")[at], s.valid[at], weight, depths, random)
    return moments.sum_task_matrices()
