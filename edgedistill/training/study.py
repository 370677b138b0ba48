"""Runs a search: trial after trial, with settings from optuna, and a study file with which a later run goes on.

A space of settings goes in, with the settings of the first trials, and a function that trains with given settings and
returns R² on the validation block. All trials come out. A trial whose R² at some evaluation is below the median of the
trials before it ends there. The sampler knows the finished trials and is seeded by the study and the trial's number,
so a search that was interrupted goes on as if it had not been, and more trials can be added to it later.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, cast

from edgedistill.errors import ConfigError, EdgeDistillError
from edgedistill.files import atomic_write_text
from edgedistill.limits import MOST_RESULT_BYTES, read_json
from edgedistill.training.loop import DivergedError

if TYPE_CHECKING:
    import optuna

FINISHED, STOPPED, DIVERGED = "finished", "stopped", "diverged"
STATES = (FINISHED, STOPPED, DIVERGED)
STARTUP_TRIALS = 5  # before the sampler has a model of what is good; until then settings are drawn at random
LEAST_FINISHED = 3  # trials before another one may be stopped
DIGITS = 3  # of a number that is drawn, so that it can be copied into a preset

Settings = Mapping[str, float | str]


@dataclass(frozen=True)
class Dimension:
    """Describes one setting that is searched: a number from `low` to `high`, or one of `choices`."""

    name: str
    low: float = 0.0
    high: float = 0.0
    log: bool = False  # whether the logarithm is drawn uniformly
    choices: tuple[float | str, ...] = ()
    unless: tuple[str, str] | None = None  # value of an earlier setting with which this one means nothing


@dataclass(frozen=True)
class StudyDesign:
    """Says what a search looks for: its space, the settings of its first trials, and its seed."""

    space: tuple[Dimension, ...]
    first: tuple[Settings, ...]  # at least one
    seed: int
    spared_steps: int = 0  # of a training, in which it is not stopped


@dataclass(frozen=True)
class Trial:
    """Holds one trial of a search that is over."""

    number: int
    settings: Settings
    state: str  # one of STATES
    validation_r2: float | None  # None unless it was trained to its end, and where no output moves
    evaluations: tuple[tuple[int, float], ...] = ()  # step, R² on the validation block in the middle of the training

    def to_json(self) -> dict[str, object]:
        """Returns what a bundle keeps of a trial."""
        last = self.evaluations[-1][0] if self.evaluations else None
        facts = {"trial": self.number, "state": self.state, "validation_r2": self.validation_r2}
        return {**facts, "last_step": last, "settings": dict(self.settings)}


@dataclass
class RunningTrial:
    """Holds a trial that is being trained, and decides at its evaluations whether it goes on."""

    number: int
    settings: Settings
    folder: Path  # for its checkpoint and its model
    asked: optuna.Trial | None  # None for the first trial, which always goes on
    keep: Callable[[Mapping[int, float]], None] = lambda evaluations: None  # called after every evaluation
    evaluations: dict[int, float] = field(default_factory=dict)  # step -> R²
    is_stopped: bool = False

    def evaluate(self, step: int, r2: float) -> bool:
        """Takes the validation R² at a step of the training, and returns whether the trial ends there.

        NaN says nothing and is not kept. A step that was evaluated before, by a run that was interrupted, counts once.
        """
        if math.isfinite(r2) and step not in self.evaluations:
            self.evaluations[step] = r2
            if self.asked is not None:
                self.asked.report(r2, step)
                self.is_stopped = bool(self.asked.should_prune())  # may be a bool of numpy
            self.keep(self.evaluations)
        return self.is_stopped


class DamagedStudyError(EdgeDistillError):
    """Reports a study file that is damaged or of another search, with which no search can go on."""


Train = Callable[[RunningTrial], float]  # returns R² on the validation block


def require_trials(trials: int) -> None:
    """Raises an EdgeDistillError for a budget below 1, or where a search is wanted and optuna is missing."""
    if trials < 1:
        raise ConfigError("a search needs a trial", got=f"--trials {trials}", expected="1 (no search) or more")
    if trials > 1 and find_spec("optuna") is None:
        raise EdgeDistillError(
            "a search over settings needs the package optuna",
            got=f"--trials {trials}, and no optuna in this environment",
            next_step="pip install 'edgedistill[search]', or leave out --trials",
        )


def run_study(
    path: Path,
    plan: StudyDesign,
    trials: int,
    train: Train,
    folder_of: Callable[[int], Path],
    key: str = "",
    is_whole: Callable[[int], bool] = lambda number: True,
) -> tuple[Trial, ...]:
    """Returns so many trials, of which those in the study file `path` are not trained again.

    `folder_of` gives the folder of each trial, and `is_whole` tells of a finished one whether all is there that it
    left. One that is not is trained again, with the same settings, and the others stay. `key` stands for all that goes
    into the search. A trial may diverge, but not the first one. Raises DamagedStudyError where the file is damaged or
    of another search.
    """
    require_trials(trials)
    facts = json.loads(json.dumps({"key": key, **asdict(plan)}))
    done, evaluations = read_study(path, facts)

    def keep(running: Mapping[int, float]) -> None:
        write_study(path, facts, done, running)

    for number in range(trials):
        is_new = number == len(done)
        if not is_new and (done[number].state != FINISHED or is_whole(number)):
            continue
        trial = make_trial(number, plan, done[:number], folder_of(number))
        if is_new:
            for step, r2 in sorted(evaluations.items()):
                trial.evaluate(step, r2)
            trial.keep, evaluations = keep, {}
        done[number : number + 1] = [finish_trial(trial, train)]
        write_study(path, facts, done, evaluations)
    return tuple(done[:trials])


def make_trial(number: int, plan: StudyDesign, done: Sequence[Trial], folder: Path) -> RunningTrial:
    """Returns the next trial, with settings from the plan's first ones or from the sampler."""
    folder.mkdir(parents=True, exist_ok=True)
    if number == 0:
        return RunningTrial(number, plan.first[0], folder, None)
    study = open_study(plan, done, number)
    if number < len(plan.first):
        study.enqueue_trial(dict(plan.first[number]))
    asked = study.ask()
    drawn = draw_settings(asked, plan.space)
    return RunningTrial(number, plan.first[number] if number < len(plan.first) else drawn, folder, asked)


def finish_trial(trial: RunningTrial, train: Train) -> Trial:
    """Trains a trial unless its evaluations have stopped it already, and returns what came out."""
    r2: float | None = None
    try:
        if not trial.is_stopped:
            r2 = train(trial)
    except DivergedError:
        if trial.number == 0:
            raise
        return Trial(trial.number, trial.settings, DIVERGED, None, tuple(sorted(trial.evaluations.items())))
    state = STOPPED if trial.is_stopped else FINISHED
    known = r2 if state == FINISHED and r2 is not None and math.isfinite(r2) else None
    return Trial(trial.number, trial.settings, state, known, tuple(sorted(trial.evaluations.items())))


def find_best(trials: Sequence[Trial]) -> Trial:
    """Returns the trial with the best validation R², of equal ones the first, and the first where none has one."""
    return max(trials, key=lambda trial: -math.inf if trial.validation_r2 is None else trial.validation_r2)


# ---------------------------------------------------------------- optuna


def open_study(plan: StudyDesign, done: Sequence[Trial], number: int) -> optuna.Study:
    """Returns a study in memory that knows the trials that are over, with a sampler for the trial of that number."""
    import optuna

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    seed = int.from_bytes(hashlib.sha256(f"{plan.seed}:{number}".encode()).digest()[:4], "little")
    study = optuna.create_study(
        direction="maximize",
        sampler=optuna.samplers.TPESampler(seed=seed, n_startup_trials=STARTUP_TRIALS),
        pruner=optuna.pruners.MedianPruner(n_startup_trials=LEAST_FINISHED, n_warmup_steps=plan.spared_steps),
    )
    known = {d.name: make_distribution(d) for d in plan.space}
    for trial in done:
        value, state = describe_end(trial)
        study.add_trial(
            optuna.trial.create_trial(
                state=state,
                value=value,
                params=dict(trial.settings),
                distributions={name: known[name] for name in trial.settings},
                intermediate_values=dict(trial.evaluations),
            )
        )
    return study


def describe_end(trial: Trial) -> tuple[float | None, optuna.trial.TrialState]:
    """Returns the value and the state of a trial as optuna calls it. A stopped trial counts by its last evaluation."""
    from optuna.trial import TrialState

    if trial.state == FINISHED and trial.validation_r2 is not None:
        return trial.validation_r2, TrialState.COMPLETE
    if trial.state == STOPPED:
        return trial.evaluations[-1][1], TrialState.PRUNED
    return None, TrialState.FAIL


def make_distribution(dimension: Dimension) -> optuna.distributions.BaseDistribution:
    """Returns a dimension in optuna's form."""
    import optuna

    if dimension.choices:
        return optuna.distributions.CategoricalDistribution(dimension.choices)
    return optuna.distributions.FloatDistribution(dimension.low, dimension.high, log=dimension.log)


def draw_settings(asked: optuna.Trial, space: Sequence[Dimension]) -> Settings:
    """Returns the settings that optuna proposes. Numbers have DIGITS digits and stay in their range."""
    drawn: dict[str, float | str] = {}
    for d in space:
        if d.unless is not None and drawn[d.unless[0]] == d.unless[1]:
            continue
        if d.choices:
            drawn[d.name] = cast("float | str", asked.suggest_categorical(d.name, d.choices))
        else:
            value = asked.suggest_float(d.name, d.low, d.high, log=d.log)
            drawn[d.name] = min(max(float(f"{value:.{DIGITS}g}"), d.low), d.high)
    return drawn


# ---------------------------------------------------------------- the study file


def write_study(path: Path, facts: Mapping[str, object], done: Sequence[Trial], running: Mapping[int, float]) -> None:
    """Writes the trials that are over, and the evaluations of the one that is not. Raises OutputError."""
    content = {**facts, "trials": [asdict(trial) for trial in done], "running": sorted(running.items())}
    atomic_write_text(path, json.dumps({"sha256": hash_content(content), **content}, indent=1), "the study")


def hash_content(content: Mapping[str, object]) -> str:
    """Returns the SHA-256 of the content of a study file, which stands in the file beside it."""
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def read_study(path: Path, facts: Mapping[str, object]) -> tuple[list[Trial], dict[int, float]]:
    """Returns what `write_study` wrote, or nothing where there is no file.

    Raises DamagedStudyError where the file is damaged or its `facts` are others.
    """
    if not path.exists():
        return [], {}
    try:
        content = read_json(path, MOST_RESULT_BYTES)
        if content.pop("sha256") != hash_content(content):
            raise ValueError("its content was changed")
        done = [trial_from_json(one) for one in content["trials"]]
        running = {int(step): float(r2) for step, r2 in content["running"]}
        found = {key: content[key] for key in facts}
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise DamagedStudyError(
            f"the study {path} is damaged", got=str(error), next_step=f"rm {path}, and start again"
        ) from error
    if found != facts:
        raise DamagedStudyError(
            f"the study {path} is of a search with other settings",
            got=next(f"{key}: {found[key]}" for key in facts if found[key] != facts[key]),
            causes=("the preset, the seed or the version has changed",),
            next_step="use another --work folder",
        )
    return done, running


def trial_from_json(stored: Mapping[str, object]) -> Trial:
    """Returns the trial that `asdict` stored. Raises KeyError, TypeError or ValueError for anything else."""
    number, settings, state, r2, evaluations = (
        stored[key] for key in ("number", "settings", "state", "validation_r2", "evaluations")
    )
    if not (isinstance(number, int) and isinstance(settings, dict) and isinstance(evaluations, list)):
        raise TypeError(f"not a trial: {stored}")
    if state not in STATES or not (r2 is None or isinstance(r2, float)):
        raise ValueError(f"not a trial: {stored}")
    return Trial(number, settings, str(state), r2, tuple((int(step), float(value)) for step, value in evaluations))
