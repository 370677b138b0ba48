"""Models in a folder: `model.safetensors` and `model.json`, what is needed to build the network again."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import nn

from edgedistill.config import StudentSize, TeacherSize, parse
from edgedistill.errors import EdgeDistillError, OutputError
from edgedistill.models.student import Student
from edgedistill.models.teacher import PatchAutoencoder

WEIGHTS, FACTS = "model.safetensors", "model.json"


def save_teacher(teacher: PatchAutoencoder, folder: Path, facts: Mapping[str, object]) -> None:
    """Writes a teacher; `facts` is whatever else its user should know (JSON)."""
    kind = {"kind": "teacher", "size": asdict(teacher.size), "channels": teacher.channels}
    teacher_d = teacher.to_teacher.out_features if teacher.to_teacher is not None else 0
    save(teacher, folder, {**kind, "counts": teacher.counts, "teacher_d": teacher_d, **facts})


def save_student(student: Student, folder: Path, facts: Mapping[str, object]) -> None:
    """Writes a student with all its sessions' tokenizers."""
    shape = {
        "kind": "student",
        "size": asdict(student.size),
        "channels": student.tokenizer.channels,
        "arrays": student.tokenizer.arrays,
        "teacher_d": student.to_teacher.out_features,
        "outputs": student.to_behavior.out_features,
    }
    save(student, folder, {**shape, **facts})


def save(model: nn.Module, folder: Path, facts: Mapping[str, object]) -> None:
    """Weights first, facts last: a folder with facts is whole."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        partial = folder / f".{WEIGHTS}.partial"
        save_file({n: t.detach().cpu().contiguous() for n, t in model.state_dict().items()}, partial)
        partial.replace(folder / WEIGHTS)
        text = folder / f".{FACTS}.partial"
        text.write_text(json.dumps(facts, indent=1))
        text.replace(folder / FACTS)
    except (OSError, SafetensorError) as error:
        raise OutputError(
            f"cannot write the model to {folder}",
            got=str(error),
            causes=["the disk is full", "the folder is read-only"],
        ) from error


def load_teacher(folder: Path) -> tuple[PatchAutoencoder, dict[str, Any]]:
    """The teacher that `save_teacher` wrote, and its facts."""
    facts = read_facts(folder, "teacher", "edgedistill pretrain")
    with described_in(folder):
        size = parse(TeacherSize, facts["size"], str(folder / FACTS))
        teacher = PatchAutoencoder(size, facts["channels"], facts["counts"], facts["teacher_d"])
    load_weights(teacher, folder)
    return teacher, facts


def load_student(folder: Path) -> tuple[Student, dict[str, Any]]:
    """The student that `save_student` wrote, and its facts."""
    facts = read_facts(folder, "student", "edgedistill distill")
    with described_in(folder):
        size = parse(StudentSize, facts["size"], str(folder / FACTS))
        student = Student(size, facts["channels"], facts["arrays"], facts["teacher_d"], facts["outputs"])
    load_weights(student, folder)
    return student, facts


def read_facts(folder: Path, kind: str, command: str) -> dict[str, Any]:
    """`model.json` of a folder that must hold a `kind`."""
    try:
        facts = json.loads((folder / FACTS).read_text())
    except (OSError, ValueError) as error:
        raise EdgeDistillError(
            f"{folder} holds no {kind}", got=str(error), next_step=f"make one with `{command}`"
        ) from error
    if not isinstance(facts, dict) or facts.get("kind") != kind:
        found = facts.get("kind") if isinstance(facts, dict) else "something else"
        raise EdgeDistillError(f"{folder} holds no {kind}", got=found, expected=kind)
    return facts


@contextmanager
def described_in(folder: Path) -> Iterator[None]:
    """`model.json` that does not say what to build is one error, whichever fact is missing."""
    try:
        yield
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise EdgeDistillError(
            f"{folder / FACTS} does not describe a model",
            got=f"{type(error).__name__}: {error}",
            causes=["the file was changed by hand", "another version wrote it"],
            next_step="train it again",
        ) from error


def load_weights(model: nn.Module, folder: Path) -> None:
    """Fills `model`, in evaluation mode; a damaged or foreign file is refused by name."""
    path = folder / WEIGHTS
    try:
        model.load_state_dict(load_file(path))
    except (OSError, SafetensorError, RuntimeError) as error:
        raise EdgeDistillError(
            f"{path} is damaged or of another model",
            got=str(error).splitlines()[0],
            next_step="train it again",
        ) from error
    model.eval()
