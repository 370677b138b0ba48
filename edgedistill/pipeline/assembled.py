"""Assembles a bundle from trained and quantized students, with the spike models, the holdout and the reference.

A checked request, its trained models and their integers go in. The bundle on disk comes out. Its manifest holds a
verdict on every step graph and the gates of its target.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from edgedistill import __version__
from edgedistill.bundle import open_bundle, ship
from edgedistill.bundle.contents import HOLDOUT, REFERENCE, RIDGE, SPIKE_FOLDER
from edgedistill.config import StudentShape
from edgedistill.data.bins import SessionBins
from edgedistill.data.lfp.electrodes import Electrode
from edgedistill.frontend import FrontEndConfig, group_delay_ms
from edgedistill.numerics.smoothing import SmoothingModel
from edgedistill.pipeline.cache import Cache
from edgedistill.pipeline.channel_files import neutral_channel_files, write_channel_files, write_smoothing_file
from edgedistill.pipeline.confidence import CalibratedDeviations, calibrate_deviations
from edgedistill.pipeline.graph_checks import compute_reference
from edgedistill.pipeline.holdout_files import pack_npz, write_holdout
from edgedistill.pipeline.quantized import Int8Student, QuantizedStudents
from edgedistill.pipeline.request import BuildOptions, BuildRequest
from edgedistill.pipeline.result import TABLE, BuildResult, Metrics, table_from_metrics
from edgedistill.pipeline.searched_students import trials_to_json
from edgedistill.pipeline.smoothed import SmoothedStudent, find_delay_ms, smooth_ridge, smooth_student
from edgedistill.pipeline.student_files import Files, Subject, Verdicts, write_ridge, write_subject, write_teachers
from edgedistill.pipeline.teacher import TeacherSubject
from edgedistill.pipeline.trained import SpikeModels, TrainedModels, TrainedStudent
from edgedistill.pipeline.written_bundle import BundleContents, Facts, WrittenBundle, write_and_judge
from edgedistill.target import Target
from edgedistill.training.baselines import LaggedRidge
from edgedistill.training.batches import TrainingSession
from edgedistill.training.output_filter import NONE

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey


@dataclass(frozen=True, eq=False)
class SpikeSubjects:
    """Holds the models on spikes that a bundle compares its student with."""

    student: Subject
    smoothed: SmoothedStudent
    teacher: TeacherSubject


@dataclass(frozen=True, eq=False)
class Ingredients:
    """Holds everything that a bundle is written from."""

    out: Path
    target: Target
    preset: str
    bins: SessionBins
    frontend: FrontEndConfig
    session: TrainingSession  # with the normalization that the LFP student uses
    lfp: Subject
    spikes: SpikeSubjects | None
    smoothed: SmoothedStudent  # the LFP student
    deviations: CalibratedDeviations  # of its smoothed outputs
    ridge: LaggedRidge
    ridge_smoothing: SmoothingModel | None  # of the outputs of the ridge
    metrics: Metrics
    provenance: Facts
    signing_key: Ed25519PrivateKey | None


def assemble_bundle(request: BuildRequest, trained: TrainedModels, quantized: QuantizedStudents) -> BuildResult:
    """Writes the bundle, and its zip if the user asked for one, and returns the result of the build."""
    options, cache = request.options, request.run.cache
    with cache.timed("smooth outputs"):
        smoothed, spikes = smooth_student(trained.lfp, quantized.lfp, options.smooth), None
        found = {**trained.metrics, "deployed_r2": smoothed.r2, "int8_r2": smoothed.int8_r2}
        if trained.spikes is not None and quantized.spikes is not None:
            spikes = make_spike_subjects(trained.spikes, quantized.spikes, options.smooth)
            found["spike_student_r2"] = spikes.smoothed.r2
        kind = options.smooth if trained.lfp.may_use_labels else NONE
        ridge_smoothing = smooth_ridge(trained.ridge, trained.lfp.session, kind)
    with cache.timed("deviations"):
        deviations = calibrate_deviations(quantized.lfp.quantized.model, trained.lfp.session, smoothed.model)
    metrics = {name: found.get(name) for name, _, _ in TABLE}
    training = describe_training(request, trained)
    assert request.bins.frontend is not None
    parts = Ingredients(
        options.out,
        request.target,
        request.run.preset.name,
        request.bins,
        replace(request.bins.frontend, follow_s=options.follow_s),
        trained.lfp.session,
        subject_from_student(trained.lfp, quantized.lfp),
        spikes,
        smoothed,
        deviations,
        trained.ridge,
        ridge_smoothing,
        metrics,
        {
            **request.run.provenance.to_json(),
            **describe_options(options),
            **request.decoder.to_json(),
            **training,
        },
        request.signing_key,
    )
    written = write_decoder_bundle(parts, cache)
    return BuildResult(
        bundle=options.out,
        target=request.target.name,
        stages=tuple(cache.stages),
        metrics=metrics,
        gates=written.gates,
        table=table_from_metrics(metrics, request.decoder.note),
        lacking=written.compiled.lacking if written.compiled else None,
        graphs=written.graphs,
        confidence=parts.deviations.confidence,
        smoothing=smoothed.smoothing,
        read=request.run.provenance.readings,
        skipped=request.run.provenance.skipped,
        training=training,
        signed_by=written.signed_by,
        shipped=ship(open_bundle(options.out)) if options.ship else None,
    )


def describe_options(options: BuildOptions) -> Facts:
    """Returns the options that stand in a manifest's provenance."""
    few = {} if options.label_minutes is None else {"label_minutes": options.label_minutes}
    return {"seed": options.seed, **few}


def describe_training(request: BuildRequest, trained: TrainedModels) -> Facts:
    """Returns what the student that ships was trained on, and the students and trials that it was chosen from."""
    objective = trained.lfp.task.objective
    found: Facts = {
        "alignment": asdict(objective.aligned_by),
        "objective": objective.weights,
        "learned_from_behavior": objective.behavior > 0,
        "learned_from_teacher": objective.alignment > 0,
    }
    if trained.labels is not None and trained.lfp.session is not request.session:
        found["labels_from_spikes"] = trained.labels.to_json()
    if trained.choice is not None:
        found |= trained.choice.to_json()
    searched = {**request.decoder.trials, **trained.trials}
    return {**found, "search": trials_to_json(searched)} if any(searched.values()) else found


def make_spike_subjects(trained: SpikeModels, int8: Int8Student, smooth: str) -> SpikeSubjects:
    """Returns the models on spikes as a bundle holds them. The student's outputs are smoothed as those on LFP are."""
    smoothed = smooth_student(trained.student, int8, smooth)
    return SpikeSubjects(subject_from_student(trained.student, int8), smoothed, trained.teacher)


def subject_from_student(trained: TrainedStudent, int8: Int8Student) -> Subject:
    """Returns one student in float and in INT8, as `write_subject` takes it."""
    return Subject(trained.student, trained.readout, int8)


def write_decoder_bundle(parts: Ingredients, cache: Cache) -> WrittenBundle:
    """Writes the bundle, judges its graphs, compiles its engine and measures it.

    A graph whose output differs too much from the student's is marked unusable, and the manifest gives the reason.
    """
    files, shape, graphs = write_files(parts, cache)
    facts = describe_bundle(parts, shape)
    with cache.timed("reference and holdout"):
        files[REFERENCE] = pack_npz(compute_reference(parts.lfp.int8.quantized.model, parts.session))
        holdout = write_holdout(parts.bins, parts.session, shape)
    with holdout, cache.timed("engine and gates"):
        whole = files | {HOLDOUT: holdout}
        return write_and_judge(
            BundleContents(parts.out, parts.target, whole, graphs, facts, parts.metrics, key=parts.signing_key)
        )


def write_files(parts: Ingredients, cache: Cache) -> tuple[Files, StudentShape, Verdicts]:
    """Returns the files of all models, the student's shape, and a verdict on each step graph."""
    with cache.timed("graphs"):
        files, shape, graphs = write_subject(parts.lfp, parts.session, "lfp")
        if parts.spikes is not None:
            others, verdicts = write_spike_subjects(parts.spikes, parts.session)
            files, graphs = files | others, graphs | verdicts
    files |= write_channel_files(parts.session.standardization.spatial, parts.deviations.model)
    files |= write_smoothing_file(parts.smoothed.model)
    files[RIDGE] = write_ridge(parts.ridge, parts.ridge_smoothing)
    return files, shape, graphs


def write_spike_subjects(spikes: SpikeSubjects, session: TrainingSession) -> tuple[Files, Verdicts]:
    """Returns the files below `subjects/`, and a verdict on each step graph of the spike student."""
    files, shape, graphs = write_subject(spikes.student, session, "spikes")
    mean, std = session.spike_normalization
    facts = {"model": shape.to_json(), "normalization": {"mean": mean.tolist(), "std": std.tolist()}}
    files["model.json"] = json.dumps(facts).encode()
    files |= neutral_channel_files(shape.channels, shape.outputs) | write_smoothing_file(spikes.smoothed.model)
    own = {SPIKE_FOLDER + name: data for name, data in files.items()}
    teachers = write_teachers(spikes.teacher, session.id, shape.outputs)
    return own | teachers, {SPIKE_FOLDER + name: verdict for name, verdict in graphs.items()}


def describe_bundle(parts: Ingredients, shape: StudentShape) -> Facts:
    """Returns the keys of `manifest.json` that are known before the bundle is compiled and measured."""
    mean, std = parts.session.standardization.mean, parts.session.standardization.std
    outputs = zip(parts.bins.output_names, parts.bins.output_units, strict=True)
    return {
        "name": parts.out.stem,
        "created_by": f"edgedistill {__version__}",
        "model": shape.to_json(),
        "frontend": parts.frontend.to_json(),
        "normalization": {"mean": mean.tolist(), "std": std.tolist()},
        "channel_ids": list(parts.bins.channel_ids),
        "channels": [describe_channel(electrode) for electrode in parts.bins.electrodes],
        "outputs": [{"name": name, "unit": unit} for name, unit in outputs],
        "session": {"id": parts.session.id, "subject": parts.bins.subject_id, "start": parts.bins.session_start},
        "preset": parts.preset,
        "recipe": parts.lfp.int8.ranges.recipe.name,
        "int8": describe_int8(parts.lfp.int8),
        "confidence": parts.deviations.describe(),
        "smoothing": parts.smoothed.smoothing.to_json(),
        "provenance": parts.provenance,
        "group_delay_ms": group_delay_ms(parts.frontend),
        "smoothing_delay_ms": find_delay_ms(parts.smoothed.model, parts.frontend),
    }


def describe_int8(int8: Int8Student) -> dict[str, object]:
    """Returns the sizes of the INT8 student as they stand in a manifest."""
    model = int8.quantized.model
    return {
        "weight_bytes": model.weight_bytes,
        "state_bytes": int8.quantized.state_bytes,
        "kept_float32": list(model.keep),
    }


def describe_channel(electrode: Electrode) -> dict[str, object]:
    """Returns the manifest's entry for one channel. A position that is not finite is unknown."""
    place = electrode.position
    known = place is not None and bool(np.isfinite(place).all())
    return {"id": electrode.id, "label": electrode.label, "position": list(place) if place and known else None}
