"""Trains students of all kinds with one function, from the label-free autoencoder to the distilled one.

The inputs are sessions, a modality (`lfp`, or `spikes` for the spike student), an `Objective`, and what the teacher
gives to follow. The output is a trained `Student`. The models in a table differ only in objective, modality and
sessions.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from edgedistill import ranks
from edgedistill.config import StudentSize, TeacherSize, TrainingConfig
from edgedistill.models.batch_rows import draws_of_all, draws_of_share, mean_where
from edgedistill.models.student import Student
from edgedistill.models.teacher import PatchAutoencoder
from edgedistill.models.tokenizer import name_parameter
from edgedistill.scratch import release_pages
from edgedistill.training.alignment import Aligner, make_aligner
from edgedistill.training.augment import draw_augmented, hide_bins
from edgedistill.training.batches import (
    TrainingSession,
    count_segments,
    find_training_device,
    make_generator,
    pick_session,
)
from edgedistill.training.few_labels import are_labels_scarce, select_labelled
from edgedistill.training.loop import Progress, Verdict, fit
from edgedistill.training.losses import DISTILLED, Objective, known_mse


def make_student(
    sessions: Sequence[TrainingSession], modality: str, size: StudentSize, teacher_d: int, seed: int
) -> Student:
    """Returns an untrained student with a tokenizer for each array, and a map to the teacher for each session."""
    torch.manual_seed(seed)
    channels = {s.id: s.inputs(modality).shape[1] for s in sessions}
    # LFP channels are places on an array and stay; other units are recorded every day
    arrays = {s.id: s.array if modality == "lfp" else s.id for s in sessions}
    outputs = count_outputs(sessions)
    return Student(size, channels, arrays, teacher_d, outputs)


def count_outputs(sessions: Sequence[TrainingSession]) -> int:
    """Returns the width of the head that a student of these sessions has for their behavior."""
    return next((s.behavior.shape[1] for s in sessions if s.behavior is not None), 1)


def train_student(
    student: Student,
    sessions: Sequence[TrainingSession],
    modality: str,
    objective: Objective,
    config: TrainingConfig,
    seed: int,
    teacher_latents: Mapping[str, Tensor] | None = None,
    checkpoint: Path | None = None,
    progress: Progress | None = None,
    aligner: Aligner | None = None,
    stop: Callable[[Student, int], Verdict] | None = None,
) -> Student:
    """Trains `student` in place on the training blocks. `teacher_latents` holds the targets of each session.

    `aligner` is trained along, and a fresh one where none is given. Where labels are scarce, every second step draws
    segments with labels, and every step where nothing but behavior is learned. The validation loss counts labels
    wherever the sessions have them. `stop` sees the student at every evaluation, and says what it decodes and
    whether the training ends.
    """
    align = aligner or make_aligner(objective, student.size, sessions, teacher_latents)
    whole, labelled = {session.id: session for session in sessions}, select_labelled(sessions)
    every = [whole[session.id] for session in labelled] if objective.is_behavior_alone else sessions
    scarce = bool(labelled and objective.behavior and are_labels_scarce(sessions))

    def step_loss(step: int) -> Tensor:
        random = make_generator(seed, step)
        with_labels = scarce and (step % 2 == 1 or objective.is_behavior_alone)
        drawn = pick_session(labelled if with_labels else every, random)
        parts = select_parts(whole[drawn.id], modality, objective, teacher_latents)[1:]
        bins, *rest = draw_augmented(drawn, modality, parts, config, random)
        hidden = None
        if objective.hidden_share:
            draws = draws_of_share(random, count_segments(drawn, config))
            bins, hidden = hide_bins(bins, objective.hidden_share, draws)
        layers = align.layers_of(student, drawn.id, bins)
        return student_loss(student, drawn.id, objective, align, layers, hidden, rest, config.burn_in)

    def validation_loss() -> float:
        return ranks.mean_over(
            sessions, lambda s: validate(student, s, modality, objective, teacher_latents, config, align)
        )

    ends = None if stop is None else lambda step: stop(student, step)
    fit(join(student, align), step_loss, validation_loss, config, checkpoint, progress, ends)
    return student


def join(student: nn.Module, aligner: Aligner) -> nn.ModuleDict:
    """Returns one module to train, whose checkpoints hold all that a training needs to go on."""
    return nn.ModuleDict({"student": student, "aligner": aligner})


def select_parts(
    session: TrainingSession, modality: str, objective: Objective, teacher_latents: Mapping[str, Tensor] | None
) -> list[Tensor]:
    """Returns the input bins, then what the objective compares with: hidden bins, the teacher's targets, behavior."""
    parts = [session.inputs(modality)]
    if objective.reconstruction:
        parts.append(session.targets(modality))
    if objective.alignment and teacher_latents is not None:
        parts.append(teacher_latents[session.id])
    if objective.behavior and session.behavior is not None:
        parts.append(session.behavior)
    return parts


def student_loss(
    student: Student,
    session: str,
    objective: Objective,
    aligner: Aligner,
    layers: Sequence[Tensor],
    hidden: Tensor | None,
    rest: Sequence[Tensor],
    burn_in: int,
) -> Tensor:
    """Returns the objective on (batch, bins, …) after the first `burn_in` bins, whose window is not full yet.

    `layers` comes from the aligner, the latents last. `rest` holds what `select_parts` returns after the input. Bins
    that are NaN there do not count.
    """
    layers, rest = [layer[:, burn_in:] for layer in layers], [r[:, burn_in:] for r in rest]
    latents = layers[-1]
    loss = latents.new_zeros(())
    if objective.reconstruction:
        truth, *rest = rest
        known = torch.isfinite(truth).all(-1, keepdim=True).to(latents)
        guess = student.to_bins(latents)[..., : truth.shape[-1]]
        error = (guess - torch.nan_to_num(truth)).square().mean(-1, keepdim=True)
        shown = known if hidden is None else hidden[:, burn_in:] * known
        loss = loss + objective.reconstruction * mean_where(error, shown)
    if objective.alignment:
        truth, *rest = rest
        loss = loss + objective.alignment * aligner(student, session, layers, truth)
    if objective.behavior and rest:
        loss = loss + objective.behavior * known_mse(student.to_behavior(latents), rest[0])
    return loss


def validate(
    student: Student,
    session: TrainingSession,
    modality: str,
    objective: Objective,
    teacher_latents: Mapping[str, Tensor] | None,
    config: TrainingConfig,
    aligner: Aligner,
) -> float:
    """Returns the objective on the validation block, with clean input and the same hidden bins at every call."""
    block = session.split.validation
    parts = select_parts(session, modality, objective, teacher_latents)
    clean, *rest = (part[block][None].to(find_training_device()) for part in parts)
    bins, hidden = clean, None
    if objective.hidden_share:
        bins, hidden = hide_bins(clean, objective.hidden_share, draws_of_all(make_generator(0, -1), 1))
    release_pages()
    layers = compute_layers(student, session.id, bins, aligner)
    return student_loss(student, session.id, objective, aligner, layers, hidden, rest, config.burn_in).item()


def compute_layers(student: Student, session: str, bins: Tensor, aligner: Aligner) -> Sequence[Tensor]:
    """Returns the student's activations (1, bins, d) of a block (1, bins, channels), computed in chunks.

    A long block at once would take gigabytes. A student with simulated quantization goes over its bins itself.
    """
    if not hasattr(student, "stream_layers"):
        return aligner.layers_of(student, session, bins)
    chunks = zip(*student.stream_layers(session, bins[0]), strict=True)
    return [torch.cat(chunk, 1) for chunk in chunks]


def distill_bidirectional(
    sessions: Sequence[TrainingSession],
    size: TeacherSize,
    config: TrainingConfig,
    seed: int,
    teacher_latents: Mapping[str, Tensor],
    checkpoint: Path | None = None,
    progress: Progress | None = None,
    objective: Objective = DISTILLED,
    stop: Callable[[PatchAutoencoder, int], Verdict] | None = None,
    reconstruction: float = 0.0,
) -> PatchAutoencoder:
    """Trains the published kind of student: patch tokens of LFP, every bin sees every other.

    `objective` says how it is aligned, and nothing else. `reconstruction` is the weight, in units of the alignment's,
    of the error with which linear maps tell the bins from the latents. `stop` is as in `train_student`.
    """
    torch.manual_seed(seed)
    teacher_d = next(iter(teacher_latents.values())).shape[1]
    channels = {s.id: s.inputs("lfp").shape[1] for s in sessions}
    model = PatchAutoencoder(size, channels, counts=False, teacher_d=teacher_d)
    align = make_aligner(objective, size, sessions, teacher_latents)
    parts = join(model, align)
    to_bins = nn.ModuleDict()  # thrown away after the training, as the aligner is
    if reconstruction:
        to_bins.update({name_parameter(session): nn.Linear(size.d, count) for session, count in channels.items()})
        parts["to_bins"] = to_bins

    def loss(session: TrainingSession, bins: Tensor, truth: Tensor, whole: Tensor) -> Tensor:
        layers = align.layers_of(model, session.id, bins)
        found: Tensor = align(model, session.id, layers, truth)
        if reconstruction:
            found = found + reconstruction * known_mse(to_bins[name_parameter(session.id)](layers[-1]), whole)
        return found

    def list_truth(session: TrainingSession) -> list[Tensor]:
        return [teacher_latents[session.id], session.targets("lfp")]

    def step_loss(step: int) -> Tensor:
        random = make_generator(seed, step)
        session = pick_session(sessions, random)
        return loss(session, *draw_augmented(session, "lfp", list_truth(session), config, random))

    def validate_one(session: TrainingSession) -> float:
        block, parts = session.split.validation, (session.inputs("lfp"), *list_truth(session))
        length = min(config.segment_bins, block.stop - block.start)
        segments = [part[block].unfold(0, length, length).transpose(1, 2) for part in parts]
        return loss(session, *(part.to(find_training_device()) for part in segments)).item()

    def validation_loss() -> float:
        return ranks.mean_over(sessions, validate_one)

    ends = None if stop is None else lambda step: stop(model, step)
    fit(parts, step_loss, validation_loss, config, checkpoint, progress, ends)
    return model
