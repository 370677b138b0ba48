"""Tries every form of a student on this device, which means to build, open, judge and time it.

A bundle with its graphs, reference and holdout goes in. A list of outcomes comes out, and the plan of the form that is
kept stays in the folder. A form that fails does not stop the others, but is recorded with its error.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from time import monotonic
from types import ModuleType

from edgedistill.bundle import Bundle
from edgedistill.bundle.build_record import BuildRecord, list_loaded_files
from edgedistill.bundle.contents import (
    read_decoder_spec,
    read_holdout,
    read_int8_model,
    read_reference,
    read_smoothing_model,
)
from edgedistill.compile.build_folder import add_device_facts
from edgedistill.compile.tensorrt import Report
from edgedistill.compile.tensorrt.forms import (
    FORMS,
    KEPT,
    NOT_BUILT,
    REFUSED,
    SLOWER,
    Evidence,
    Form,
    Outcome,
    RawStudent,
    Trial,
    choose_form,
    judge_form,
    time_forms,
)
from edgedistill.config import StudentShape
from edgedistill.errors import BundleError, EngineError
from edgedistill.frontend import FrontEndConfig
from edgedistill.runtime.abi_engine import AbiEngine
from edgedistill.runtime.tensorrt_engine import PLAN, PLUGIN, open_plan
from edgedistill.target import Target


@dataclass
class Trials:
    """Tries the forms of one bundle in a folder that already holds the plugin and the library."""

    folder: Path
    record: BuildRecord
    target: Target
    builder: ModuleType  # the module `tensorrt/builder.py`
    evidence: Evidence
    report: Report | None = None
    cache: bytes = b""  # TensorRT's timing cache, which grows with each plan
    plans: dict[str, bytes] = field(default_factory=dict)  # form's name -> plan
    errors: list[EngineError] = field(default_factory=list)

    def run(self, bundle: Bundle, cache: bytes = b"") -> tuple[Outcome, ...]:
        """Returns the outcome of each form, and leaves the plan of the form that is kept in the folder.

        `cache` is an earlier plan's timing cache. Raises EngineError where no form can be kept.
        """
        self.cache = cache
        spec = read_decoder_spec(bundle)
        tried = [self._try_form(bundle, form, spec.shape, spec.front_end) for form in FORMS]
        trials = [one for one in tried if isinstance(one, Trial)]
        if not trials:
            raise _combine_errors(self.errors)
        known = {trial.form.name: judge_form(trial, self.evidence, self.target) for trial in trials}
        running = [trial for trial in trials if known[trial.form.name].state != REFUSED]
        judged = [known[one.form.name] if isinstance(one, Trial) else one for one in tried]
        outcomes = choose_form(judged, time_forms(running, self.evidence))
        kept = next(outcome for outcome in outcomes if outcome.state == KEPT)
        (self.folder / PLAN).write_bytes(self.plans[kept.form])
        return outcomes

    def _try_form(self, bundle: Bundle, form: Form, shape: StudentShape, front_end: FrontEndConfig) -> Trial | Outcome:
        """Builds and opens a form. Returns a Trial, or the Outcome of a form that could not be built or opened."""
        began = monotonic()
        if (reason := bundle.manifest.why_left_out(form.graph)) is not None:
            self.errors.append(EngineError(f"`edgedistill build` marked {form.graph} as unusable", got=reason))
            return Outcome(form.name, NOT_BUILT, f"`edgedistill build` marked {form.graph} as unusable: {reason}")
        try:
            built = self.builder.build_plan(bundle.read(form.graph), form.graph, self._options(), self.cache)
            self.cache, self.plans[form.name] = built.cache, built.plan
            (self.folder / f"layers-{form.name}.json").write_text(built.layers, encoding="utf-8")
            (self.folder / PLAN).write_bytes(built.plan)
            seconds = monotonic() - began
            engine = AbiEngine(
                open_plan(add_device_facts(self.record, form=form.name), list_loaded_files(self.folder)),
                shape,
                front_end,
            )
        except (EngineError, BundleError) as error:
            self.errors.append(error if isinstance(error, EngineError) else EngineError(error.what, got=error.got))
            return Outcome(form.name, NOT_BUILT, ": ".join(filter(None, (error.what, str(error.got or "")))))
        sizes = {"plan_bytes": len(built.plan), "memory_bytes": built.memory_bytes}
        outcome = Outcome(form.name, SLOWER, build_seconds=seconds, **sizes)
        return Trial(form, engine, RawStudent(engine), outcome, engine.reset)

    def _options(self) -> object:
        return self.builder.BuilderOptions(
            self.target.name, self.target.workspace_mb, self.folder / PLUGIN, self.report
        )


def evidence_of(bundle: Bundle) -> Evidence:
    """Reads the parts of a bundle that a plan is judged by.

    Raises BundleError where the bundle has no holdout or a damaged one.
    """
    shape, holdout = read_decoder_spec(bundle).shape, read_holdout(bundle)
    model, smoothing = read_int8_model(bundle, shape), read_smoothing_model(bundle, shape)
    full_r2 = (bundle.manifest.metrics or {}).get("deployed_r2")
    reference = read_reference(bundle)
    return Evidence(model, reference, holdout.bins, holdout.kinematics, holdout.score_from, full_r2, smoothing)


def _combine_errors(errors: list[EngineError]) -> EngineError:
    """Returns the first error, with the others among its causes."""
    first, *others = errors
    causes = (*first.causes, *(f"the other forms failed too: {error.what}: {error.got}" for error in others))
    return EngineError(first.what, got=first.got, expected=first.expected, causes=causes, next_step=first.next_step)
