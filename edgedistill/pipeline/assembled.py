"""What goes into a bundle: students in float32, float16 and INT8, the spike student, holdout and reference.

Comes in: trained students with their read-outs and integers, the session they decode. Goes out: the bundle on disk,
every graph in it checked against what it was written from, and the gates of its target judged on it.
"""

from __future__ import annotations

import io
import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from safetensors.numpy import save

from edgedistill import __version__
from edgedistill.bench import QUICK, bench
from edgedistill.bench.subjects import PUBLISHED, PUBLISHED_GRAPH, TEACHER, TEACHER_FACTS, TEACHER_GRAPH
from edgedistill.bundle import open_bundle, write_bundle
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
from edgedistill.pipeline.quantized import RANGES, Int8Student
from edgedistill.pipeline.trained import TeacherSubject
from edgedistill.quantization.deployment import weights_from_student
from edgedistill.quantization.onnx_graph import graph_for_plugin, graph_from_integers, graph_from_student
from edgedistill.quantization.onnx_graph.teacher_window import count_parameters, graph_from_teacher, make_timing_graph
from edgedistill.runtime.compiled_engines import COMPILED
from edgedistill.target import Gate, Target
from edgedistill.training.batches import TrainingSession
from edgedistill.training.evaluate import Readout, unscale_behavior

HOLDOUT_BYTES = 64 << 20  # of raw frames; a 30 kHz recording would fill a bundle in minutes


@dataclass(frozen=True, eq=False)
class Subject:
    """One student of a bundle."""

    student: Student
    readout: Readout
    int8: Int8Student


@dataclass(frozen=True, eq=False)
class Ingredients:
    """Everything a bundle is made of."""

    out: Path
    target: Target
    preset: str
    bins: SessionBins
    session: TrainingSession
    lfp: Subject
    spikes: Subject
    teacher: TeacherSubject
    metrics: dict[str, float | None]
    provenance: dict[str, Any]


def write_decoder_bundle(made: Ingredients) -> tuple[tuple[Gate, ...], CompiledEngine | None]:
    """Writes the bundle, checks its graphs and measures it; returns the gates, and what was compiled."""
    files, shape = subject_files(made.lfp, made.session.id)
    spikes, spike_shape = subject_files(made.spikes, made.session.id)
    mean, std = made.session.spike_normalization
    facts = {"model": spike_shape.to_json(), "normalization": {"mean": mean.tolist(), "std": std.tolist()}}
    spikes["model.json"] = json.dumps(facts).encode()
    files |= {f"subjects/spike-student/{name}": data for name, data in spikes.items()}
    files |= teacher_files(made, spike_shape.outputs)
    require_same_function(made.lfp.student, made.lfp.readout, made.session, shape, files["student.onnx"])
    files["reference.npz"] = npz(reference(made.lfp.int8.quantized.model, made.session, files))
    require_spike_graphs(made.spikes.int8.quantized.model, made.session, spikes)
    files["holdout.npz"] = holdout(made, shape)
    contents = manifest(made, shape)
    write_bundle(made.out, contents, files)
    first = compiled(made)
    sizes = {f"{name}_bytes": float(size) for name, size in first.record.sizes.items()} if first else {}
    measured = bench(open_bundle(made.out), QUICK)
    figures = {**measured.figures, **sizes, "int8_r2_drop": int8_r2_drop(made.metrics)}
    gates = made.target.judge(figures, measured.why)
    write_bundle(made.out, {**contents, "gates": [asdict(gate) for gate in gates]}, files)
    final = compiled(made)  # once more: a library belongs to one manifest, and that now holds the gates
    if final is not None and final.lacking is None:
        compile_spike_student(open_bundle(made.out), made.target)
    return gates, final


def compiled(made: Ingredients) -> CompiledEngine | None:
    """Compiles the bundle's engine for its target, or prepares it for the device; None where nothing is compiled."""
    return compile_or_prepare(open_bundle(made.out), made.target) if engine_of(made) in COMPILED else None


def engine_of(made: Ingredients) -> str:
    """What decodes this bundle by default; a zip has no place for a compiled library."""
    return "onnxruntime" if made.out.suffix == ".zip" else made.target.engine


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
    weights, shape = weights_from_student(student, session, readout)
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


def teacher_files(made: Ingredients, outputs: int) -> dict[str, bytes]:
    """The spike teacher over its window, and one of the published shape that can only be timed."""
    teacher, session, paper = made.teacher, made.session.id, load_preset("paper")
    weight, bias = (part.astype(np.float32) for part in (teacher.readout.weight, teacher.readout.bias))
    trained = graph_from_teacher(teacher.model, session, teacher.window, weight, bias)
    units = teacher.model.channels[session]
    published = make_timing_graph(paper.teacher, units, paper.teacher_training.segment_bins, outputs)
    facts = {
        TEACHER: {"params": count_parameters(trained), "window": teacher.window},
        PUBLISHED: {"params": count_parameters(published), "window": paper.teacher_training.segment_bins},
    }
    graphs = {TEACHER_GRAPH: trained.SerializeToString(), PUBLISHED_GRAPH: published.SerializeToString()}
    return {**graphs, TEACHER_FACTS: json.dumps(facts).encode()}


def holdout(made: Ingredients, shape: StudentShape) -> bytes:
    """The test block as bins, counts and kinematics, after a run-up of one receptive field; and raw frames."""
    block = made.session.split.test
    first = max(0, block.start - shape.receptive_field - shape.lag_rows)
    stretch = slice(first, block.stop)
    assert made.session.counts is not None
    arrays = {
        "bins": made.session.inputs("lfp")[stretch].numpy(),
        "counts": made.session.counts[stretch].numpy().astype(np.uint8),
        "kinematics": unscale_behavior(made.session)[stretch].astype(np.float32),
        "score_from": np.array(block.start - first),
        "first_bin": np.array(first),
    }
    return npz(arrays | raw_stretch(made, first, block.stop))


def raw_stretch(made: Ingredients, first: int, stop: int) -> dict[str, npt.NDArray[Any]]:
    """Raw frames from the start of bin `first`, as many as fit, and the state of the front end before them."""
    config = made.bins.frontend
    assert config is not None
    with open_recording(Path(made.bins.path)) as recording:
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


def manifest(made: Ingredients, shape: StudentShape) -> dict[str, object]:
    """`manifest.json` but for what `write_bundle` and the gates add."""
    config = made.bins.frontend
    assert config is not None
    mean, std = made.session.normalization
    outputs = zip(made.bins.output_names, made.bins.output_units, strict=True)
    return {
        "name": made.out.stem,
        "created_by": f"edgedistill {__version__}",
        "model": shape.to_json(),
        "frontend": config.to_json(),
        "normalization": {"mean": mean.tolist(), "std": std.tolist()},
        "channel_ids": list(made.bins.channel_ids),
        "outputs": [{"name": name, "unit": unit} for name, unit in outputs],
        "session": {"id": made.session.id, "subject": made.bins.subject_id},
        "preset": made.preset,
        "target": made.target.name,
        "engine": engine_of(made),
        "recipe": made.lfp.int8.ranges.recipe.name,
        "int8": {
            "weight_bytes": made.lfp.int8.quantized.model.weight_bytes,
            "state_bytes": made.lfp.int8.quantized.state_bytes,
            "kept_float32": list(made.lfp.int8.quantized.model.keep),
        },
        "metrics": {name: none_if_nan(value) for name, value in made.metrics.items()},
        "gates": [],
        "provenance": made.provenance,
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
