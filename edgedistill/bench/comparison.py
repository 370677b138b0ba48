"""The bench: every subject of a bundle in one run, in turn, on this machine.

R² on the holdout first, then time and energy (`timing`), then what gates are set on and what a report shows besides.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

from edgedistill.bench.extras import budget_of, calibration_of, layers_of, robustness_of, trace_of
from edgedistill.bench.holdout_scores import Decoded, decoded_holdout, fit_of_recording
from edgedistill.bench.result import BenchResult, Subject
from edgedistill.bench.subjects import (
    LFP_INT8,
    LFP_STUDENT,
    STUDENTS,
    SUBJECTS,
    Absent,
    Candidate,
    candidates_of_bundle,
)
from edgedistill.bench.timing import FRAMES, ONE_BIN_US, decoding_frames, energy_of, flat_out, in_use
from edgedistill.bundle import Bundle
from edgedistill.bundle.contents import Holdout, read_holdout
from edgedistill.errors import ConfigError, EngineError
from edgedistill.machine.description import describe_machine
from edgedistill.measure.latency import EMPTY, LatencyUs
from edgedistill.measure.sensors import Meter, find_meter
from edgedistill.measure.system_budget import assumptions_with
from edgedistill.runtime.abi_engine import AbiEngine
from edgedistill.runtime.compiled_engines import COMPILED, choose_engine, why_not_here
from edgedistill.runtime.decoder import GRAPHS
from edgedistill.target import Target, load_target

if TYPE_CHECKING:
    from edgedistill.data.recording import Recording


@dataclass(frozen=True)
class BenchOptions:
    """How much is measured."""

    subjects: tuple[str, ...] = SUBJECTS
    engine: str | None = None  # of the INT8 student; by default what the bundle was built for, where it is compiled
    steps: int = 2000
    closed_loop_s: float = 5.0  # 0: not
    energy_s: float = 5.0  # of each repeat, where there is a sensor; 0: not
    robustness: bool = False
    system: bool = False
    assume: Mapping[str, float] = field(default_factory=dict)


QUICK = BenchOptions(subjects=STUDENTS, closed_loop_s=0, energy_s=0)  # what a build's gates need


def bench(bundle: Bundle, options: BenchOptions = BenchOptions(), recording: Recording | None = None) -> BenchResult:
    """Measure every subject of `options` that this machine has.

    BundleError when the bundle lacks a holdout, RecordingError when the recording does not fit.
    """
    assumptions_with(options.assume)  # what is refused is refused before minutes of measuring
    device = describe_machine()  # its load before this run adds to it
    holdout, target = read_holdout(bundle), target_of(bundle)
    engine = options.engine or choose_engine(bundle)
    by_default = options.engine is None and engine in GRAPHS  # what the build left out is then listed, not raised
    candidates, absent = candidates_of_bundle(bundle, holdout, engine, options.subjects, required=not by_default)
    if not candidates:
        reasons = "; ".join(f"{one.name}: {one.reason}" for one in absent)
        raise EngineError(
            "none of the subjects can run here", got=reasons or "no such subject", expected=list(SUBJECTS)
        )
    decoded = {c.name: decoded_holdout(c, bundle, holdout) for c in candidates}
    fits = {name: part.fit for name, part in decoded.items()}
    if recording is not None:
        fits = {c.name: fit_of_recording(c, bundle, recording) for c in candidates}
    times = flat_out(candidates, options.steps)
    warm, cold, why, force = in_use(candidates, times, options.closed_loop_s)
    decodes = LFP_INT8 not in (one.name for one in absent)
    frames = (decoding_frames(bundle, engine, options.closed_loop_s) if decodes else None) or {}
    meter: Meter | str = find_meter(target.power if target else None, gpu=_engine(target) in ("cuda", "tensorrt"))
    deadline_us = target.deadline_ms * 1e3 if target else ONE_BIN_US
    subjects = tuple(
        Subject(
            name=c.name,
            engine=c.runs_on,
            precision=c.precision or c.engine.precision,
            params=c.params,
            artifact_bytes=c.artifact_bytes,
            state_bytes=_state_bytes(c),
            times=times[c.name],
            deadline_us=deadline_us,
            fit=fits[c.name],
            energy=energy_of(c, meter, options.energy_s),
            energy_paced=energy_of(c, meter, options.energy_s, paced=True),
            paced=warm.get(c.name),
            paced_cold=cold.get(c.name),
            paced_source=why.get(c.name, "closed loop on this machine"),
        )
        for c in candidates
    )
    figures = figures_of(subjects, bundle, held_out=recording is None)
    why = without_figures(figures, absent)
    if target and (reason := not_of_this_machine(target, bundle, engine)):
        why["step_p99_us"], figures["step_p99_us"] = reason, None  # a time belongs to the device that took it
    return BenchResult(
        device=device,
        bundle=provenance_of(bundle),
        subjects=subjects,
        absent=tuple(absent),
        clock=LatencyUs.from_times(times[EMPTY]),
        empty_paced=warm.get(EMPTY),
        frames_paced=frames.get(FRAMES),
        frames_empty=frames.get(EMPTY),
        gates=target.judge(figures, why) if target else (),
        figures=figures,
        why=why,
        harness={"closed_loop": force, "steps_in_turn": True, "garbage_collector": "off"},
        extra=extras(bundle, holdout, candidates, decoded, subjects, options),
    )


def extras(
    bundle: Bundle,
    holdout: Holdout,
    candidates: Sequence[Candidate],
    decoded: Mapping[str, Decoded],
    subjects: Sequence[Subject],
    options: BenchOptions,
) -> dict[str, Any]:
    """What a report shows besides the subjects."""
    found: dict[str, Any] = {
        "trace": trace_of(bundle, holdout, decoded),
        "layers": layers_of(bundle),
        "calibration": calibration_of(bundle),
        "robustness": [curve.to_json() for curve in robustness_of(candidates, holdout, decoded)]
        if options.robustness
        else None,
        "system": budget_of(bundle, subjects, options.assume) if options.system else None,
    }
    return found


# ---------------------------------------------------------------- gates


def figures_of(subjects: Sequence[Subject], bundle: Bundle, held_out: bool) -> dict[str, float | None]:
    """What gates are set on: the time of what ships; R² on the holdout only, another recording is another question."""
    rows = {subject.name: subject for subject in subjects}
    ships, graphs = bundle.manifest.engine, {"onnxruntime-int8": LFP_INT8, "oracle": None}
    row = LFP_INT8 if ships in COMPILED and LFP_INT8 in rows else graphs.get(str(ships), LFP_STUDENT)
    shipped = None if row is None else rows.get(row)
    r2, eight = (rows[name].fit.r2 if name in rows else None for name in (LFP_STUDENT, LFP_INT8))
    drop = r2 - eight if r2 is not None and eight is not None and held_out else None
    p99 = None if shipped is None else shipped.latency.p99
    return {"step_p99_us": p99, "deployed_r2": r2 if held_out else None, "int8_r2_drop": drop}


def without_figures(figures: Mapping[str, float | None], absent: Sequence[Absent]) -> dict[str, str]:
    """Why a figure is missing, where a student of the bundle is: an R² needs its own, a time what ships."""
    reasons = {one.name: one.reason for one in absent if one.name in (LFP_STUDENT, LFP_INT8)}
    told = "; ".join(f"{name}: {reason}" for name, reason in reasons.items())
    return {name: told for name, value in figures.items() if value is None} if told else {}


def not_of_this_machine(target: Target, bundle: Bundle, engine: str) -> str | None:
    """Why a time taken here, the INT8 student on `engine`, is none of the target; None where it is."""
    ships = bundle.manifest.engine
    if target.engine not in COMPILED or ships not in COMPILED:  # the graph: any machine stands for any other
        return None
    if (reason := why_not_here(bundle, target.name, target.engine)) is not None:
        return reason
    return None if engine == ships else f"the INT8 student ran on '{engine}', the bundle ships '{ships}'"


def target_of(bundle: Bundle) -> Target | None:
    """The profile the bundle was built for, where this installation knows it."""
    try:
        return load_target(str(bundle.manifest.target))
    except ConfigError:
        return None


def _engine(target: Target | None) -> str | None:
    return None if target is None else target.engine


def provenance_of(bundle: Bundle) -> dict[str, object]:
    """Which bundle this was, for those who read the result alone."""
    found = bundle.manifest
    return {
        "name": found.name,
        "created_by": found.created_by,
        "session": found.session and asdict(found.session),
        "preset": found.preset,
        "target": found.target,
        "engine": found.engine,
        "recipe": found.recipe,
        "group_delay_ms": found.group_delay_ms,
        "int8": found.int8 and asdict(found.int8),
        "metrics": found.metrics,
        "sha256": bundle.sha256,
        "cores_seen": os.cpu_count(),
    }


def _state_bytes(candidate: Candidate) -> int:
    """Of what a step carries to the next; an engine that keeps it in float16 exchanges none."""
    engine = candidate.engine
    if isinstance(engine, AbiEngine):
        return engine.state_bytes
    return sum(array.nbytes for array in engine.export_state().values())
