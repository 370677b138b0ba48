"""Stands in for the pipeline.

Its stages do nothing, but it records the options and returns results of the real types.
"""

from __future__ import annotations

import types
from dataclasses import asdict, dataclass
from typing import Any

from edgedistill.bundle import GraphVerdict
from edgedistill.bundle.manifest import Confidence
from edgedistill.target import Gate


@dataclass(frozen=True)
class Stage:
    name: str
    seconds: float
    cached: bool


@dataclass(frozen=True)
class TableRow:
    name: str
    r2: float | None
    causal: bool
    note: str


class FakePipeline(types.ModuleType):
    """Has the functions of `edgedistill.pipeline`, and records the options that it gets."""

    asked: dict[str, Any]
    ok: bool | None = True

    def BuildOptions(self, **options: Any) -> dict[str, Any]:  # noqa: N802
        return options

    def build(self, options: dict[str, Any], progress: object) -> Any:
        self.asked = options
        gates = (Gate("deployed_r2_min", 0.4, 0.3, self.ok),)
        facts = {
            "bundle": str(options["out"]),
            "target": options["target"],
            "stages": [asdict(Stage("pretrain", 1.5, False))],
            "metrics": {"teacher_r2": 0.8, "int8_r2": float("nan")},
            "gates": [asdict(gate) for gate in gates],
        }
        return types.SimpleNamespace(
            bundle=options["out"],
            target=options["target"],
            stages=(Stage("pretrain", 1.5, False),),
            gates=gates,
            table=(TableRow("spike teacher", 0.8, False, "sees the future"), TableRow("ridge", None, True, "")),
            lacking=None,
            shipped=None,
            signed_by=None,
            graphs={"student.int8.onnx": GraphVerdict(usable=False, reason="its R² differs")},
            confidence=Confidence(120, None, note="the deviations are those of the behavior"),
            smoothing=None,
            next_step="edgedistill bench x",
            to_json=lambda: facts,
        )

    PretrainOptions = DistillOptions = BuildOptions

    def pretrain(self, options: dict[str, Any], progress: object) -> Any:
        self.asked = {**options, "progress": progress}
        facts = {"out": str(options["out"]), "sessions": 2, "validation_loss": 0.5, "probe_r2": None}
        return types.SimpleNamespace(to_json=lambda: facts)

    def distill(self, options: dict[str, Any], progress: object) -> Any:
        self.asked = {**options, "progress": progress}
        return types.SimpleNamespace(to_json=lambda: {"out": str(options["out"])})
