"""Trains and scores every model of a build: teacher, spike student, the student that ships, and the baselines.

A checked request goes in. `TrainedModels` come out, with the models to quantize and each model's held-out R².
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from edgedistill.models.student import Student
from edgedistill.pipeline.decoder_source import EarlierStudent
from edgedistill.pipeline.linear_fits import fit_linear
from edgedistill.pipeline.pretrained_student import outputs_of
from edgedistill.pipeline.request import BuildRequest
from edgedistill.pipeline.result import Metrics
from edgedistill.pipeline.students import patch_student_from_sessions, student_from_sessions
from edgedistill.pipeline.teacher import (
    TeacherSubject,
    fit_window_readout,
    targets_from_teacher,
    teacher_from_sessions,
)
from edgedistill.training.baselines import LaggedRidge
from edgedistill.training.batches import TrainingSession
from edgedistill.training.evaluate import Readout, score, unscale_behavior
from edgedistill.training.student_tasks import (
    STUDENT_TASKS,
    StudentTask,
    compute_features,
    score_smoothed,
    score_student,
    score_teacher,
)
from edgedistill.training.teacher_targets import TeacherTargets


@dataclass(frozen=True, eq=False)
class TrainedStudent:
    """Holds a float student with the session it decodes."""

    name: str  # "deployed" or "spike_student", as in the names of its stages
    student: Student
    task: StudentTask  # the task it was trained for
    session: TrainingSession  # with the normalization that the student uses
    readout: Readout
    r2: float
    may_use_labels: bool = True  # whether labels of the session may be used


@dataclass(frozen=True, eq=False)
class SpikeModels:
    """Holds the models on spikes that the LFP student is compared with."""

    student: TrainedStudent
    teacher: TeacherSubject


@dataclass(frozen=True, eq=False)
class TrainedModels:
    """Holds the models of a build, and the held-out R² of every model that was trained or fitted."""

    lfp: TrainedStudent
    spikes: SpikeModels | None  # None where the user asked for none
    targets: TeacherTargets | None  # None where the build has no teacher
    ridge: LaggedRidge  # on the same LFP as the student that ships
    metrics: Metrics


def train_models(request: BuildRequest) -> TrainedModels:
    """Returns the models of a build. Those in the run's cache are not trained again.

    Raises EdgeDistillError where the student of --student was distilled from another teacher than the one in this
    build.
    """
    run, teacher = request.run, request.teacher
    metrics: Metrics = {}
    if teacher is None and request.options.has_spike_models:
        teacher = teacher_from_sessions(run, request.sessions)
    targets = None if teacher is None else targets_from_teacher(run, teacher, request.sessions)
    request.decoder.require_targets(targets, request.recipe)
    spikes = None
    if targets is not None and request.options.has_spike_models:
        spikes, metrics = train_spike_models(request, targets)
    if isinstance(request.decoder, EarlierStudent):
        lfp = adapt_pretrained(request, request.decoder)
    else:
        assert targets is not None
        distilled = train_and_score(request, "distilled", targets)
        smooth = request.options.smooth
        with run.cache.timed("score distilled, smoothed"):
            metrics["distilled_r2"] = score_smoothed(distilled.student, "distilled", request.session, smooth).r2
        lfp = choose_taught(train_and_score(request, "deployed", targets), distilled)
    metrics["deployed_r2"] = lfp.r2
    ridge, scores = fit_linear(run, request.session, lfp.session)
    metrics |= scores
    if request.options.baselines and targets is not None:
        metrics |= baseline_scores(request, targets)
    return TrainedModels(lfp, spikes, targets, ridge, metrics)


def choose_taught(deployed: TrainedStudent, distilled: TrainedStudent) -> TrainedStudent:
    """Returns the student that ships: of the two, the one whose read-out decodes the validation block better.

    With few labels the student that learned from the teacher alone can be the better one. Where they are equal, it is
    the one that also learned from behavior.
    """
    if distilled.readout.validation_r2 > deployed.readout.validation_r2:
        return replace(distilled, name=deployed.name)
    return deployed


def train_spike_models(request: BuildRequest, targets: TeacherTargets) -> tuple[SpikeModels, Metrics]:
    """Returns a spike student, the teacher with a read-out for streaming, and the R² of both."""
    run, session, teacher = request.run, request.session, targets.teacher
    student = train_and_score(request, "spike_student", targets)
    with run.cache.timed("score teacher"):
        r2 = score_teacher(teacher, session, run.preset.teacher_training.segment_bins).r2
    models = SpikeModels(student, fit_window_readout(run, teacher, session))
    return models, {"teacher_r2": r2, "spike_student_r2": student.r2}


def train_and_score(request: BuildRequest, name: str, targets: TeacherTargets) -> TrainedStudent:
    """Returns a student that is trained on all sessions, with a read-out fitted on the session it will decode."""
    alignment = request.options.alignment
    student = student_from_sessions(request.run, name, request.sessions, targets, alignment)
    with request.run.cache.timed(f"score {name.replace('_', '-')}"):
        readout, scored = score_student(student, name, request.session)
    task = STUDENT_TASKS[name].with_alignment(alignment)
    return TrainedStudent(name, student, task, request.session, readout, scored.r2)


def adapt_pretrained(request: BuildRequest, decoder: EarlierStudent) -> TrainedStudent:
    """Returns the student of --student, adapted to the session if that is new to it.

    Its read-out is fitted on the session if labels may be used. Otherwise it is the stored read-out of the session's
    array.
    """
    run, pretrained = request.run, decoder.pretrained
    student, session = pretrained.adapted_to(request.session, decoder.mode, run.preset.training, run.seed)
    may_use_labels = decoder.may_use_labels(request.session)
    if may_use_labels:
        readout, scored = score_student(student, "deployed", session)
    else:
        readout = pretrained.require_readout(session, outputs_of(request.bins))
        features = compute_features(student, STUDENT_TASKS["deployed"], session)
        scored = score(readout, features, unscale_behavior(session), session.split)
    return TrainedStudent("deployed", student, pretrained.task, session, readout, scored.r2, may_use_labels)


def baseline_scores(request: BuildRequest, targets: TeacherTargets) -> Metrics:
    """Returns the R² of the models of --baselines. Causal students are smoothed as the one that ships is."""
    run, session, sessions, alignment = request.run, request.session, request.sessions, request.options.alignment
    single = student_from_sessions(run, "unsupervised_lfp", [session], targets, alignment)
    multi = student_from_sessions(run, "unsupervised_lfp", sessions, targets, alignment)
    supervised = student_from_sessions(run, "supervised_lfp", sessions, targets, alignment)
    patch = patch_student_from_sessions(run, sessions, targets, alignment)
    segment, smooth = run.preset.teacher_training.segment_bins, request.options.smooth
    return {
        "single_session_lfp_r2": score_smoothed(single, "unsupervised_lfp", session, smooth).r2,
        "multi_session_lfp_r2": score_smoothed(multi, "unsupervised_lfp", session, smooth).r2,
        "supervised_lfp_r2": score_smoothed(supervised, "supervised_lfp", session, smooth).r2,
        "distilled_bidirectional_r2": score_teacher(patch, session.without_bands(), segment).r2,
    }
