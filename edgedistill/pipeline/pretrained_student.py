"""Loads and saves a student of an earlier run: the network, and the facts that are stored with it.

The folder that `edgedistill distill` wrote goes in, and a `PretrainedStudent` comes out. `save_pretrained_student`
writes such a folder. No other module reads the student's stored sessions, objective, statistics and read-outs.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from copy import deepcopy
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

import numpy as np

from edgedistill.config import NO_BANDS, Alignment, BandPower, TrainingConfig, parse
from edgedistill.data.bins import SessionBins
from edgedistill.errors import EdgeDistillError
from edgedistill.frontend import SPATIAL_TENSORS, SpatialModel, Standardization
from edgedistill.models.files import FACTS, Facts, load_student, refuse_damaged_facts, replace_model, save_student
from edgedistill.models.student import Student
from edgedistill.pipeline.run_context import Provenance
from edgedistill.training.adapt import adapt, require_known_array
from edgedistill.training.batches import TrainingSession, find_unlabelled_block
from edgedistill.training.evaluate import Readout
from edgedistill.training.few_labels import FewLabels, keep_first_labels
from edgedistill.training.student_tasks import STUDENT_TASKS, StudentTask, score_student
from edgedistill.training.study import Trial, trial_from_json

WHITENED_LOSSES = ("cosine", "mse")

Outputs = tuple[tuple[str, ...], tuple[str, ...]]  # names and units of a behavior


@dataclass(frozen=True, eq=False)
class PretrainedStudent:
    """Holds a student of an earlier run. Methods that adapt it change a copy and leave `student` as it is."""

    student: Student
    task_name: str
    task: StudentTask  # the task of `edgedistill distill`, whose objective fine-tuning uses as well
    arrays: Mapping[str, str]  # training session -> its array, in the order of training
    standardizations: Mapping[str, Standardization]  # array -> how its last training session was standardized
    readouts: Mapping[str, Readout]  # labelled session -> read-out of latents and lagged bins
    outputs: Outputs | None  # names and units that those read-outs return
    provenance: Provenance
    band_power: BandPower = NO_BANDS  # with which its sessions were read
    few_labels: FewLabels | None = None  # all that it has learned of behavior; None: all labels of its sessions
    finetuned_from: str | None = None  # checkpoint hash of the student before its fine-tuning
    trials: tuple[Trial, ...] = ()  # of the search for its settings
    folder: Path = field(default=Path())

    def has_session(self, session: TrainingSession) -> bool:
        """Returns whether the student was trained on `session`. The same id on another array is another session."""
        return self.arrays.get(session.id) == session.array

    def as_taught(
        self, sessions: Sequence[TrainingSession], chosen: TrainingSession | None = None
    ) -> tuple[TrainingSession, ...]:
        """Returns the sessions with no more labels than the student has learned from, so that no later stage uses more.

        Sessions that are new to it stay as they are, and so does the `chosen` one unless it is the one of `few_labels`.
        """
        few = self.few_labels

        def withhold(session: TrainingSession) -> TrainingSession:
            if few is None or not self.has_session(session):
                return session
            if session.id == few.session:
                return keep_first_labels(session, few.minutes)
            return session if session is chosen else replace(session, behavior=None)

        return tuple(map(withhold, sessions))

    def without_new_labels(self, sessions: Sequence[TrainingSession]) -> list[TrainingSession]:
        """Returns the sessions. Those that the student was not trained on lose their behavior."""
        return [session if self.has_session(session) else without_labels(session) for session in sessions]

    def adapted_to(
        self, session: TrainingSession, mode: str, config: TrainingConfig, seed: int = 0
    ) -> tuple[Student, TrainingSession]:
        """Returns a student that can read `session`, and the session with the normalization for that student.

        `mode` is one of the modes in `training.adapt`. It has no effect for a session that the student was trained on.
        Raises RecordingError where the student was not trained on the array of the session.
        """
        student = deepcopy(self.student)
        if self.has_session(session):
            return student, session
        require_known_array(student, session)
        return student, adapt(student, session, mode, self.standardizations.get(session.array), config, seed)

    def adapted_to_all(self, sessions: Sequence[TrainingSession]) -> Student:
        """Returns a student that can read all `sessions`. New sessions are normalized with their own statistics.

        Raises RecordingError where the student was not trained on the array of a session.
        """
        student = deepcopy(self.student)
        for session in sessions:
            if not self.has_session(session):
                require_known_array(student, session)
                adapt(student, session, "stats", None, TrainingConfig())
        return student

    def readout_of(self, array: str) -> Readout | None:
        """Returns the read-out of the last labelled session on `array`, or None without one.

        The lagged bins of a read-out belong to the channels of its array. On another day, this read-out needs no labels
        of that day.
        """
        stored = [readout for session, readout in self.readouts.items() if self.arrays[session] == array]
        return stored[-1] if stored else None

    def require_readout(self, session: TrainingSession, outputs: Outputs) -> Readout:
        """Returns the stored read-out for `session`, which is another day on the same array.

        Raises EdgeDistillError where there is none, or where it returns something else than `outputs`.
        """
        readout = self.readout_of(session.array)
        if readout is None:
            raise EdgeDistillError(
                f"the student in {self.folder} has no read-out",
                got="it was distilled on sessions without behavior",
                next_step="add --probe, which fits one on the labels of this session",
            )
        if self.outputs not in (None, outputs):
            raise EdgeDistillError(
                f"the student in {self.folder} decodes another behavior than that of session {session.id}",
                got=self.outputs,
                expected=outputs,
                next_step="name the series it was distilled with by --behavior, or add --probe",
            )
        return readout


def load_pretrained_student(folder: Path) -> PretrainedStudent:
    """Returns the student in `folder`. Raises EdgeDistillError where there is none, or where its facts are damaged."""
    student, facts = load_student(folder)
    with refuse_damaged_facts(folder):
        return student_from_facts(student, facts, folder)


def student_from_facts(student: Student, facts: Facts, folder: Path) -> PretrainedStudent:
    """Returns the student with the facts of its `model.json`. Optional facts that are missing become empty."""
    outputs, task_name = facts.get("behavior"), facts.get("row", "distilled")
    return PretrainedStudent(
        student=student,
        task_name=task_name,
        task=task_from_facts(task_name, facts, folder),
        arrays=dict(student.tokenizer.arrays),
        standardizations={
            array: standardization_from_json(stored) for array, stored in facts.get("standardization", {}).items()
        },
        readouts={session: readout_from_json(stored) for session, stored in facts.get("readouts", {}).items()},
        outputs=None if outputs is None else (tuple(outputs[0]), tuple(outputs[1])),
        provenance=Provenance(facts.get("sessions", {}), facts.get("versions", {}), training=facts.get("training", {})),
        band_power=parse(BandPower, facts.get("band_power", {}), str(folder)),
        few_labels=None if (few := facts.get("few_labels")) is None else parse(FewLabels, few, str(folder / FACTS)),
        finetuned_from=facts.get("finetuned_from"),
        trials=tuple(trial_from_json(stored) for stored in facts.get("trials", ())),
        folder=folder,
    )


def save_pretrained_student(pretrained: PretrainedStudent, folder: Path) -> None:
    """Writes a folder that `load_pretrained_student` can read. Raises OutputError."""
    facts: dict[str, object] = {
        "row": pretrained.task_name,
        "standardization": {
            array: standardization_to_json(found) for array, found in pretrained.standardizations.items()
        },
        "readouts": {session: readout_to_json(readout) for session, readout in pretrained.readouts.items()},
        "alignment": asdict(pretrained.task.objective.aligned_by),
        "objective": pretrained.task.objective.weights,
        "band_power": asdict(pretrained.band_power),
        **pretrained.provenance.to_json(),
    }
    if pretrained.outputs is not None:
        facts["behavior"] = [list(part) for part in pretrained.outputs]
    if pretrained.few_labels is not None:
        facts["few_labels"] = asdict(pretrained.few_labels)
    if pretrained.finetuned_from is not None:
        facts["finetuned_from"] = pretrained.finetuned_from
    if pretrained.trials:
        facts["trials"] = [asdict(trial) for trial in pretrained.trials]
    with replace_model(folder) as hidden:
        save_student(pretrained.student, hidden, facts)


def task_from_facts(task_name: str, facts: Facts, folder: Path) -> StudentTask:
    """Returns what a student was trained on. Folders of the version before do not state its weights."""
    task = STUDENT_TASKS[task_name].with_alignment(alignment_from_json(facts.get("alignment"), folder))
    weights = {name: float(weight) for name, weight in facts.get("objective", {}).items()}
    return replace(task, objective=task.objective.with_weights(**{**task.objective.weights, **weights}))


def alignment_from_json(stored: object, folder: Path) -> Alignment:
    """Returns the alignment of a student. Folders of the version before have a loss here, on whitened components."""
    if stored is None or stored in WHITENED_LOSSES:
        return Alignment("whitened")
    if not isinstance(stored, Mapping):
        stored = {"kind": stored}
    return parse(Alignment, stored, str(folder / FACTS))


def readout_to_json(readout: Readout) -> dict[str, object]:
    """Returns a read-out in the form that `model.json` stores."""
    arrays = {"weight": readout.weight.tolist(), "bias": readout.bias.tolist()}
    return {**arrays, "penalty": readout.penalty, "validation_r2": readout.validation_r2}


def readout_from_json(stored: Facts) -> Readout:
    """Returns the read-out that `readout_to_json` wrote."""
    weight, bias = np.array(stored["weight"]), np.array(stored["bias"])
    return Readout(weight, bias, stored["penalty"], stored["validation_r2"])


def fit_readouts(student: Student, sessions: Sequence[TrainingSession]) -> dict[str, Readout]:
    """Returns, for each session with labels in all blocks, a read-out of latents and lagged bins."""
    return {s.id: score_student(student, "deployed", s)[0] for s in sessions if find_unlabelled_block(s) is None}


def standardizations_of(sessions: Sequence[TrainingSession]) -> dict[str, Standardization]:
    """Returns, for each array, how its last session was standardized."""
    return {session.array: session.standardization for session in sessions}


def standardization_to_json(found: Standardization) -> dict[str, object]:
    """Returns a standardization in the form that `model.json` stores."""
    spatial = found.spatial
    arrays = {name: getattr(spatial, name).tolist() for name in SPATIAL_TENSORS}
    settings = {"sweeps": spatial.sweeps, "common_average": spatial.common_average}
    return {"mean": found.mean.tolist(), "std": found.std.tolist(), **arrays, **settings}


def standardization_from_json(stored: Facts) -> Standardization:
    """Returns the standardization that `standardization_to_json` wrote."""
    arrays = {name: np.array(stored[name], np.float32) for name in SPATIAL_TENSORS}
    spatial = SpatialModel(**arrays, sweeps=stored["sweeps"], common_average=stored["common_average"])
    return Standardization(np.array(stored["mean"]), np.array(stored["std"]), spatial)


def outputs_of(bins: SessionBins) -> Outputs:
    """Returns names and units of a session's behavior."""
    return bins.output_names, bins.output_units


def without_labels(session: TrainingSession) -> TrainingSession:
    """Returns the session without its behavior, for a student that must not use labels of that day."""
    return replace(session, behavior=None)
