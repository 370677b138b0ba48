"""The stages of `build`, in the order data flows; `pretrain` and `distill` are its first two by themselves."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from time import monotonic
from typing import Any

import numpy as np
from torch import Tensor

from edgedistill.build.assemble import Ingredients, write_decoder_bundle
from edgedistill.build.cache import Cache, Stage
from edgedistill.bundle import refuse_foreign
from edgedistill.config import Preset, TrainingConfig, load_preset
from edgedistill.data.recording import open_recording, session_files
from edgedistill.data.windows import (
    SessionBins,
    bins_from_recording,
    combine_sessions,
    file_sha256,
    load_session_bins,
    save_session_bins,
)
from edgedistill.errors import EdgeDistillError, OutputError, RecordingError, did_you_mean
from edgedistill.models.files import load_student, load_teacher, save_student, save_teacher
from edgedistill.models.student import Student
from edgedistill.models.teacher import PatchAutoencoder
from edgedistill.target import Gate, load_target, require_buildable
from edgedistill.training.adapt import Statistics, adapt, require_known_array
from edgedistill.training.baselines import kalman_score, ridge_score
from edgedistill.training.batches import TrainingSession, gap_for, training_session
from edgedistill.training.distill import distill_bidirectional
from edgedistill.training.evaluate import Readout, behaviour_of, score
from edgedistill.training.pretrain import teacher_targets, train_teacher
from edgedistill.training.rows import ROWS, score_student, score_teacher, student_features, train_row

Progress = Callable[[str, int, int, float, float], None]  # stage, step, steps, loss, learning rate


@dataclass(frozen=True)
class BuildOptions:
    """What `edgedistill build` was asked for; `steps` caps the optimizer steps of each stage."""

    target: str
    data: tuple[Path, ...]
    out: Path
    preset: str = "edge"
    session: str | None = None
    baselines: bool = False
    steps: int | None = None
    seed: int = 0
    teacher: Path | None = None
    student: Path | None = None
    adapt: str = "stats"
    probe: bool = False
    behavior: str | None = None
    line_hz: float = 60
    work: Path | None = None


@dataclass(frozen=True)
class TableRow:
    """One line of the table of held-out R²."""

    name: str
    r2: float | None
    causal: bool
    note: str


@dataclass(frozen=True)
class BuildResult:
    """Where the bundle is, what was done for it and how good it is."""

    bundle: Path
    target: str
    stages: tuple[Stage, ...]
    metrics: dict[str, float | None]
    gates: tuple[Gate, ...]
    table: tuple[TableRow, ...]

    def to_json(self) -> dict[str, object]:
        """As documented in the README."""
        return {
            "bundle": str(self.bundle),
            "target": self.target,
            "stages": [asdict(stage) for stage in self.stages],
            "metrics": self.metrics,
            "gates": [asdict(gate) for gate in self.gates],
        }


TABLE = (  # metric, what it is, causal
    ("teacher_r2", "spike teacher under a ridge probe", False),
    ("spike_student_r2", "spike student, the size of the LFP student", True),
    ("ridge_spike_r2", "lagged ridge on spikes", True),
    ("deployed_r2", "deployed LFP student, streaming", True),
    ("distilled_r2", "LFP student distilled without labels, ridge probe", True),
    ("supervised_lfp_r2", "LFP student on behaviour alone", True),
    ("multi_session_lfp_r2", "LFP student, many sessions, no teacher, ridge probe", True),
    ("single_session_lfp_r2", "LFP student, this session, no teacher, ridge probe", True),
    ("distilled_bidirectional_r2", "published patch student, distilled, ridge probe", False),
    ("ridge_lfp_r2", "lagged ridge on LFP", True),
    ("kalman_lfp_r2", "Kalman filter on LFP", True),
)


def build(options: BuildOptions, progress: Progress | None = None) -> BuildResult:
    """Sessions to a bundle for `options.target`; gates that are missed are in the result, not raised."""
    target = load_target(options.target)
    require_buildable(target)
    preset = shortened(load_preset(options.preset), options.steps)
    require_writable(options.out)
    refuse_foreign(options.out)
    given = None if options.student is None else load_student(options.student)
    cache = Cache(options.work or options.out.with_name(options.out.name + ".work"))
    bins = read_sessions(cache, options.data, options.behavior, options.line_hz)
    sizes = [preset.student] if given is None else [preset.student, given[0].size]
    gap = max(gap_for(bins, size) for size in sizes)
    sessions = [training_session(b, gap) for b in bins]
    chosen = choose_session(sessions, options.session)
    if given is not None:  # found out before the training, not after it
        require_known_array(given[0], chosen)
        if not options.probe and not knows(given[0], chosen):
            behaviour = next(outputs_of(b) for b in bins if b.session_id == chosen.id)
            require_readout(given[1], chosen, behaviour, options.student)
    run = Run(cache, preset, options.seed, provenance(bins), progress)
    teacher = run.teacher(sessions, options.teacher)
    targets = run.targets(teacher, sessions)
    metrics: dict[str, float | None] = {name: None for name, _, _ in TABLE}
    metrics["int8_r2"] = None
    metrics["teacher_r2"] = score_teacher(teacher, chosen, preset.teacher_training.segment_bins).r2
    spike_student = run.student("spike_student", sessions, targets)
    spike_readout, spike_score = score_student(spike_student, "spike_student", chosen)
    metrics["spike_student_r2"] = spike_score.r2
    deployed, session, readout = decoder_student(run, given, options, sessions, chosen, targets, metrics)
    metrics |= linear_scores(cache, chosen, run.inputs)
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
        deployed,
        readout,
        spike_student,
        spike_readout,
        metrics,
        {**run.inputs, "seed": options.seed, **mode},
    )
    gates = write_decoder_bundle(ingredients)
    cache.note("bundle", start)
    notes = {name: note for name, note, _ in TABLE}
    if mode:  # every result on another session names its mode
        labels = "labelled probe" if options.probe else "no labels"
        notes["deployed_r2"] += f", adapted by '{options.adapt}', {labels}"
    table = tuple(TableRow(name, metrics[name], causal, notes[name]) for name, _, causal in TABLE)
    return BuildResult(options.out, target.name, tuple(cache.stages), metrics, gates, table)


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
        features = student_features(student, ROWS["deployed"], session)
        scored = score(readout, features, behaviour_of(session), session.split)
    metrics["deployed_r2"] = scored.r2
    return student, session, readout


def knows(student: Student, session: TrainingSession) -> bool:
    """Whether `student` was trained on this session; the same id on another array is another session."""
    return student.tokenizer.arrays.get(session.id) == session.array


def require_readout(
    facts: dict[str, Any], session: TrainingSession, behaviour: list[list[str]], folder: Path | None
) -> None:
    """EdgeDistillError unless the student holds a read-out of the session's array and of its `behaviour`."""
    if not readouts_of(facts, session.array):
        raise EdgeDistillError(
            f"the student in {folder} has no read-out",
            got="it was distilled on sessions without behaviour",
            next_step="add --probe, which fits one on the labels of this session",
        )
    if facts.get("behaviour", behaviour) != behaviour:
        raise EdgeDistillError(
            f"the student in {folder} decodes another behaviour than that of session {session.id}",
            got=facts["behaviour"],
            expected=behaviour,
            next_step="name the series it was distilled with by --behavior, or add --probe",
        )


def outputs_of(bins: SessionBins) -> list[list[str]]:
    """Names and units of the behaviour, as JSON."""
    return [list(bins.output_names), list(bins.output_units)]


def stored_readout(facts: dict[str, Any], array: str) -> Readout:
    """The read-out of the student's last labelled session of `array`: on another day, no label of that day is used."""
    last = readouts_of(facts, array)[-1]
    return Readout(np.array(last["weight"]), np.array(last["bias"]), last["penalty"], last["validation_r2"])


def readouts_of(facts: dict[str, Any], array: str) -> list[dict[str, Any]]:
    """The stored read-outs of an array's sessions; lagged bins are those of its channels."""
    stored: dict[str, dict[str, Any]] = facts.get("readouts", {})
    return [readout for session, readout in stored.items() if facts["arrays"][session] == array]


def readouts(student: Student, sessions: Sequence[TrainingSession]) -> dict[str, Any]:
    """Each labelled session's read-out of latents and lagged bins, as JSON."""
    found = {s.id: score_student(student, "deployed", s)[0] for s in sessions if s.behaviour is not None}
    return {
        name: {
            "weight": r.weight.tolist(),
            "bias": r.bias.tolist(),
            "penalty": r.penalty,
            "validation_r2": r.validation_r2,
        }
        for name, r in found.items()
    }


def last_statistics(facts: dict[str, Any], array: str) -> Statistics:
    """Mean and std (uV) of the last session of `array` that a student was trained on."""
    last = [session for session, of in facts["arrays"].items() if of == array][-1]
    mean, std = facts["normalization"][last]
    return np.array(mean), np.array(std)


def linear_scores(cache: Cache, session: TrainingSession, inputs: dict[str, Any]) -> dict[str, float | None]:
    """The linear baselines of the chosen session."""
    start = monotonic()
    lfp, spikes = session.inputs("lfp").double().numpy(), session.inputs("spikes").double().numpy()
    scores = {
        "ridge_lfp_r2": ridge_score(lfp, session).r2,
        "kalman_lfp_r2": kalman_score(lfp, session).r2,
        "ridge_spike_r2": ridge_score(spikes, session).r2,
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


@dataclass
class Run:
    """What all stages of one run share."""

    cache: Cache
    preset: Preset
    seed: int
    inputs: dict[str, Any]
    progress: Progress | None

    def report(self, name: str) -> Callable[[int, int, float, float], None] | None:
        """Progress of one stage."""
        if self.progress is None:
            return None
        show = self.progress
        return lambda step, steps, loss, rate: show(name, step, steps, loss, rate)

    def teacher(self, sessions: Sequence[TrainingSession], given: Path | None) -> PatchAutoencoder:
        """The teacher of `--teacher`, or one trained here."""
        if given is not None:
            return known_teacher(given, sessions)
        config = self.preset.teacher_training

        def make(folder: Path) -> None:
            size, checkpoint = self.preset.teacher, folder / "checkpoint.safetensors"
            model = train_teacher(sessions, size, config, self.seed, checkpoint, self.report("teacher"))
            save_teacher(model, folder, {"config": asdict(config)})
            checkpoint.unlink(missing_ok=True)

        seen = [contents(s, s.counts) for s in sessions]
        recipe = [seen, asdict(self.preset.teacher), asdict(config), self.seed]
        return load_teacher(self.cache.stage("teacher", recipe, make))[0]

    def targets(self, teacher: PatchAutoencoder, sessions: Sequence[TrainingSession]) -> dict[str, Tensor]:
        """The teacher's latents of every session."""
        start = monotonic()
        targets = teacher_targets(teacher, sessions, self.preset.teacher_training)
        self.cache.note("teacher latents", start)
        return targets

    def student(
        self,
        name: str,
        sessions: Sequence[TrainingSession],
        targets: dict[str, Tensor],
        alignment: str = "cosine",
    ) -> Student:
        """The student of row `name`, trained on `sessions`."""
        config, row = self.preset.training, ROWS[name].aligned_by(alignment)
        label = name if len(sessions) > 1 or name != "unsupervised_lfp" else "single_session_lfp"

        def make(folder: Path) -> None:
            checkpoint = folder / "checkpoint.safetensors"
            shown = self.report(label)
            student = train_row(row, sessions, self.preset, config, self.seed, targets, checkpoint, shown)
            save_student(student, folder, {"row": name, "normalization": normalizations(sessions)})
            checkpoint.unlink(missing_ok=True)

        labels = [s.behaviour if row.objective.behaviour else None for s in sessions]
        parts = [(s.inputs(row.modality), targets[s.id]) for s in sessions]
        seen = [contents(s, *p, label) for s, p, label in zip(sessions, parts, labels, strict=True)]
        saved = normalizations(sessions) if row.modality == "lfp" else None
        recipe = [seen, saved, asdict(row), asdict(self.preset.student), asdict(config), self.seed]
        return load_student(self.cache.stage(label.replace("_", "-"), recipe, make))[0]

    def bidirectional(self, sessions: Sequence[TrainingSession], targets: dict[str, Tensor]) -> PatchAutoencoder:
        """The published shape of student, bidirectional, distilled without labels."""
        config = self.preset.training
        size = self.preset.patch_student

        def make(folder: Path) -> None:
            checkpoint = folder / "checkpoint.safetensors"
            shown = self.report("bidirectional")
            model = distill_bidirectional(sessions, size, config, self.seed, targets, checkpoint, shown)
            save_teacher(model, folder, {"config": asdict(config)})
            checkpoint.unlink(missing_ok=True)

        seen = [contents(s, s.inputs("lfp"), targets[s.id]) for s in sessions]
        recipe = [seen, asdict(size), asdict(config), self.seed]
        return load_teacher(self.cache.stage("bidirectional", recipe, make))[0]


# ---------------------------------------------------------------- inputs


def shortened(preset: Preset, steps: int | None) -> Preset:
    """The preset with every stage capped at `steps` optimizer steps."""
    if steps is None:
        return preset

    def capped(config: TrainingConfig) -> TrainingConfig:
        few = min(steps, config.steps)
        return replace(config, steps=few, eval_every=max(1, min(config.eval_every, few // 4)))

    return replace(preset, training=capped(preset.training), teacher_training=capped(preset.teacher_training))


def require_writable(out: Path) -> None:
    """Found out before the training, not after it."""
    probe = out.with_name(f".{out.name}.probe")
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        probe.touch()
        probe.unlink()
    except OSError as error:
        raise OutputError(
            f"cannot write to {out.parent}",
            got=error.strerror or str(error),
            causes=["the folder is read-only", "the disk is full"],
            next_step="choose another --out",
        ) from error


def require_folder(out: Path) -> None:
    """`require_writable` for a model, which is a folder."""
    require_writable(out)
    if out.exists() and not out.is_dir():
        raise OutputError(
            f"{out}: there is a file here",
            expected="a path that is free, or the folder of a model to replace",
            next_step="choose another --out",
        )


def read_sessions(
    cache: Cache,
    data: Sequence[Path],
    behavior: str | None,
    line_hz: float,
    need: tuple[str, ...] = ("lfp", "units", "behaviour"),
    also: tuple[str, ...] = (),
) -> list[SessionBins]:
    """Every NWB file of `data` on the bin clock; a file that was read before is not read again."""
    sessions = []
    for path in session_files(list(data)):

        def make(folder: Path, path: Path = path) -> None:
            with open_recording(path, behavior=behavior) as recording:
                bins = bins_from_recording(recording, need=need, also=also, line_hz=line_hz)
            save_session_bins(bins, folder / "bins.npz")

        recipe = [file_sha256(path), behavior, line_hz, need, also]
        kept = load_session_bins(cache.stage(f"read-{path.stem}", recipe, make) / "bins.npz")
        sessions.append(replace(kept, path=str(path)))
    return combine_sessions(sessions)


def choose_session(sessions: Sequence[TrainingSession], wanted: str | None) -> TrainingSession:
    """The session the bundle decodes: `wanted`, or the latest."""
    if wanted is None:
        return sessions[-1]
    known = {session.id: session for session in sessions}
    if wanted not in known:
        raise RecordingError(f"unknown session '{wanted}'", expected=did_you_mean(wanted, known))
    return known[wanted]


def provenance(bins: Sequence[SessionBins]) -> dict[str, Any]:
    """Which files the run saw."""
    return {"sessions": {b.session_id: b.sha256 for b in bins}}


def known_teacher(folder: Path, sessions: Sequence[TrainingSession]) -> PatchAutoencoder:
    """The teacher in `folder`, which must have a tokenizer for each session."""
    teacher, _ = load_teacher(folder)
    missing = [s.id for s in sessions if teacher.channels.get(s.id) != s.inputs("spikes").shape[1]]
    if missing:
        raise EdgeDistillError(
            f"the teacher in {folder} does not know every session",
            got=f"unknown, or with other units: {', '.join(missing)}",
            expected=f"some of {', '.join(teacher.channels)}",
            next_step="edgedistill pretrain with these sessions, or leave them out",
        )
    return teacher


def contents(session: TrainingSession, *parts: Tensor | None) -> list[object]:
    """What a stage takes from a session, as JSON: the numbers themselves, since the same file gives others with
    another behaviour series, line frequency or gap between the blocks."""
    blocks = [[block.start, block.stop] for block in (session.split.train, session.split.validation)]
    values = [None if part is None else sha256_of(part) for part in parts]
    return [session.id, session.array, session.settled, blocks, values]


def sha256_of(values: Tensor) -> str:
    """Of the numbers in a tensor."""
    return hashlib.sha256(values.numpy().tobytes()).hexdigest()


def normalizations(sessions: Sequence[TrainingSession]) -> dict[str, list[list[float]]]:
    """Mean and std (uV) of each session's LFP, as JSON."""
    return {s.id: [values.tolist() for values in s.normalization] for s in sessions}


# ---------------------------------------------------------------- two stages by themselves


def pretrain(
    data: Sequence[Path],
    out: Path,
    *,
    preset: str,
    steps: int | None = None,
    seed: int = 0,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """The spike teacher of `data` in `out`, and a summary. Units are needed; LFP and behaviour are not."""
    start = monotonic()
    chosen = shortened(load_preset(preset), steps)
    require_folder(out)
    cache = Cache(out.with_name(out.name + ".work"))
    bins = read_sessions(cache, data, None, 60, need=("units",), also=("lfp", "behaviour"))
    sessions = [training_session(b, gap_for(bins, chosen.student)) for b in bins]
    config = chosen.teacher_training
    run = Run(cache, chosen, seed, provenance(bins), progress)
    teacher = run.teacher(sessions, None)
    save_teacher(teacher, out, {"config": asdict(config), **run.inputs})
    scored = [score_teacher(teacher, s, config.segment_bins).r2 for s in sessions if s.behaviour is not None]
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
    supervised: bool = False,
    alignment: str = "cosine",
    progress: Progress | None = None,
) -> dict[str, Any]:
    """The LFP student of `data` in `out`, and a summary; `supervised` adds behaviour to the objective."""
    start = monotonic()
    chosen = shortened(load_preset(preset), steps)
    require_folder(out)
    cache = Cache(out.with_name(out.name + ".work"))
    need = ("lfp", "units", "behaviour") if supervised else ("lfp", "units")
    bins = read_sessions(cache, data, None, 60, need=need, also=("behaviour",))
    sessions = [training_session(b, gap_for(bins, chosen.student)) for b in bins]
    run = Run(cache, chosen, seed, provenance(bins), progress)
    targets = run.targets(known_teacher(teacher, sessions), sessions)
    name = "deployed" if supervised else "distilled"
    student = run.student(name, sessions, targets, alignment)
    facts = {"row": name, "normalization": normalizations(sessions), "readouts": readouts(student, sessions)}
    labelled = [outputs_of(b) for b in bins if b.behaviour is not None]
    behaviour = {"behaviour": labelled[-1]} if labelled else {}
    save_student(student, out, {**facts, **behaviour, **run.inputs})
    scored = [score_student(student, name, s)[1].r2 for s in sessions if s.behaviour is not None]
    return {
        "out": str(out),
        "sessions": [s.id for s in sessions],
        "steps": chosen.training.steps,
        "probe_r2": sum(scored) / len(scored) if scored else None,
        "seconds": monotonic() - start,
    }
