"""Measures the published method, at a size that two cores can train, on the sessions of `accuracy.py`.

    python -m benchmarks.accuracy.paper --seeds 3

All four models are bidirectional, read 5 s at once, and are trained as the preset `paper` says, except that they are
smaller and take fewer steps. Spikes and LFP are filled in where 60 % of the tokens are hidden, and one LFP student is
distilled with the published loss instead. R² is that of a ridge on latents alone. Blocks and sessions are those of the
preset `nano`, so these rows can be compared with those of `accuracy.py`. What differs from the published method stands
in docs/decisions.md. Rows are kept under --work as those of `accuracy.py` are. The result is written to
benchmarks/results/cpu/.
"""

from __future__ import annotations

from collections.abc import Sequence
from copy import copy
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from benchmarks.accuracy.accuracy import CHECKPOINT, MINUTES, SESSIONS, TEACHER_SETTINGS, Seed, train_teacher_trial
from benchmarks.accuracy.gates import Rows, compare_rows, summarize_rows
from benchmarks.accuracy.label_minutes import shorten
from benchmarks.harness import RESULTS, describe_conditions, option_parser, write_result
from edgedistill.config import Alignment, Preset, TeacherSize, TrainingConfig, load_preset
from edgedistill.data.simulation.config import VARIANTS
from edgedistill.models.files import load_teacher
from edgedistill.training.batches import TrainingSession
from edgedistill.training.distill import distill_bidirectional
from edgedistill.training.evaluate import Score
from edgedistill.training.losses import Objective
from edgedistill.training.midway import stop_bidirectional
from edgedistill.training.pretrain import train_autoencoder
from edgedistill.training.search_space import plan_search, training_with
from edgedistill.training.student_tasks import score_latents
from edgedistill.training.study import RunningTrial
from edgedistill.training.teacher_targets import TeacherTargets

MODULE = "benchmarks.accuracy.paper"
BLOCKS = "nano"  # the preset whose student says where training, validation and test begin
SMALL = {"d": 64, "layers": 4, "heads": 4, "ff": 256, "predictor_layers": 2, "predictor_d": 48}
SHORT = {"bins_per_step": 4000, "steps": 2000, "learning_rate": 2e-3}  # 8 segments of 5 s in a step
ALIGNMENT, RECONSTRUCTION = Objective(alignment=5.0, aligned_by=Alignment("cosine")), 1 / 5  # of the alignment's weight
TEACHER, DISTILLED, MULTI, SINGLE = ROWS = (
    "spike teacher",
    "LFP student, distilled",
    "LFP autoencoder, 4 sessions",
    "LFP autoencoder, 1 session",
)
PUBLISHED = {TEACHER: 0.69, DISTILLED: 0.71, MULTI: 0.27, SINGLE: 0.24}  # mean R² on real recordings, read in a summary


def shrink(published: Preset, blocks: Preset) -> Preset:
    """Returns the published preset, smaller and trained for less time, on the blocks and inputs of another."""

    def smaller(size: TeacherSize) -> TeacherSize:
        return replace(size, **SMALL)

    def shorter(config: TrainingConfig) -> TrainingConfig:
        return replace(config, **SHORT)  # type: ignore[arg-type]

    return replace(
        blocks,
        teacher=smaller(published.teacher),
        patch_student=smaller(published.patch_student),
        teacher_training=shorter(published.teacher_training),
        training=shorter(published.training),
    )


def run_seed(run: Seed, preset: Preset) -> dict[str, dict[str, Any]]:
    """Measures the rows of one seed."""
    run = copy(run)
    run.preset = preset  # the sessions stay as they were read
    settings = [getattr(preset, name) for name in TEACHER_SETTINGS]
    plan = plan_search(preset.teacher_training, seed=run.seed)
    rows = {
        TEACHER: run.search_once(TEACHER, plan, lambda trial: train_teacher_trial(run, trial, score_latents), *settings)
    }
    model = rows[TEACHER]["model"]
    targets = TeacherTargets(load_teacher(run.folder / model)[0], run.trained, preset.teacher_training)
    for row, sessions, followed in (
        (DISTILLED, run.trained, targets),
        (MULTI, run.trained, None),
        (SINGLE, [run.target], None),
    ):
        rows[row] = find_model(run, row, sessions, followed, model)
    return rows


def find_model(
    run: Seed, row: str, sessions: Sequence[TrainingSession], targets: TeacherTargets | None, teacher: str
) -> dict[str, Any]:
    """Returns the row of a model on LFP, which follows a teacher or fills in hidden tokens."""
    kept = [session.without_bands() for session in sessions]

    def train(trial: RunningTrial) -> dict[str, Score]:
        config, size, checkpoint = training_with(run.preset.training, trial.settings), run.preset.patch_student, None
        checkpoint, stop = trial.folder / CHECKPOINT, stop_bidirectional(trial, "lfp", kept[-1], config.segment_bins)
        if targets is None:
            model = train_autoencoder(kept, "lfp", size, config, run.seed, checkpoint, stop=stop)
        else:
            model = distill_bidirectional(
                kept,
                size,
                config,
                run.seed,
                targets.of(ALIGNMENT, size),
                checkpoint,
                objective=ALIGNMENT,
                stop=stop,
                reconstruction=RECONSTRUCTION,
            )
        return {} if trial.is_stopped else {s.id: score_latents(model, s, config.segment_bins) for s in kept}

    plan = plan_search(run.preset.training, augmented=False, seed=run.seed)
    depends = (run.preset.patch_student, run.preset.training, *([] if targets is None else [ALIGNMENT, teacher]))
    return run.search_once(row, plan, train, *depends)


# ---------------------------------------------------------------- over seeds


def compute_gap_closed(seeds: Sequence[Rows]) -> float:
    """Returns (distilled - one session) / (teacher - one session), on the sessions that all three have."""
    return float(compare_rows(seeds, DISTILLED, SINGLE)["mean"] / compare_rows(seeds, TEACHER, SINGLE)["mean"])


def show(result: dict[str, Any]) -> None:
    table = Table("row", "R²", "±", "published", title=f"the published method, {len(result['seeds'])} seeds")
    for row, figures in result["rows"].items():
        spread = "" if figures["std"] is None else f"{figures['std']:.3f}"
        table.add_row(row, f"{figures['mean']:.3f}", spread, f"{PUBLISHED[row]:.2f}")
    Console().print(table)
    Console().print(f"share of the gap closed: {result['gap_closed']:.2f}")


def main() -> None:
    parser = option_parser(__doc__, RESULTS / "cpu")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--first-seed", type=int, default=0)
    parser.add_argument("--trials", type=int, default=1, help="of every search; 1 is the setting above")
    parser.add_argument("--steps", type=int, help="shortens every training; the result then has another name")
    parser.add_argument("--variant", choices=VARIANTS, default=VARIANTS[0], help="of the simulator")
    parser.add_argument("--work", type=Path, default=Path("build/accuracy"))
    options = parser.parse_args()
    blocks = load_preset(BLOCKS)
    preset = shrink(load_preset("paper"), blocks)
    kind = "" if options.variant == VARIANTS[0] else f"-{options.variant}"
    name = f"paper{kind}"
    if options.steps is not None:
        preset, name = shorten(preset, options.steps), f"{name}-{options.steps}-steps"
    numbers = list(range(options.first_seed, options.first_seed + options.seeds))
    runs = (
        Seed(n, blocks, options.work / f"{BLOCKS}{kind}-{n}", options.trials, variant=options.variant) for n in numbers
    )
    seeds = [run_seed(run, preset) for run in runs]
    result = {
        **describe_conditions(MODULE),
        "variant": options.variant,
        "seeds": numbers,
        "sessions": {"trained": SESSIONS - 1, "minutes": MINUTES},
        "teacher": asdict(preset.teacher),
        "student": asdict(preset.patch_student),
        "training": asdict(preset.training),
        "trials": options.trials,
        "rows": summarize_rows(seeds),
        "published": PUBLISHED,
        "gap_closed": compute_gap_closed(seeds),
        "per_seed": seeds,
    }
    write_result(options.out, name, result)
    show(result)


if __name__ == "__main__":
    main()
