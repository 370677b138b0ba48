"""Trains and scores every model of a build: teacher, spike student, the student that ships, and the baselines.

A checked request goes in. `TrainedModels` come out, with the models to quantize and each model's held-out R².
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from edgedistill import ranks
from edgedistill.models.student import Student
from edgedistill.models.teacher import PatchAutoencoder
from edgedistill.pipeline.decoder_source import EarlierStudent
from edgedistill.pipeline.linear_fits import fit_linear
from edgedistill.pipeline.pretrained_student import outputs_of
from edgedistill.pipeline.request import BuildRequest
from edgedistill.pipeline.result import Metrics, none_if_nan
from edgedistill.pipeline.searched_students import (
    ChosenStudent,
    Judging,
    Trials,
    choose_patch_student,
    choose_student,
)
from edgedistill.pipeline.spike_labels import SpikeLabels, label_from_spikes
from edgedistill.pipeline.teacher import (
    TeacherSubject,
    fit_window_readout,
    targets_from_teacher,
    teacher_from_sessions,
)
from edgedistill.training.baselines import LaggedRidge
from edgedistill.training.batches import TrainingSession
from edgedistill.training.evaluate import Readout, Score, rank_r2, score, unscale_behavior
from edgedistill.training.student_tasks import (
    STUDENT_TASKS,
    StudentTask,
    compute_features,
    score_latents,
    score_raw_and_smoothed,
    score_student,
    score_teacher,
)
from edgedistill.training.study import Trial
from edgedistill.training.teacher_targets import TeacherTargets

SINGLE = "single_session_lfp"  # the unsupervised student that sees one session alone
TAUGHT = ("deployed", "distilled")  # students that learn from labels that spikes gave, where labels are few
FEW_LABELS = "distilled_few_labels"  # the distilled student, with a read-out of the recorded labels alone


@dataclass(frozen=True, eq=False)
class TrainedStudent:
    """Holds a float student with the session it decodes."""

    name: str  # "deployed" or "spike_student", as in the names of its stages
    student: Student
    task: StudentTask  # what it was trained on
    session: TrainingSession  # with the normalization that the student uses
    readout: Readout
    r2: float
    may_use_labels: bool = True  # whether labels of the session may be used
    smoothed: Score | None = None  # with an output filter of its own; None for a student of an earlier run
    trials: tuple[Trial, ...] = ()  # of the search for its settings


@dataclass(frozen=True, eq=False)
class SpikeModels:
    """Holds the models on spikes that the LFP student is compared with."""

    student: TrainedStudent
    teacher: TeacherSubject


@dataclass(frozen=True)
class Choice:
    """Says which of the students of a build ships, by the names of their tasks."""

    shipped: str
    validation_r2: Mapping[str, float | None]  # of every candidate, with its smoothed outputs

    def to_json(self) -> dict[str, object]:
        """Returns what a manifest's provenance says of the choice."""
        return {"shipped": self.shipped, "candidates": dict(self.validation_r2)}


@dataclass(frozen=True, eq=False)
class TrainedModels:
    """Holds the models of a build, and the held-out R² of every model that was trained or fitted."""

    lfp: TrainedStudent
    spikes: SpikeModels | None  # None where the user asked for none
    targets: TeacherTargets | None  # None where the build has no teacher
    ridge: LaggedRidge  # on the same LFP as the student that ships
    metrics: Metrics
    choice: Choice | None = None  # None where the student comes from an earlier run
    trials: Trials = field(default_factory=dict)  # of every student that was searched
    labels: SpikeLabels | None = None  # where labels are few and the session has units


@dataclass(frozen=True, eq=False)
class Baselines:
    """Holds the R² of the models of --baselines, and the one among them that may ship."""

    metrics: Metrics
    on_behavior_alone: TrainedStudent
    trials: Trials


@dataclass(frozen=True, eq=False)
class Students:
    """Holds the students that a build has trained, by name, before any of them is scored."""

    chosen: Mapping[str, ChosenStudent]
    patch: tuple[PatchAutoencoder, tuple[Trial, ...]] | None  # of --baselines: the published shape, and its trials


def train_models(request: BuildRequest) -> TrainedModels:
    """Returns the models of a build. Those in the run's cache are not trained again.

    All trainings come first, because several processes take part in them, and one in what follows. Raises
    EdgeDistillError where the student of --student was distilled from another teacher than the one in this build.
    """
    run, teacher = request.run, request.teacher
    metrics: Metrics = {}
    trials: dict[str, tuple[Trial, ...]] = {}
    if teacher is None and request.options.has_spike_models:
        teacher = teacher_from_sessions(run, request.sessions)
    targets = None if teacher is None else targets_from_teacher(run, teacher, request.sessions)
    request.decoder.require_targets(targets, request.recipe)
    labels = find_spike_labels(request)
    taught = request.session if labels is None else labels.session
    students = train_students(request, targets, taught)
    ranks.release()
    spikes = baselines = None
    if targets is not None and request.options.has_spike_models:
        spikes, metrics = score_spike_models(request, targets, students)
        trials["spike_student"] = spikes.student.trials
    if request.options.baselines and students.patch is not None:
        baselines = score_baselines(request, students)
        metrics |= baselines.metrics
        trials.update(baselines.trials)
    chosen = None
    if isinstance(request.decoder, EarlierStudent):
        lfp = adapt_pretrained(request, request.decoder, taught)
    else:
        candidates = {name: score_chosen(request, name, students, taught) for name in ("deployed", "distilled")}
        trials |= {name: candidate.trials for name, candidate in candidates.items()}
        if labels is not None:
            candidates[FEW_LABELS] = score_chosen(request, "distilled", students)
        assert candidates["distilled"].smoothed is not None
        metrics["distilled_r2"] = candidates["distilled"].smoothed.r2
        if baselines is not None:
            candidates["supervised_lfp"] = baselines.on_behavior_alone
        chosen = choose_shipped(candidates)
        lfp = replace(candidates[chosen.shipped], name="deployed")
    metrics["deployed_r2"] = lfp.r2
    decoded = replace(lfp.session, behavior=request.session.behavior)  # linear filters see recorded labels alone
    ridge, scores = fit_linear(request.run, request.session, decoded)
    return TrainedModels(lfp, spikes, targets, ridge, metrics | scores, chosen, trials, labels)


def find_spike_labels(request: BuildRequest) -> SpikeLabels | None:
    """Returns labels from spikes for the session that is decoded, where its labels are few and its units were read."""
    session, decoder = request.session, request.decoder
    few = request.options.label_minutes is not None or decoder.knows_few_labels(session)
    if not few or session.spikes is None or not decoder.may_use_labels(session):
        return None
    return label_from_spikes(request.run, session)


def train_students(request: BuildRequest, targets: TeacherTargets | None, taught: TrainingSession) -> Students:
    """Returns the students of a build, trained. Which they are depends on the options alone.

    Those that ship with a teacher learn from `taught`, the session that is decoded with labels from spikes. All others
    learn from recorded labels alone.
    """
    run, options, sessions = request.run, request.options, request.sessions
    with_spikes = tuple(taught if session is request.session else session for session in sessions)
    if targets is None:
        return Students({}, None)
    names = ["spike_student"] if options.has_spike_models else []
    names += ["single_session_lfp", "unsupervised_lfp", "supervised_lfp"] if options.baselines else []
    names += [] if isinstance(request.decoder, EarlierStudent) else ["deployed", "distilled"]
    judging = Judging((request.session,), options.smooth)
    found = {}
    for name in names:
        seen = [request.session] if name == SINGLE else with_spikes if name in TAUGHT else sessions
        judged = Judging((taught,), options.smooth) if name in TAUGHT else judging
        found[name] = choose_student(run, task_of(name), seen, targets, options.aligned_by, judged)
    patch = choose_patch_student(run, sessions, targets, options.aligned_by, judging) if options.baselines else None
    return Students(found, patch)


def task_of(name: str) -> str:
    """Returns the name of the task that a student of a build is trained on."""
    return "unsupervised_lfp" if name == SINGLE else name


def choose_shipped(candidates: Mapping[str, TrainedStudent]) -> Choice:
    """Returns which student ships: the one whose smoothed outputs decode the validation block best.

    With few labels it can be the one that learned from the teacher alone, and with a poor teacher the one that learned
    from behavior alone. Of equal ones it is the first.
    """
    scores = {name: one.smoothed for name, one in candidates.items()}
    r2 = {name: None if score is None else none_if_nan(score.validation_r2) for name, score in scores.items()}
    known = {name: math.nan if value is None else value for name, value in r2.items()}
    return Choice(max(known, key=lambda name: rank_r2(known[name])), r2)


def score_spike_models(
    request: BuildRequest, targets: TeacherTargets, students: Students
) -> tuple[SpikeModels, Metrics]:
    """Returns the spike student, the teacher with a read-out for streaming, and the R² of both."""
    run, session, teacher = request.run, request.session, targets.teacher
    student = score_chosen(request, "spike_student", students)
    with run.cache.timed("score teacher"):
        r2 = score_teacher(teacher, session, run.preset.teacher_training.segment_bins).r2
    models = SpikeModels(student, fit_window_readout(run, teacher, session))
    return models, {"teacher_r2": r2, "spike_student_r2": student.r2}


def score_chosen(
    request: BuildRequest, name: str, students: Students, taught: TrainingSession | None = None
) -> TrainedStudent:
    """Returns a trained student with a read-out that is fitted on the session it decodes, or on its `taught` form."""
    found, task, smooth = students.chosen[name], task_of(name), request.options.smooth
    session = taught or request.session
    with request.run.cache.timed(f"score {name.replace('_', '-')}"):
        readout, raw, smoothed = score_raw_and_smoothed(found.student, task, session, smooth)
    return TrainedStudent(
        task, found.student, found.task, session, readout, raw.r2, smoothed=smoothed, trials=found.trials
    )


def adapt_pretrained(request: BuildRequest, decoder: EarlierStudent, taught: TrainingSession) -> TrainedStudent:
    """Returns the student of --student, adapted to the session `taught` if that is new to it.

    Its read-out is fitted on the session if labels may be used. Otherwise it is the stored read-out of the session's
    array.
    """
    run, pretrained = request.run, decoder.pretrained
    student, session = pretrained.adapted_to(taught, decoder.mode, run.preset.training, run.seed)
    may_use_labels = decoder.may_use_labels(request.session)
    if may_use_labels:
        readout, scored = score_student(student, "deployed", session)
    else:
        readout = pretrained.require_readout(session, outputs_of(request.bins))
        features = compute_features(student, STUDENT_TASKS["deployed"], session)
        scored = score(readout, features, unscale_behavior(session), session.split)
    return TrainedStudent("deployed", student, pretrained.task, session, readout, scored.r2, may_use_labels)


def score_baselines(request: BuildRequest, students: Students) -> Baselines:
    """Returns the models of --baselines. Causal students are smoothed as the one that ships is."""
    assert students.patch is not None
    single = score_chosen(request, SINGLE, students)
    multi = score_chosen(request, "unsupervised_lfp", students)
    supervised = score_chosen(request, "supervised_lfp", students)
    patch, trials = students.patch
    segment = request.run.preset.teacher_training.segment_bins
    scored = {SINGLE: single, "multi_session_lfp": multi, "supervised_lfp": supervised}
    metrics: Metrics = {f"{name}_r2": one.smoothed.r2 for name, one in scored.items() if one.smoothed is not None}
    metrics["distilled_bidirectional_r2"] = score_latents(patch, request.session.without_bands(), segment).r2
    searched = {name: one.trials for name, one in scored.items()}
    return Baselines(metrics, supervised, {**searched, "distilled_bidirectional": trials})
