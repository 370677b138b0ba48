"""Judges and times the forms that a bundle's student can have as a plan, and chooses the one that is kept.

Forms that were built and opened go in, with the parts of the bundle that they are judged by. One Outcome for each form
comes out. INT8 is not always faster than float16, and a plugin may prevent TensorRT from fusing the layers around it.
Therefore all three forms are built, checked against the bundle's reference and its holdout, and timed alternately. The
outcome of each is recorded, whether it is kept or not.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from edgedistill.bundle.contents import Reference
from edgedistill.errors import EngineError
from edgedistill.measure.latency import LatencyUs, time_steps
from edgedistill.measure.score import Fit, r2_difference, score_kinematics
from edgedistill.numerics import Int8Model, Oracle
from edgedistill.numerics.near import ALLOWED, Steppable, nearness, output_spread, why_not_near
from edgedistill.numerics.smoothing import SmoothingModel
from edgedistill.numerics.state import State
from edgedistill.runtime.abi_engine import AbiEngine
from edgedistill.target import Gate, Target

FORMS_JSON = "forms.json"
TIMED_STEPS = 2000
KEPT, SLOWER, MISSED, REFUSED, NOT_BUILT = "kept", "slower", "gate missed", "refused", "not built"

Floats = npt.NDArray[np.floating[Any]]


@dataclass(frozen=True)
class Form:
    """Describes one way to write the student for TensorRT."""

    name: str
    graph: str  # a file of the bundle
    figure: str  # name of the gate on the R² that the form loses
    exchanges: bool  # whether its state is int8 and can be set to the oracle's state


FORMS = (
    Form("int8-plugin", "student.int8.plugin.onnx", "int8_r2_drop", True),
    Form("int8", "student.int8.onnx", "int8_r2_drop", True),
    Form("fp16", "student.fp16.onnx", "fp16_r2_drop", False),
)


@dataclass(frozen=True)
class Outcome:
    """Holds the result of trying one form. A figure that could not be measured is None."""

    form: str
    state: str  # KEPT, SLOWER, MISSED, REFUSED or NOT_BUILT
    why: str | None = None  # why it is not kept, or why a figure is missing
    plan_bytes: int | None = None
    memory_bytes: int | None = None  # device memory for TensorRT's activations
    build_seconds: float | None = None
    near: str | None = None  # how far the form was from the oracle, in words
    r2: float | None = None  # on the bundle's holdout
    r2_drop: float | None = None  # R² of the float32 student in the bundle minus R² of the form
    latency_us: dict[str, float] = field(default_factory=dict)  # p50, p99 and max of a step, from host to host


class RawStudent:
    """Steps the student of a compiled engine, and returns its kinematics before they are smoothed."""

    def __init__(self, engine: AbiEngine) -> None:
        """Takes an opened engine."""
        self._engine = engine

    def step(self, bin: Floats) -> npt.NDArray[np.float32]:
        """Returns the raw kinematics (K,) of one bin (C,)."""
        self._engine.step(bin)
        return self._engine.raw_kinematics

    def import_state(self, state: State) -> None:
        """Continues from a student's state."""
        self._engine.import_state(state)

    def export_state(self) -> dict[str, npt.NDArray[Any]]:
        """Returns the student's state."""
        return self._engine.export_state()


@dataclass(frozen=True, eq=False)
class Trial:
    """Holds a form that was built and opened."""

    form: Form
    engine: Steppable  # whose outputs are smoothed where the bundle says so
    student: Steppable  # the same without smoothing, which is compared with the oracle
    outcome: Outcome
    reset: Callable[[], None]


@dataclass(frozen=True, eq=False)
class Evidence:
    """Holds the parts of a bundle that a plan is judged by."""

    model: Int8Model
    reference: Reference | None
    bins: Floats  # (T, C) of the holdout
    kinematics: Floats  # (T, K)
    score_from: int
    full_r2: float | None  # of the float32 student in the bundle
    smoothing: SmoothingModel | None = None  # of the outputs

    @cached_property
    def raw(self) -> npt.NDArray[np.float32]:
        """Returns what the oracle decodes for all bins of the holdout (T, K), streamed from the first one."""
        return Oracle(self.model).run(self.bins)

    @cached_property
    def decoded(self) -> Floats:
        """Returns the same, smoothed where the bundle says so, for the bins that count."""
        return (self.raw if self.smoothing is None else self.smoothing.run(self.raw))[self.score_from :]

    @cached_property
    def spread(self) -> npt.NDArray[np.float64]:
        """Returns each output's standard deviation (K,), which is never zero."""
        return output_spread(self.kinematics[self.score_from :], self.raw[self.score_from :])

    def fit(self, decoded: Floats) -> Fit:
        """Returns the R² of kinematics decoded from the bins that count (T, K)."""
        return score_kinematics(decoded, self.kinematics[self.score_from :], "holdout of the bundle")


def judge_form(trial: Trial, evidence: Evidence, target: Target) -> Outcome:
    """Returns the outcome of a form without its time: the self-check first, then R². Its engine is reset afterwards.

    Results of an INT8 form need only be near those of the oracle. Its raw outputs are compared while it is given the
    oracle's state before each step. Its R² is compared while it runs with its own state. The number of integers that
    differ is reported in `near`, but does not count.
    """
    checked = _checked(trial, evidence)
    if checked.state == REFUSED:
        return checked
    trial.reset()
    guess = np.stack([trial.engine.step(bin) for bin in evidence.bins])[evidence.score_from :]
    trial.reset()
    if not np.isfinite(guess).all():
        return replace(checked, state=REFUSED, why="it gave values that are not finite")
    fit = evidence.fit(guess)
    if trial.form.exchanges and (off := why_not_near(0.0, r2_difference(fit, evidence.fit(evidence.decoded)))):
        return replace(checked, r2=fit.r2, state=REFUSED, why=f"self-check: {off}")
    drop = evidence.full_r2 - fit.r2 if fit.r2 is not None and evidence.full_r2 is not None else None
    measured = replace(checked, r2=fit.r2, r2_drop=drop)
    if drop is None:
        reason = fit.source if fit.r2 is None else "the manifest holds no deployed_r2 to compare with"
        return replace(measured, why=f"R² not judged: {reason}")
    gate = r2_gate(target, measured)
    if gate is not None and not gate.ok:
        return replace(measured, state=MISSED, why=f"{gate.name} {drop:.4f}, at most {gate.limit:g}")
    return measured


def _checked(trial: Trial, evidence: Evidence) -> Outcome:
    outcome, reference = trial.outcome, evidence.reference
    if not trial.form.exchanges:
        return replace(outcome, near="not compared with the oracle, because its state is not int8; only R² is judged")
    if reference is None:
        return replace(outcome, near="not compared: the bundle holds no reference.npz")
    found = nearness(evidence.model, trial.student, reference.start, reference.bins, evidence.spread)
    if off := why_not_near(found.largest_output, None):
        return replace(outcome, near=str(found), state=REFUSED, why=f"self-check: {off}")
    return replace(outcome, near=str(found))


def time_forms(trials: Sequence[Trial], evidence: Evidence, steps: int = TIMED_STEPS) -> dict[str, LatencyUs]:
    """Times a step of the forms alternately, and returns latencies by the form's name.

    A step is timed from host to host. It copies a bin to the GPU, replays the graph, and copies the kinematics back.
    """
    if not trials:
        return {}
    times = time_steps({trial.form.name: trial.engine.step for trial in trials}, evidence.bins, steps=steps)
    for trial in trials:
        trial.reset()
    return {trial.form.name: LatencyUs.from_times(times[trial.form.name]) for trial in trials}


def choose_form(outcomes: Sequence[Outcome], latency: Mapping[str, LatencyUs]) -> tuple[Outcome, ...]:
    """Returns all outcomes with their times. The fastest form that passed its gate is marked as kept.

    If none passes its gate, the form that loses the least R² is kept, so that its gate is reported as missed. Raises
    EngineError where every form has wrong results.
    """
    timed = [
        replace(o, latency_us={key: getattr(latency[o.form], key) for key in ("p50", "p99", "max")})
        if o.form in latency
        else o
        for o in outcomes
    ]
    passed = [o for o in timed if o.state == SLOWER]
    missed = [o for o in timed if o.state == MISSED]
    if not passed and not missed:
        raise _no_form_error(timed)
    best = (
        min(passed, key=lambda o: o.latency_us["p50"]) if passed else min(missed, key=lambda o: float(o.r2_drop or 0))
    )
    return tuple(_mark(o, best) for o in timed)


def r2_gate(target: Target, outcome: Outcome) -> Gate | None:
    """Returns the target's gate on the R² that a form loses, or None where the target has none."""
    figure = next(form.figure for form in FORMS if form.name == outcome.form)
    gates = target.judge({figure: outcome.r2_drop}, {figure: outcome.why or "not measured"})
    return next((gate for gate in gates if gate.name == figure), None)


def gates_of(target: Target, outcomes: Sequence[Outcome]) -> tuple[Gate, ...]:
    """Returns the target's gates on the R² of the form that is kept, and on the time of its step."""
    kept = next(outcome for outcome in outcomes if outcome.state == KEPT)
    gate, p99 = r2_gate(target, kept), kept.latency_us.get("p99")
    times = [gate for gate in target.judge({"step_p99_us": p99}) if gate.name == "step_p99_us"]
    return (*([gate] if gate else []), *times)


def write_forms(folder: Path, outcomes: Sequence[Outcome]) -> None:
    """Writes all outcomes as forms.json of a build."""
    text = json.dumps({"forms": [asdict(outcome) for outcome in outcomes]}, indent=1)
    (folder / FORMS_JSON).write_text(text + "\n", encoding="utf-8")


def read_forms(folder: Path) -> tuple[Outcome, ...]:
    """Reads forms.json of a build. Returns nothing where it is damaged or missing."""
    try:
        found = json.loads((folder / FORMS_JSON).read_text(encoding="utf-8"))
        return tuple(Outcome(**outcome) for outcome in found["forms"])
    except (OSError, ValueError, KeyError, TypeError):
        return ()


def _mark(outcome: Outcome, best: Outcome) -> Outcome:
    """Returns an outcome marked as kept if it is the best, or with the reason why another form is kept."""
    if outcome is best:
        return replace(outcome, state=KEPT)
    if outcome.state != SLOWER:
        return outcome
    ours, theirs = outcome.latency_us["p50"], best.latency_us["p50"]
    return replace(outcome, why=f"{ours:.1f} µs a step (p50), '{best.form}' takes {theirs:.1f}")


def _no_form_error(outcomes: Sequence[Outcome]) -> EngineError:
    failed = [outcome for outcome in outcomes if outcome.state == REFUSED]
    causes = (
        "this version of TensorRT fuses layers wrongly on this chip (known of 10.13.3 on Thor at batch 1)",
        "the GPU computes wrongly: run the same command again",
    )
    return EngineError(
        "no form of the student as a TensorRT plan computes what its definition says"
        if failed
        else "no form of the student could be built as a TensorRT plan",
        got="; ".join(f"{outcome.form}: {outcome.why}" for outcome in outcomes),
        expected=f"one that builds, with {ALLOWED}",
        causes=causes if failed else ("the first form used up the memory, and none was left for the others",),
        next_step="use --engine c (edgedistill compile BUNDLE --target host) until JetPack is updated",
    )
