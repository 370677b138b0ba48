"""Holds what a bench found, and turns it into JSON.

The JSON is stable and documented in docs/json.md. `edgedistill report` and `benchmarks.compare` read it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from edgedistill.bench.intervals import Intervals
from edgedistill.bench.subjects import LFP_INT8, LFP_STUDENT, SPIKE_INT8, SPIKE_STUDENT, TEACHER, Absent
from edgedistill.bench.timing import FrameTimes
from edgedistill.bundle.contents import RangeRow
from edgedistill.data.coverage import Coverage
from edgedistill.measure.closed_loop import PacedTimes
from edgedistill.measure.energy import Energy
from edgedistill.measure.latency import LatencyUs, Times, compute_part_medians, count_by_time, count_misses
from edgedistill.measure.robustness import Curve
from edgedistill.measure.score import Fit
from edgedistill.measure.system_budget import Assumption, BudgetRow
from edgedistill.measure.work import Work
from edgedistill.target import Gate

LATENCY_KEYS = ("p50", "p95", "p99", "p999", "max")


@dataclass(frozen=True, eq=False)
class Subject:
    """One row of a bench. What was not measured is None, and its `…_source` says why."""

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
        """The percentiles of a step, flat out."""
        return LatencyUs.from_times(self.times)

    def to_json(self) -> dict[str, object]:
        """Returns the row of `bench --json`."""
        latency = self.latency
        return {
            "name": self.name,
            "engine": self.engine,
            "precision": self.precision,
            "params": self.params,
            "artifact_bytes": self.artifact_bytes,
            "state_bytes": self.state_bytes,
            "latency_us": pick_percentiles(latency),
            "p50_of_parts_us": compute_part_medians(self.times),
            "histogram": count_by_time(self.times),
            "deadline_us": self.deadline_us,
            "deadline_misses": count_misses(self.times, self.deadline_us),
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


# ---------------------------------------------------------------- what a report draws besides


@dataclass(frozen=True, eq=False)
class Trace:
    """A stretch of the holdout as it was and as it was decoded."""

    seconds: npt.NDArray[np.float64]  # (T,)
    names: tuple[str, ...]  # of the K outputs
    units: tuple[str, ...]
    truth: npt.NDArray[Any]  # (T, K), NaN where unknown
    decoded: Mapping[str, npt.NDArray[Any]]  # subject -> (T, K)
    deviation: Mapping[str, npt.NDArray[Any]]  # subject that has one -> (T, K)
    source: str

    def to_json(self) -> dict[str, object]:
        """Returns the key `trace` of `bench --json`."""
        return {
            "seconds": self.seconds.tolist(),
            "names": list(self.names),
            "units": list(self.units),
            "truth": _round_rows(self.truth),
            "decoded": {name: _round_rows(guess) for name, guess in self.decoded.items()},
            "deviation": {name: _round_rows(values) for name, values in self.deviation.items()},
            "source": self.source,
        }


def _round_rows(values: npt.NDArray[Any]) -> list[list[float | None]]:
    """Returns (T, K) with five digits, and with None for NaN, which JSON lacks."""
    return [[float(f"{v:.5g}") if np.isfinite(v) else None for v in row] for row in np.asarray(values, np.float64)]


@dataclass(frozen=True)
class ImplantBudget:
    """The power of a whole implant as a model has it, with the assumptions that it rests on."""

    rows: tuple[BudgetRow, ...]
    assumptions: Mapping[str, Assumption]
    source: str

    def to_json(self) -> dict[str, object]:
        """Returns the key `system` of `bench --json`."""
        return {
            "rows": [row.to_json() for row in self.rows],
            "assumptions": {name: asdict(assumption) for name, assumption in self.assumptions.items()},
            "source": self.source,
        }


@dataclass(frozen=True, eq=False)
class Extras:
    """What a report draws besides the subjects. Parts that were not asked for are None."""

    trace: Trace | None
    layers: Mapping[str, Work]  # by part of a step
    calibration: tuple[RangeRow, ...]
    intervals: Intervals | None
    robustness: tuple[Curve, ...] | None
    system: ImplantBudget | None

    def to_json(self) -> dict[str, object]:
        """Returns these keys of `bench --json`."""
        return {
            "trace": None if self.trace is None else self.trace.to_json(),
            "layers": [{"name": name, **asdict(work)} for name, work in self.layers.items()],
            "calibration": [asdict(row) for row in self.calibration],
            "intervals": None if self.intervals is None else self.intervals.to_json(),
            "robustness": None if self.robustness is None else [curve.to_json() for curve in self.robustness],
            "system": None if self.system is None else self.system.to_json(),
        }


# ---------------------------------------------------------------- the result


@dataclass(frozen=True, eq=False)
class BenchResult:
    """All subjects of one run. `clock` is the empty step, which shows how much of each figure is the machine's own."""

    device: dict[str, object]
    bundle: dict[str, object]
    subjects: tuple[Subject, ...]
    absent: tuple[Absent, ...]
    clock: LatencyUs
    empty_paced: PacedTimes | None
    frames: FrameTimes | None  # the whole decoder on raw frames
    gates: tuple[Gate, ...]
    figures: dict[str, float | None]  # by the name of their gate
    why: dict[str, str]  # why a figure was not measured
    harness: dict[str, object]
    extras: Extras
    series: str | None = None  # the LFP of the recording that R² was measured on
    coverage: Coverage | None = None  # which of its seconds R² was measured on
    warnings: tuple[str, ...] = ()  # how that recording differs from the bundle

    @property
    def ratios(self) -> dict[str, float | None]:
        """The LFP student over the spike student of its size, and the times of the teachers over the INT8 student's."""
        rows = {subject.name: subject for subject in self.subjects}
        found: dict[str, float | None] = {}
        for ours, theirs, suffix in ((LFP_STUDENT, SPIKE_STUDENT, ""), (LFP_INT8, SPIKE_INT8, "_int8")):
            if ours in rows and theirs in rows:
                found |= {f"{key}{suffix}": value for key, value in _divide_rows(rows[ours], rows[theirs]).items()}
        for name, row in rows.items():
            if LFP_INT8 in rows and name.startswith(TEACHER):
                found[f"{name.replace('-', '_')}_over_lfp_student_int8"] = row.latency.p50 / rows[LFP_INT8].latency.p50
        return found

    def to_json(self) -> dict[str, object]:
        """Returns the JSON that docs/json.md describes."""
        return {
            "device": self.device,
            "bundle": self.bundle,
            "series": self.series,
            "scored_s": None if self.coverage is None else self.coverage.kept_s,
            "left_out_s": None if self.coverage is None else dict(self.coverage.left_out_s),
            "warnings": list(self.warnings),
            "subjects": [subject.to_json() for subject in self.subjects],
            "absent": [asdict(one) for one in self.absent],
            "ratios": self.ratios,
            "clock": pick_percentiles(self.clock),
            "empty_paced": None if self.empty_paced is None else self.empty_paced.to_json(self._deadline_us),
            "frames_paced": self._frames_to_json(),
            "gates": [asdict(gate) for gate in self.gates],
            "harness": self.harness,
            **self.extras.to_json(),
        }

    def _frames_to_json(self) -> dict[str, object] | None:
        """Returns the times from the last sample of a bin to its output.

        The signal itself is older than that sample by the group delay of the front end, and what an output says of it
        lags by the delay of the filter that smooths the outputs.
        """
        if self.frames is None:
            return None
        delay, smoothing = self.bundle.get("group_delay_ms"), self.bundle.get("smoothing_delay_ms")
        misses = self.frames.empty.misses(self._deadline_us)
        found: dict[str, object] = {
            "group_delay_ms": delay,
            "smoothing_delay_ms": smoothing,
            "empty_deadline_misses": misses,
        }
        if isinstance(delay, (int, float)):
            whole_ms = delay + (smoothing if isinstance(smoothing, (int, float)) else 0.0)
            found["signal_to_output_ms"] = self.frames.decoder.response.p50 / 1e3 + whole_ms
        return self.frames.decoder.to_json(self._deadline_us) | found

    @property
    def _deadline_us(self) -> float:
        return self.subjects[0].deadline_us


def pick_percentiles(latency: LatencyUs) -> dict[str, float]:
    """Returns the percentiles that every row has, by name."""
    return {key: getattr(latency, key) for key in LATENCY_KEYS}


def _divide_rows(ours: Subject, theirs: Subject) -> dict[str, float | None]:
    a, b = ours.latency, theirs.latency
    figures: dict[str, tuple[float | None, float | None]] = {
        "latency_p50": (a.p50, b.p50),
        "latency_p99": (a.p99, b.p99),
        "params": (ours.params, theirs.params),
        "artifact_bytes": (ours.artifact_bytes, theirs.artifact_bytes),
        "state_bytes": (ours.state_bytes, theirs.state_bytes),
        "r2": (ours.fit.r2, theirs.fit.r2),
    }
    if ours.engine != theirs.engine:  # a difference would then come from the engine and not from the signal
        figures |= dict.fromkeys(("latency_p50", "latency_p99", "artifact_bytes", "state_bytes"), (None, None))
    return {key: x / y if x is not None and y else None for key, (x, y) in figures.items()}
