"""Runs a bench: every subject of a bundle in one run, in turn, on this machine.

R² on the holdout comes first, then times and energies (`timing`), then the figures that gates are set on and the parts
that only a report draws (`extras`).
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING

from edgedistill.bench.extras import estimate_budget, list_work, make_trace, measure_robustness
from edgedistill.bench.holdout_scores import DecodedHoldout, RecordingFit, decode_holdout, score_candidate_on_recording
from edgedistill.bench.intervals import measure_intervals
from edgedistill.bench.result import BenchResult, Extras, Subject
from edgedistill.bench.robustness_subjects import list_absent
from edgedistill.bench.subjects import (
    LFP_INT8,
    LFP_STUDENT,
    STUDENTS,
    SUBJECTS,
    Absent,
    Candidate,
    open_candidates,
)
from edgedistill.bench.timing import (
    ONE_BIN_US,
    TimesInUse,
    measure_candidate_energy,
    time_flat_out,
    time_in_use,
    time_raw_frames,
)
from edgedistill.bundle import Bundle
from edgedistill.bundle.contents import Holdout, read_holdout, read_range_table
from edgedistill.errors import ConfigError, EngineError
from edgedistill.machine.description import describe_machine
from edgedistill.measure.latency import EMPTY, LatencyUs, Times
from edgedistill.measure.score import Fit
from edgedistill.measure.sensors import Meter, find_meter
from edgedistill.measure.system_budget import replace_assumptions
from edgedistill.runtime.abi_engine import AbiEngine
from edgedistill.runtime.compiled_engines import COMPILED, choose_engine, why_not_here
from edgedistill.runtime.decoder import GRAPHS
from edgedistill.target import GPU_ENGINES, Target, load_target

if TYPE_CHECKING:
    from edgedistill.matching import MatchedRecording

IN_USE_HERE = "closed loop on this machine"


@dataclass(frozen=True)
class BenchOptions:
    """Which subjects are measured, and for how long."""

    subjects: tuple[str, ...] = SUBJECTS
    engine: str | None = None  # of the INT8 student; by default the one the bundle was built for, where it is compiled
    steps: int = 2000
    closed_loop_s: float = 5.0  # 0: no closed loop
    energy_s: float = 5.0  # of each repeat, where there is a sensor; 0: no energy
    intervals: bool = True  # measure what the intervals cover
    robustness: bool = False
    system: bool = False
    assume: Mapping[str, float] = field(default_factory=dict)


QUICK = BenchOptions(
    subjects=STUDENTS, closed_loop_s=0, energy_s=0, intervals=False
)  # as much as the gates of a build need


def bench(
    bundle: Bundle, options: BenchOptions = BenchOptions(), recording: MatchedRecording | None = None
) -> BenchResult:
    """Measures every subject of `options` that this machine can run, in one run.

    R² is that of the bundle's holdout, or of `recording` if one is given. Raises BundleError where the bundle lacks a
    holdout, RecordingError where the recording has other outputs, ConfigError for an unknown assumption, and
    EngineError where no subject can run here.
    """
    replace_assumptions(options.assume)  # refuses wrong ones before minutes of measuring
    device = describe_machine()  # first, because measuring adds to the load that it reports
    holdout, target = read_holdout(bundle), _find_target(bundle)
    engine = options.engine or choose_engine(bundle)
    by_default = options.engine is None and engine in GRAPHS  # what the build left out is then listed, not raised
    candidates, absent = open_candidates(bundle, holdout, engine, options.subjects, required=not by_default)
    _require_any(candidates, absent)
    decoded = {c.name: decode_holdout(c, bundle, holdout) for c in candidates}
    fits: dict[str, Fit] = {name: part.fit for name, part in decoded.items()}
    if recording is not None:
        fits = {c.name: score_candidate_on_recording(c, bundle, recording) for c in candidates}
    streamed = next((fit for fit in fits.values() if isinstance(fit, RecordingFit)), None)
    late = () if streamed is None or streamed.late_warning is None else (streamed.late_warning,)
    times = time_flat_out(candidates, options.steps)
    in_use = time_in_use(candidates, times, options.closed_loop_s)
    decodes = LFP_INT8 not in (one.name for one in absent)
    frames = time_raw_frames(bundle, engine, options.closed_loop_s) if decodes else None
    meter = find_meter(target.power if target else None, gpu=target is not None and target.engine in GPU_ENGINES)
    deadline_us = target.deadline_ms * 1e3 if target else ONE_BIN_US
    subjects = tuple(
        _measure_subject(c, fits[c.name], times[c.name], in_use, meter, options.energy_s, deadline_us)
        for c in candidates
    )
    figures = collect_gate_figures(subjects, bundle, held_out=recording is None)
    why = explain_missing_figures(figures, absent)
    if target and (reason := explain_foreign_time(target, bundle, engine)):
        why["step_p99_us"], figures["step_p99_us"] = reason, None  # a time belongs to the device that took it
    return BenchResult(
        device=device,
        bundle=_describe_bundle(bundle),
        subjects=subjects,
        absent=(*absent, *(list_absent(bundle) if options.robustness else ())),
        clock=LatencyUs.from_times(times[EMPTY]),
        empty_paced=in_use.warm.get(EMPTY),
        frames=frames,
        gates=target.judge(figures, why) if target else (),
        figures=figures,
        why=why,
        harness={"closed_loop": dict(in_use.scheduling), "steps_in_turn": True, "garbage_collector": "off"},
        extras=_make_extras(bundle, holdout, candidates, decoded, subjects, options),
        series=None if recording is None else recording.series,
        coverage=None if streamed is None else streamed.coverage,
        warnings=() if recording is None else (*recording.warnings, *late),
    )


def _require_any(candidates: Sequence[Candidate], absent: Sequence[Absent]) -> None:
    if not candidates:
        reasons = "; ".join(f"{one.name}: {one.reason}" for one in absent)
        raise EngineError(
            "none of the subjects can run here", got=reasons or "no such subject", expected=list(SUBJECTS)
        )


def _measure_subject(
    candidate: Candidate,
    fit: Fit,
    times: Times,
    in_use: TimesInUse,
    meter: Meter | str,
    energy_s: float,
    deadline_us: float,
) -> Subject:
    """Measures the energy of one candidate and returns its row, with the times and the score that it already has."""
    name = candidate.name
    return Subject(
        name=name,
        engine=candidate.runs_on,
        precision=candidate.precision or candidate.engine.precision,
        params=candidate.params,
        artifact_bytes=candidate.artifact_bytes,
        state_bytes=_count_state_bytes(candidate),
        times=times,
        deadline_us=deadline_us,
        fit=fit,
        energy=measure_candidate_energy(candidate, meter, energy_s),
        energy_paced=measure_candidate_energy(candidate, meter, energy_s, paced=True),
        paced=in_use.warm.get(name),
        paced_cold=in_use.cold.get(name),
        paced_source=in_use.reasons.get(name, IN_USE_HERE),
    )


def _count_state_bytes(candidate: Candidate) -> int:
    """Returns the bytes that a step hands to the next. Compiled engines may export no state, but they tell its size."""
    engine = candidate.engine
    if isinstance(engine, AbiEngine):
        return engine.state_bytes
    return sum(array.nbytes for array in engine.export_state().values())


def _make_extras(
    bundle: Bundle,
    holdout: Holdout,
    candidates: Sequence[Candidate],
    decoded: Mapping[str, DecodedHoldout],
    subjects: Sequence[Subject],
    options: BenchOptions,
) -> Extras:
    return Extras(
        trace=make_trace(bundle, holdout, decoded),
        layers=list_work(bundle),
        calibration=read_range_table(bundle),
        intervals=measure_intervals(bundle, holdout, candidates, decoded) if options.intervals else None,
        robustness=measure_robustness(bundle, candidates, holdout, decoded) if options.robustness else None,
        system=estimate_budget(bundle, subjects, options.assume) if options.system else None,
    )


# ---------------------------------------------------------------- gates


def collect_gate_figures(subjects: Sequence[Subject], bundle: Bundle, held_out: bool) -> dict[str, float | None]:
    """Returns the figures that gates are set on, with None for what was not measured.

    The time is that of the student that ships. R² counts on the holdout only (`held_out`), because R² on another
    recording answers another question.
    """
    rows = {subject.name: subject for subject in subjects}
    ships, graphs = bundle.manifest.engine, {"onnxruntime-int8": LFP_INT8, "oracle": None}
    row = LFP_INT8 if ships in COMPILED and LFP_INT8 in rows else graphs.get(str(ships), LFP_STUDENT)
    shipped = None if row is None else rows.get(row)
    r2, r2_int8 = (rows[name].fit.r2 if name in rows else None for name in (LFP_STUDENT, LFP_INT8))
    drop = r2 - r2_int8 if r2 is not None and r2_int8 is not None and held_out else None
    p99 = None if shipped is None else shipped.latency.p99
    return {"step_p99_us": p99, "deployed_r2": r2 if held_out else None, "int8_r2_drop": drop}


def explain_missing_figures(figures: Mapping[str, float | None], absent: Sequence[Absent]) -> dict[str, str]:
    """Returns, by figure that is missing, why the student that it is measured on was not measured."""
    reasons = {one.name: one.reason for one in absent if one.name in (LFP_STUDENT, LFP_INT8)}
    joined = "; ".join(f"{name}: {reason}" for name, reason in reasons.items())
    return {name: joined for name, value in figures.items() if value is None} if joined else {}


def explain_foreign_time(target: Target, bundle: Bundle, engine: str) -> str | None:
    """Returns why a time taken here is not the target's, or None where it is. The INT8 student runs on `engine`."""
    ships = bundle.manifest.engine
    if target.engine not in COMPILED or ships not in COMPILED:  # a bundle of graphs may be timed on any machine
        return None
    if (reason := why_not_here(bundle, target.name, target.engine)) is not None:
        return reason
    return None if engine == ships else f"the INT8 student ran on '{engine}', the bundle ships '{ships}'"


# ---------------------------------------------------------------- the bundle


def _find_target(bundle: Bundle) -> Target | None:
    """Returns the profile that the bundle was built for, or None where this installation does not know it."""
    try:
        return load_target(str(bundle.manifest.target))
    except ConfigError:
        return None


def _describe_bundle(bundle: Bundle) -> dict[str, object]:
    """Returns what identifies the bundle, for those who read the result without it."""
    found = bundle.manifest
    few = found.provenance.others.get("label_minutes") if found.provenance else None
    return {
        "name": found.name,
        "created_by": found.created_by,
        "session": found.session and asdict(found.session),
        "preset": found.preset,
        "target": found.target,
        "engine": found.engine,
        "recipe": found.recipe,
        "group_delay_ms": found.group_delay_ms,
        "smoothing_delay_ms": found.smoothing_delay_ms,
        "smoothing": found.smoothing and found.smoothing.to_json(),
        "int8": found.int8 and asdict(found.int8),
        "metrics": found.metrics,
        "label_minutes": few,
        "sha256": bundle.sha256,
        "cores_seen": os.cpu_count(),
    }
