"""The stages of `build`, in the order data flows; `pretrain` and `distill` are its first two by themselves."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from time import monotonic
from typing import Any

from torch import Tensor

from edgedistill.bundle import open_bundle, refuse_foreign, ship, zip_path
from edgedistill.compile.c.toolchain import find_toolchain
from edgedistill.compile.engines import require_engine_fits
from edgedistill.config import load_preset
from edgedistill.models.files import load_student, save_student, save_teacher
from edgedistill.models.student import Student
from edgedistill.pipeline.assembled import Ingredients, Subject, write_decoder_bundle
from edgedistill.pipeline.cache import Cache
from edgedistill.pipeline.inputs import (
    choose_session,
    known_teacher,
    provenance,
    read_sessions,
    require_folder,
    require_labels,
    require_writable,
    shortened,
)
from edgedistill.pipeline.pretrained_student import (
    knows,
    last_statistics,
    outputs_of,
    readouts,
    require_readout,
    stored_readout,
    taught_by,
)
from edgedistill.pipeline.quantized import given_ranges, int8_student
from edgedistill.pipeline.request import TABLE, BuildOptions, BuildResult, Progress, TableRow
from edgedistill.pipeline.trained import Run, normalizations
from edgedistill.quantization.calibration.ranges import shape_from_size
from edgedistill.quantization.calibration.recipe import load_recipe, require_teacher
from edgedistill.quantization.integers import require_parts
from edgedistill.target import load_target, require_buildable
from edgedistill.training.adapt import adapt, require_known_array
from edgedistill.training.baselines import score_kalman, score_ridge
from edgedistill.training.batches import TrainingSession, compute_gap, find_unlabelled_block, training_session_from_bins
from edgedistill.training.evaluate import Readout, score, unscale_behavior
from edgedistill.training.student_tasks import STUDENT_TASKS, compute_features, score_student, score_teacher


def build(options: BuildOptions, progress: Progress | None = None) -> BuildResult:
    """Sessions to a bundle for `options.target`; gates that are missed are in the result, not raised."""
    target = load_target(options.target)
    require_buildable(target)
    if target.engine == "c" and options.out.suffix != ".zip":
        find_toolchain(target)  # a missing compiler is told before the training
    preset = shortened(load_preset(options.preset), options.steps)
    require_writable(options.out)
    refuse_foreign(options.out)
    if options.ship:
        refuse_foreign(zip_path(options.out))
    given = None if options.student is None else load_student(options.student)
    ranges = given_ranges(options.ranges, given)
    recipe = load_recipe(options.recipe) if ranges is None else ranges.recipe
    sizes = [preset.student] if given is None else [preset.student, given[0].size]
    for size in sizes:
        require_parts(shape_from_size(size), recipe.keep)
        require_engine_fits(target, size.window, recipe.keep)
    if given is not None and ranges is None:  # a teacher trained here is not the one it was distilled from
        require_teacher(recipe, options.teacher)
    cache = Cache(options.work or options.out.with_name(options.out.name + ".work"))
    bins = read_sessions(cache, options.data, options.behavior, options.line_hz)
    gap = max(compute_gap(bins, size) for size in sizes)
    sessions = [training_session_from_bins(b, gap) for b in bins]
    chosen = choose_session(sessions, options.session)
    require_labels(chosen, next(b.path for b in bins if b.session_id == chosen.id))
    labelled = given is None or options.probe or knows(given[0], chosen)
    if given is not None:  # found out before the training, not after it
        require_known_array(given[0], chosen)
        if not labelled:
            behavior = next(outputs_of(b) for b in bins if b.session_id == chosen.id)
            require_readout(given[1], chosen, behavior, options.student)
    run = Run(cache, preset, options.seed, provenance(bins), progress)
    teacher = run.teacher(sessions, options.teacher)
    targets = run.targets(teacher, sessions)
    metrics: dict[str, float | None] = {name: None for name, _, _ in TABLE}
    metrics["teacher_r2"] = score_teacher(teacher, chosen, preset.teacher_training.segment_bins).r2
    spike_student = run.student("spike_student", sessions, targets)
    spike_readout, spike_score = score_student(spike_student, "spike_student", chosen)
    metrics["spike_student_r2"] = spike_score.r2
    deployed, session, readout = decoder_student(run, given, options, sessions, chosen, targets, metrics)
    taught = None if given is None else taught_by(given[1])
    int8 = int8_student(
        run, "deployed", deployed, session, readout, recipe, sessions, targets, ranges, labelled, taught
    )
    metrics["int8_r2"] = int8.quantized.score.r2
    spike_int8 = int8_student(run, "spike_student", spike_student, chosen, spike_readout, recipe, sessions, targets)
    metrics |= linear_scores(cache, chosen)
    if options.baselines:
        metrics |= baseline_scores(run, sessions, chosen, targets)
    mode = {"adapt": options.adapt, "probe": options.probe} if given is not None else {}
    start = monotonic()
    ingredients = Ingredients(
        options.out,
        target,
        preset.name,
        next(b for b in bins if b.session_id == chosen.id),
        session,
        Subject(deployed, readout, int8),
        Subject(spike_student, spike_readout, spike_int8),
        run.teacher_over_its_window(teacher, chosen),
        metrics,
        {**run.inputs, "seed": options.seed, **mode},
    )
    gates, compiled = write_decoder_bundle(ingredients)
    cache.note("bundle", start)
    table = table_of(metrics, options, adapted=bool(mode))
    lacking = compiled.lacking if compiled else None
    shipped = ship(open_bundle(options.out)) if options.ship else None
    return BuildResult(options.out, target.name, tuple(cache.stages), metrics, gates, table, lacking, shipped)


def table_of(metrics: dict[str, float | None], options: BuildOptions, adapted: bool) -> tuple[TableRow, ...]:
    """Every model's R² and what it is; a result on another session names its mode."""
    labels = "labelled probe" if options.probe else "no labels"
    mode = f", adapted by '{options.adapt}', {labels}" if adapted else ""
    shipped = ("deployed_r2", "int8_r2")
    return tuple(
        TableRow(name, metrics[name], causal, note + (mode if name in shipped else "")) for name, note, causal in TABLE
    )


def decoder_student(
    run: Run,
    given: tuple[Student, dict[str, Any]] | None,
    options: BuildOptions,
    sessions: Sequence[TrainingSession],
    chosen: TrainingSession,
    targets: dict[str, Tensor],
    metrics: dict[str, float | None],
) -> tuple[Student, TrainingSession, Readout]:
    """The student that ships: trained here, or one of `--student`, adapted to the session if it is new to it."""
    if given is None:
        distilled = run.student("distilled", sessions, targets)
        metrics["distilled_r2"] = score_student(distilled, "distilled", chosen)[1].r2
        student, session, readout = run.student("deployed", sessions, targets), chosen, None
    else:
        student, facts = given
        known = knows(student, chosen)
        old, config = last_statistics(facts, chosen.array), run.preset.training
        session = chosen if known else adapt(student, chosen, options.adapt, old, config, run.seed)
        readout = None if known or options.probe else stored_readout(facts, chosen.array)
    if readout is None:
        readout, scored = score_student(student, "deployed", session)
    else:
        features = compute_features(student, STUDENT_TASKS["deployed"], session)
        scored = score(readout, features, unscale_behavior(session), session.split)
    metrics["deployed_r2"] = scored.r2
    return student, session, readout


def linear_scores(cache: Cache, session: TrainingSession) -> dict[str, float | None]:
    """The linear baselines of the chosen session."""
    start = monotonic()
    lfp, spikes = session.inputs("lfp").double().numpy(), session.inputs("spikes").double().numpy()
    scores = {
        "ridge_lfp_r2": score_ridge(lfp, session).r2,
        "kalman_lfp_r2": score_kalman(lfp, session).r2,
        "ridge_spike_r2": score_ridge(spikes, session).r2,
    }
    cache.note("linear baselines", start)
    return dict(scores)


def baseline_scores(
    run: Run, sessions: Sequence[TrainingSession], chosen: TrainingSession, targets: dict[str, Tensor]
) -> dict[str, float | None]:
    """The models of `--baselines`."""
    single = run.student("unsupervised_lfp", [chosen], targets)
    multi = run.student("unsupervised_lfp", sessions, targets)
    supervised = run.student("supervised_lfp", sessions, targets)
    patch = run.bidirectional(sessions, targets)
    segment = run.preset.teacher_training.segment_bins
    return {
        "single_session_lfp_r2": score_student(single, "unsupervised_lfp", chosen)[1].r2,
        "multi_session_lfp_r2": score_student(multi, "unsupervised_lfp", chosen)[1].r2,
        "supervised_lfp_r2": score_student(supervised, "supervised_lfp", chosen)[1].r2,
        "distilled_bidirectional_r2": score_teacher(patch, chosen, segment).r2,
    }


def pretrain(
    data: Sequence[Path],
    out: Path,
    *,
    preset: str,
    steps: int | None = None,
    seed: int = 0,
    behavior: str | None = None,
    line_hz: float = 60,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """The spike teacher of `data` in `out`, and a summary. Units are needed; LFP and behavior are not."""
    start = monotonic()
    chosen = shortened(load_preset(preset), steps)
    require_folder(out)
    cache = Cache(out.with_name(out.name + ".work"))
    bins = read_sessions(cache, data, behavior, line_hz, need=("units",), also=("lfp", "behavior"))
    sessions = [training_session_from_bins(b, compute_gap(bins, chosen.student)) for b in bins]
    config = chosen.teacher_training
    run = Run(cache, chosen, seed, provenance(bins), progress)
    teacher = run.teacher(sessions, None)
    save_teacher(teacher, out, {"config": asdict(config), **run.inputs})
    scored = [score_teacher(teacher, s, config.segment_bins).r2 for s in sessions if find_unlabelled_block(s) is None]
    return {
        "out": str(out),
        "sessions": [s.id for s in sessions],
        "units": [s.inputs("spikes").shape[1] for s in sessions],
        "steps": config.steps,
        "probe_r2": sum(scored) / len(scored) if scored else None,
        "seconds": monotonic() - start,
    }


def distill(
    data: Sequence[Path],
    teacher: Path,
    out: Path,
    *,
    preset: str,
    steps: int | None = None,
    seed: int = 0,
    behavior: str | None = None,
    line_hz: float = 60,
    supervised: bool = False,
    alignment: str = "cosine",
    progress: Progress | None = None,
) -> dict[str, Any]:
    """The LFP student of `data` in `out`, and a summary; `supervised` adds behavior to the objective."""
    start = monotonic()
    chosen = shortened(load_preset(preset), steps)
    require_folder(out)
    cache = Cache(out.with_name(out.name + ".work"))
    need = ("lfp", "units", "behavior") if supervised else ("lfp", "units")
    bins = read_sessions(cache, data, behavior, line_hz, need=need, also=("behavior",))
    sessions = [training_session_from_bins(b, compute_gap(bins, chosen.student)) for b in bins]
    run = Run(cache, chosen, seed, provenance(bins), progress)
    targets = run.targets(known_teacher(teacher, sessions), sessions)
    name = "deployed" if supervised else "distilled"
    student = run.student(name, sessions, targets, alignment)
    facts = {"row": name, "normalization": normalizations(sessions), "readouts": readouts(student, sessions)}
    labelled = [outputs_of(b) for b in bins if b.behavior is not None]
    known = {"behavior": labelled[-1]} if labelled else {}
    save_student(student, out, {**facts, **known, "alignment": alignment, **run.inputs})
    scored = [score_student(student, name, s)[1].r2 for s in sessions if find_unlabelled_block(s) is None]
    return {
        "out": str(out),
        "sessions": [s.id for s in sessions],
        "steps": chosen.training.steps,
        "probe_r2": sum(scored) / len(scored) if scored else None,
        "seconds": monotonic() - start,
    }
