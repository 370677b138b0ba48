"""What a bench compares, before it is measured: a bundle in, engines in a fresh state and what to feed them out.

`lfp-student-int8` runs on the engine that is compiled for this machine, and `onnxruntime-int8` then stands beside it;
`spike-student` and `spike-student-int8` are the fair comparison, the same network on spike counts; `spike-teacher` is
what was distilled, as it would have to run. `spike-teacher-published` has the published shape and no training: it is
timed only. The rest are peers.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from edgedistill.bench.holdout import spike_counts
from edgedistill.bench.peers import TorchEager, WindowTeacher, dynamic_int8_graph
from edgedistill.bundle import Bundle
from edgedistill.bundle.contents import (
    SPIKE_FOLDER,
    WEIGHTS,
    Floats,
    Holdout,
    read_decoder_spec,
    read_teacher_facts,
    read_tensors,
)
from edgedistill.bundle.contents import TEACHER_FACTS as TEACHER_FACTS
from edgedistill.bundle.spike_student import holds_spike_student, open_spike_student
from edgedistill.config import StudentShape
from edgedistill.errors import BundleError, ConfigError, EngineError, did_you_mean
from edgedistill.runtime.compiled_engines import COMPILED, is_compiled
from edgedistill.runtime.onnx_engine import OnnxEngine

LFP_STUDENT, LFP_INT8 = "lfp-student-fp32", "lfp-student-int8"
SPIKE_STUDENT, SPIKE_INT8 = "spike-student", "spike-student-int8"
TEACHER, PUBLISHED = "spike-teacher", "spike-teacher-published"
PEER_INT8, PEER_DYNAMIC, PEER_TORCH = "onnxruntime-int8", "onnxruntime-dynamic-int8", "torch-eager"
STUDENTS = (LFP_STUDENT, LFP_INT8, PEER_INT8, SPIKE_STUDENT, SPIKE_INT8)
SUBJECTS = (*STUDENTS, TEACHER, PUBLISHED, PEER_DYNAMIC, PEER_TORCH)

TEACHER_GRAPH, PUBLISHED_GRAPH = "subjects/spike-teacher.onnx", "subjects/spike-teacher-published.onnx"
UNTRAINED = "not measured: never trained in this shape"
NOT_IN_BUNDLE = "the bundle does not hold it, or was written by an older version: build it again"


class Engine(Protocol):
    """What every subject is driven by."""

    @property
    def precision(self) -> str:
        """As it stands in the result."""

    def step(self, bin: npt.NDArray[np.floating[Any]]) -> Floats:
        """Kinematics (K,) of one bin."""

    def reset(self) -> None:
        """A fresh stream."""

    def export_state(self) -> dict[str, npt.NDArray[Any]]:
        """What is remembered from bin to bin."""


@dataclass(frozen=True, eq=False)
class Candidate:
    """A subject before it is measured."""

    name: str
    engine: Engine
    runs_on: str  # "c", "cuda", "tensorrt", "onnxruntime", "torch"
    inputs: Floats  # (T, channels or units) of the holdout
    params: int
    artifact_bytes: int
    without_r2: str | None = None  # why it has none
    precision: str | None = None  # where it is not that of the engine's keys and values


@dataclass(frozen=True)
class Absent:
    """A subject that this machine or this bundle does not have."""

    name: str
    reason: str


def candidates_of_bundle(
    bundle: Bundle, holdout: Holdout, engine: str, wanted: tuple[str, ...] = SUBJECTS, required: bool = True
) -> tuple[list[Candidate], list[Absent]]:
    """Those of `wanted` that can run here, the LFP student in INT8 on `engine`, and the others with the reason.

    EngineError where `engine` cannot run and is `required`.
    """
    found: list[Candidate] = []
    absent: list[Absent] = []
    for name, make in _makers(bundle, holdout, engine):
        if name not in wanted:
            continue
        try:
            found.append(make())
        except EngineError as error:
            if name == LFP_INT8 and required:  # what it runs on was chosen: never another instead
                raise
            absent.append(Absent(name, f"{error.what} ({error.got})" if error.got else error.what))
    known = {c.name for c in found} | {a.name for a in absent} | ({PEER_INT8} if engine not in COMPILED else set())
    return found, absent + [Absent(name, NOT_IN_BUNDLE) for name in wanted if name not in known]


def _makers(bundle: Bundle, holdout: Holdout, engine: str) -> Iterator[tuple[str, Callable[[], Candidate]]]:
    shape = read_decoder_spec(bundle).shape
    _require_fits(bundle, LFP_STUDENT, shape, holdout.bins)
    yield LFP_STUDENT, lambda: _graph(bundle, LFP_STUDENT, "", "student.onnx", shape, holdout.bins)
    if engine in COMPILED:
        yield LFP_INT8, lambda: _compiled(bundle, engine, shape, holdout.bins)
    if _holds(bundle, "student.int8.onnx"):
        name = PEER_INT8 if engine in COMPILED else LFP_INT8
        yield name, lambda: _graph(bundle, name, "", "student.int8.onnx", shape, holdout.bins)
    if _holds(bundle, SPIKE_FOLDER + "student.onnx"):
        spikes, counts = spike_counts(bundle, holdout)
        _require_fits(bundle, SPIKE_STUDENT, spikes, counts)
        yield SPIKE_STUDENT, lambda: _graph(bundle, SPIKE_STUDENT, SPIKE_FOLDER, "student.onnx", spikes, counts)
        if engine in COMPILED and holds_spike_student(bundle) and is_compiled(open_spike_student(bundle), engine):
            yield SPIKE_INT8, lambda: _compiled_spikes(bundle, engine, spikes, counts)
        elif _holds(bundle, SPIKE_FOLDER + "student.int8.onnx"):
            yield SPIKE_INT8, lambda: _graph(bundle, SPIKE_INT8, SPIKE_FOLDER, "student.int8.onnx", spikes, counts)
        for name, graph in ((TEACHER, TEACHER_GRAPH), (PUBLISHED, PUBLISHED_GRAPH)):
            if {graph, TEACHER_FACTS} <= set(bundle.names):
                yield name, lambda name=name, graph=graph: _teacher(bundle, name, graph, counts)  # type: ignore[misc]
    yield PEER_DYNAMIC, lambda: _dynamic(bundle, shape, holdout.bins)
    yield PEER_TORCH, lambda: _eager(bundle, shape, holdout.bins)


def _holds(bundle: Bundle, file: str) -> bool:
    """Whether a graph is there, or is known to be left out: the reason is told then."""
    return file in bundle.names or bundle.manifest.why_left_out(file) is not None


def _require_fits(bundle: Bundle, name: str, shape: StudentShape, inputs: Floats) -> None:
    if inputs.ndim != 2 or inputs.shape[1] != shape.channels:
        raise BundleError(
            f"{bundle.path}: 'holdout.npz' does not fit '{name}'",
            got=f"bins of shape {inputs.shape}",
            expected=f"(bins, {shape.channels})",
        )


# ---------------------------------------------------------------- one of each


def _require_usable(bundle: Bundle, file: str) -> None:
    """Raises EngineError where the build marked this graph as unusable."""
    if (reason := bundle.manifest.why_left_out(file)) is not None:
        raise EngineError(f"`edgedistill build` marked {file} as unusable: {reason}")


def _graph(bundle: Bundle, name: str, folder: str, file: str, shape: StudentShape, inputs: Floats) -> Candidate:
    _require_usable(bundle, folder + file)
    graph = bundle.read(folder + file)
    return Candidate(name, OnnxEngine(graph, shape), "onnxruntime", inputs, _params(bundle, folder), len(graph))


def _compiled(bundle: Bundle, kind: str, shape: StudentShape, inputs: Floats) -> Candidate:
    engine = COMPILED[kind].open(bundle, shape, read_decoder_spec(bundle).front_end)
    return Candidate(LFP_INT8, engine, kind, inputs, _params(bundle), engine.library_bytes)


def _compiled_spikes(bundle: Bundle, kind: str, shape: StudentShape, counts: Floats) -> Candidate:
    view = open_spike_student(bundle)
    engine = COMPILED[kind].open(view, shape, read_decoder_spec(view).front_end)
    return Candidate(SPIKE_INT8, engine, kind, counts, _params(bundle, SPIKE_FOLDER), engine.library_bytes)


def _dynamic(bundle: Bundle, shape: StudentShape, inputs: Floats) -> Candidate:
    _require_usable(bundle, "student.onnx")
    graph = dynamic_int8_graph(bundle.read("student.onnx"))
    engine = OnnxEngine(graph, shape)
    return Candidate(PEER_DYNAMIC, engine, "onnxruntime", inputs, _params(bundle), len(graph), precision="int8")


def _eager(bundle: Bundle, shape: StudentShape, inputs: Floats) -> Candidate:
    weights = read_tensors(bundle, WEIGHTS)
    size = sum(array.nbytes for array in weights.values())
    return Candidate(PEER_TORCH, TorchEager(shape, weights), "torch", inputs, _params(bundle), size)


def _teacher(bundle: Bundle, name: str, file: str, counts: Floats) -> Candidate:
    graph, params = bundle.read(file), read_teacher_facts(bundle)[name].params
    engine = WindowTeacher(graph)
    if name == PUBLISHED:
        return Candidate(name, engine, "onnxruntime", counts, params, 4 * params, without_r2=UNTRAINED)
    return Candidate(name, engine, "onnxruntime", counts, params, len(graph))


def _params(bundle: Bundle, folder: str = "") -> int:
    return sum(tensor.size for tensor in read_tensors(bundle, folder + WEIGHTS).values())


def chosen(against: tuple[str, ...]) -> tuple[str, ...]:
    """The LFP student and those it is to be compared with; all without a choice. ConfigError for an unknown name."""
    for name in against:
        if name not in SUBJECTS:
            raise ConfigError(f"unknown subject '{name}'", expected=did_you_mean(name, SUBJECTS))
    return (LFP_STUDENT, LFP_INT8, *against) if against else SUBJECTS
