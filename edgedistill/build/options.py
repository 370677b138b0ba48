"""What `build` is asked for, and what it answers."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path

from edgedistill.build.cache import Stage
from edgedistill.bundle import GraphVerdict
from edgedistill.errors import EngineError
from edgedistill.quantization.recipe import DEFAULT_RECIPE
from edgedistill.target import Gate

Progress = Callable[[str, int, int, float, float], None]  # stage, step, steps, loss, learning rate

TABLE = (  # metric, what it is, causal
    ("teacher_r2", "spike teacher under a ridge probe", False),
    ("spike_student_r2", "spike student, the size of the LFP student", True),
    ("ridge_spike_r2", "lagged ridge on spikes", True),
    ("deployed_r2", "deployed LFP student, streaming", True),
    ("int8_r2", "deployed LFP student in INT8, streaming", True),
    ("distilled_r2", "LFP student distilled without labels, ridge probe", True),
    ("supervised_lfp_r2", "LFP student on behaviour alone", True),
    ("multi_session_lfp_r2", "LFP student, many sessions, no teacher, ridge probe", True),
    ("single_session_lfp_r2", "LFP student, this session, no teacher, ridge probe", True),
    ("distilled_bidirectional_r2", "published patch student, distilled, ridge probe", False),
    ("ridge_lfp_r2", "lagged ridge on LFP", True),
    ("kalman_lfp_r2", "Kalman filter on LFP", True),
)


@dataclass(frozen=True)
class BuildOptions:
    """What `edgedistill build` was asked for; `steps` caps the optimizer steps of each stage."""

    target: str
    data: tuple[Path, ...]
    out: Path
    preset: str = "edge"
    session: str | None = None
    baselines: bool = False
    steps: int | None = None
    seed: int = 0
    teacher: Path | None = None
    student: Path | None = None
    adapt: str = "stats"
    probe: bool = False
    behavior: str | None = None
    line_hz: float = 60
    work: Path | None = None
    recipe: str = DEFAULT_RECIPE
    ranges: Path | None = None  # of `calibrate`, for the student of `student`
    ship: bool = False  # also as one zip, beside the bundle


@dataclass(frozen=True)
class TableRow:
    """One line of the table of held-out R²."""

    name: str
    r2: float | None
    causal: bool
    note: str


@dataclass(frozen=True)
class BuildResult:
    """Where the bundle is, what was done for it and how good it is."""

    bundle: Path
    target: str
    stages: tuple[Stage, ...]
    metrics: dict[str, float | None]
    gates: tuple[Gate, ...]
    table: tuple[TableRow, ...]
    lacking: EngineError | None = None  # why the engine is only prepared, and the command that finishes it
    shipped: Path | None = None  # the zip of --zip
    graphs: Mapping[str, GraphVerdict] = field(default_factory=dict)  # by file name

    @property
    def next_step(self) -> str:
        """The command to run next."""
        return self.lacking.next_step or "" if self.lacking else f"edgedistill bench {self.bundle}"

    def to_json(self) -> dict[str, object]:
        """As documented in the README."""
        return {
            "bundle": str(self.bundle),
            "zip": str(self.shipped) if self.shipped else None,
            "target": self.target,
            "stages": [asdict(stage) for stage in self.stages],
            "metrics": self.metrics,
            "gates": [asdict(gate) for gate in self.gates],
            "graphs": {name: verdict.to_json() for name, verdict in self.graphs.items()},
            "not_compiled": self.lacking.what if self.lacking else None,
            "next_step": self.next_step,
        }
