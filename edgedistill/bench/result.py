"""What a bench found, and its JSON: stable, documented in the README, what `report` and `compare` read."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any

from edgedistill.bench.subjects import LFP_INT8, LFP_STUDENT, SPIKE_INT8, SPIKE_STUDENT, TEACHER, Absent
from edgedistill.measure.closed_loop import PacedTimes
from edgedistill.measure.energy import Energy
from edgedistill.measure.latency import LatencyUs, Times, deadline_misses, histogram, medians_of_parts
from edgedistill.measure.score import Fit
from edgedistill.target import Gate

LATENCY_KEYS = ("p50", "p95", "p99", "p999", "max")


@dataclass(frozen=True, eq=False)
class Subject:
    """One row of a bench. What was not measured is None; the reason stands in its `…_source`."""

    name: str
    engine: str
    precision: str
    params: int
    artifact_bytes: int
    state_bytes: int
    times: Times  # ns, flat out
    deadline_us: float
    fit: Fit
    energy: Energy
    energy_paced: Energy  # every 10 ms
    paced: PacedTimes | None = None
    paced_cold: PacedTimes | None = None
    paced_source: str = "not measured"

    @property
    def latency(self) -> LatencyUs:
        """Of a step, flat out."""
        return LatencyUs.from_times(self.times)

    def to_json(self) -> dict[str, object]:
        """The row of `bench --json`."""
        latency = self.latency
        return {
            "name": self.name,
            "engine": self.engine,
            "precision": self.precision,
            "params": self.params,
            "artifact_bytes": self.artifact_bytes,
            "state_bytes": self.state_bytes,
            "latency_us": percentiles(latency),
            "p50_of_parts_us": medians_of_parts(self.times),
            "histogram": histogram(self.times),
            "deadline_us": self.deadline_us,
            "deadline_misses": deadline_misses(self.times, self.deadline_us),
            "steps": latency.steps,
            "energy_mj_per_step": self.energy.mj_per_step,
            "energy_interval_mj": self.energy.interval,
            "energy_source": self.energy.source,
            "power_mw": self.energy.mw,
            "idle_mw": self.energy.idle_mw,
            "power_mw_at_100_hz": self.energy_paced.mw,
            "paced": None if self.paced is None else self.paced.to_json(self.deadline_us),
            "paced_cold": None if self.paced_cold is None else self.paced_cold.to_json(self.deadline_us),
            "paced_source": self.paced_source,
            "r2": self.fit.r2,
            "r2_per_output": list(self.fit.per_output),
            "r2_source": self.fit.source,
        }


@dataclass(frozen=True, eq=False)
class BenchResult:
    """All subjects of one run; `clock` is the empty step: what of every figure is the machine's own."""

    device: dict[str, object]
    bundle: dict[str, object]
    subjects: tuple[Subject, ...]
    absent: tuple[Absent, ...]
    clock: LatencyUs
    empty_paced: PacedTimes | None
    frames_paced: PacedTimes | None  # the whole decoder on raw frames
    frames_empty: PacedTimes | None  # the empty subject beside it
    gates: tuple[Gate, ...]
    figures: dict[str, float | None]  # that gates are set on
    why: dict[str, str]  # reasons of those that were not measured
    harness: dict[str, object]
    extra: dict[str, Any] = field(default_factory=dict)  # trace, robustness, system, layers, calibration

    @property
    def ratios(self) -> dict[str, float | None]:
        """The LFP student against the spike student of its size, and what the teacher costs over it."""
        rows = {subject.name: subject for subject in self.subjects}
        found: dict[str, float | None] = {}
        for ours, theirs, suffix in ((LFP_STUDENT, SPIKE_STUDENT, ""), (LFP_INT8, SPIKE_INT8, "_int8")):
            if ours in rows and theirs in rows:
                found |= {f"{key}{suffix}": value for key, value in _ratios(rows[ours], rows[theirs]).items()}
        for name, row in rows.items():
            if LFP_INT8 in rows and name.startswith(TEACHER):
                found[f"{name.replace('-', '_')}_over_lfp_student_int8"] = row.latency.p50 / rows[LFP_INT8].latency.p50
        return found

    def to_json(self) -> dict[str, object]:
        """As documented in the README."""
        return {
            "device": self.device,
            "bundle": self.bundle,
            "subjects": [subject.to_json() for subject in self.subjects],
            "absent": [asdict(one) for one in self.absent],
            "ratios": self.ratios,
            "clock": percentiles(self.clock),
            "empty_paced": None if self.empty_paced is None else self.empty_paced.to_json(self._deadline_us),
            "frames_paced": self._frames(),
            "gates": [asdict(gate) for gate in self.gates],
            "harness": self.harness,
            **self.extra,
        }

    def _frames(self) -> dict[str, object] | None:
        """From the last sample of a bin to its output; the signal itself is older by the front end's group delay."""
        if self.frames_paced is None or self.frames_empty is None:
            return None
        delay = self.bundle.get("group_delay_ms")
        median = self.frames_paced.response.p50 / 1e3
        misses = self.frames_empty.misses(self._deadline_us)
        found: dict[str, object] = {"group_delay_ms": delay, "empty_deadline_misses": misses}
        if isinstance(delay, (int, float)):
            found["signal_to_output_ms"] = median + delay
        return self.frames_paced.to_json(self._deadline_us) | found

    @property
    def _deadline_us(self) -> float:
        return self.subjects[0].deadline_us


def percentiles(latency: LatencyUs) -> dict[str, float]:
    """As every row has them."""
    return {key: getattr(latency, key) for key in LATENCY_KEYS}


def _ratios(ours: Subject, theirs: Subject) -> dict[str, float | None]:
    a, b = ours.latency, theirs.latency
    figures: dict[str, tuple[float | None, float | None]] = {
        "latency_p50": (a.p50, b.p50),
        "latency_p99": (a.p99, b.p99),
        "params": (ours.params, theirs.params),
        "artifact_bytes": (ours.artifact_bytes, theirs.artifact_bytes),
        "state_bytes": (ours.state_bytes, theirs.state_bytes),
        "r2": (ours.fit.r2, theirs.fit.r2),
    }
    if ours.engine != theirs.engine:  # what differs is then the engine, not the signal
        figures |= dict.fromkeys(("latency_p50", "latency_p99", "artifact_bytes", "state_bytes"), (None, None))
    return {key: x / y if x is not None and y else None for key, (x, y) in figures.items()}
