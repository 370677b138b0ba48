"""Assembles a bundle from trained and quantized students, with the spike student, the holdout and the reference.

A checked request, its trained models and their integers go in. The bundle on disk comes out. Its manifest holds a
verdict on every step graph and the gates of its target.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from time import monotonic

import numpy as np

from edgedistill import __version__
from edgedistill.bench import QUICK, bench
from edgedistill.bundle import GraphVerdict, open_bundle, ship, write_bundle
from edgedistill.bundle.contents import RIDGE, SPIKE_FOLDER
from edgedistill.compile.build_folder import CompiledEngine
from edgedistill.compile.engines import compile_or_prepare, compile_spike_student
from edgedistill.config import StudentShape
from edgedistill.data.bins import SessionBins
from edgedistill.data.lfp.electrodes import Electrode
from edgedistill.errors import EngineError
from edgedistill.frontend import group_delay_ms
from edgedistill.pipeline.channel_files import neutral_channel_files, write_channel_files
from edgedistill.pipeline.confidence import CalibratedDeviations, calibrate_deviations
from edgedistill.pipeline.default_engine import DefaultEngine, choose_default_engine
from edgedistill.pipeline.graph_checks import compute_reference
from edgedistill.pipeline.holdout_files import write_holdout, write_npz
from edgedistill.pipeline.quantized import Int8Student, QuantizedStudents
from edgedistill.pipeline.request import BuildRequest
from edgedistill.pipeline.result import TABLE, BuildResult, Metrics, table_from_metrics
from edgedistill.pipeline.student_files import Files, Subject, Verdicts, write_ridge, write_subject, write_teachers
from edgedistill.pipeline.teacher import TeacherSubject
from edgedistill.pipeline.trained import TrainedModels, TrainedStudent
from edgedistill.runtime.compiled_engines import COMPILED
from edgedistill.target import Gate, Target
from edgedistill.training.baselines import LaggedRidge
from edgedistill.training.batches import TrainingSession


@dataclass(frozen=True, eq=False)
class Ingredients:
    """Holds everything that a bundle is written from."""

    out: Path
    target: Target
    preset: str
    bins: SessionBins
    session: TrainingSession  # with the normalization that the LFP student uses
    lfp: Subject
    spikes: Subject
    deviations: CalibratedDeviations  # of the LFP student's outputs
    teacher: TeacherSubject
    ridge: LaggedRidge
    metrics: Metrics
    provenance: dict[str, object]  # JSON

    @property
    def wanted_engine(self) -> str:
        """Returns the target's engine, or onnxruntime for a zip, because a zip cannot hold a compiled library."""
        return "onnxruntime" if self.out.suffix == ".zip" else self.target.engine


@dataclass(frozen=True, eq=False)
class WrittenBundle:
    """Describes a bundle that was written."""

    gates: tuple[Gate, ...]
    compiled: CompiledEngine | None  # None where the default engine needs no compiling
    graphs: Verdicts


def assemble_bundle(request: BuildRequest, trained: TrainedModels, quantized: QuantizedStudents) -> BuildResult:
    """Writes the bundle, and its zip if the user asked for one, and returns the result of the build."""
    options, cache = request.options, request.run.cache
    found = {**trained.metrics, "int8_r2": quantized.lfp.quantized.score.r2}
    metrics = {name: found.get(name) for name, _, _ in TABLE}
    start = monotonic()
    parts = Ingredients(
        options.out,
        request.target,
        request.run.preset.name,
        request.bins,
        trained.lfp.session,
        subject_from_student(trained.lfp, quantized.lfp),
        subject_from_student(trained.spikes, quantized.spikes),
        calibrate_deviations(quantized.lfp.quantized.model, trained.lfp.session),
        trained.teacher,
        trained.ridge,
        metrics,
        {**request.run.provenance.to_json(), "seed": options.seed, **request.decoder.to_json()},
    )
    written = write_decoder_bundle(parts)
    cache.note("bundle", start)
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
        read=request.run.provenance.readings,
        shipped=ship(open_bundle(options.out)) if options.ship else None,
    )


def subject_from_student(trained: TrainedStudent, int8: Int8Student) -> Subject:
    """Returns one student in float and in INT8, as `write_subject` takes it."""
    return Subject(trained.student, trained.readout, int8)


def write_decoder_bundle(parts: Ingredients) -> WrittenBundle:
    """Writes the bundle, judges its graphs, compiles its engine and measures it.

    A graph whose output differs too much from the student's is marked unusable, and the manifest gives the reason. If
    the target's engine then has no usable graph, or cannot be compiled, another engine becomes the default, and the
    gate `default_engine_usable` is missed. The bundle is written in any case.
    """
    files, shape, graphs = write_files(parts)
    chosen = choose_default_engine(parts.wanted_engine, graphs)
    write_bundle(parts.out, write_manifest(parts, shape, graphs, chosen), files)
    first, engine = compile_or_substitute(parts, chosen, graphs)
    if engine != chosen:
        write_bundle(parts.out, write_manifest(parts, shape, graphs, engine), files)
    sizes = {f"{name}_bytes": float(size) for name, size in first.record.sizes.items()} if first else {}
    figures, why = measure_bundle(parts, engine)
    gates = parts.target.judge({**figures, **sizes, "int8_r2_drop": int8_r2_drop(parts.metrics)}, why)
    write_bundle(parts.out, write_manifest(parts, shape, graphs, engine, (*gates, *engine.gates())), files)
    # Compiled again, because a library fits one manifest and this one has the gates. A plan may fail the second time.
    final, last = compile_or_substitute(parts, engine, graphs)
    gates = (*gates, *last.gates())
    if last != engine:
        write_bundle(parts.out, write_manifest(parts, shape, graphs, last, gates), files)
    if final is not None and final.lacking is None:
        compile_spike_student(open_bundle(parts.out), parts.target)
    return WrittenBundle(gates, final, graphs)


def write_files(parts: Ingredients) -> tuple[Files, StudentShape, Verdicts]:
    """Returns every file of the bundle except its manifest, the student's shape, and a verdict on each step graph."""
    files, shape, graphs = write_subject(parts.lfp, parts.session, "lfp")
    spikes, spike_shape, spike_graphs = write_subject(parts.spikes, parts.session, "spikes")
    mean, std = parts.session.spike_normalization
    facts = {"model": spike_shape.to_json(), "normalization": {"mean": mean.tolist(), "std": std.tolist()}}
    spikes["model.json"] = json.dumps(facts).encode()
    spikes |= neutral_channel_files(spike_shape.channels, spike_shape.outputs)
    files |= write_channel_files(parts.session.standardization.spatial, parts.deviations.model)
    files |= {SPIKE_FOLDER + name: data for name, data in spikes.items()}
    graphs |= {SPIKE_FOLDER + name: verdict for name, verdict in spike_graphs.items()}
    files |= write_teachers(parts.teacher, parts.session.id, spike_shape.outputs)
    files[RIDGE] = write_ridge(parts.ridge)
    files["reference.npz"] = write_npz(compute_reference(parts.lfp.int8.quantized.model, parts.session))
    files["holdout.npz"] = write_holdout(parts.bins, parts.session, shape)
    return files, shape, graphs


def measure_bundle(parts: Ingredients, engine: DefaultEngine) -> tuple[dict[str, float | None], dict[str, str]]:
    """Returns the figures that the gates are judged on, and the reason for each figure that is missing.

    Returns no figures if no engine is left that a bench can run.
    """
    try:
        found = bench(open_bundle(parts.out), QUICK)
    except EngineError as error:
        if engine.reason is None:
            raise
        return {}, dict.fromkeys(("step_p99_us", "deployed_r2"), error.what)
    return found.figures, found.why


def compile_or_substitute(
    parts: Ingredients, engine: DefaultEngine, graphs: Mapping[str, GraphVerdict]
) -> tuple[CompiledEngine | None, DefaultEngine]:
    """Compiles the default engine, and returns it with the engine that decodes by default.

    That is `engine`, or a substitute where compiling failed.
    """
    try:
        return compile_engine(parts, engine), engine
    except EngineError as error:
        return None, choose_default_engine(parts.wanted_engine, graphs, error)


def compile_engine(parts: Ingredients, engine: DefaultEngine) -> CompiledEngine | None:
    """Compiles the bundle's engine for its target, or prepares it for the device.

    Returns None where the default engine needs no compiling. Raises EngineError where compiling fails although this
    machine has every tool that is needed for it.
    """
    return compile_or_prepare(open_bundle(parts.out), parts.target) if engine.name in COMPILED else None


def int8_r2_drop(metrics: dict[str, float | None]) -> float | None:
    """Returns the R² of the float student minus the R² of the INT8 student, both streamed."""
    whole, eight = metrics["deployed_r2"], metrics["int8_r2"]
    return None if none_if_nan(whole) is None or none_if_nan(eight) is None else whole - eight  # type: ignore[operator]


def write_manifest(
    parts: Ingredients,
    shape: StudentShape,
    graphs: Mapping[str, GraphVerdict],
    engine: DefaultEngine,
    gates: Sequence[Gate] = (),
) -> dict[str, object]:
    """Returns the content of `manifest.json`, except for the keys that `write_bundle` adds."""
    config = parts.bins.frontend
    assert config is not None
    mean, std = parts.session.standardization.mean, parts.session.standardization.std
    outputs = zip(parts.bins.output_names, parts.bins.output_units, strict=True)
    return {
        "name": parts.out.stem,
        "created_by": f"edgedistill {__version__}",
        "model": shape.to_json(),
        "frontend": config.to_json(),
        "normalization": {"mean": mean.tolist(), "std": std.tolist()},
        "channel_ids": list(parts.bins.channel_ids),
        "channels": [describe_channel(electrode) for electrode in parts.bins.electrodes],
        "outputs": [{"name": name, "unit": unit} for name, unit in outputs],
        "session": {"id": parts.session.id, "subject": parts.bins.subject_id, "start": parts.bins.session_start},
        "preset": parts.preset,
        "target": parts.target.name,
        "engine": engine.name,
        "recipe": parts.lfp.int8.ranges.recipe.name,
        "int8": {
            "weight_bytes": parts.lfp.int8.quantized.model.weight_bytes,
            "state_bytes": parts.lfp.int8.quantized.state_bytes,
            "kept_float32": list(parts.lfp.int8.quantized.model.keep),
        },
        "confidence": asdict(parts.deviations.confidence),
        "metrics": {name: none_if_nan(value) for name, value in parts.metrics.items()},
        "gates": [asdict(gate) for gate in gates],
        "graphs": {name: verdict.to_json() for name, verdict in graphs.items()},
        "provenance": parts.provenance,
        "group_delay_ms": group_delay_ms(config),
    }


def describe_channel(electrode: Electrode) -> dict[str, object]:
    """Returns the manifest's entry for one channel. A position that is not finite is unknown."""
    place = electrode.position
    known = place is not None and bool(np.isfinite(place).all())
    return {"id": electrode.id, "label": electrode.label, "position": list(place) if place and known else None}


def none_if_nan(value: float | None) -> float | None:
    """Returns the value, or None for NaN and infinity, which JSON cannot hold. An output that never moves has no R²."""
    return value if value is not None and np.isfinite(value) else None
