"""The forms that a bundle's student can take as a plan, each tried on the device, and the one that is kept.

INT8 is not always faster than float16, and a plugin may keep its neighbours from being fused; so all three are built,
held against the bundle's reference and its holdout, and timed in turn. What came of each is recorded, kept or not.
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

from edgedistill.compile.self_check import Reference
from edgedistill.errors import EngineError
from edgedistill.measure.latency import LatencyUs, step_times
from edgedistill.measure.score import Fit, fit_of, r2_difference
from edgedistill.numerics import Int8Model, Oracle
from edgedistill.numerics.near import ALLOWED, Steppable, nearness, output_spread, why_not_near
from edgedistill.target import Gate, Target

FORMS_JSON = "forms.json"
TIMED_STEPS = 2000
KEPT, SLOWER, MISSED, REFUSED, NOT_BUILT = "kept", "slower", "gate missed", "refused", "not built"

Floats = npt.NDArray[np.floating[Any]]


@dataclass(frozen=True)
class Form:
    """One way to write the student for TensorRT."""

    name: str
    graph: str  # file of the bundle
    figure: str  # of the gate on what it costs in R²
    exchanges: bool  # whether its state is int8, and so can be set to the oracle's


FORMS = (
    Form("int8-plugin", "student.int8.plugin.onnx", "int8_r2_drop", True),
    Form("int8", "student.int8.onnx", "int8_r2_drop", True),
    Form("fp16", "student.fp16.onnx", "fp16_r2_drop", False),
)


@dataclass(frozen=True)
class Outcome:
    """What came of one form; what could not be measured is None."""

    form: str
    state: str  # KEPT, SLOWER, MISSED, REFUSED or NOT_BUILT
    why: str | None = None  # not kept, or no figure
    plan_bytes: int | None = None
    memory_bytes: int | None = None  # of TensorRT's activations
    build_seconds: float | None = None
    near: str | None = None  # what differed from the oracle
    r2: float | None = None  # on the bundle's holdout
    r2_drop: float | None = None  # against the float32 student that ships
    latency_us: dict[str, float] = field(default_factory=dict)  # of a step, host to host


@dataclass(frozen=True, eq=False)
class Trial:
    """A form that was built and opened."""

    form: Form
    engine: Steppable
    outcome: Outcome
    reset: Callable[[], None]


@dataclass(frozen=True, eq=False)
class Evidence:
    """What a bundle offers to judge a plan by."""

    model: Int8Model
    reference: Reference | None
    bins: Floats  # (T, C) of the holdout
    kinematics: Floats  # (T, K)
    score_from: int
    full_r2: float | None  # of the float32 student that ships

    @cached_property
    def decoded(self) -> Floats:
        """What the oracle decodes of the bins that count (T, K), streamed from the holdout's first bin."""
        return Oracle(self.model).run(self.bins)[self.score_from :]

    @cached_property
    def spread(self) -> npt.NDArray[np.float64]:
        """Each output's standard deviation (K,), never zero."""
        return output_spread(self.kinematics[self.score_from :], self.decoded)

    def fit(self, decoded: Floats) -> Fit:
        """R² of kinematics decoded from the bins that count (T, K)."""
        return fit_of(decoded, self.kinematics[self.score_from :], "holdout of the bundle")


def judged(trial: Trial, evidence: Evidence, target: Target) -> Outcome:
    """The outcome of a form but for its time: self-check first, then R². Its engine starts afresh after that.

    A form in INT8 is held to the near class: its outputs where it is given the oracle's state before each step, its R²
    where it runs freely. How many integers differ is told in `near` and decides nothing.
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
        told = fit.source if fit.r2 is None else "the manifest holds no deployed_r2 to compare with"
        return replace(measured, why=f"R² not judged: {told}")
    gate = r2_gate(target, measured)
    if gate is not None and not gate.ok:
        return replace(measured, state=MISSED, why=f"{gate.name} {drop:.4f}, at most {gate.limit:g}")
    return measured


def _checked(trial: Trial, evidence: Evidence) -> Outcome:
    outcome, reference = trial.outcome, evidence.reference
    if not trial.form.exchanges:
        return replace(outcome, near="not compared: its state is no integer's; R² is")
    if reference is None:
        return replace(outcome, near="not compared: the bundle holds no reference.npz")
    found = nearness(evidence.model, trial.engine, reference.start, reference.bins, evidence.spread)
    if off := why_not_near(found.largest_output, None):
        return replace(outcome, near=str(found), state=REFUSED, why=f"self-check: {off}")
    return replace(outcome, near=str(found))


def timed(trials: Sequence[Trial], evidence: Evidence, steps: int = TIMED_STEPS) -> dict[str, LatencyUs]:
    """A step of each form, in turn, host to host: bin in, kinematics out, the graph replayed and waited for."""
    if not trials:
        return {}
    times = step_times({trial.form.name: trial.engine.step for trial in trials}, evidence.bins, steps=steps)
    for trial in trials:
        trial.reset()
    return {trial.form.name: LatencyUs.from_times(times[trial.form.name]) for trial in trials}


def chosen(outcomes: Sequence[Outcome], latency: Mapping[str, LatencyUs]) -> tuple[Outcome, ...]:
    """All outcomes with their times, the fastest that passed marked as kept.

    Where none passes its gate, the one that costs least is kept, for its gate to be reported. EngineError where none
    even computes what it should.
    """
    timed_ = [
        replace(o, latency_us={key: getattr(latency[o.form], key) for key in ("p50", "p99", "max")})
        if o.form in latency
        else o
        for o in outcomes
    ]
    passed = [o for o in timed_ if o.state == SLOWER]
    missed = [o for o in timed_ if o.state == MISSED]
    if not passed and not missed:
        raise _none_left(timed_)
    best = (
        min(passed, key=lambda o: o.latency_us["p50"]) if passed else min(missed, key=lambda o: float(o.r2_drop or 0))
    )
    return tuple(_placed(o, best) for o in timed_)


def r2_gate(target: Target, outcome: Outcome) -> Gate | None:
    """The target's gate on what this form costs in R²; None where it has none."""
    figure = next(form.figure for form in FORMS if form.name == outcome.form)
    gates = target.judge({figure: outcome.r2_drop}, {figure: outcome.why or "not measured"})
    return next((gate for gate in gates if gate.name == figure), None)


def gates_of(target: Target, outcomes: Sequence[Outcome]) -> tuple[Gate, ...]:
    """The target's gates on the form that is kept: R² and the time of a step."""
    kept = next(outcome for outcome in outcomes if outcome.state == KEPT)
    gate, p99 = r2_gate(target, kept), kept.latency_us.get("p99")
    times = [gate for gate in target.judge({"step_p99_us": p99}) if gate.name == "step_p99_us"]
    return (*([gate] if gate else []), *times)


def write_forms(folder: Path, outcomes: Sequence[Outcome]) -> None:
    """All of them, as forms.json of a build."""
    text = json.dumps({"forms": [asdict(outcome) for outcome in outcomes]}, indent=1)
    (folder / FORMS_JSON).write_text(text + "\n", encoding="utf-8")


def read_forms(folder: Path) -> tuple[Outcome, ...]:
    """What forms.json of a build says; nothing where it is damaged or not there."""
    try:
        found = json.loads((folder / FORMS_JSON).read_text(encoding="utf-8"))
        return tuple(Outcome(**outcome) for outcome in found["forms"])
    except (OSError, ValueError, KeyError, TypeError):
        return ()


def _placed(outcome: Outcome, best: Outcome) -> Outcome:
    if outcome is best:
        return replace(outcome, state=KEPT)
    if outcome.state != SLOWER:
        return outcome
    ours, theirs = outcome.latency_us["p50"], best.latency_us["p50"]
    return replace(outcome, why=f"{ours:.1f} µs a step (p50), '{best.form}' takes {theirs:.1f}")


def _none_left(outcomes: Sequence[Outcome]) -> EngineError:
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
        causes=causes if failed else ("memory that ran out over the first leaves none for the others",),
        next_step="use --engine c (edgedistill compile BUNDLE --target host) until JetPack is updated",
    )
