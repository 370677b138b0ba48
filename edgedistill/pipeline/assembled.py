"""What goes into a bundle: students in float32, float16 and INT8, the spike student, holdout and reference.

A checked request, its trained models and their integers go in. The bundle on disk comes out, with every graph in it
checked against what it was written from, and the gates of its target judged on it.
"""

from __future__ import annotations

import io
import json
from dataclasses import asdict, dataclass
from pathlib import Path
from time import monotonic
from typing import Any

import numpy as np
import numpy.typing as npt
from safetensors.numpy import save

from edgedistill import __version__
from edgedistill.bench import QUICK, bench
from edgedistill.bench.subjects import PUBLISHED, PUBLISHED_GRAPH, TEACHER, TEACHER_GRAPH
from edgedistill.bundle import open_bundle, ship, write_bundle
from edgedistill.bundle.contents import TEACHER_FACTS
from edgedistill.compile.build_folder import CompiledEngine
from edgedistill.compile.engines import compile_or_prepare, compile_spike_student
from edgedistill.config import StudentShape, load_preset
from edgedistill.data.bins import SessionBins
from edgedistill.data.recording import open_recording
from edgedistill.frontend import FrontEnd, group_delay_ms
from edgedistill.models.student import Student
from edgedistill.pipeline.graph_checks import (
    PLAIN_GRAPH,
    PLUGIN_GRAPH,
    reference,
    require_same_function,
    require_spike_graphs,
)
from edgedistill.pipeline.quantized import Int8Student, QuantizedStudents
from edgedistill.pipeline.ranges import RANGES
from edgedistill.pipeline.request import BuildOptions, BuildRequest
from edgedistill.pipeline.result import TABLE, BuildResult, Metrics, table_from_metrics
from edgedistill.pipeline.teacher import TeacherSubject
from edgedistill.pipeline.trained import TrainedModels, TrainedStudent
from edgedistill.quantization.deployment import deployed_weights
from edgedistill.quantization.onnx_graph import graph_for_plugin, graph_from_integers, graph_from_student
from edgedistill.quantization.onnx_graph.teacher_window import graph_from_teacher, parameters_of, timing_graph
from edgedistill.runtime.compiled_engines import COMPILED
from edgedistill.target import Gate, Target
from edgedistill.training.batches import TrainingSession
from edgedistill.training.evaluate import Readout, behavior_of

HOLDOUT_BYTES = 64 << 20  # of raw frames; a 30 kHz recording would fill a bundle in minutes


@dataclass(frozen=True, eq=False)
class Subject:
    """One student of a bundle."""

    student: Student
    readout: Readout
    int8: Int8Student


@dataclass(frozen=True, eq=False)
class Ingredients:
    """Everything a bundle is written from."""

    out: Path
    target: Target
    preset: str
    bins: SessionBins
    session: TrainingSession  # as the student reads it
    lfp: Subject
    spikes: Subject
    teacher: TeacherSubject
    metrics: Metrics
    provenance: dict[str, object]  # JSON


@dataclass(frozen=True, eq=False)
class Written:
    """What came of a bundle that was written."""

    gates: tuple[Gate, ...]
    compiled: CompiledEngine | None  # None where the target's engine needs no compiling


def assemble_bundle(request: BuildRequest, trained: TrainedModels, quantized: QuantizedStudents) -> BuildResult:
    """Writes the bundle, and its zip where that is asked for; returns what came of the build."""
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
        trained.teacher,
        metrics,
        {**request.run.provenance.to_json(), "seed": options.seed, **adaptation(options)},
    )
    written = write_decoder_bundle(parts)
    cache.note("bundle", start)
    return BuildResult(
        bundle=options.out,
        target=request.target.name,
        stages=tuple(cache.stages),
        metrics=metrics,
        gates=written.gates,
        table=table_from_metrics(metrics, decoder_note(options)),
        lacking=written.compiled.lacking if written.compiled else None,
        shipped=ship(open_bundle(options.out)) if options.ship else None,
    )


def subject_from_student(trained: TrainedStudent, int8: Int8Student) -> Subject:
    """Returns one student as the bundle holds it, in float and in INT8."""
    return Subject(trained.student, trained.readout, int8)


def adaptation(options: BuildOptions) -> dict[str, object]:
    """Returns how a student of --student was fitted to the session, as the manifest tells it; empty without one."""
    return {} if options.student is None else {"adapt": options.adapt, "probe": options.probe}


def decoder_note(options: BuildOptions) -> str:
    """Returns the same for the table of R²."""
    labels = "labelled probe" if options.probe else "no labels"
    return "" if options.student is None else f", adapted by '{options.adapt}', {labels}"


def write_decoder_bundle(parts: Ingredients) -> Written:
    """Writes the bundle, checks its graphs, compiles its engine and measures it."""
    files, shape = subject_files(parts.lfp, parts.session.id)
    spikes, spike_shape = subject_files(parts.spikes, parts.session.id)
    mean, std = parts.session.spike_normalization
    facts = {"model": spike_shape.to_json(), "normalization": {"mean": mean.tolist(), "std": std.tolist()}}
    spikes["model.json"] = json.dumps(facts).encode()
    files |= {f"subjects/spike-student/{name}": data for name, data in spikes.items()}
    files |= teacher_files(parts, spike_shape.outputs)
    require_same_function(parts.lfp.student, parts.lfp.readout, parts.session, shape, files["student.onnx"])
    files["reference.npz"] = npz(reference(parts.lfp.int8.quantized.model, parts.session, files))
    require_spike_graphs(parts.spikes.int8.quantized.model, parts.session, spikes)
    files["holdout.npz"] = holdout(parts, shape)
    contents = manifest(parts, shape)
    write_bundle(parts.out, contents, files)
    first = compiled(parts)
    sizes = {f"{name}_bytes": float(size) for name, size in first.record.sizes.items()} if first else {}
    measured = bench(open_bundle(parts.out), QUICK)
    figures = {**measured.figures, **sizes, "int8_r2_drop": int8_r2_drop(parts.metrics)}
    gates = parts.target.judge(figures, measured.why)
    write_bundle(parts.out, {**contents, "gates": [asdict(gate) for gate in gates]}, files)
    final = compiled(parts)  # once more: a library belongs to one manifest, and that now holds the gates
    if final is not None and final.lacking is None:
        compile_spike_student(open_bundle(parts.out), parts.target)
    return Written(gates, final)


def compiled(parts: Ingredients) -> CompiledEngine | None:
    """Compiles the bundle's engine for its target, or prepares it for the device; None where nothing is compiled."""
    return compile_or_prepare(open_bundle(parts.out), parts.target) if engine_of(parts) in COMPILED else None


def engine_of(parts: Ingredients) -> str:
    """What decodes this bundle by default; a zip has no place for a compiled library."""
    return "onnxruntime" if parts.out.suffix == ".zip" else parts.target.engine


def int8_r2_drop(metrics: dict[str, float | None]) -> float | None:
    """What INT8 costs: R² of the float student that ships less that of the INT8 one, both streamed."""
    whole, eight = metrics["deployed_r2"], metrics["int8_r2"]
    return None if none_if_nan(whole) is None or none_if_nan(eight) is None else whole - eight  # type: ignore[operator]


def subject_files(subject: Subject, session: str) -> tuple[dict[str, bytes], StudentShape]:
    """A student's files in all precisions, for one session."""
    files, shape = student_files(subject.student, session, subject.readout)
    return files | int8_files(subject.int8), shape


def student_files(student: Student, session: str, readout: Readout) -> tuple[dict[str, bytes], StudentShape]:
    """`student.safetensors` and the float graphs of one session, read-out folded in."""
    weights, shape = deployed_weights(student, session, readout)
    graph = graph_from_student(shape, weights).SerializeToString()
    half = graph_from_student(shape, weights, "float16").SerializeToString()
    return {"student.safetensors": save(weights), "student.onnx": graph, "student.fp16.onnx": half}, shape


def int8_files(int8: Int8Student) -> dict[str, bytes]:
    """Integers, the two forms of their graph, and the ranges they came from."""
    model = int8.quantized.model
    return {
        "student.int8.safetensors": save(dict(model.tensors)),
        PLAIN_GRAPH: graph_from_integers(model.shape, model.tensors).SerializeToString(),
        PLUGIN_GRAPH: graph_for_plugin(model.shape, model.tensors).SerializeToString(),
        RANGES: json.dumps(int8.ranges.to_json(), indent=1).encode(),
    }


def teacher_files(parts: Ingredients, outputs: int) -> dict[str, bytes]:
    """The spike teacher over its window, and one of the published shape that can only be timed."""
    teacher, session, paper = parts.teacher, parts.session.id, load_preset("paper")
    weight, bias = (part.astype(np.float32) for part in (teacher.readout.weight, teacher.readout.bias))
    trained = graph_from_teacher(teacher.model, session, teacher.window, weight, bias)
    units = teacher.model.channels[session]
    published = timing_graph(paper.teacher, units, paper.teacher_training.segment_bins, outputs)
    facts = {
        TEACHER: {"params": parameters_of(trained), "window": teacher.window},
        PUBLISHED: {"params": parameters_of(published), "window": paper.teacher_training.segment_bins},
    }
    graphs = {TEACHER_GRAPH: trained.SerializeToString(), PUBLISHED_GRAPH: published.SerializeToString()}
    return {**graphs, TEACHER_FACTS: json.dumps(facts).encode()}


def holdout(parts: Ingredients, shape: StudentShape) -> bytes:
    """The test block as bins, counts and kinematics, after a run-up of one receptive field; and raw frames."""
    block = parts.session.split.test
    first = max(0, block.start - shape.receptive_field - shape.lag_rows)
    stretch = slice(first, block.stop)
    assert parts.session.counts is not None
    arrays = {
        "bins": parts.session.inputs("lfp")[stretch].numpy(),
        "counts": parts.session.counts[stretch].numpy().astype(np.uint8),
        "kinematics": behavior_of(parts.session)[stretch].astype(np.float32),
        "score_from": np.array(block.start - first),
        "first_bin": np.array(first),
    }
    return npz(arrays | raw_stretch(parts, first, block.stop))


def raw_stretch(parts: Ingredients, first: int, stop: int) -> dict[str, npt.NDArray[Any]]:
    """Raw frames from the start of bin `first`, as many as fit, and the state of the front end before them."""
    config = parts.bins.frontend
    assert config is not None
    with open_recording(Path(parts.bins.path)) as recording:
        lfp = recording.lfp
        assert lfp is not None
        start = config.edge(first)
        frames = min(config.edge(stop) - start, HOLDOUT_BYTES // (4 * lfp.channels))
        front_end = FrontEnd(config)
        block = max(1, (8 << 20) // (4 * lfp.channels))
        for at in range(0, start, block):
            front_end.push(lfp.read(at, min(at + block, start)))
        state = {f"fe_{name}": value for name, value in front_end.export_state().items()}
        return {"frames": lfp.read(start, start + frames), "frame_start": np.array(start), **state}


def manifest(parts: Ingredients, shape: StudentShape) -> dict[str, object]:
    """`manifest.json` but for what `write_bundle` and the gates add."""
    config = parts.bins.frontend
    assert config is not None
    mean, std = parts.session.normalization
    outputs = zip(parts.bins.output_names, parts.bins.output_units, strict=True)
    return {
        "name": parts.out.stem,
        "created_by": f"edgedistill {__version__}",
        "model": shape.to_json(),
        "frontend": config.to_json(),
        "normalization": {"mean": mean.tolist(), "std": std.tolist()},
        "channel_ids": list(parts.bins.channel_ids),
        "outputs": [{"name": name, "unit": unit} for name, unit in outputs],
        "session": {"id": parts.session.id, "subject": parts.bins.subject_id},
        "preset": parts.preset,
        "target": parts.target.name,
        "engine": engine_of(parts),
        "recipe": parts.lfp.int8.ranges.recipe.name,
        "int8": {
            "weight_bytes": parts.lfp.int8.quantized.model.weight_bytes,
            "state_bytes": parts.lfp.int8.quantized.state_bytes,
            "kept_float32": list(parts.lfp.int8.quantized.model.keep),
        },
        "metrics": {name: none_if_nan(value) for name, value in parts.metrics.items()},
        "gates": [],
        "provenance": parts.provenance,
        "group_delay_ms": group_delay_ms(config),
    }


def none_if_nan(value: float | None) -> float | None:
    """JSON has no NaN: an output that never moves has no R²."""
    return value if value is not None and np.isfinite(value) else None


def npz(arrays: dict[str, npt.NDArray[Any]]) -> bytes:
    """Arrays as the bytes of an .npz, without pickle."""
    file = io.BytesIO()
    np.savez(file, **arrays)  # type: ignore[arg-type]
    return file.getvalue()
