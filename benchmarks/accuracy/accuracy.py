"""Measures how well each model decodes simulated sessions.

    python -m benchmarks.accuracy.accuracy --preset nano --seeds 3

A seed is another population, other sessions and another initialization. Four sessions are trained on, and a fifth is
never distilled on. Every network gets the same number of trials (--trials) in a search over its settings, which are
chosen on validation, and the linear baselines get a wider search. R² is that of the test block, causal and streamed
from the first bin, except in rows named bidirectional. Each row is kept under --work with the settings that it was
measured with, so that an interrupted run can go on, and another setting measures the row anew. A change of the code
does not. Two processes may measure two seeds in one --work (--first-seed), and a third call with all seeds then puts
them together. Results are written to benchmarks/results/cpu/.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, astuple, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

from benchmarks.accuracy.gates import (
    NANO,
    VERSION_0_1,
    Rows,
    choose_gates,
    compute_gap_closed,
    judge_gates,
    name_int8,
    summarize_rows,
    tabulate_gates,
)
from benchmarks.accuracy.int8_rows import (
    FOUR_BIT,
    FloatStudent,
    Int8Row,
    list_int8_rows,
    list_recipe_rows,
    measure_quantized,
)
from benchmarks.harness import RESULTS, describe_conditions, digest_settings, option_parser, write_result
from edgedistill.config import ALIGNMENTS, CENTRINGS, DEFAULT_ALIGNMENT, Alignment, Preset, load_preset
from edgedistill.data.candidates import NO_NAMES
from edgedistill.data.simulation.config import VARIANTS
from edgedistill.data.simulation.nwb import simulate_to_nwb
from edgedistill.data.simulation.sessions import SimulationConfig
from edgedistill.measure.latency import EMPTY, LatencyUs, time_steps
from edgedistill.models.files import load_student, load_teacher, save_student, save_teacher
from edgedistill.models.student import Student
from edgedistill.models.teacher import PatchAutoencoder
from edgedistill.pipeline.cache import Cache
from edgedistill.pipeline.inputs import read_sessions
from edgedistill.pipeline.student_files import write_student
from edgedistill.quantization.calibration.recipe import DEFAULT_RECIPE, load_recipe
from edgedistill.runtime.onnx_engine import OnnxEngine
from edgedistill.training.adapt import adapt
from edgedistill.training.baselines import fit_linear_baselines, score_ridge
from edgedistill.training.batches import TrainingSession, compute_gap, training_session_from_bins
from edgedistill.training.distill import distill_bidirectional
from edgedistill.training.evaluate import Score
from edgedistill.training.losses import DISTILLED
from edgedistill.training.midway import stop_bidirectional, stop_student
from edgedistill.training.output_filter import KALMAN
from edgedistill.training.pretrain import train_autoencoder, train_teacher
from edgedistill.training.search_space import objective_with, plan_search, training_with
from edgedistill.training.student_tasks import (
    STUDENT_TASKS,
    StudentTask,
    score_latents,
    score_smoothed,
    score_student,
    score_teacher,
    train_task,
)
from edgedistill.training.study import RunningTrial, StudyDesign, find_best, run_study
from edgedistill.training.teacher_targets import Targets, TeacherTargets

SESSIONS, MINUTES = 5, 8.0  # the last session is never trained on
TRIALS = 1  # the preset; the second has half its learning rate, and further ones are drawn
MODULE = "benchmarks.accuracy.accuracy"

SIZE_LIMITS = {"edge": {"weight_bytes": 1_300_000, "state_bytes": 250_000}}
STUDENTS = {  # row -> its task, and whether it sees the decoded session alone
    "distilled": ("distilled", False),
    "deployed": ("deployed", False),
    "single_session_lfp": ("unsupervised_lfp", True),
    "multi_session_lfp": ("unsupervised_lfp", False),
    "supervised_lfp": ("supervised_lfp", False),
    "supervised_single_session_lfp": ("supervised_lfp", True),
    "spike_student": ("spike_student", False),
}
BIDIRECTIONAL = {"distilled_bidirectional": True, "single_session_lfp_bidirectional": False}  # whether distilled
LINEAR = {"linear_lfp": "lfp", "linear_spikes": "spikes"}  # each gives a row for every linear baseline
LINEAR_BIDIRECTIONAL = {"ridge_lfp_bidirectional": "lfp", "ridge_spike_bidirectional": "spikes"}
SHIPPED = ("deployed", "distilled", "supervised_lfp")  # what ships is the best of these on validation
NEW_DAY = ("distilled", "multi_session_lfp", "deployed")
INT8 = (*SHIPPED, "spike_student")
# Each of LAST is one row, or several, for the students above that were trained
LAST = ("new_day", "int8", "four_bit", "int8_recipes", "latency")
CHOICES = (*STUDENTS, *BIDIRECTIONAL, *LINEAR, *LINEAR_BIDIRECTIONAL, *LAST)
TEACHER_SETTINGS = ("teacher", "teacher_training")  # fields of a preset
CHECKPOINT = "checkpoint.safetensors"


@dataclass
class Seed:
    """The sessions of one seed, and the folder that keeps its rows."""

    seed: int
    preset: Preset
    folder: Path
    trials: int = TRIALS
    alignment: Alignment = DEFAULT_ALIGNMENT
    variant: str = VARIANTS[0]  # of the simulator

    def task(self, name: str) -> StudentTask:
        """Returns a student's task with the alignment of this run."""
        return STUDENT_TASKS[name].with_alignment(self.alignment)

    def __post_init__(self) -> None:
        """Simulates the sessions unless they are there, and reads them."""
        config = SimulationConfig(sessions=SESSIONS, minutes=MINUTES, seed=self.seed, variant=self.variant)
        data = self.folder.parent / f"sessions-{self.variant}-{self.seed}-{digest_settings(config)}"
        if len(list(data.glob("*.nwb"))) < SESSIONS:
            list(simulate_to_nwb(config, data))
        self.data = (config, self.preset.band_power, self.preset.student)  # the gaps between blocks follow from both
        bins = read_sessions(Cache(self.folder.parent / "read"), [data], NO_NAMES, 60, self.preset.band_power)
        sessions = [training_session_from_bins(b, compute_gap(bins, self.preset.student)) for b in bins]
        self.trained, self.new_day = sessions[:-1], sessions[-1]
        self.target = self.trained[-1]
        self.folder.mkdir(parents=True, exist_ok=True)

    def name_row(self, row: str, *settings: object) -> str:
        """Returns the name of a row's files. It ends in a digest of `settings` and of those of the sessions."""
        return f"{row}-{digest_settings(*self.data, *settings)}"

    def measure_once(self, row: str, measure: Callable[[], dict[str, Any]], *settings: object) -> dict[str, Any]:
        """Returns the result of a row, which is measured unless it was before with the same settings.

        `settings` are all that it depends on beside the sessions. A model is named by its folder.
        """
        name = self.name_row(row, *settings)
        path = self.folder / f"{name}.json"
        if not path.exists():
            found = measure()
            write_result(self.folder, name, found)
            print(f"seed {self.seed} {row}: {found}", flush=True)
        return dict(json.loads(path.read_text()))

    def search_once(
        self,
        row: str,
        plan: StudyDesign,
        train: Callable[[RunningTrial], dict[str, Score]],
        *settings: object,
        shared: str | None = None,
    ) -> dict[str, Any]:
        """Returns the result of a search as `search` does, with the folder of its best model (`model`).

        Models are named by their own settings, so that a longer search finds those of a shorter one again. Where a row
        `shared` is given, the first models are that row's, because their settings are the same in both.
        """
        own, others = (self.name_row(name, *settings) for name in (row, shared or row))

        def name_model(number: int) -> str:
            return f"{others if number < len(plan.first) else own}-{number + 1}"

        def measure() -> dict[str, Any]:
            found = self.search(own, plan, train, lambda number: self.folder / name_model(number))
            return {**found, "model": name_model(found["trial"])}

        counted = [float(number + 1) for number in range(self.trials)]
        return self.measure_once(row, measure, *settings, counted)

    def search(
        self,
        name: str,
        plan: StudyDesign,
        train: Callable[[RunningTrial], dict[str, Score]],
        folder_of: Callable[[int], Path],
    ) -> dict[str, Any]:
        """Returns the trial with the best mean validation R², and every trial. `train` gives R² of each session."""

        def judge(trial: RunningTrial) -> float:
            scores = train(trial)
            if trial.is_stopped:
                return math.nan
            write_result(self.folder, f"{name}-r2-{trial.number}", {k: score.r2 for k, score in scores.items()})
            return float(np.mean([score.validation_r2 for score in scores.values()]))

        trials = run_study(self.folder / f"{name}-study.json", plan, self.trials, judge, folder_of)
        best = find_best(trials)
        return {
            "trial": best.number,
            "settings": dict(best.settings),
            "validation": math.nan if best.validation_r2 is None else best.validation_r2,
            "r2": json.loads((self.folder / f"{name}-r2-{best.number}.json").read_text()),
            "search": [trial.to_json() for trial in trials],
        }


def run_seed(run: Seed, chosen: Sequence[str] = CHOICES) -> dict[str, dict[str, Any]]:
    """Measures the rows of one seed that belong to `chosen`, and the teacher."""
    rows = {"teacher": find_teacher(run)}
    name = rows["teacher"]["model"]
    teacher = load_teacher(run.folder / name)[0]
    rows["teacher_latents"] = run.measure_once("teacher_latents", lambda: score_teacher_latents(run, teacher), name)
    targets = TeacherTargets(teacher, run.trained, run.preset.teacher_training)
    for row, (task, single) in STUDENTS.items():
        if row in chosen:
            rows[row] = find_student(run, row, task, single, rows["teacher"]["model"], targets)
    for row, distilled in BIDIRECTIONAL.items():
        if row in chosen:
            rows[row] = find_bidirectional(run, row, distilled, rows["teacher"]["model"], targets)
    for row, part in LINEAR.items():
        if row in chosen:
            found = run.measure_once(row, lambda part=part: score_baselines(run, part))
            rows |= split_off_day(found["r2"], run.new_day.id)
    for row, part in LINEAR_BIDIRECTIONAL.items():
        if row in chosen:
            rows[row] = run.measure_once(row, lambda part=part: score_bidirectional_ridge(run, part))
    students = {row: find_float_student(run, STUDENTS[row][0], rows[row]) for row in STUDENTS if row in rows}
    if "new_day" in chosen:
        rows |= measure_new_day(run, students, "int8" in chosen)
    rows |= measure_int8(run, students, targets, chosen)
    if "latency" in chosen and "deployed" in students:
        folder = students["deployed"].folder
        rows["latency"] = run.measure_once("latency", lambda: measure_latency(run, folder), folder.name)
    return rows | choose_shipped(rows)


def find_teacher(run: Seed) -> dict[str, Any]:
    """Returns the row of the teacher, which is trained unless it was before."""
    settings = [getattr(run.preset, name) for name in TEACHER_SETTINGS]
    plan = plan_search(run.preset.teacher_training, seed=run.seed)
    return run.search_once("teacher", plan, lambda trial: train_teacher_trial(run, trial), *settings)


def find_float_student(run: Seed, name: str, row: dict[str, Any]) -> FloatStudent:
    """Returns the student of a row, with its task as it was trained."""
    task = run.task(name)
    objective = objective_with(task.objective, row.get("settings", {}))
    return FloatStudent(run.folder / row["model"], name, replace(task, objective=objective))


def student_settings(run: Seed, task: str, teacher: str, *others: object) -> tuple[object, ...]:
    """Returns what a trained student depends on beside the sessions. `teacher` names the teacher's folder."""
    return (run.preset.training, run.task(task), teacher, *others)


def find_student(run: Seed, row: str, task: str, single: bool, teacher: str, targets: TeacherTargets) -> dict[str, Any]:
    """Returns the row of a student, which is trained unless it was before."""
    sessions = [run.target] if single else run.trained
    return run.search_once(
        row,
        plan_student(run, task),
        lambda trial: train_student_trial(run, task, sessions, targets, trial),
        *student_settings(run, task, teacher),
    )


def plan_student(run: Seed, task: str) -> StudyDesign:
    """Returns the plan of a search over the settings of a student."""
    return plan_search(run.preset.training, run.task(task).objective, seed=run.seed)


def find_bidirectional(run: Seed, row: str, distilled: bool, teacher: str, targets: TeacherTargets) -> dict[str, Any]:
    """Returns the row of a published patch student, which is trained unless it was before."""
    sessions = run.trained if distilled else [run.target]
    followed = targets if distilled else None
    objective = replace(DISTILLED, aligned_by=run.alignment, reconstruction=0.0) if distilled else None
    return run.search_once(
        row,
        plan_search(run.preset.training, objective, augmented=distilled, seed=run.seed),
        lambda trial: train_bidirectional_trial(run, sessions, followed, trial),
        *student_settings(run, "distilled", teacher, run.preset.patch_student),
    )


def measure_new_day(run: Seed, students: dict[str, FloatStudent], int8: bool) -> dict[str, dict[str, Any]]:
    """Measures the students on the never-distilled day, in each mode that needs no labels, and `stats` in INT8."""
    rows, recipe = {}, load_recipe(DEFAULT_RECIPE)
    for row in (row for row in NEW_DAY if row in students):
        student = students[row]
        for mode in ("none", "stats", "tokenizer"):
            name = f"{row}, new day, {mode}"
            rows[name] = run.measure_once(
                name,
                lambda student=student, mode=mode: score_new_day(run, student, mode),
                student.folder.name,
                run.preset.training,
            )
        name = f"{row}, new day, stats"
        if int8:
            rows[name_int8(name)] = run.measure_once(
                name_int8(name), lambda student=student: quantize_new_day(run, student), student.folder.name, recipe
            )
    return rows


def measure_int8(
    run: Seed, students: dict[str, FloatStudent], targets: TeacherTargets, chosen: Sequence[str]
) -> dict[str, dict[str, Any]]:
    """Measures students in INT8 with the recipe that ships (`int8`), and the deployed one with all (`int8_recipes`).

    `four_bit` is the deployed one with four-bit weights, which is one of these recipes.
    """
    listed: dict[str, Int8Row] = {}
    if "int8" in chosen:
        listed |= list_int8_rows({row: students[row] for row in INT8 if row in students})
    if "four_bit" in chosen and "deployed" in students:
        listed |= list_int8_rows({"deployed": students["deployed"]}, FOUR_BIT)
    if "int8_recipes" in chosen and "deployed" in students:
        listed |= list_recipe_rows("deployed", students["deployed"])

    def follow(task: StudentTask) -> Targets:
        return targets.of(task.objective, run.preset.student)

    return {
        row: run.measure_once(
            row,
            lambda one=one: one.measure(run.trained, follow, run.seed, run.preset.training),
            one.student.folder.name,
            one.recipe,
            run.preset.training,
        )
        for row, one in listed.items()
    }


def choose_shipped(rows: Rows) -> dict[str, dict[str, Any]]:
    """Returns the row of what ships, and the same in INT8: of the students in SHIPPED the best on validation."""
    if not all(row in rows for row in SHIPPED):
        return {}
    best = choose_on_validation(rows, SHIPPED)
    found = {"shipped": {"r2": rows[best]["r2"], "validation": rows[best]["validation"], "chosen": best}}
    if name_int8(best) in rows:
        found[name_int8("shipped")] = dict(rows[name_int8(best)])
    return found


def choose_on_validation(rows: Rows, names: Sequence[str]) -> str:
    """Returns the row that decodes the validation block best, the first of those that are equal."""
    return max(names, key=lambda row: rows[row]["validation"])


def train_teacher_trial(
    run: Seed, trial: RunningTrial, score: Callable[[PatchAutoencoder, TrainingSession, int], Score] = score_teacher
) -> dict[str, Score]:
    """Trains the teacher of a trial, and scores it with `score` on every session."""
    config = training_with(run.preset.teacher_training, trial.settings)
    stop = stop_bidirectional(trial, "spikes", run.target, config.segment_bins)
    model = train_teacher(run.trained, run.preset.teacher, config, run.seed, trial.folder / CHECKPOINT, stop=stop)
    if trial.is_stopped:
        return {}
    save_teacher(model, trial.folder, {})
    return {s.id: score(model, s, config.segment_bins) for s in run.trained}


def score_teacher_latents(run: Seed, teacher: PatchAutoencoder) -> dict[str, Any]:
    """Scores the latents of the teacher's encoder, as published, and not the features that students follow."""
    segment = run.preset.teacher_training.segment_bins
    return {"r2": {s.id: score_latents(teacher, s, segment).r2 for s in run.trained}}


def train_student_trial(
    run: Seed, task: str, sessions: list[TrainingSession], targets: TeacherTargets, trial: RunningTrial
) -> dict[str, Score]:
    student = train_student_once(run, task, sessions, targets, trial)
    return {} if trial.is_stopped else {s.id: score_smoothed(student, task, s, KALMAN) for s in sessions}


def train_student_once(
    run: Seed, task: str, sessions: Sequence[TrainingSession], targets: TeacherTargets, trial: RunningTrial
) -> Student:
    """Returns a trained student. The checkpoint of the trial is gone on from, or taken where it is finished."""
    config, chosen = training_with(run.preset.training, trial.settings), run.task(task)
    chosen = replace(chosen, objective=objective_with(chosen.objective, trial.settings))
    followed = targets.of(chosen.objective, run.preset.student)
    stop = stop_student(trial, chosen.modality, sessions[-1])
    student = train_task(chosen, sessions, run.preset, config, run.seed, followed, trial.folder / CHECKPOINT, stop=stop)
    save_student(student, trial.folder, {"row": task})
    return student


def train_bidirectional_trial(
    run: Seed, sessions: list[TrainingSession], targets: TeacherTargets | None, trial: RunningTrial
) -> dict[str, Score]:
    """Trains the published patch student on the slow LFP, distilled, or without the teacher as an autoencoder."""
    sessions = [session.without_bands() for session in sessions]
    config, size = training_with(run.preset.training, trial.settings), run.preset.patch_student
    stop = stop_bidirectional(trial, "lfp", sessions[-1], config.segment_bins)
    checkpoint = trial.folder / CHECKPOINT
    if targets is not None:
        objective = objective_with(replace(DISTILLED, aligned_by=run.alignment), trial.settings)
        followed = targets.of(objective, size)
        model = distill_bidirectional(
            sessions, size, config, run.seed, followed, checkpoint, objective=objective, stop=stop
        )
    else:
        masked = replace(size, mask_share=0.5)
        model = train_autoencoder(sessions, "lfp", masked, config, run.seed, checkpoint, stop=stop)
    return {} if trial.is_stopped else {s.id: score_latents(model, s, config.segment_bins) for s in sessions}


def score_baselines(run: Seed, part: str) -> dict[str, Any]:
    """Scores every linear baseline, by row, on every session. The best by validation is a row of its own."""
    found = {s.id: fit_linear_baselines(s, part) for s in [*run.trained, run.new_day]}
    rows = next(iter(found.values()))
    r2 = {row: {session: one[row].score.r2 for session, one in found.items()} for row in rows}
    best = {s: max(one.values(), key=lambda b: b.score.validation_r2) for s, one in found.items()}
    return {"r2": r2 | {f"best_linear_{part}": {session: one.score.r2 for session, one in best.items()}}}


def split_off_day(r2: dict[str, dict[str, float]], day: str) -> dict[str, dict[str, Any]]:
    """Returns rows of R² by session without `day`, and that day in rows of its own, as students have it."""
    rows: dict[str, dict[str, Any]] = {}
    for name, found in r2.items():
        rows[name] = {"r2": {session: value for session, value in found.items() if session != day}}
        rows[f"{name}, new day"] = {"r2": {day: found[day]}}
    return rows


def score_bidirectional_ridge(run: Seed, part: str) -> dict[str, Any]:
    """Scores a ridge that sees the future on one session, as the single-session models it is compared with."""
    bins = run.target.inputs(part).double().numpy()
    return {"r2": {run.target.id: score_ridge(bins, run.target, bidirectional=True, modality=part).r2}}


def score_new_day(run: Seed, trained: FloatStudent, mode: str) -> dict[str, Any]:
    """Adapts a student to the never-distilled session without labels, and probes it with that session's labels."""
    student, session = adapt_to_new_day(run, trained, mode)
    return {"r2": {session.id: score_smoothed(student, trained.name, session, KALMAN).r2}}


def quantize_new_day(run: Seed, trained: FloatStudent) -> dict[str, Any]:
    """Adapts a student to the never-distilled session by its statistics, and scores it in INT8."""
    student, session = adapt_to_new_day(run, trained, "stats")
    return measure_quantized(student, trained.name, trained.task, load_recipe(DEFAULT_RECIPE), [session], run.seed)


def adapt_to_new_day(run: Seed, trained: FloatStudent, mode: str) -> tuple[Student, TrainingSession]:
    """Returns a student that was adapted to the never-distilled session, and the session as it reads it."""
    student = load_student(trained.folder)[0]
    standardization = run.target.standardization
    return student, adapt(student, run.new_day, mode, standardization, run.preset.training, run.seed)


def measure_latency(run: Seed, folder: Path) -> dict[str, Any]:
    """Measures the step latency of the model whose R² is the row `deployed`."""
    student, _ = load_student(folder)
    readout, score = score_student(student, "deployed", run.target)
    bins = run.target.inputs("lfp")
    files, shape, _ = write_student(student, run.target.id, readout)
    engine = OnnxEngine(files["student.onnx"], shape)
    times = time_steps({"step": engine.step}, bins[run.target.split.test].numpy(), steps=5000)
    figures = {name: LatencyUs.from_times(times[name]).to_json() for name in ("step", EMPTY)}
    return {"r2": {run.target.id: score.r2}, "engine": "onnxruntime float32, 1 thread", "latency_us": figures}


# ---------------------------------------------------------------- over seeds


def read_int8_bytes(seeds: list[dict[str, dict[str, Any]]], preset: str) -> dict[str, Any]:
    """Returns the bytes of weights and state of the deployed student in INT8, beside their limits."""
    row = seeds[0].get(name_int8("deployed"))
    if row is None:
        return {}
    limits = SIZE_LIMITS.get(preset, {})
    return {name: {"bytes": row[name], "limit": limits.get(name)} for name in ("weight_bytes", "state_bytes")}


def add_nano(seeds: list[dict[str, dict[str, Any]]], numbers: Sequence[int], result: Path) -> list[dict[str, Any]]:
    """Returns the rows of each seed with that of the deployed `nano`, from its result, if it has all these seeds."""
    other = json.loads(result.read_text()) if result.exists() else {}
    known = dict(zip(other.get("seeds", ()), other.get("per_seed", ()), strict=False))
    if not all("deployed" in known.get(number, ()) for number in numbers):
        return seeds
    return [{**seed, NANO: known[number]["deployed"]} for seed, number in zip(seeds, numbers, strict=True)]


def show(result: dict[str, Any]) -> None:
    console = Console()
    table = Table("row", "R²", "±", title=f"{result['preset']}, {result['variant']}, {len(result['seeds'])} seeds")
    for row, figures in result["rows"].items():
        table.add_row(row, f"{figures['mean']:.3f}", "" if figures["std"] is None else f"{figures['std']:.3f}")
    for row in result["not_measured"]:
        table.add_row(row, "not measured", "")
    console.print(table)
    console.print(tabulate_gates(result["gates"]))
    console.print("share of the gap closed", result["gap_closed"])
    console.print("shipped", result["shipped"])
    console.print("INT8 student", result["int8_bytes"])


def name_result(name: str, first_seed: int, trials: int) -> str:
    """Returns the name of a result without `accuracy-`. It says what is not as in the tables of the documents."""
    name += f"-from-seed-{first_seed}" if first_seed else ""
    return name + (f"-{trials}-trials" if trials > 1 else "")


def main() -> None:
    parser = option_parser(__doc__, RESULTS / "cpu")
    parser.add_argument("--preset", default="nano")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--first-seed", type=int, default=0)
    parser.add_argument("--trials", type=int, default=TRIALS, help="of every network's search; 1 is the preset")
    parser.add_argument("--variant", choices=VARIANTS, default=VARIANTS[0], help="of the simulator")
    parser.add_argument(
        "--rows", nargs="+", choices=CHOICES, default=CHOICES, help="to measure; the others are left out"
    )
    parser.add_argument("--alignment", choices=ALIGNMENTS, default=DEFAULT_ALIGNMENT.kind)
    parser.add_argument("--centring", choices=CENTRINGS, default=DEFAULT_ALIGNMENT.centring)
    parser.add_argument("--work", type=Path, default=Path("build/accuracy"))
    options = parser.parse_args()
    preset = load_preset(options.preset)
    numbers = list(range(options.first_seed, options.first_seed + options.seeds))
    alignment = Alignment(options.alignment, options.centring)
    kind = () if options.variant == VARIANTS[0] else (options.variant,)
    name = "-".join((preset.name, *kind, *(() if alignment == DEFAULT_ALIGNMENT else astuple(alignment))))
    result_name = name_result(name, options.first_seed, options.trials)
    folders = [options.work / "-".join((preset.name, *kind, str(number))) for number in numbers]
    runs = (
        Seed(n, preset, at, options.trials, alignment, options.variant) for n, at in zip(numbers, folders, strict=True)
    )
    seeds = [run_seed(run, options.rows) for run in runs]
    if preset.name == "edge":
        for first in dict.fromkeys((options.first_seed, 0)):  # seeds may be part of the tables of the documents
            other = name_result(name.replace("edge", "nano", 1), first, options.trials)
            seeds = add_nano(seeds, numbers, options.out / f"accuracy-{other}.json")
    gates = choose_gates(preset.name, options.variant, bool(preset.band_power.bands))
    result = {
        **describe_conditions(MODULE),
        "preset": preset.name,
        "variant": options.variant,
        "seeds": numbers,
        "sessions": {"trained": SESSIONS - 1, "never_distilled": 1, "minutes": MINUTES},
        "alignment": asdict(alignment),
        "trials": options.trials,
        "rows": summarize_rows(seeds),
        "not_measured": [row for row in CHOICES if row not in options.rows],
        "gates": judge_gates(seeds, gates, VERSION_0_1.get(preset.name, {})),
        "gap_closed": compute_gap_closed(seeds),
        "shipped": [seed["shipped"]["chosen"] for seed in seeds if "shipped" in seed],
        "int8_bytes": read_int8_bytes(seeds, preset.name),
        "latency": [seed["latency"] for seed in seeds if "latency" in seed],
        "per_seed": seeds,
    }
    write_result(options.out, f"accuracy-{result_name}", result)
    show(result)


if __name__ == "__main__":
    main()
