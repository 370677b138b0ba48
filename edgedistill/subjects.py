"""What a bench compares: the students of a bundle, in turn, on this machine, from the bundle alone.

In: a bundle (and perhaps a recording for R²). Out: `BenchResult`: for each subject the time of a step, its
size and its R², beside the time that an empty step takes here and a description of the machine.

Subjects: `lfp-student-fp32` and `lfp-student-int8`, and the fair comparison `spike-student` and
`spike-student-int8`, the same network on spike counts. `lfp-student-int8` runs on the engine that is compiled for
this machine, and then `onnxruntime-int8` stands beside it; all else runs on onnxruntime. The spike student lies
under `subjects/spike-student/`; its `model.json` holds "model" (its shape) and, where the counts are standardised,
"normalization" {"mean", "std"}, one a unit.
"""

from __future__ import annotations

import io
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
from safetensors import SafetensorError
from safetensors.numpy import load as load_safetensors

from edgedistill.bundle import Bundle
from edgedistill.config import StudentShape
from edgedistill.errors import BundleError, ConfigError, RecordingError
from edgedistill.measure.latency import EMPTY, LatencyUs, deadline_misses, step_times
from edgedistill.measure.machine import describe_machine
from edgedistill.measure.score import Fit, fit_of
from edgedistill.runs import BINS_PER_S, matching_lfp, outputs_of_lfp
from edgedistill.runtime import Decoder, Flag
from edgedistill.runtime.abi_engine import AbiEngine
from edgedistill.runtime.compiled import COMPILED, engine_here, why_not_here
from edgedistill.runtime.decoder import described
from edgedistill.runtime.onnx_engine import OnnxEngine
from edgedistill.target import Gate, Target, load_target

if TYPE_CHECKING:
    from edgedistill.data.recording import Recording

Floats = npt.NDArray[np.float32]

LFP_STUDENT, LFP_INT8 = "lfp-student-fp32", "lfp-student-int8"
SPIKE_STUDENT, SPIKE_INT8 = "spike-student", "spike-student-int8"
PEER_INT8 = "onnxruntime-int8"
SPIKE_FOLDER = "subjects/spike-student/"
NO_ENERGY = "not measured: this version reads no power sensor on this machine"
LATENCY_KEYS = ("p50", "p95", "p99", "p999", "max")
ONE_BIN_US = 1e6 / BINS_PER_S


@dataclass(frozen=True, eq=False)
class Candidate:
    """A subject before it is measured: an engine in a fresh state and bins (T, C) to feed it."""

    name: str
    engine: OnnxEngine | AbiEngine
    inputs: Floats
    params: int
    artifact_bytes: int


@dataclass(frozen=True)
class Subject:
    """One row of a bench."""

    name: str
    engine: str
    precision: str
    params: int
    artifact_bytes: int
    state_bytes: int
    latency: LatencyUs
    deadline_us: float
    deadline_misses: int
    fit: Fit

    def to_json(self) -> dict[str, object]:
        """The row of `bench --json`."""
        return {
            "name": self.name,
            "engine": self.engine,
            "precision": self.precision,
            "params": self.params,
            "artifact_bytes": self.artifact_bytes,
            "state_bytes": self.state_bytes,
            "latency_us": _percentiles(self.latency),
            "deadline_us": self.deadline_us,
            "deadline_misses": self.deadline_misses,
            "steps": self.latency.steps,
            "energy_mj_per_step": None,
            "energy_source": NO_ENERGY,
            "r2": self.fit.r2,
            "r2_per_output": list(self.fit.per_output),
            "r2_source": self.fit.source,
        }


@dataclass(frozen=True)
class BenchResult:
    """All subjects of one run; `clock` is the empty step: what of every figure is the machine's own."""

    device: dict[str, object]
    subjects: tuple[Subject, ...]
    clock: LatencyUs
    gates: tuple[Gate, ...]
    figures: dict[str, float | None]  # that gates are set on
    why: dict[str, str]  # reasons of those that were not measured

    @property
    def ratios(self) -> dict[str, float | None]:
        """The LFP student's figures over those of the spike student; empty without one."""
        rows = {subject.name: subject for subject in self.subjects}
        if SPIKE_STUDENT not in rows:
            return {}
        ours, theirs = rows[LFP_STUDENT], rows[SPIKE_STUDENT]
        figures = {
            f"latency_{key}": (getattr(ours.latency, key), getattr(theirs.latency, key)) for key in ("p50", "p99")
        }
        figures |= {
            key: (getattr(ours, key), getattr(theirs, key)) for key in ("params", "artifact_bytes", "state_bytes")
        }
        figures |= {"r2": (ours.fit.r2, theirs.fit.r2)}
        return {key: a / b if a is not None and b else None for key, (a, b) in figures.items()}

    def to_json(self) -> dict[str, object]:
        """As documented in the README."""
        return {
            "device": self.device,
            "subjects": [subject.to_json() for subject in self.subjects],
            "ratios": self.ratios,
            "clock": _percentiles(self.clock),
            "gates": [asdict(gate) for gate in self.gates],
        }


def bench(
    bundle: Bundle, steps: int = 2000, recording: Recording | None = None, engine: str | None = None
) -> BenchResult:
    """Measure every subject: R² on the holdout, or on `recording`; then `steps` steps each, in turn.

    `engine` runs the INT8 student; without it what the bundle was built for, where that is compiled here.
    BundleError when the bundle lacks a holdout, RecordingError when the recording does not fit, EngineError when
    `engine` cannot run.
    """
    holdout = _arrays(bundle, "holdout.npz")
    engine = engine or engine_here(bundle)
    candidates = candidates_of_bundle(bundle, holdout, engine)
    if recording is None:
        fits = [fit_on_holdout(candidate, bundle, holdout) for candidate in candidates]
    else:
        own = Fit(None, (), "not measured: the spike student knows the units of its own session only")
        engines = {LFP_STUDENT: "onnxruntime", LFP_INT8: engine, PEER_INT8: "onnxruntime-int8"}
        fits = [fit_on_recording(bundle, recording, engines[c.name]) if c.name in engines else own for c in candidates]
    target = _target(bundle)
    deadline_us = target.deadline_ms * 1e3 if target else ONE_BIN_US
    times = step_times({c.name: c.engine.step for c in candidates}, {c.name: c.inputs for c in candidates}, steps=steps)
    subjects = tuple(_subject(c, times[c.name], deadline_us, fit) for c, fit in zip(candidates, fits, strict=True))
    shipped = LFP_INT8 if bundle.manifest.get("engine") in COMPILED and LFP_INT8 in times else LFP_STUDENT
    figures = figures_of(subjects, shipped, held_out=recording is None)
    why = {"step_p99_us": reason} if target and (reason := not_of_this_machine(target, bundle, engine)) else {}
    figures |= dict.fromkeys(why)  # a time belongs to the device that took it, and to what ships
    gates = target.judge(figures, why) if target else ()
    return BenchResult(describe_machine(), subjects, LatencyUs.from_times(times[EMPTY]), gates, figures, why)


def not_of_this_machine(target: Target, bundle: Bundle, engine: str) -> str | None:
    """Why a time taken here, the INT8 student on `engine`, is none of the target; None where it is."""
    ships = bundle.manifest.get("engine")
    if target.engine not in COMPILED or ships not in COMPILED:  # the graph: any machine stands for any other
        return None
    if (reason := why_not_here(bundle, target.name, target.engine)) is not None:
        return reason
    return None if engine == ships else f"the INT8 student ran on '{engine}', the bundle ships '{ships}'"


def figures_of(subjects: Sequence[Subject], shipped: str, held_out: bool) -> dict[str, float | None]:
    """What gates are set on: the time of what ships; R² on the holdout only, another recording is another question."""
    rows = {subject.name: subject for subject in subjects}
    r2, eight = rows[LFP_STUDENT].fit.r2, rows[LFP_INT8].fit.r2 if LFP_INT8 in rows else None
    drop = r2 - eight if r2 is not None and eight is not None and held_out else None
    return {"step_p99_us": rows[shipped].latency.p99, "deployed_r2": r2 if held_out else None, "int8_r2_drop": drop}


# ---------------------------------------------------------------- what is compared


def candidates_of_bundle(bundle: Bundle, holdout: dict[str, npt.NDArray[Any]], engine: str) -> list[Candidate]:
    """The LFP student, in INT8 on `engine`, and the spike student where the bundle holds one."""
    bins = _array(bundle, holdout, "bins").astype(np.float32)
    shape = _shape(bundle, bundle.manifest.get("model"), "manifest.json")
    candidates = _candidates(bundle, (LFP_STUDENT, LFP_INT8), "", shape, bins)
    if LFP_INT8 in (c.name for c in candidates) and engine in COMPILED:
        compiled, graph = _compiled(bundle, engine, shape, bins), candidates.pop()
        candidates += [compiled, replace(graph, name=PEER_INT8)]
    if SPIKE_FOLDER + "student.onnx" in bundle.names:
        model = _json(bundle, SPIKE_FOLDER + "model.json")
        shape = _shape(bundle, model.get("model"), SPIKE_FOLDER + "model.json")
        counts = standardised(_array(bundle, holdout, "counts"), model.get("normalization"))
        candidates += _candidates(bundle, (SPIKE_STUDENT, SPIKE_INT8), SPIKE_FOLDER, shape, counts)
    return candidates


def standardised(counts: npt.NDArray[Any], normalization: Any) -> Floats:
    """Counts (T, U) as the spike student takes them: (x - mean) / std, 0 where std is 0."""
    if not normalization:
        return counts.astype(np.float32)
    mean, std = (np.asarray(normalization[key], np.float64) for key in ("mean", "std"))
    scaled = np.divide(counts - mean, std, out=np.zeros(counts.shape), where=std > 0)
    return scaled.astype(np.float32)


def _compiled(bundle: Bundle, engine: str, shape: StudentShape, inputs: Floats) -> Candidate:
    """The INT8 student on a compiled engine."""
    opened = COMPILED[engine].open(bundle, shape, described(bundle, engine)[1])
    params = _parameters(bundle, "student.safetensors")
    return Candidate(LFP_INT8, opened, inputs, params, opened.library_bytes)


def _candidates(
    bundle: Bundle, names: tuple[str, str], folder: str, shape: StudentShape, inputs: Floats
) -> list[Candidate]:
    """A student in float32, and in INT8 where the bundle holds it."""
    graphs = zip(names, ("student.onnx", "student.int8.onnx"), strict=True)
    held = [(name, graph) for name, graph in graphs if graph == "student.onnx" or folder + graph in bundle.names]
    return [_candidate(bundle, name, folder, graph, shape, inputs) for name, graph in held]


def _candidate(bundle: Bundle, name: str, folder: str, file: str, shape: StudentShape, inputs: Floats) -> Candidate:
    if inputs.ndim != 2 or inputs.shape[1] != shape.channels:
        raise BundleError(
            f"{bundle.path}: 'holdout.npz' does not fit '{name}'",
            got=f"bins of shape {inputs.shape}",
            expected=f"(bins, {shape.channels})",
        )
    graph = bundle.read(folder + file)
    params = _parameters(bundle, folder + "student.safetensors")
    return Candidate(name, OnnxEngine(graph, shape), inputs, params, len(graph))


def _subject(candidate: Candidate, times: npt.NDArray[np.int64], deadline_us: float, fit: Fit) -> Subject:
    return Subject(
        name=candidate.name,
        engine=candidate.engine.engine if isinstance(candidate.engine, AbiEngine) else "onnxruntime",
        precision=candidate.engine.precision,
        params=candidate.params,
        artifact_bytes=candidate.artifact_bytes,
        state_bytes=sum(array.nbytes for array in candidate.engine.export_state().values()),
        latency=LatencyUs.from_times(times),
        deadline_us=deadline_us,
        deadline_misses=deadline_misses(times, deadline_us),
        fit=fit,
    )


# ---------------------------------------------------------------- R²


def fit_on_holdout(candidate: Candidate, bundle: Bundle, holdout: dict[str, npt.NDArray[Any]]) -> Fit:
    """R² by streaming over the holdout from a fresh state; bins from `score_from` on count."""
    truth = _array(bundle, holdout, "kinematics")
    candidate.engine.reset()
    guess = np.stack([candidate.engine.step(bin) for bin in candidate.inputs])
    if guess.shape != truth.shape:
        got = f"kinematics {truth.shape}, decoded {guess.shape}"
        raise BundleError(f"{bundle.path}: 'holdout.npz' contradicts itself", got=got)
    first = int(holdout.get("score_from", np.array(0)))
    return fit_of(guess[first:], truth[first:], "holdout of the bundle")


def fit_on_recording(bundle: Bundle, recording: Recording, engine: str = "onnxruntime") -> Fit:
    """R² over a recording, streamed from raw frames; warm-up and invalid bins do not count.

    RecordingError for other channels, another rate or other outputs than the bundle's.
    """
    decoder = Decoder(bundle, engine)
    lfp = matching_lfp(decoder.info, recording)
    recording.require(("behaviour",))
    behaviour = recording.behaviour
    assert behaviour is not None
    wanted = (decoder.info.output_names, decoder.info.output_units)
    if (behaviour.names, behaviour.units) != wanted:
        raise RecordingError(
            f"{recording.path}: its behaviour is not what the bundle decodes",
            got=_listed(behaviour.names, behaviour.units),
            expected=_listed(*wanted),
            next_step="name the series that was decoded with --behavior",
        )
    outputs = [o for o in outputs_of_lfp(decoder, lfp) if not o.flags & (Flag.WARMUP | Flag.INVALID)]
    ends_s = lfp.start_s + (np.array([o.bin for o in outputs], np.float64) + 1) / BINS_PER_S
    guess = np.array([o.kinematics for o in outputs], np.float32).reshape(len(outputs), -1)
    return fit_of(guess, behaviour.at(ends_s), f"{recording.path}{seen_by(bundle, recording)}")


def seen_by(bundle: Bundle, recording: Recording) -> str:
    """A warning where the recording is one the bundle was trained on: R² over all of it is not held out."""
    from edgedistill.data.windows import file_sha256

    sessions = (bundle.manifest.get("provenance") or {}).get("sessions") or {}
    seen = file_sha256(recording.path) in sessions.values()
    return ", which the bundle was trained on: not held out" if seen else ""


# ---------------------------------------------------------------- reading the bundle


def _target(bundle: Bundle) -> Target | None:
    """The profile the bundle was built for, where this installation knows it."""
    try:
        return load_target(str(bundle.manifest.get("target")))
    except ConfigError:
        return None


def _arrays(bundle: Bundle, name: str) -> dict[str, npt.NDArray[Any]]:
    with np.load(io.BytesIO(bundle.read(name)), allow_pickle=False) as stored:
        return {key: stored[key] for key in stored if key in ("bins", "counts", "kinematics", "score_from")}


def _array(bundle: Bundle, arrays: dict[str, npt.NDArray[Any]], name: str) -> npt.NDArray[Any]:
    if name not in arrays or not len(arrays[name]):
        raise BundleError(f"{bundle.path}: 'holdout.npz' holds no '{name}'", got=sorted(arrays))
    return arrays[name]


def _shape(bundle: Bundle, found: object, name: str) -> StudentShape:
    if not isinstance(found, dict):
        raise BundleError(f"{bundle.path}: '{name}' does not describe a model", got=repr(found))
    return StudentShape.from_json(found, f"{bundle.path}: '{name}', model")


def _json(bundle: Bundle, name: str) -> dict[str, Any]:
    found = json.loads(bundle.read(name))
    if not isinstance(found, dict):
        raise BundleError(f"{bundle.path}: '{name}' does not describe a model", got=repr(found))
    return found


def _parameters(bundle: Bundle, name: str) -> int:
    try:
        return sum(tensor.size for tensor in load_safetensors(bundle.read(name)).values())
    except SafetensorError as error:
        raise BundleError(f"{bundle.path}: '{name}' is not a safetensors file", got=error) from error


def _percentiles(latency: LatencyUs) -> dict[str, float]:
    return {key: getattr(latency, key) for key in LATENCY_KEYS}


def _listed(names: Sequence[str], units: Sequence[str]) -> str:
    return ", ".join(f"{name} ({unit})" for name, unit in zip(names, units, strict=True))
