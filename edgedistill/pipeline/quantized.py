"""Turns the students of a build into INT8: calibrates them, fine-tunes them if the recipe says so, quantizes them.

Trained models go in. `QuantizedStudents` come out, each with the ranges of its activations and its R².
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from edgedistill.pipeline.pretrained_student import without_labels
from edgedistill.pipeline.ranges import FineTuning, can_read, finetune, ranges_from_student, stage_name
from edgedistill.pipeline.request import BuildRequest
from edgedistill.pipeline.trained import TrainedModels, TrainedStudent
from edgedistill.quantization.calibration.ranges import Ranges
from edgedistill.quantization.deployment import QuantizedStudent, choose_better, quantize_for_session
from edgedistill.training.batches import TrainingSession


@dataclass(frozen=True, eq=False)
class Int8Student:
    """Holds a student in INT8, and the ranges it was quantized with."""

    ranges: Ranges
    quantized: QuantizedStudent


@dataclass(frozen=True, eq=False)
class QuantizedStudents:
    """Holds the students of a bundle in INT8."""

    lfp: Int8Student
    spikes: Int8Student | None  # None where the build trained no spike student


def quantize_students(request: BuildRequest, trained: TrainedModels) -> QuantizedStudents:
    """Returns the student that ships in INT8, and the spike student where the build has one.

    The ranges of --ranges are only for the first one.
    """
    ranges = request.decoder.ranges
    if ranges is None:
        lfp = quantize_by_recipe(request, trained, trained.lfp)
    else:
        with request.run.cache.timed(stage_name("quantize", trained.lfp.name)):
            lfp = quantize_with(ranges, trained.lfp)
    spikes = None if trained.spikes is None else quantize_by_recipe(request, trained, trained.spikes.student)
    return QuantizedStudents(lfp, spikes)


def quantize_by_recipe(request: BuildRequest, trained: TrainedModels, subject: TrainedStudent) -> Int8Student:
    """Returns one student in INT8 by the recipe of the request.

    The fine-tuned student is used if it decodes the validation block at least as well. Without labels the two cannot be
    compared on this session, and the fine-tuned one is used.
    """
    run, name = request.run, subject.name
    seen = subject.session if subject.may_use_labels else without_labels(subject.session)
    ranges = ranges_from_student(run, name, subject.student, seen, subject.task.modality, request.recipe)
    with run.cache.timed(stage_name("quantize", name)):
        int8 = quantize_with(ranges, subject)
    if request.recipe.finetune is None:
        return int8
    assert trained.targets is not None
    tuning = FineTuning(
        student_name=name,
        task=subject.task,
        student=subject.student,
        ranges=int8.ranges,
        calibrated_on=[seen],
        sessions=tuning_sessions(request, subject),
        targets=trained.targets,
    )
    student, after = finetune(run, tuning)
    tuned = quantize_with(after, replace(subject, student=student))
    worse = subject.may_use_labels and choose_better(int8.quantized, tuned.quantized) is int8.quantized
    return int8 if worse else tuned


def quantize_with(ranges: Ranges, subject: TrainedStudent) -> Int8Student:
    """Returns a student in INT8 with these ranges. Its read-out is not fitted again where labels must not be used."""
    if not subject.may_use_labels:
        ranges = replace(ranges, recipe=replace(ranges.recipe, refit_readout=False))
    modality = subject.task.modality
    quantized = quantize_for_session(subject.student, subject.session, modality, subject.readout, ranges)
    return Int8Student(ranges, quantized)


def tuning_sessions(request: BuildRequest, subject: TrainedStudent) -> list[TrainingSession]:
    """Returns the sessions to fine-tune on: those that the student can read, and its own if labels may be used."""
    own, modality = subject.session, subject.task.modality
    others = [s for s in request.sessions if s.id != own.id and can_read(subject.student, s, modality)]
    return [*others, own] if subject.may_use_labels else others
