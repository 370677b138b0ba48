"""Holds the results of `build`, `pretrain` and `distill`: where the model is, what was done and how good it is."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

from edgedistill.bundle import GraphVerdict
from edgedistill.bundle.manifest import Confidence, Smoothing
from edgedistill.errors import EngineError
from edgedistill.pipeline.cache import Stage
from edgedistill.target import Gate

Metrics = dict[str, float | None]  # name in TABLE -> held-out R²; None for a model that was not asked for

TABLE = (  # name of the metric, what it scores, whether that model is causal
    ("teacher_r2", "spike teacher under a ridge probe", False),
    ("spike_student_r2", "spike student, the size of the LFP student", True),
    ("ridge_spike_r2", "lagged ridge on spikes", True),
    ("kalman_spike_r2", "Kalman filter on spikes", True),
    ("deployed_r2", "deployed LFP student, streaming", True),
    ("int8_r2", "deployed LFP student in INT8, streaming", True),
    ("distilled_r2", "LFP student distilled without labels, ridge probe", True),
    ("supervised_lfp_r2", "LFP student on behavior alone", True),
    ("multi_session_lfp_r2", "LFP student, many sessions, no teacher, ridge probe", True),
    ("single_session_lfp_r2", "LFP student, this session, no teacher, ridge probe", True),
    ("distilled_bidirectional_r2", "published patch student, distilled, ridge probe", False),
    ("ridge_lfp_r2", "lagged ridge on slow LFP", True),
    ("kalman_lfp_r2", "Kalman filter on slow LFP", True),
    ("ridge_power_r2", "lagged ridge on band power", True),
    ("kalman_power_r2", "Kalman filter on band power", True),
    ("ridge_lfp_power_r2", "lagged ridge on slow LFP and band power", True),
    ("kalman_lfp_power_r2", "Kalman filter on slow LFP and band power", True),
)
OF_THE_DECODER = ("deployed_r2", "int8_r2")


@dataclass(frozen=True)
class TableRow:
    """Holds one line of the table of held-out R²."""

    name: str
    r2: float | None
    causal: bool
    note: str


@dataclass(frozen=True)
class BuildResult:
    """Says where the bundle is, what was done for it and how good it is."""

    bundle: Path
    target: str
    stages: tuple[Stage, ...]
    metrics: Metrics
    gates: tuple[Gate, ...]
    table: tuple[TableRow, ...]
    lacking: EngineError | None = None  # why the engine is only prepared, and the command that finishes it
    shipped: Path | None = None  # the zip that --zip asked for
    signed_by: str | None = None  # fingerprint of the key that --sign named
    graphs: Mapping[str, GraphVerdict] = field(default_factory=dict)  # by file name
    confidence: Confidence | None = None  # in the deviations of the outputs
    smoothing: Smoothing | None = None  # the filter of the outputs
    read: tuple[dict[str, object], ...] = ()  # how each session was read
    skipped: tuple[dict[str, object], ...] = ()  # files that were left out, with the reason
    training: Mapping[str, object] = field(default_factory=dict)  # what the student that ships was trained on

    @property
    def next_step(self) -> str:
        """Returns the command to run next."""
        return self.lacking.next_step or "" if self.lacking else f"edgedistill bench {self.bundle}"

    def to_json(self) -> dict[str, object]:
        """Returns the answer of `edgedistill build --json`, which docs/json.md describes."""
        return {
            "bundle": str(self.bundle),
            "zip": str(self.shipped) if self.shipped else None,
            "signed_by": self.signed_by,
            "target": self.target,
            "read": list(self.read),
            "skipped": list(self.skipped),
            "stages": [asdict(stage) for stage in self.stages],
            "metrics": self.metrics,
            "gates": [asdict(gate) for gate in self.gates],
            "graphs": {name: verdict.to_json() for name, verdict in self.graphs.items()},
            "confidence": asdict(self.confidence) if self.confidence else None,
            "smoothing": self.smoothing.to_json() if self.smoothing else None,
            "training": dict(self.training),
            "not_compiled": self.lacking.what if self.lacking else None,
            "next_step": self.next_step,
        }


@dataclass(frozen=True)
class TrainingSummary:
    """Says where `pretrain` or `distill` wrote the model, and how well behavior can be decoded from it."""

    out: Path
    sessions: tuple[str, ...]
    steps: int  # most optimizer steps
    probe_r2: float | None  # mean over the sessions with labels; None without any
    seconds: float
    units: tuple[int, ...] | None = None  # number of units in each session, None for a student
    read: tuple[dict[str, object], ...] = ()  # how each session was read
    skipped: tuple[dict[str, object], ...] = ()  # files that were left out, with the reason
    search: Mapping[str, object] = field(default_factory=dict)  # every trial of a search, by the name of the student

    def to_json(self) -> dict[str, object]:
        """Returns the answer of `--json`, which docs/json.md describes. Only a teacher has `units`."""
        search = {"search": dict(self.search)} if self.search else {}
        units: dict[str, object] = {} if self.units is None else {"units": list(self.units)}
        return {
            "out": str(self.out),
            "sessions": list(self.sessions),
            "read": list(self.read),
            "skipped": list(self.skipped),
            **units,
            **search,
            "steps": self.steps,
            "probe_r2": self.probe_r2,
            "seconds": self.seconds,
        }


def table_from_metrics(metrics: Metrics, decoder_note: str) -> tuple[TableRow, ...]:
    """Returns one row for each model of TABLE. `decoder_note` is added to the rows of the student that ships."""
    return tuple(
        TableRow(name, metrics[name], causal, note + (decoder_note if name in OF_THE_DECODER else ""))
        for name, note, causal in TABLE
    )


def none_if_nan(value: float | None) -> float | None:
    """Returns the value, or None for NaN and infinity, which JSON cannot hold. An output that never moves has no R²."""
    return value if value is not None and math.isfinite(value) else None


def mean_or_none(values: Sequence[float]) -> float | None:
    """Returns the mean, or None without values."""
    return sum(values) / len(values) if values else None
