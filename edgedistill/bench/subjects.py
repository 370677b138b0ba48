"""Opens the subjects of a bench: a bundle goes in, and engines in a fresh state come out with the inputs to feed them.

`lfp-student-int8` runs on the engine that is compiled for this machine, and `onnxruntime-int8` is then measured beside
it. `spike-student` and `spike-student-int8` are the fair comparison, because they are the same network on spike counts.
`spike-teacher` is the model that was distilled. `spike-teacher-published` has the published shape but was never
trained, so it is only timed. The others are peers.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from edgedistill.bench.holdout import standardize_holdout_counts
from edgedistill.bench.peers import TorchEager, WindowTeacher, dynamic_int8_graph
from edgedistill.bundle import Bundle
from edgedistill.bundle.contents import (
    SPIKE_FOLDER,
    SPIKE_MODEL,
    TEACHER_FACTS,
    WEIGHTS,
    Floats,
    Holdout,
    read_decoder_spec,
    read_smoothing_model,
    read_spike_student,
    read_teacher_facts,
    read_tensors,
)
from edgedistill.bundle.spike_student import holds_spike_student, open_spike_student
from edgedistill.config import StudentShape
from edgedistill.errors import BundleError, ConfigError, EngineError, did_you_mean
from edgedistill.numerics.smoothing import SmoothingModel
from edgedistill.runtime.compiled_engines import COMPILED, is_compiled
from edgedistill.runtime.onnx_engine import OnnxEngine

LFP_STUDENT, LFP_INT8 = "lfp-student-fp32", "lfp-student-int8"
SPIKE_STUDENT, SPIKE_INT8 = "spike-student", "spike-student-int8"
TEACHER, PUBLISHED = "spike-teacher", "spike-teacher-published"
PEER_INT8, PEER_DYNAMIC, PEER_TORCH = "onnxruntime-int8", "onnxruntime-dynamic-int8", "torch-eager"
STUDENTS = (LFP_STUDENT, LFP_INT8, PEER_INT8, SPIKE_STUDENT, SPIKE_INT8)
SUBJECTS = (*STUDENTS, TEACHER, PUBLISHED, PEER_DYNAMIC, PEER_TORCH)
OTHER_NAMES = dict.fromkeys(("onnxruntime", "onnxruntime-fp32"), LFP_STUDENT)  # the nearest spelling would mislead

TEACHER_GRAPH, PUBLISHED_GRAPH = "subjects/spike-teacher.onnx", "subjects/spike-teacher-published.onnx"
UNTRAINED = "not measured: never trained in this shape"
NOT_IN_BUNDLE = "not in the bundle: an older version wrote it; build it again"
NO_SPIKE_MODELS = "not in the bundle: built without models on spikes; `edgedistill build --spikes` trains them"
ON_SPIKES = (SPIKE_STUDENT, SPIKE_INT8, TEACHER, PUBLISHED)


class Engine(Protocol):
    """The methods by which every subject is driven."""

    @property
    def precision(self) -> str:
        """The precision as the result states it: `int8`, `float32`."""

    def step(self, bin: npt.NDArray[np.floating[Any]]) -> Floats:
        """Returns the kinematics (K,) of one bin."""

    def reset(self) -> None:
        """Starts a fresh stream."""

    def export_state(self) -> dict[str, npt.NDArray[Any]]:
        """Returns what is remembered from bin to bin."""


@dataclass(frozen=True, eq=False)
class Candidate:
    """A subject that is ready to be measured."""

    name: str
    engine: Engine
    runs_on: str  # "c", "cuda", "tensorrt", "onnxruntime", "torch"
    inputs: Floats  # (T, channels or units) of the holdout
    params: int
    artifact_bytes: int
    smoothing: SmoothingModel | None = None  # of its outputs, where the engine does not smooth them itself
    without_r2: str | None = None  # why it has no R²
    precision: str | None = None  # where it differs from the engine's own

    def decode(self, inputs: Floats) -> Floats:
        """Streams inputs (T, C) from a fresh state, and returns the kinematics (T, K) as the decoder gives them out."""
        self.engine.reset()
        raw = np.stack([self.engine.step(bin) for bin in inputs])
        return raw if self.smoothing is None else self.smoothing.run(raw)


@dataclass(frozen=True)
class Absent:
    """A subject that this machine cannot run or this bundle does not hold."""

    name: str
    reason: str


def open_candidates(
    bundle: Bundle, holdout: Holdout, engine: str, wanted: tuple[str, ...] = SUBJECTS, required: bool = True
) -> tuple[list[Candidate], list[Absent]]:
    """Returns those of `wanted` that can run here, and the others with the reason.

    The LFP student in INT8 runs on `engine`. Raises EngineError where that cannot run and is `required`, BundleError
    where the holdout does not fit a model.
    """
    found: list[Candidate] = []
    absent: list[Absent] = []
    for name, open_one in _list_openers(bundle, holdout, engine):
        if name not in wanted:
            continue
        try:
            found.append(open_one())
        except EngineError as error:
            if name == LFP_INT8 and required:  # its engine was chosen, so no other one may take its place
                raise
            absent.append(Absent(name, f"{error.what} ({error.got})" if error.got else error.what))
    known = {c.name for c in found} | {a.name for a in absent} | ({PEER_INT8} if engine not in COMPILED else set())
    missing = [name for name in wanted if name not in known]
    return found, absent + [Absent(name, explain_missing(bundle, name)) for name in missing]


def explain_missing(bundle: Bundle, name: str) -> str:
    """Returns why a bundle does not hold a subject."""
    without = SPIKE_MODEL not in bundle.names
    return NO_SPIKE_MODELS if without and name in ON_SPIKES else NOT_IN_BUNDLE


def _list_openers(bundle: Bundle, holdout: Holdout, engine: str) -> Iterator[tuple[str, Callable[[], Candidate]]]:
    shape = read_decoder_spec(bundle).shape
    _require_fits(bundle, LFP_STUDENT, shape, holdout.bins)
    yield LFP_STUDENT, lambda: _open_graph(bundle, LFP_STUDENT, "", "student.onnx", shape, holdout.bins)
    if engine in COMPILED:
        yield LFP_INT8, lambda: _open_compiled(bundle, engine, shape, holdout.bins)
    if _holds(bundle, "student.int8.onnx"):
        name = PEER_INT8 if engine in COMPILED else LFP_INT8
        yield name, lambda: _open_graph(bundle, name, "", "student.int8.onnx", shape, holdout.bins)
    if _holds(bundle, SPIKE_FOLDER + "student.onnx"):
        student = read_spike_student(bundle)
        spikes, counts = student.shape, standardize_holdout_counts(bundle, holdout, student)
        _require_fits(bundle, SPIKE_STUDENT, spikes, counts)
        yield SPIKE_STUDENT, lambda: _open_graph(bundle, SPIKE_STUDENT, SPIKE_FOLDER, "student.onnx", spikes, counts)
        if engine in COMPILED and holds_spike_student(bundle) and is_compiled(open_spike_student(bundle), engine):
            yield SPIKE_INT8, lambda: _open_compiled_spikes(bundle, engine, spikes, counts)
        elif _holds(bundle, SPIKE_FOLDER + "student.int8.onnx"):
            yield SPIKE_INT8, lambda: _open_graph(bundle, SPIKE_INT8, SPIKE_FOLDER, "student.int8.onnx", spikes, counts)
        for name, graph in ((TEACHER, TEACHER_GRAPH), (PUBLISHED, PUBLISHED_GRAPH)):
            if {graph, TEACHER_FACTS} <= set(bundle.names):
                yield name, lambda name=name, graph=graph: _open_teacher(bundle, name, graph, counts)  # type: ignore[misc]
    yield PEER_DYNAMIC, lambda: _open_dynamic_int8(bundle, shape, holdout.bins)
    yield PEER_TORCH, lambda: _open_torch(bundle, shape, holdout.bins)


def _holds(bundle: Bundle, file: str) -> bool:
    """Returns whether the bundle holds a graph, or says why it was left out."""
    return file in bundle.names or bundle.manifest.why_left_out(file) is not None


def _require_fits(bundle: Bundle, name: str, shape: StudentShape, inputs: Floats) -> None:
    if inputs.ndim != 2 or inputs.shape[1] != shape.channels:
        raise BundleError(
            f"{bundle.path}: 'holdout.npz' does not fit '{name}'",
            got=f"bins of shape {inputs.shape}",
            expected=f"(bins, {shape.channels})",
        )


# ---------------------------------------------------------------- how each is opened


def _require_usable(bundle: Bundle, file: str) -> None:
    """Raises EngineError where the build marked this graph as unusable."""
    if (reason := bundle.manifest.why_left_out(file)) is not None:
        raise EngineError(f"`edgedistill build` marked {file} as unusable: {reason}")


def _open_graph(bundle: Bundle, name: str, folder: str, file: str, shape: StudentShape, inputs: Floats) -> Candidate:
    _require_usable(bundle, folder + file)
    graph = bundle.read(folder + file)
    engine, params = OnnxEngine(graph, shape), _count_params(bundle, folder)
    smoothing = read_smoothing_model(bundle, shape, folder)
    return Candidate(name, engine, "onnxruntime", inputs, params, len(graph), smoothing)


def _open_compiled(bundle: Bundle, kind: str, shape: StudentShape, inputs: Floats) -> Candidate:
    engine = COMPILED[kind].open(bundle, shape, read_decoder_spec(bundle).front_end)
    return Candidate(LFP_INT8, engine, kind, inputs, _count_params(bundle), engine.library_bytes)


def _open_compiled_spikes(bundle: Bundle, kind: str, shape: StudentShape, counts: Floats) -> Candidate:
    view = open_spike_student(bundle)
    engine = COMPILED[kind].open(view, shape, read_decoder_spec(view).front_end)
    return Candidate(SPIKE_INT8, engine, kind, counts, _count_params(bundle, SPIKE_FOLDER), engine.library_bytes)


def _open_dynamic_int8(bundle: Bundle, shape: StudentShape, inputs: Floats) -> Candidate:
    _require_usable(bundle, "student.onnx")
    plain = bundle.read("student.onnx")
    OnnxEngine(plain, shape)  # refuses a graph that the quantizer, which has no limits, should not see
    graph = dynamic_int8_graph(plain)
    engine, params, smoothing = OnnxEngine(graph, shape), _count_params(bundle), read_smoothing_model(bundle, shape)
    return Candidate(PEER_DYNAMIC, engine, "onnxruntime", inputs, params, len(graph), smoothing, precision="int8")


def _open_torch(bundle: Bundle, shape: StudentShape, inputs: Floats) -> Candidate:
    weights = read_tensors(bundle, WEIGHTS)
    size = sum(array.nbytes for array in weights.values())
    engine, params, smoothing = TorchEager(shape, weights), _count_params(bundle), read_smoothing_model(bundle, shape)
    return Candidate(PEER_TORCH, engine, "torch", inputs, params, size, smoothing)


def _open_teacher(bundle: Bundle, name: str, file: str, counts: Floats) -> Candidate:
    graph, params = bundle.read(file), read_teacher_facts(bundle)[name].params
    engine = WindowTeacher(graph)
    if engine.units != counts.shape[1]:
        raise EngineError("the teacher's graph does not fit the holdout", got=engine.units, expected=counts.shape[1])
    if name == PUBLISHED:
        return Candidate(name, engine, "onnxruntime", counts, params, 4 * params, without_r2=UNTRAINED)
    return Candidate(name, engine, "onnxruntime", counts, params, len(graph))


def _count_params(bundle: Bundle, folder: str = "") -> int:
    return sum(tensor.size for tensor in read_tensors(bundle, folder + WEIGHTS).values())


def select_subjects(against: tuple[str, ...]) -> tuple[str, ...]:
    """Returns the LFP student and the subjects of `against`, or all subjects if `against` is empty.

    Raises ConfigError for an unknown name.
    """
    for name in against:
        if name in OTHER_NAMES:
            raise ConfigError(
                f"unknown subject '{name}'", expected=f"'{OTHER_NAMES[name]}', which is the same and always measured"
            )
        if name not in SUBJECTS:
            raise ConfigError(f"unknown subject '{name}'", expected=did_you_mean(name, SUBJECTS))
    return tuple(dict.fromkeys((LFP_STUDENT, LFP_INT8, *against))) if against else SUBJECTS
