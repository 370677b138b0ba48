"""The trained stages of a run, each kept by the numbers it takes."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from time import monotonic
from typing import Any

import numpy as np
from torch import Tensor

from edgedistill.config import Preset
from edgedistill.models.files import load_student, load_teacher, save_student, save_teacher
from edgedistill.models.student import Student
from edgedistill.models.teacher import PatchAutoencoder
from edgedistill.pipeline.cache import Cache
from edgedistill.pipeline.inputs import known_teacher
from edgedistill.pipeline.request import Progress
from edgedistill.quantization.calibration.ranges import hash_checkpoint
from edgedistill.training.batches import TrainingSession
from edgedistill.training.distill import distill_bidirectional
from edgedistill.training.evaluate import Readout
from edgedistill.training.pretrain import compute_teacher_latents, train_teacher
from edgedistill.training.student_tasks import STUDENT_TASKS, train_task
from edgedistill.training.teacher_window import fit_last_bin_readout


@dataclass(frozen=True, eq=False)
class TeacherSubject:
    """The spike teacher as it would have to run."""

    model: PatchAutoencoder
    readout: Readout  # of the latent of a window's last bin
    window: int  # bins


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
        targets = compute_teacher_latents(teacher, sessions, self.preset.teacher_training)
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
        config, row = self.preset.training, STUDENT_TASKS[name].with_alignment(alignment)
        label = name if len(sessions) > 1 or name != "unsupervised_lfp" else "single_session_lfp"

        def make(folder: Path) -> None:
            checkpoint = folder / "checkpoint.safetensors"
            shown = self.report(label)
            student = train_task(row, sessions, self.preset, config, self.seed, targets, checkpoint, shown)
            save_student(student, folder, {"row": name, "normalization": normalizations(sessions)})
            checkpoint.unlink(missing_ok=True)

        labels = [s.behavior if row.objective.behavior else None for s in sessions]
        parts = [(s.inputs(row.modality), targets[s.id]) for s in sessions]
        seen = [contents(s, *p, label) for s, p, label in zip(sessions, parts, labels, strict=True)]
        saved = normalizations(sessions) if row.modality == "lfp" else None
        recipe = [seen, saved, asdict(row), asdict(self.preset.student), asdict(config), self.seed]
        return load_student(self.cache.stage(label.replace("_", "-"), recipe, make))[0]

    def teacher_over_its_window(self, teacher: PatchAutoencoder, session: TrainingSession) -> TeacherSubject:
        """The teacher without a future: what it decodes if its window is run again for every bin."""
        segment = self.preset.teacher_training.segment_bins
        window = segment - segment % teacher.size.span

        def make(folder: Path) -> None:
            readout = fit_last_bin_readout(teacher, session, window)
            np.savez(folder / "readout.npz", **asdict(readout))

        recipe = [contents(session, session.spikes, session.behavior), hash_checkpoint(teacher), window]
        with np.load(self.cache.stage("teacher-readout", recipe, make) / "readout.npz") as kept:
            readout = Readout(kept["weight"], kept["bias"], float(kept["penalty"]), float(kept["validation_r2"]))
        return TeacherSubject(teacher, readout, window)

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


def contents(session: TrainingSession, *parts: Tensor | None) -> list[object]:
    """What a stage takes from a session, as JSON: the numbers themselves, since the same file gives others with
    another behavior series, line frequency or gap between the blocks."""
    blocks = [[block.start, block.stop] for block in (session.split.train, session.split.validation)]
    values = [None if part is None else sha256_of(part) for part in parts]
    return [session.id, session.array, session.settled, blocks, values]


def sha256_of(values: Tensor) -> str:
    """Of the numbers in a tensor."""
    return hashlib.sha256(values.numpy().tobytes()).hexdigest()


def normalizations(sessions: Sequence[TrainingSession]) -> dict[str, list[list[float]]]:
    """Mean and std (uV) of each session's LFP, as JSON."""
    return {s.id: [values.tolist() for values in s.normalization] for s in sessions}
