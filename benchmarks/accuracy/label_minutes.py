"""Measures how well decoders read a session of which only some minutes have labels.

    python -m benchmarks.accuracy.label_minutes --preset nano --seeds 3

The sessions, the teacher and the work folder of a seed are those of `accuracy.py`. The session that is decoded is the
last trained one, and labels of no other session are used. A row is one decoder with so many minutes of labels. Its R²
is that of the test block, with the output filter that was fitted for this decoder on these labels. Rows are kept under
--work as those of `accuracy.py` are. A result with its gates and a picture are written to benchmarks/results/cpu/.
"""

from __future__ import annotations

import math
from argparse import ArgumentTypeError
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import cache
from importlib import resources
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from benchmarks.accuracy.accuracy import (
    MINUTES,
    SESSIONS,
    Seed,
    choose_on_validation,
    find_teacher,
    plan_student,
    student_settings,
    train_student_once,
)
from benchmarks.accuracy.gates import Gate, compare_rows, judge_gates, summarize_rows, tabulate_gates
from benchmarks.harness import RESULTS, describe_conditions, option_parser, write_result
from edgedistill.config import Preset, TrainingConfig, load_preset
from edgedistill.data.simulation.config import VARIANTS
from edgedistill.files import atomic_write_text
from edgedistill.models.files import load_teacher
from edgedistill.models.student import Student
from edgedistill.models.teacher import PatchAutoencoder
from edgedistill.pipeline.smoothed import fit_for_session
from edgedistill.report.label_curve import Curves, draw_label_curves
from edgedistill.training.baselines import fit_linear_baselines, fit_spike_decoder
from edgedistill.training.batches import TrainingSession
from edgedistill.training.evaluate import Score, score_decoded, unscale_behavior
from edgedistill.training.few_labels import BINS_PER_MINUTE, fill_in_labels, find_labelled, withhold_labels
from edgedistill.training.student_tasks import STUDENT_TASKS, compute_features, score_student
from edgedistill.training.study import RunningTrial
from edgedistill.training.teacher_targets import TeacherTargets

MODULE = "benchmarks.accuracy.label_minutes"
ALL = math.inf  # all labels of the session's training block
AMOUNTS = (0.5, 1.0, 2.0, 4.0, ALL)
READOUT = "deployed"  # the read-out of every student: what the device computes
DEPLOYED, BEHAVIOR, DISTILLED, FEW, RIDGE, TAUGHT_RIDGE, SHIPPED = DECODERS = (
    "deployed student",
    "student on behavior alone",
    "student distilled without labels",
    "distilled student on recorded labels alone",
    "lagged ridge",
    "lagged ridge with labels from spikes",
    "student that ships",
)
CANDIDATES = (DEPLOYED, DISTILLED, FEW, BEHAVIOR)  # what ships is the best of these on validation
GATED_MINUTES, LEAST_GAIN = 1.0, 0.10  # R² by which a teacher must help where labels are that few


def run_seed(run: Seed, amounts: Sequence[float]) -> dict[str, dict[str, Any]]:
    """Measures every decoder of one seed with every amount of labels."""
    model = find_teacher(run)["model"]
    teacher = load_teacher(run.folder / model)[0]
    rows = {}
    for minutes in amounts:
        sessions = withhold_labels(run.trained, run.target, min(minutes, MINUTES))
        for decoder, measure in list_decoders(run, teacher, model, sessions).items():
            row = name_row(decoder, minutes)
            rows[row] = {**measure(row), "minutes": count_minutes(sessions[-1])}
        best = choose_on_validation(rows, [name_row(decoder, minutes) for decoder in CANDIDATES])
        rows[name_row(SHIPPED, minutes)] = {**rows[best], "chosen": best}
    return rows


def list_decoders(
    run: Seed, teacher: PatchAutoencoder, model: str, sessions: Sequence[TrainingSession]
) -> dict[str, Callable[[str], dict[str, Any]]]:
    """Returns how the row of each decoder is measured on sessions with few labels, of which the last is decoded.

    A decoder of its spikes, fitted on these labels, labels the rest of its training block for the students that `build`
    ships, as `build` does, and for one ridge to compare with.
    `model` names the teacher's folder. The student that is distilled without labels is the same for every amount of
    labels, and the same as that of `accuracy.py`. What was measured before with the same settings is not again.
    """
    target = sessions[-1]

    @cache
    def label_rest() -> TrainingSession:
        return fill_in_labels(target, fit_spike_decoder(target)[1].decoded)

    def measure(
        row: str,
        task: str,
        seen: Sequence[TrainingSession],
        scored: Callable[[], TrainingSession],
        shared: str | None = None,
    ) -> dict[str, Any]:
        targets = TeacherTargets(teacher, seen, run.preset.teacher_training)
        settings = student_settings(run, task, model)

        def train(trial: RunningTrial) -> dict[str, Score]:
            student = train_student_once(run, task, seen, targets, trial)
            return {} if trial.is_stopped else {target.id: score_smoothed(student, scored())}

        return run.search_once(row, plan_student(run, task), train, *settings, shared=shared)

    def distill(row: str, scored: Callable[[], TrainingSession]) -> dict[str, Any]:
        return measure(row, "distilled", run.trained, scored, "distilled")

    return {
        DEPLOYED: lambda row: measure(row, "deployed", (*sessions[:-1], label_rest()), label_rest),
        BEHAVIOR: lambda row: measure(row, "supervised_lfp", sessions, lambda: target),
        DISTILLED: lambda row: distill(row, label_rest),
        FEW: lambda row: distill(row, lambda: target),
        RIDGE: lambda row: run.measure_once(row, lambda: score_ridges(target)),
        TAUGHT_RIDGE: lambda row: run.measure_once(row, lambda: score_ridges(label_rest())),
    }


def score_smoothed(student: Student, session: TrainingSession) -> Score:
    """Scores a student as it is deployed: with a read-out and an output filter fitted on the labels of the session."""
    readout, _ = score_student(student, READOUT, session)
    decoded = readout(compute_features(student, STUDENT_TASKS[READOUT], session))
    return score_decoded(fit_for_session(decoded, session)(decoded), unscale_behavior(session), session.split)


def score_ridges(session: TrainingSession) -> dict[str, Any]:
    """Returns R² of the lagged ridge on LFP that decodes the validation block best, and that of each linear decoder."""
    found = fit_linear_baselines(session, "lfp")
    ridges = {name: one.score for name, one in found.items() if name.startswith("ridge_")}
    best = max(ridges, key=lambda name: ridges[name].validation_r2)
    linear = {name: one.score.r2 for name, one in found.items()}
    return {"r2": {session.id: ridges[best].r2}, "validation": ridges[best].validation_r2, "best": best, "all": linear}


def count_minutes(session: TrainingSession) -> float:
    """Returns the minutes of labels that are used."""
    return int(find_labelled(session).sum()) / BINS_PER_MINUTE


# ---------------------------------------------------------------- over seeds


def list_gates() -> list[Gate]:
    """Returns what few labels must show."""
    amount = GATED_MINUTES
    return [
        Gate(name_row(ours, amount), name_row(other, amount), LEAST_GAIN)
        for ours in (DEPLOYED, SHIPPED)
        for other in (BEHAVIOR, RIDGE)
    ]


def name_amount(minutes: float) -> str:
    """Returns an amount of labels in words."""
    return "all labels" if minutes == ALL else f"{minutes:g} min of labels"


def name_row(decoder: str, minutes: float) -> str:
    """Returns the name of a row."""
    return f"{decoder}, {name_amount(minutes)}"


def draw_together(seeds: list[dict[str, dict[str, Any]]], amounts: Sequence[float]) -> dict[str, list[dict[str, Any]]]:
    """Returns the points of each decoder: R² over seeds, and how far the deployed student is above (paired)."""
    table = summarize_rows(seeds)
    curves: dict[str, list[dict[str, Any]]] = {}
    for decoder in DECODERS:
        for amount in amounts:
            row = name_row(decoder, amount)
            minutes = sum(seed[row]["minutes"] for seed in seeds) / len(seeds)
            over = compare_rows(seeds, name_row(DEPLOYED, amount), row)
            point = {"labels": name_amount(amount), "minutes": minutes, **table[row], "deployed_over_it": over}
            curves.setdefault(decoder, []).append(point)
    return curves


def write_figure(curves: Curves, path: Path) -> None:
    """Writes the curves as SVG that is looked at by itself, with the colors of a report."""
    atomic_write_text(path, draw_figure(curves), "the figure")


def draw_figure(curves: Curves) -> str:
    """Returns the curves as SVG with the colors of a report."""
    folder = resources.files("edgedistill.report")
    css = "".join((folder / name).read_text(encoding="utf-8") for name in ("colours.css", "page.css"))
    style = f"<style>{css}svg {{ background: var(--card); }}</style>"
    return draw_label_curves(curves).replace("<title>", f"{style}<title>", 1) + "\n"


def parse_amount(text: str) -> float:
    """Returns the minutes that an argument names. Raises ArgumentTypeError for what is neither `all` nor above 0."""
    try:
        minutes = ALL if text == "all" else float(text)
    except ValueError:
        minutes = 0.0
    if not minutes > 0:
        raise ArgumentTypeError(f"'{text}' is neither 'all' nor a number of minutes above 0")
    return minutes


def shorten(preset: Preset, steps: int) -> Preset:
    """Returns the preset with at most so many steps in each training."""

    def short(config: TrainingConfig) -> TrainingConfig:
        return replace(config, steps=min(steps, config.steps), eval_every=min(steps, config.eval_every))

    return replace(preset, training=short(preset.training), teacher_training=short(preset.teacher_training))


def show(result: dict[str, Any]) -> None:
    curves = result["curves"]
    table = Table("labels", "minutes", *curves, title=f"R², {result['preset']}, {len(result['seeds'])} seeds")
    for points in zip(*curves.values(), strict=True):
        first = points[0]
        table.add_row(first["labels"], f"{first['minutes']:.2f}", *(f"{point['mean']:.3f}" for point in points))
    Console().print(table)
    Console().print(tabulate_gates(result["gates"]))


def main() -> None:
    parser = option_parser(__doc__, RESULTS / "cpu")
    parser.add_argument("--preset", default="nano")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--first-seed", type=int, default=0)
    parser.add_argument("--minutes", type=parse_amount, nargs="+", default=AMOUNTS, help="of labels, or 'all'")
    parser.add_argument("--steps", type=int, help="shortens every training; the result then has another name")
    parser.add_argument("--trials", type=int, default=1, help="of every network's search; 1 is the preset")
    parser.add_argument("--variant", choices=VARIANTS, default=VARIANTS[0], help="of the simulator")
    parser.add_argument("--work", type=Path, default=Path("build/accuracy"))
    options = parser.parse_args()
    preset = load_preset(options.preset)
    name = preset.name if options.variant == VARIANTS[0] else f"{preset.name}-{options.variant}"
    if options.steps is not None:
        preset, name = shorten(preset, options.steps), f"{name}-{options.steps}-steps"
    amounts = sorted(set(options.minutes))
    numbers = list(range(options.first_seed, options.first_seed + options.seeds))
    runs = [Seed(n, preset, options.work / f"{name}-{n}", options.trials, variant=options.variant) for n in numbers]
    seeds = [run_seed(run, amounts) for run in runs]
    result = {
        **describe_conditions(MODULE),
        "preset": preset.name,
        "variant": options.variant,
        "seeds": numbers,
        "sessions": {"trained": SESSIONS - 1, "with_labels": 1, "minutes": MINUTES},
        "steps": {"teacher": preset.teacher_training.steps, "student": preset.training.steps},
        "trials": options.trials,
        "curves": draw_together(seeds, amounts),
        "gates": judge_gates(seeds, list_gates(), {}, None),
        "per_seed": seeds,
    }
    write_result(options.out, f"label-minutes-{name}", result)
    write_figure(result["curves"], options.out / f"label-minutes-{name}.svg")
    show(result)


if __name__ == "__main__":
    main()
