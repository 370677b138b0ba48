"""Measures how well each model decodes simulated sessions.

    python -m benchmarks.accuracy.accuracy --preset nano --seeds 3

A seed is another population, other sessions and another initialisation. Four sessions are trained on, and a fifth is
never distilled on. Every network gets the same search over learning rates, which are chosen on validation, and the
linear baselines get a wider one. R² is that of the test block, causal and streamed from the first bin, except in rows
named bidirectional. Each trained row is kept under --work, so that an interrupted run can go on. Results are written to
benchmarks/results/cpu/.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, astuple, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table
from scipy.stats import t as student_t

from benchmarks.accuracy.int8_rows import list_int8_rows
from benchmarks.harness import RESULTS, describe_conditions, option_parser, write_result
from edgedistill.config import ALIGNMENTS, CENTRINGS, DEFAULT_ALIGNMENT, Alignment, Preset, load_preset
from edgedistill.data.candidates import NO_NAMES
from edgedistill.data.simulation.config import VARIANTS
from edgedistill.data.simulation.nwb import simulate_to_nwb
from edgedistill.data.simulation.sessions import SimulationConfig
from edgedistill.measure.latency import EMPTY, LatencyUs, time_steps
from edgedistill.models.files import load_student, load_teacher, save_student, save_teacher
from edgedistill.models.student import Student
from edgedistill.pipeline.cache import Cache
from edgedistill.pipeline.inputs import read_sessions
from edgedistill.pipeline.student_files import write_student
from edgedistill.quantization.calibration.recipe import DEFAULT_RECIPE
from edgedistill.runtime.onnx_engine import OnnxEngine
from edgedistill.training.adapt import adapt
from edgedistill.training.baselines import fit_linear_baselines, score_ridge
from edgedistill.training.batches import TrainingSession, compute_gap, training_session_from_bins
from edgedistill.training.distill import distill_bidirectional
from edgedistill.training.evaluate import Score
from edgedistill.training.losses import DISTILLED
from edgedistill.training.output_filter import KALMAN
from edgedistill.training.pretrain import train_autoencoder, train_teacher
from edgedistill.training.student_tasks import (
    STUDENT_TASKS,
    StudentTask,
    score_smoothed,
    score_student,
    score_teacher,
    train_task,
)
from edgedistill.training.teacher_targets import TeacherTargets

SESSIONS, MINUTES = 5, 8.0  # the last session is never trained on
TRIALS = (1.0, 0.5)  # factors of the preset's learning rate; --trials takes the first so many
MODULE = "benchmarks.accuracy.accuracy"

GATES = (  # row, row it is compared with (or None), least difference (or least R²)
    ("teacher", None, 0.70),
    ("distilled", "single_session_lfp", 0.10),
    ("deployed", "ridge_lfp", 0.03),
    ("deployed", "kalman_lfp", 0.03),
    ("deployed", "supervised_single_session_lfp", 0.03),
    ("deployed", "supervised_lfp", 0.03),
    ("distilled, new day", "multi_session_lfp, new day", 0.10),
    (f"deployed, int8, {DEFAULT_RECIPE}", "deployed", -0.005),
    ("deployed, int8, qat", "deployed", -0.002),
    (
        f"deployed, int8, {DEFAULT_RECIPE}, an artefact in the calibration data",
        f"deployed, int8, {DEFAULT_RECIPE}",
        -0.01,
    ),
)
SIZE_LIMITS = {"edge": {"weight_bytes": 1_300_000, "state_bytes": 250_000}}
R2 = dict[str, float]  # session -> R² on its test block


@dataclass
class Seed:
    """The sessions of one seed, and the folder that keeps its rows."""

    seed: int
    preset: Preset
    folder: Path
    trials: tuple[float, ...] = TRIALS
    alignment: Alignment = DEFAULT_ALIGNMENT
    variant: str = VARIANTS[0]  # of the simulator

    def task(self, name: str) -> StudentTask:
        """Returns a student's task with the alignment of this run."""
        return STUDENT_TASKS[name].with_alignment(self.alignment)

    def __post_init__(self) -> None:
        """Simulates the sessions unless they are there, and reads them."""
        kind = "" if self.variant == VARIANTS[0] else f"{self.variant}-"
        data = self.folder.parent / f"sessions-{kind}{self.seed}"
        config = SimulationConfig(sessions=SESSIONS, minutes=MINUTES, seed=self.seed, variant=self.variant)
        if len(list(data.glob("*.nwb"))) < SESSIONS:
            list(simulate_to_nwb(config, data))
        bins = read_sessions(Cache(self.folder.parent / "read"), [data], NO_NAMES, 60, self.preset.band_power)
        sessions = [training_session_from_bins(b, compute_gap(bins, self.preset.student)) for b in bins]
        self.trained, self.new_day = sessions[:-1], sessions[-1]
        self.target = self.trained[-1]
        self.folder.mkdir(parents=True, exist_ok=True)

    def measure_once(self, row: str, measure: Callable[[], dict[str, Any]]) -> dict[str, Any]:
        """Returns the result of a row, which is measured unless it was before."""
        path = self.folder / f"{row}.json"
        if not path.exists():
            found = measure()
            write_result(self.folder, row, found)
            print(f"seed {self.seed} {row}: {found}", flush=True)
        return dict(json.loads(path.read_text()))

    def search(self, row: str, train: Callable[[Any, Path], dict[str, Score]]) -> dict[str, Any]:
        """Returns the trial with the best mean validation R². `train` gets a factor and a folder."""
        best: tuple[float, float, dict[str, Score]] | None = None
        for factor in self.trials:
            scores = train(factor, self.folder / f"{row}-{factor:g}")
            validation = float(np.mean([score.validation_r2 for score in scores.values()]))
            if best is None or validation > best[0]:
                best = (validation, factor, scores)
        assert best is not None
        return {"trial": best[1], "validation": best[0], "r2": {k: s.r2 for k, s in best[2].items()}}


def run_seed(run: Seed) -> dict[str, dict[str, Any]]:
    """Measures every row of one seed."""
    rows = {
        "teacher": run.measure_once(
            "teacher", lambda: run.search("teacher", lambda f, p: train_teacher_trial(run, f, p))
        )
    }
    teacher = load_teacher(run.folder / f"teacher-{rows['teacher']['trial']:g}")[0]
    targets = TeacherTargets(teacher, run.trained, run.preset.teacher_training)
    for row, task, single in (
        ("distilled", "distilled", False),
        ("deployed", "deployed", False),
        ("single_session_lfp", "unsupervised_lfp", True),
        ("multi_session_lfp", "unsupervised_lfp", False),
        ("supervised_lfp", "supervised_lfp", False),
        ("supervised_single_session_lfp", "supervised_lfp", True),
        ("spike_student", "spike_student", False),
    ):
        sessions = [run.target] if single else run.trained

        def trial(factor: float, path: Path, task: str = task, sessions: Any = sessions) -> dict[str, Score]:
            return train_student_trial(run, task, sessions, targets, factor, path)

        rows[row] = run.measure_once(row, lambda row=row, trial=trial: run.search(row, trial))
    for row, sessions, distilled in (
        ("distilled_bidirectional", run.trained, True),
        ("single_session_lfp_bidirectional", [run.target], False),
    ):

        def patch(factor: float, path: Path, sessions: Any = sessions, distilled: bool = distilled) -> dict[str, Score]:
            return train_bidirectional_trial(run, sessions, targets if distilled else None, factor, path)

        rows[row] = run.measure_once(row, lambda row=row, patch=patch: run.search(row, patch))
    for part in ("lfp", "spikes"):
        found = run.measure_once(f"linear_{part}", lambda part=part: score_baselines(run, part))
        rows |= {row: {"r2": r2} for row, r2 in found["r2"].items()}
    for row, part in (("ridge_lfp_bidirectional", "lfp"), ("ridge_spike_bidirectional", "spikes")):
        rows[row] = run.measure_once(row, lambda part=part: score_bidirectional_ridge(run, part))
    for row in ("distilled", "multi_session_lfp", "deployed"):
        for mode in ("none", "stats", "tokenizer"):
            name = f"{row}, new day, {mode}"
            rows[name] = run.measure_once(
                name, lambda row=row, mode=mode: score_new_day(run, row, rows[row]["trial"], mode)
            )
    trials = {row: rows[row]["trial"] for row in ("deployed", "spike_student")}
    tasks = {row: run.task(row) for row in trials}
    followed = {row: targets.of(task.objective, run.preset.student) for row, task in tasks.items()}
    config = run.preset.training
    for row, measure in list_int8_rows(run.folder, trials, tasks, run.trained, followed, run.seed, config).items():
        rows[row] = run.measure_once(row, measure)
    rows["latency"] = run.measure_once("latency", lambda: measure_latency(run, rows["deployed"]["trial"]))
    return rows


def train_teacher_trial(run: Seed, factor: float, folder: Path) -> dict[str, Score]:
    config = run.preset.teacher_training
    config = replace(config, learning_rate=factor * config.learning_rate)
    folder.mkdir(parents=True, exist_ok=True)
    model = train_teacher(run.trained, run.preset.teacher, config, run.seed, folder / "checkpoint.safetensors")
    save_teacher(model, folder, {})
    return {s.id: score_teacher(model, s, config.segment_bins) for s in run.trained}


def train_student_trial(
    run: Seed, task: str, sessions: list[TrainingSession], targets: TeacherTargets, factor: float, folder: Path
) -> dict[str, Score]:
    student = train_student_once(run, task, sessions, targets, factor, folder)
    return {s.id: score_smoothed(student, task, s, KALMAN) for s in sessions}


def train_student_once(
    run: Seed, task: str, sessions: Sequence[TrainingSession], targets: TeacherTargets, factor: float, folder: Path
) -> Student:
    """Returns a trained student. A checkpoint in `folder` is gone on from, or taken as it is where it is finished."""
    config = replace(run.preset.training, learning_rate=factor * run.preset.training.learning_rate)
    folder.mkdir(parents=True, exist_ok=True)
    checkpoint = folder / "checkpoint.safetensors"
    chosen = run.task(task)
    teacher_latents = targets.of(chosen.objective, run.preset.student)
    student = train_task(chosen, sessions, run.preset, config, run.seed, teacher_latents, checkpoint)
    save_student(student, folder, {"row": task})
    return student


def train_bidirectional_trial(
    run: Seed, sessions: list[TrainingSession], targets: TeacherTargets | None, factor: float, folder: Path
) -> dict[str, Score]:
    """Trains the published patch student on the slow LFP, distilled, or without the teacher as an autoencoder."""
    sessions = [session.without_bands() for session in sessions]
    config = replace(run.preset.training, learning_rate=factor * run.preset.training.learning_rate)
    folder.mkdir(parents=True, exist_ok=True)
    checkpoint = folder / "checkpoint.safetensors"
    size = run.preset.patch_student
    if targets is not None:
        objective = replace(DISTILLED, aligned_by=run.alignment)
        followed = targets.of(objective, size)
        model = distill_bidirectional(sessions, size, config, run.seed, followed, checkpoint, objective=objective)
    else:
        model = train_autoencoder(sessions, "lfp", replace(size, mask_share=0.5), config, run.seed, checkpoint)
    return {s.id: score_teacher(model, s, config.segment_bins) for s in sessions}


def score_baselines(run: Seed, part: str) -> dict[str, Any]:
    """Scores every linear baseline, by row, on every session. The best by validation is a row of its own."""
    found = {s.id: fit_linear_baselines(s, part) for s in [*run.trained, run.new_day]}
    rows = next(iter(found.values()))
    r2 = {row: {session: one[row].score.r2 for session, one in found.items()} for row in rows}
    best = {s: max(one.values(), key=lambda b: b.score.validation_r2) for s, one in found.items()}
    return {"r2": r2 | {f"best_linear_{part}": {session: one.score.r2 for session, one in best.items()}}}


def score_bidirectional_ridge(run: Seed, part: str) -> dict[str, Any]:
    """Scores a ridge that sees the future on one session, as the single-session models it is compared with."""
    bins = run.target.inputs(part).double().numpy()
    return {"r2": {run.target.id: score_ridge(bins, run.target, bidirectional=True, modality=part).r2}}


def score_new_day(run: Seed, row: str, trial: float, mode: str) -> dict[str, Any]:
    """Adapts a student to the never-distilled session without labels, and probes it with that session's labels."""
    student, facts = load_student(run.folder / f"{row}-{trial:g}")
    config = run.preset.training
    session = adapt(student, run.new_day, mode, run.target.standardization, config, run.seed)
    return {"r2": {session.id: score_smoothed(student, facts["row"], session, KALMAN).r2}}


def measure_latency(run: Seed, trial: float) -> dict[str, Any]:
    """Measures the step latency of the checkpoint whose R² is the row `deployed`."""
    student, _ = load_student(run.folder / f"deployed-{trial:g}")
    readout, score = score_student(student, "deployed", run.target)
    bins = run.target.inputs("lfp")
    files, shape, _ = write_student(student, run.target.id, readout)
    engine = OnnxEngine(files["student.onnx"], shape)
    times = time_steps({"step": engine.step}, bins[run.target.split.test].numpy(), steps=5000)
    figures = {name: LatencyUs.from_times(times[name]).to_json() for name in ("step", EMPTY)}
    return {"r2": {run.target.id: score.r2}, "engine": "onnxruntime float32, 1 thread", "latency_us": figures}


# ---------------------------------------------------------------- over seeds


def summarize_rows(seeds: list[dict[str, dict[str, Any]]]) -> dict[str, Any]:
    """Returns mean and standard deviation of every row over seeds. A seed's value is its mean over sessions."""
    table = {}
    for row in seeds[0]:
        values = [float(np.mean(list(seed[row]["r2"].values()))) for seed in seeds]
        spread = float(np.std(values, ddof=1)) if len(values) > 1 else None
        table[row] = {"mean": float(np.mean(values)), "std": spread, "seeds": values}
    return table


def compare_rows(seeds: list[dict[str, dict[str, Any]]], row: str, other: str) -> dict[str, Any]:
    """Compares two rows over the (seed, session) pairs that both have, with a 95 % interval over seeds."""
    pairs = [
        [seed[row]["r2"][s] - seed[other]["r2"][s] for s in seed[row]["r2"] if s in seed[other]["r2"]] for seed in seeds
    ]
    means = [float(np.mean(p)) for p in pairs]
    half = None
    if len(means) > 1:  # sessions of a seed share their population, so the seed is the independent unit
        half = float(student_t.ppf(0.975, len(means) - 1) * np.std(means, ddof=1) / np.sqrt(len(means)))
    return {"mean": float(np.mean(means)), "ci95": half, "pairs": sum(map(len, pairs))}


def judge_gates(seeds: list[dict[str, dict[str, Any]]], table: dict[str, Any]) -> list[dict[str, Any]]:
    """Judges the gates. Here `new day` means the mode `stats`, which needs no labels."""
    gates = []
    for row, other, limit in GATES:
        row, other = (name and name.replace("new day", "new day, stats") for name in (row, other))
        found = {"mean": table[row]["mean"], "ci95": None} if other is None else compare_rows(seeds, row, other)
        name = row if other is None else f"{row} over {other}"
        gates.append({"name": name, **found, "limit": limit, "ok": found["mean"] >= limit})
    return gates


def compute_gap_closed(seeds: list[dict[str, dict[str, Any]]]) -> dict[str, float]:
    """Returns (distilled - single-session LFP) / (teacher - single-session LFP), causal and bidirectional.

    All three are compared on the sessions that the single-session model has, because others are easier or harder.
    """

    def share(row: str, floor: str) -> float:
        return float(compare_rows(seeds, row, floor)["mean"] / compare_rows(seeds, "teacher", floor)["mean"])

    return {
        "causal": share("distilled", "single_session_lfp"),
        "bidirectional": share("distilled_bidirectional", "single_session_lfp_bidirectional"),
    }


def read_int8_bytes(seeds: list[dict[str, dict[str, Any]]], preset: str) -> dict[str, Any]:
    """Returns the bytes of weights and state of the INT8 student that ships, beside their limits."""
    row = seeds[0][f"deployed, int8, {DEFAULT_RECIPE}"]
    limits = SIZE_LIMITS.get(preset, {})
    return {name: {"bytes": row[name], "limit": limits.get(name)} for name in ("weight_bytes", "state_bytes")}


def show(result: dict[str, Any]) -> None:
    console = Console()
    table = Table("row", "R²", "±", title=f"{result['preset']}, {len(result['seeds'])} seeds")
    for row, figures in result["rows"].items():
        table.add_row(row, f"{figures['mean']:.3f}", "" if figures["std"] is None else f"{figures['std']:.3f}")
    console.print(table)
    gates = Table("gate", "found", "95 % interval", "limit", "", title="Gates")
    for gate in result["gates"]:
        half = "" if gate["ci95"] is None else f"±{gate['ci95']:.3f}"
        gates.add_row(
            gate["name"], f"{gate['mean']:.3f}", half, f"{gate['limit']:.3f}", "met" if gate["ok"] else "MISSED"
        )
    console.print(gates)
    console.print("share of the gap closed", result["gap_closed"])
    console.print("INT8 student", result["int8_bytes"])


def main() -> None:
    parser = option_parser(__doc__, RESULTS / "cpu")
    parser.add_argument("--preset", default="nano")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--first-seed", type=int, default=0)
    parser.add_argument("--trials", type=int, default=len(TRIALS), choices=range(1, len(TRIALS) + 1))
    parser.add_argument("--alignment", choices=ALIGNMENTS, default=DEFAULT_ALIGNMENT.kind)
    parser.add_argument("--centring", choices=CENTRINGS, default=DEFAULT_ALIGNMENT.centring)
    parser.add_argument("--work", type=Path, default=Path("build/accuracy"))
    options = parser.parse_args()
    preset = load_preset(options.preset)
    numbers = list(range(options.first_seed, options.first_seed + options.seeds))
    alignment = Alignment(options.alignment, options.centring)
    name = preset.name if alignment == DEFAULT_ALIGNMENT else "-".join((preset.name, *astuple(alignment)))
    trials = TRIALS[: options.trials]
    runs = [Seed(n, preset, options.work / f"{name}-{n}", trials, alignment) for n in numbers]
    seeds = [run_seed(run) for run in runs]
    table = summarize_rows(seeds)
    result = {
        **describe_conditions(MODULE),
        "preset": preset.name,
        "seeds": numbers,
        "sessions": {"trained": SESSIONS - 1, "never_distilled": 1, "minutes": MINUTES},
        "alignment": asdict(alignment),
        "trials": [f"{f:g} x learning rate" for f in trials],
        "rows": table,
        "gates": judge_gates(seeds, table),
        "gap_closed": compute_gap_closed(seeds),
        "int8_bytes": read_int8_bytes(seeds, preset.name),
        "latency": [seed["latency"] for seed in seeds],
        "per_seed": seeds,
    }
    write_result(options.out, f"accuracy-{name}", result)
    show(result)


if __name__ == "__main__":
    main()
