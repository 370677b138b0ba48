"""Writes the files of the students, teachers and ridge of a bundle, with a verdict on every step graph among them.

A trained student with its read-out and its integers goes in. Its weights, graphs and ranges come out as bytes, with one
`GraphVerdict` for each graph. A graph that cannot be written, or whose output differs too much, must not be used.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
import onnx
from safetensors.numpy import save

from edgedistill.bench.subjects import PUBLISHED, PUBLISHED_GRAPH, TEACHER, TEACHER_GRAPH
from edgedistill.bundle import GraphVerdict
from edgedistill.bundle.contents import RIDGE_SMOOTHING, SMOOTHING_TENSORS, TEACHER_FACTS
from edgedistill.config import StudentShape, load_preset
from edgedistill.errors import EngineError
from edgedistill.models.student import Student
from edgedistill.numerics.smoothing import SmoothingModel
from edgedistill.pipeline.graph_checks import (
    FLOAT_GRAPH,
    HALF_GRAPH,
    PLAIN_GRAPH,
    PLUGIN_GRAPH,
    judge_float_graphs,
    judge_int8_graphs,
    refuse_graph,
)
from edgedistill.pipeline.quantized import Int8Student
from edgedistill.pipeline.ranges import RANGES
from edgedistill.pipeline.teacher import TeacherSubject
from edgedistill.quantization.deployment import weights_from_student
from edgedistill.quantization.onnx_graph import graph_for_plugin, graph_from_integers, graph_from_student
from edgedistill.quantization.onnx_graph.teacher_window import count_parameters, graph_from_teacher, make_timing_graph
from edgedistill.training.baselines import LaggedRidge
from edgedistill.training.batches import TrainingSession
from edgedistill.training.evaluate import Readout

GRAPHS = (FLOAT_GRAPH, HALF_GRAPH, PLAIN_GRAPH, PLUGIN_GRAPH)

Files = dict[str, bytes]
Verdicts = dict[str, GraphVerdict]  # by file name


@dataclass(frozen=True, eq=False)
class Subject:
    """Holds one student of a bundle."""

    student: Student
    readout: Readout
    int8: Int8Student


def write_subject(subject: Subject, session: TrainingSession, modality: str) -> tuple[Files, StudentShape, Verdicts]:
    """Returns a student's files in all precisions for one session, its shape, and a verdict on each of its graphs."""
    files, shape, unwritten = write_student(subject.student, session.id, subject.readout)
    int8, unwritten_int8 = write_integers(subject.int8)
    verdicts = unwritten | unwritten_int8
    verdicts |= judge_float_graphs(subject.student, subject.readout, session, shape, files, modality)
    verdicts |= judge_int8_graphs(subject.int8.quantized.model, session, int8, modality)
    return files | int8, shape, {name: verdicts[name] for name in GRAPHS}


def write_student(student: Student, session: str, readout: Readout) -> tuple[Files, StudentShape, Verdicts]:
    """Returns `student.safetensors` and the float graphs of one session, with the read-out folded in.

    The dictionary of verdicts names each graph that could not be written.
    """
    weights, shape = weights_from_student(student, session, readout)
    graphs, unwritten = write_graphs(
        {
            FLOAT_GRAPH: lambda: graph_from_student(shape, weights),
            HALF_GRAPH: lambda: graph_from_student(shape, weights, "float16"),
        }
    )
    return {"student.safetensors": save(weights), **graphs}, shape, unwritten


def write_integers(int8: Int8Student) -> tuple[Files, Verdicts]:
    """Returns the integers, both forms of their graph, and the ranges that they came from.

    The dictionary of verdicts names each graph that could not be written.
    """
    model = int8.quantized.model
    graphs, unwritten = write_graphs(
        {
            PLAIN_GRAPH: lambda: graph_from_integers(model.shape, model.tensors),
            PLUGIN_GRAPH: lambda: graph_for_plugin(model.shape, model.tensors),
        }
    )
    ranges = json.dumps(int8.ranges.to_json(), indent=1).encode()
    return {"student.int8.safetensors": save(model.to_file()), **graphs, RANGES: ranges}, unwritten


def write_graphs(writers: Mapping[str, Callable[[], onnx.ModelProto]]) -> tuple[Files, Verdicts]:
    """Returns the bytes of each graph that could be written, and a verdict on each that could not."""
    tried = {name: _write_graph(write) for name, write in writers.items()}
    graphs = {name: graph for name, graph in tried.items() if isinstance(graph, bytes)}
    return graphs, {name: verdict for name, verdict in tried.items() if isinstance(verdict, GraphVerdict)}


def _write_graph(write: Callable[[], onnx.ModelProto]) -> bytes | GraphVerdict:
    try:
        return bytes(write().SerializeToString())
    except EngineError as error:  # a weight is too large for float16, or TensorRT would refuse the graph
        return refuse_graph(error)


def write_teachers(teacher: TeacherSubject, session: str, outputs: int) -> Files:
    """Returns a graph of the spike teacher, and one of the published teacher's shape, which has no trained weights.

    The second graph can only be timed.
    """
    paper = load_preset("paper")
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


def write_ridge(ridge: LaggedRidge, smoothing: SmoothingModel | None) -> bytes:
    """Returns the bytes of a lagged ridge: `weight` (K, lags + 1, C), the newest bin first, `bias` and `penalty`.

    The filter of its outputs, if it has one, is `smoothing.*`.
    """
    readout = ridge.readout
    outputs, features = readout.weight.shape
    weight = readout.weight.reshape(outputs, ridge.lags + 1, features // (ridge.lags + 1))
    arrays = {"weight": weight, "bias": readout.bias, "penalty": np.array([readout.penalty])}
    if smoothing is not None:
        arrays |= {RIDGE_SMOOTHING + name: getattr(smoothing, name) for name in SMOOTHING_TENSORS}
    return save({name: np.ascontiguousarray(array, np.float32) for name, array in arrays.items()})
