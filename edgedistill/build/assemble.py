"""What goes into a bundle: students in float32, float16 and INT8, the spike student, holdout and reference.

Comes in: trained students with their read-outs and integers, the session they decode. Goes out: the bundle on disk,
with a verdict on every step graph in it, and the gates of its target judged on it.
"""

from __future__ import annotations

import io
import json
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
from safetensors.numpy import save

from edgedistill import __version__
from edgedistill.build.quantize import RANGES, Int8Student
from edgedistill.build.reference import (
    FLOAT_GRAPH,
    HALF_GRAPH,
    PLAIN_GRAPH,
    PLUGIN_GRAPH,
    holdout_stretch,
    judge_float_graphs,
    judge_int8_graphs,
    reference,
    refused,
)
from edgedistill.build.run import TeacherSubject
from edgedistill.bundle import GraphVerdict, left_out, open_bundle, write_bundle
from edgedistill.bundle.graph_verdicts import GRAPHS_KEY
from edgedistill.compile.built_folder import CompiledEngine
from edgedistill.compile.engines import compile_or_prepare, compile_spike_student
from edgedistill.config import StudentShape, load_preset
from edgedistill.data.recording import open_recording
from edgedistill.data.windows import SessionBins
from edgedistill.errors import EngineError
from edgedistill.frontend import FrontEnd, group_delay_ms
from edgedistill.models.student import Student
from edgedistill.quantization.deployment import deployed_weights
from edgedistill.quantization.onnx_graph import graph_for_plugin, graph_from_integers, graph_from_student
from edgedistill.quantization.onnx_graph.teacher_window import graph_from_teacher, parameters_of, timing_graph
from edgedistill.runtime.compiled import COMPILED
from edgedistill.runtime.spike_view import FOLDER as SPIKE_FOLDER
from edgedistill.subjects import QUICK, bench
from edgedistill.subjects.candidates import PUBLISHED, PUBLISHED_GRAPH, TEACHER, TEACHER_FACTS, TEACHER_GRAPH
from edgedistill.target import Gate, Target
from edgedistill.training.batches import TrainingSession
from edgedistill.training.evaluate import Readout, behaviour_of

GRAPHS = (FLOAT_GRAPH, HALF_GRAPH, PLAIN_GRAPH, PLUGIN_GRAPH)
ENGINE_GRAPHS = {  # one of these is enough
    "onnxruntime": (FLOAT_GRAPH,),
    "onnxruntime-int8": (PLAIN_GRAPH,),
    "tensorrt": (PLUGIN_GRAPH, PLAIN_GRAPH, HALF_GRAPH),
}
SUBSTITUTES, ORACLE = ("onnxruntime-int8", "onnxruntime"), "oracle"  # of a default engine that may not be used
DEFAULT_USABLE = "default_engine_usable"  # a gate: 1 where the target's engine may be used
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


@dataclass(frozen=True, eq=False)
class Written:
    """What came of a bundle that was written."""

    gates: tuple[Gate, ...]
    compiled: CompiledEngine | None
    graphs: dict[str, GraphVerdict]  # by file name


def write_decoder_bundle(made: Ingredients) -> Written:
    """Writes the bundle, judges its graphs, compiles its engine and measures it.

    A graph that decodes something else than it should stays out of use, with the reason in the manifest; the bundle is
    written all the same. Where that leaves the target's engine nothing to run, `DEFAULT_USABLE` is a gate that is
    missed, and another engine decodes by default.
    """
    files, shape, graphs = subject_files(made.lfp, made.session, "lfp")
    spikes, spike_shape, spike_graphs = subject_files(made.spikes, made.session, "spikes")
    mean, std = made.session.spike_normalization
    facts = {"model": spike_shape.to_json(), "normalization": {"mean": mean.tolist(), "std": std.tolist()}}
    spikes["model.json"] = json.dumps(facts).encode()
    files |= {SPIKE_FOLDER + name: data for name, data in spikes.items()}
    graphs |= {SPIKE_FOLDER + name: verdict for name, verdict in spike_graphs.items()}
    files |= teacher_files(made, spike_shape.outputs)
    files["reference.npz"] = npz(reference(made.lfp.int8.quantized.model, made.session))
    files["holdout.npz"] = holdout(made, shape)
    contents = manifest(made, shape, graphs)
    write_bundle(made.out, contents, files)
    first = compiled(made, graphs)
    sizes = {f"{name}_bytes": float(size) for name, size in first.record.sizes.items()} if first else {}
    figures, why = measured(made, graphs)
    gates = made.target.judge({**figures, **sizes, "int8_r2_drop": int8_r2_drop(made.metrics)}, why)
    gates += default_gate(made, graphs)
    write_bundle(made.out, {**contents, "gates": [asdict(gate) for gate in gates]}, files)
    final = compiled(made, graphs)  # once more: a library belongs to one manifest, and that now holds the gates
    if final is not None and final.lacking is None:
        compile_spike_student(open_bundle(made.out), made.target)
    return Written(gates, final, graphs)


def measured(made: Ingredients, graphs: Mapping[str, GraphVerdict]) -> tuple[dict[str, float | None], dict[str, str]]:
    """The figures that gates are set on, and why one is missing; none where no engine is left that a bench runs."""
    try:
        found = bench(open_bundle(made.out), QUICK)
    except EngineError as error:
        if not left_out(graphs):
            raise
        return {}, dict.fromkeys(("step_p99_us", "deployed_r2"), error.what)
    return found.figures, found.why


def compiled(made: Ingredients, graphs: Mapping[str, GraphVerdict]) -> CompiledEngine | None:
    """Compiles the bundle's engine for its target, or prepares it for the device; None where nothing is compiled."""
    return compile_or_prepare(open_bundle(made.out), made.target) if engine_of(made, graphs) in COMPILED else None


def engine_of(made: Ingredients, graphs: Mapping[str, GraphVerdict]) -> str:
    """What decodes this bundle by default: the target's engine, or the first of the others whose graphs are usable.

    The oracle is always there: it reads integers and no graph.
    """
    usable = (name for name in (wanted_engine(made), *SUBSTITUTES) if not why_engine_is_off(name, graphs))
    return next(usable, ORACLE)


def wanted_engine(made: Ingredients) -> str:
    """The engine of the target; a zip has no place for a compiled library."""
    return "onnxruntime" if made.out.suffix == ".zip" else made.target.engine


def why_engine_is_off(engine: str, graphs: Mapping[str, GraphVerdict]) -> str | None:
    """Why none of the graphs that an engine runs may be used; None where one may, or where it runs none."""
    off, needs = left_out(graphs), ENGINE_GRAPHS.get(engine, ())
    return "; ".join(f"{name}: {off[name]}" for name in needs) if needs and off.keys() >= set(needs) else None


def default_gate(made: Ingredients, graphs: Mapping[str, GraphVerdict]) -> tuple[Gate, ...]:
    """A gate that is missed where the target's engine has no usable graph; nothing where it has one."""
    wanted = wanted_engine(made)
    reason = why_engine_is_off(wanted, graphs)
    if reason is None:
        return ()
    told = f"'{engine_of(made, graphs)}' decodes by default in place of '{wanted}': {reason}"
    return (Gate(DEFAULT_USABLE, 0.0, 1.0, False, told),)


def int8_r2_drop(metrics: dict[str, float | None]) -> float | None:
    """What INT8 costs: R² of the float student that ships less that of the INT8 one, both streamed."""
    whole, eight = metrics["deployed_r2"], metrics["int8_r2"]
    return None if none_if_nan(whole) is None or none_if_nan(eight) is None else whole - eight  # type: ignore[operator]


def subject_files(
    subject: Subject, session: TrainingSession, modality: str
) -> tuple[dict[str, bytes], StudentShape, dict[str, GraphVerdict]]:
    """A student's files in all precisions, for one session, and what became of each of its graphs."""
    files, shape, unwritten = student_files(subject.student, session.id, subject.readout)
    int8, unwritten_int8 = int8_files(subject.int8)
    verdicts = unwritten | unwritten_int8
    verdicts |= judge_float_graphs(subject.student, subject.readout, session, shape, files, modality)
    verdicts |= judge_int8_graphs(subject.int8.quantized.model, session, int8, modality)
    return files | int8, shape, {name: verdicts[name] for name in GRAPHS}


def student_files(
    student: Student, session: str, readout: Readout
) -> tuple[dict[str, bytes], StudentShape, dict[str, GraphVerdict]]:
    """`student.safetensors` and the float graphs of one session, read-out folded in; and which could not be written."""
    weights, shape = deployed_weights(student, session, readout)
    graphs, unwritten = written(
        {
            FLOAT_GRAPH: lambda: graph_from_student(shape, weights),
            HALF_GRAPH: lambda: graph_from_student(shape, weights, "float16"),
        }
    )
    return {"student.safetensors": save(weights), **graphs}, shape, unwritten


def int8_files(int8: Int8Student) -> tuple[dict[str, bytes], dict[str, GraphVerdict]]:
    """Integers, the two forms of their graph, and the ranges they came from; and which could not be written."""
    model = int8.quantized.model
    graphs, unwritten = written(
        {
            PLAIN_GRAPH: lambda: graph_from_integers(model.shape, model.tensors),
            PLUGIN_GRAPH: lambda: graph_for_plugin(model.shape, model.tensors),
        }
    )
    ranges = json.dumps(int8.ranges.to_json(), indent=1).encode()
    return {"student.int8.safetensors": save(dict(model.tensors)), **graphs, RANGES: ranges}, unwritten


def written(writers: Mapping[str, Callable[[], onnx.ModelProto]]) -> tuple[dict[str, bytes], dict[str, GraphVerdict]]:
    """The bytes of each graph that could be written, and a verdict on each that could not."""
    made = {name: _bytes_or_verdict(write) for name, write in writers.items()}
    graphs = {name: graph for name, graph in made.items() if isinstance(graph, bytes)}
    return graphs, {name: verdict for name, verdict in made.items() if isinstance(verdict, GraphVerdict)}


def _bytes_or_verdict(write: Callable[[], onnx.ModelProto]) -> bytes | GraphVerdict:
    try:
        return bytes(write().SerializeToString())
    except EngineError as error:  # float16 cannot hold its weights, or it breaks a rule of TensorRT's
        return refused(error)


def teacher_files(made: Ingredients, outputs: int) -> dict[str, bytes]:
    """The spike teacher over its window, and one of the published shape that can only be timed."""
    teacher, session, paper = made.teacher, made.session.id, load_preset("paper")
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


def holdout(made: Ingredients, shape: StudentShape) -> bytes:
    """The test block as bins, counts and kinematics, after a run-up of one receptive field; and raw frames."""
    block, stretch = made.session.split.test, holdout_stretch(made.session, shape)
    first = stretch.start
    assert made.session.counts is not None
    arrays = {
        "bins": made.session.inputs("lfp")[stretch].numpy(),
        "counts": made.session.counts[stretch].numpy().astype(np.uint8),
        "kinematics": behaviour_of(made.session)[stretch].astype(np.float32),
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


def manifest(made: Ingredients, shape: StudentShape, graphs: Mapping[str, GraphVerdict]) -> dict[str, object]:
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
        "engine": engine_of(made, graphs),
        "recipe": made.lfp.int8.ranges.recipe.name,
        "int8": {
            "weight_bytes": made.lfp.int8.quantized.model.weight_bytes,
            "state_bytes": made.lfp.int8.quantized.state_bytes,
            "kept_float32": list(made.lfp.int8.quantized.model.keep),
        },
        "metrics": {name: none_if_nan(value) for name, value in made.metrics.items()},
        "gates": [],
        GRAPHS_KEY: {name: verdict.to_json() for name, verdict in graphs.items()},
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
