"""Every form of a student built, opened, judged and timed on this device; the best one's plan is left in the folder.

What is tried is in the bundle (graphs, reference, holdout); what came of it goes out as a list of outcomes. A form that
fails does not stop the others: it is recorded with what was said.
"""

from __future__ import annotations

import io
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from time import monotonic
from types import ModuleType

import numpy as np

from edgedistill.bundle import Bundle, why_left_out
from edgedistill.compile.self_check import reference_of
from edgedistill.compile.tensorrt_forms import (
    FORMS,
    KEPT,
    NOT_BUILT,
    REFUSED,
    SLOWER,
    Evidence,
    Form,
    Outcome,
    Trial,
    chosen,
    judged,
    timed,
)
from edgedistill.config import StudentShape
from edgedistill.errors import BundleError, EngineError
from edgedistill.frontend import FrontEndConfig
from edgedistill.runtime.abi_engine import AbiEngine
from edgedistill.runtime.build_record import BuildRecord
from edgedistill.runtime.decoder import described, int8_model
from edgedistill.runtime.tensorrt_engine import PLAN, PLUGIN, opened_plan
from edgedistill.target import Target

HOLDOUT = "holdout.npz"


@dataclass
class Trials:
    """The forms of one bundle in one folder, in which plugin and runtime lie already."""

    folder: Path
    record: BuildRecord
    target: Target
    builder: ModuleType  # tensorrt_builder
    evidence: Evidence
    report: Callable[[str, int, int], None] | None = None
    cache: bytes = b""  # TensorRT's timing cache, as it grows
    plans: dict[str, bytes] = field(default_factory=dict)
    errors: list[EngineError] = field(default_factory=list)

    def run(self, bundle: Bundle, cache: bytes = b"") -> tuple[Outcome, ...]:
        """What came of each form; the plan of the one that is kept lies in the folder. EngineError where none is."""
        self.cache = cache
        shape, front_end, *_ = described(bundle, "tensorrt")
        tried = [self._tried(bundle, form, shape, front_end) for form in FORMS]
        trials = [one for one in tried if isinstance(one, Trial)]
        if not trials:
            raise _others_named(self.errors)
        known = {trial.form.name: judged(trial, self.evidence, self.target) for trial in trials}
        running = [trial for trial in trials if known[trial.form.name].state != REFUSED]
        outcomes = [known[one.form.name] if isinstance(one, Trial) else one for one in tried]
        outcomes_ = chosen(outcomes, timed(running, self.evidence))
        kept = next(outcome for outcome in outcomes_ if outcome.state == KEPT)
        (self.folder / PLAN).write_bytes(self.plans[kept.form])
        return outcomes_

    def _tried(self, bundle: Bundle, form: Form, shape: StudentShape, front_end: FrontEndConfig) -> Trial | Outcome:
        """A form built and opened, or what prevented it."""
        began = monotonic()
        if (reason := why_left_out(bundle, form.graph)) is not None:
            self.errors.append(EngineError(f"the build left {form.graph} out of use", got=reason))
            return Outcome(form.name, NOT_BUILT, f"the build left {form.graph} out of use: {reason}")
        try:
            built = self.builder.build_plan(bundle.read(form.graph), form.graph, self._options(), self.cache)
            self.cache, self.plans[form.name] = built.cache, built.plan
            (self.folder / f"layers-{form.name}.json").write_text(built.layers, encoding="utf-8")
            (self.folder / PLAN).write_bytes(built.plan)
            seconds = monotonic() - began
            engine = AbiEngine(opened_plan(self.folder, self._as(form)), shape, front_end)
        except (EngineError, BundleError) as error:
            self.errors.append(error if isinstance(error, EngineError) else EngineError(error.what, got=error.got))
            return Outcome(form.name, NOT_BUILT, ": ".join(filter(None, (error.what, str(error.got or "")))))
        sizes = {"plan_bytes": len(built.plan), "memory_bytes": built.memory_bytes}
        outcome = Outcome(form.name, SLOWER, build_seconds=seconds, **sizes)
        return Trial(form, engine, outcome, engine.reset)

    def _options(self) -> object:
        return self.builder.BuilderOptions(
            self.target.name, self.target.workspace_mb, self.folder / PLUGIN, self.report
        )

    def _as(self, form: Form) -> BuildRecord:
        device = {**self.record.fingerprint.device, "form": form.name}
        return replace(self.record, fingerprint=replace(self.record.fingerprint, device=device))


def evidence_of(bundle: Bundle) -> Evidence:
    """What a bundle offers to judge a plan by. BundleError where it has no holdout, or one that is damaged."""
    shape = described(bundle, "tensorrt")[0]
    try:
        with np.load(io.BytesIO(bundle.read(HOLDOUT)), allow_pickle=False) as stored:
            bins, kinematics = stored["bins"].astype(np.float32), stored["kinematics"]
            score_from = int(stored["score_from"])
    except (OSError, ValueError, KeyError) as error:
        raise BundleError(f"{bundle.path}: '{HOLDOUT}' is damaged", got=error) from error
    full = bundle.manifest.get("metrics", {}).get("deployed_r2")
    model, reference = int8_model(bundle, shape), reference_of(bundle)
    return Evidence(model, reference, bins, kinematics, score_from, None if full is None else float(full))


def _others_named(errors: list[EngineError]) -> EngineError:
    """The first error; what the others said stands among its causes."""
    first, *others = errors
    causes = (*first.causes, *(f"the other forms failed too: {error.what}: {error.got}" for error in others))
    return EngineError(first.what, got=first.got, expected=first.expected, causes=causes, next_step=first.next_step)
