"""Provides the student that ships, which is trained in this build or comes from an earlier run (--student).

Both kinds have the same methods, so that only the stage that trains has to know which kind it has.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from edgedistill.config import DEFAULT_ALIGNMENT, Alignment, BandPower, Preset, StudentSize
from edgedistill.data.bins import SessionBins
from edgedistill.pipeline.pretrained_student import PretrainedStudent, outputs_of
from edgedistill.pipeline.ranges import can_read, require_tuning_sessions, require_width
from edgedistill.pipeline.searched_students import Trials
from edgedistill.quantization.calibration.ranges import Ranges
from edgedistill.quantization.calibration.recipe import Recipe, require_teacher
from edgedistill.training.adapt import require_known_array
from edgedistill.training.batches import TrainingSession
from edgedistill.training.teacher_targets import TeacherTargets


@dataclass(frozen=True)
class NewStudent:
    """Stands for a student that is trained in this build, on all sessions and their labels."""

    alignment: Alignment = DEFAULT_ALIGNMENT
    ranges: Ranges | None = None  # always None, because the ranges are found in this build
    note: str = ""

    @property
    def trials(self) -> Trials:
        """Returns the searches of earlier runs that the student came out of: none."""
        return {}

    def sizes(self, preset: Preset) -> list[StudentSize]:
        """Returns the sizes of the students in the build."""
        return [preset.student]

    def band_power(self, preset: Preset) -> BandPower:
        """Returns what the student sees beside the slow LFP."""
        return preset.band_power

    def may_use_labels(self, session: TrainingSession) -> bool:
        """Returns True, because the student is trained on every session."""
        return True

    def knows_few_labels(self, session: TrainingSession) -> bool:
        """Returns False, because no earlier run has left labels out."""
        return False

    def as_taught(self, sessions: Sequence[TrainingSession], chosen: TrainingSession) -> tuple[TrainingSession, ...]:
        """Returns the sessions, because the student is trained on all of their labels."""
        return tuple(sessions)

    def require_teacher(self, recipe: Recipe, teacher: Path | None) -> None:
        """Accepts any recipe, because this build has a teacher for the fine-tuning."""

    def require_session(
        self, session: TrainingSession, bins: SessionBins, sessions: Sequence[TrainingSession], recipe: Recipe
    ) -> None:
        """Accepts any session, because the student is trained on all of them."""

    def require_targets(self, targets: TeacherTargets | None, recipe: Recipe) -> None:
        """Accepts any teacher, because the student is trained to follow it."""

    def to_json(self) -> dict[str, object]:
        """Returns what a manifest's provenance says about an adaptation: nothing."""
        return {}


@dataclass(frozen=True, eq=False)
class EarlierStudent:
    """Holds the student of --student, and how it is adapted to a session that is new to it."""

    pretrained: PretrainedStudent
    ranges: Ranges | None  # from --ranges
    mode: str  # from --adapt
    probe: bool

    @property
    def note(self) -> str:
        """Returns what the table of R² adds to the rows of this student."""
        return f", adapted by '{self.mode}', {'labelled probe' if self.probe else 'no labels'}"

    @property
    def trials(self) -> Trials:
        """Returns the search of an earlier run that the student came out of."""
        return {self.pretrained.task_name: self.pretrained.trials}

    def sizes(self, preset: Preset) -> list[StudentSize]:
        """Returns the sizes of the students in the build."""
        return [preset.student, self.pretrained.student.size]

    def band_power(self, preset: Preset) -> BandPower:
        """Returns what the student sees beside the slow LFP, which is what it was trained with."""
        return self.pretrained.band_power

    def may_use_labels(self, session: TrainingSession) -> bool:
        """Returns whether labels of `session` may be used.

        For a session that is new to the student this needs --probe.
        """
        return self.probe or self.pretrained.has_session(session)

    def knows_few_labels(self, session: TrainingSession) -> bool:
        """Returns whether the student learned behavior from the first minutes of this session alone."""
        few = self.pretrained.few_labels
        return few is not None and few.session == session.id and self.pretrained.has_session(session)

    def as_taught(self, sessions: Sequence[TrainingSession], chosen: TrainingSession) -> tuple[TrainingSession, ...]:
        """Returns the sessions with no more labels than the student has learned from, as `PretrainedStudent` does."""
        return self.pretrained.as_taught(sessions, chosen)

    def require_teacher(self, recipe: Recipe, teacher: Path | None) -> None:
        """Raises ConfigError where the recipe fine-tunes and there is no --teacher.

        A teacher trained in this build would not help, because the student was distilled from another.
        """
        if self.ranges is None:
            require_teacher(recipe, teacher)

    def require_session(
        self, session: TrainingSession, bins: SessionBins, sessions: Sequence[TrainingSession], recipe: Recipe
    ) -> None:
        """Raises an EdgeDistillError where the student cannot decode `session`, or cannot be fine-tuned on `sessions`.

        `bins` are those of `session`.
        """
        student = self.pretrained.student
        require_known_array(student, session)
        if self.may_use_labels(session):
            return
        self.pretrained.require_readout(session, outputs_of(bins))
        if self.ranges is None:
            others = [s for s in sessions if s.id != session.id and can_read(student, s, "lfp")]
            require_tuning_sessions(recipe, others)

    def require_targets(self, targets: TeacherTargets | None, recipe: Recipe) -> None:
        """Raises EdgeDistillError where the student would be fine-tuned with another teacher than its own."""
        if self.ranges is None and recipe.finetune is not None and targets is not None:
            student = self.pretrained.student
            require_width(student, targets.of(self.pretrained.task.objective, student.size))

    def to_json(self) -> dict[str, object]:
        """Returns what a manifest's provenance says about the adaptation."""
        return {"adapt": self.mode, "probe": self.probe}
