"""Every form of a student built, opened, judged and timed on this device; the best one's plan is left in the folder.

What is tried is in the bundle (graphs, reference, holdout); what came of it goes out as a list of outcomes. A form that
fails does not stop the others: it is recorded with what was said.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from time import monotonic
from types import ModuleType

from edgedistill.bundle import Bundle
from edgedistill.bundle.build_record import BuildRecord
from edgedistill.bundle.contents import read_decoder_spec, read_holdout, read_int8_model, read_reference
from edgedistill.compile.tensorrt.forms import (
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
from edgedistill.runtime.tensorrt_engine import PLAN, PLUGIN, open_plan
from edgedistill.target import Target


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
        spec = read_decoder_spec(bundle)
        tried = [self._tried(bundle, form, spec.shape, spec.front_end) for form in FORMS]
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
        try:
            built = self.builder.build_plan(bundle.read(form.graph), form.graph, self._options(), self.cache)
            self.cache, self.plans[form.name] = built.cache, built.plan
            (self.folder / f"layers-{form.name}.json").write_text(built.layers, encoding="utf-8")
            (self.folder / PLAN).write_bytes(built.plan)
            seconds = monotonic() - began
            engine = AbiEngine(open_plan(self.folder, self._as(form)), shape, front_end)
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
    model, holdout = read_int8_model(bundle, read_decoder_spec(bundle).shape), read_holdout(bundle)
    full_r2 = (bundle.manifest.metrics or {}).get("deployed_r2")
    reference = read_reference(bundle)
    return Evidence(model, reference, holdout.bins, holdout.kinematics, holdout.score_from, full_r2)


def _others_named(errors: list[EngineError]) -> EngineError:
    """The first error; what the others said stands among its causes."""
    first, *others = errors
    causes = (*first.causes, *(f"the other forms failed too: {error.what}: {error.got}" for error in others))
    return EngineError(first.what, got=first.got, expected=first.expected, causes=causes, next_step=first.next_step)
