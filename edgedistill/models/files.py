"""Saves models to a folder and loads them again.

A trained teacher or student goes in and comes back out, with whatever facts its user wrote beside it. Its weights are
in `model.safetensors`, and `model.json` holds the facts that are needed to build the network again.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any, TypeVar

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from safetensors.torch import save as weights_as_bytes
from torch import Tensor, nn

from edgedistill.config import StudentSize, TeacherSize, parse
from edgedistill.errors import EdgeDistillError, OutputError
from edgedistill.files import atomic_write, atomic_write_bytes, atomic_write_text
from edgedistill.limits import MOST_MODEL_BYTES, read_json, require_plain
from edgedistill.models.student import Student
from edgedistill.models.teacher import PatchAutoencoder

WEIGHTS, FACTS = "model.safetensors", "model.json"
OLD_FACT, FACT = "behaviour", "behavior"  # folders of the version before have the first in `model.json`
OLD_HEAD, HEAD = "to_behaviour.", "to_behavior."  # and the first in the names of tensors

LARGEST_SIZE = 1_000_000  # of what is not in the weights, such as lags

Facts = Mapping[str, Any]  # a JSON object
Model = TypeVar("Model", bound=nn.Module)


def save_teacher(teacher: PatchAutoencoder, folder: Path, facts: Mapping[str, object]) -> None:
    """Writes a teacher. `facts` is whatever else its user should know (JSON). Raises OutputError."""
    kind = {"kind": "teacher", "size": asdict(teacher.size), "channels": teacher.channels}
    teacher_d = teacher.to_teacher.teacher_d if teacher.to_teacher is not None else 0
    save(teacher, folder, {**kind, "counts": teacher.counts, "teacher_d": teacher_d, **facts})


def save_student(student: Student, folder: Path, facts: Mapping[str, object]) -> None:
    """Writes a student with all its sessions' tokenizers. `facts` is as for `save_teacher`. Raises OutputError."""
    shape = {
        "kind": "student",
        "size": asdict(student.size),
        "channels": student.tokenizer.channels,
        "arrays": student.tokenizer.arrays,
        "teacher_d": student.to_teacher.teacher_d,
        "outputs": student.to_behavior.out_features,
    }
    save(student, folder, {**shape, **facts})


@contextmanager
def replace_model(folder: Path) -> Iterator[Path]:
    """Yields a hidden folder beside `folder`, to save a model in. At the end it replaces the model in `folder`.

    Raises OutputError as `refuse_other_files` does, and where the model cannot be written.
    """
    refuse_other_files(folder)
    with atomic_write(folder, "the model") as hidden:
        hidden.mkdir()
        yield hidden


def refuse_other_files(folder: Path) -> None:
    """Raises OutputError for a folder that holds more than a model, because a new model would replace all of it."""
    if not folder.is_dir():
        return
    others = sorted({path.name for path in folder.iterdir()} - {WEIGHTS, FACTS})
    if others:
        raise OutputError(
            f"{folder}: this folder holds more than a model",
            got=f"'{others[0]}'",
            expected="a path that is free, or the folder of a model to replace",
            next_step="choose another --out",
        )


def save(model: nn.Module, folder: Path, facts: Mapping[str, object]) -> None:
    """Writes weights first and facts last, so that a folder with facts is whole. Raises OutputError."""
    weights = {name: tensor.detach().cpu().contiguous() for name, tensor in model.state_dict().items()}
    atomic_write_bytes(folder / WEIGHTS, weights_as_bytes(weights), "the model")
    atomic_write_text(folder / FACTS, json.dumps(facts, indent=1), "the model")


def load_teacher(folder: Path) -> tuple[PatchAutoencoder, Facts]:
    """Returns the teacher that `save_teacher` wrote, and its facts. Raises EdgeDistillError."""
    facts = read_facts(folder, "teacher", "edgedistill pretrain")
    with refuse_damaged_facts(folder):
        size = parse(TeacherSize, facts["size"], str(folder / FACTS))
        rest = (facts["channels"], facts["counts"], facts["teacher_d"])
        teacher = make_model(folder, facts, lambda: PatchAutoencoder(size, *rest))
    load_weights(teacher, folder)
    return teacher, facts


def load_student(folder: Path) -> tuple[Student, Facts]:
    """Returns the student that `save_student` wrote, and its facts. Raises EdgeDistillError."""
    facts = read_facts(folder, "student", "edgedistill distill")
    with refuse_damaged_facts(folder):
        size = parse(StudentSize, facts["size"], str(folder / FACTS))
        rest = (facts["channels"], facts["arrays"], facts["teacher_d"], facts["outputs"])
        student = make_model(folder, facts, lambda: Student(size, *rest))
    load_weights(student, folder)
    return student, facts


def make_model(folder: Path, facts: Facts, make: Callable[[], Model]) -> Model:
    """Returns the network that the facts in `folder` describe, if its weights have room in their file.

    The folder may come from a stranger, and a few words of JSON could ask for any amount of memory. No number is larger
    than that of the stored weights, or than LARGEST_SIZE. The network is then made without memory first, and weighed.
    Raises ValueError, and EdgeDistillError where there are no weights.
    """
    room = size_of_weights(folder)
    sizes = {**facts["size"], **{f"channels of {name}": count for name, count in facts["channels"].items()}}
    sizes |= {name: facts[name] for name in ("teacher_d", "outputs") if name in facts}
    for name, size in sizes.items():
        if not 0 <= size <= max(room, LARGEST_SIZE) or (type(size) is not int and name not in facts["size"]):
            raise ValueError(f"{name} is {size}, which {WEIGHTS} has no weights for")
    with torch.device("meta"):
        tensors = make().state_dict()
    heads = {name for name in tensors if name.startswith("to_teacher.")}  # of which older files have one for all
    needed = sum(tensor.nbytes for name, tensor in tensors.items() if name not in heads)
    needed += max((tensors[name].nbytes for name in heads), default=0)
    if needed > room:
        raise ValueError(f"{needed} bytes of weights, and {WEIGHTS} has {room}")
    return make()


def size_of_weights(folder: Path) -> int:
    """Returns the size of the file with the weights, in bytes. Raises EdgeDistillError where it is no plain file."""
    path = folder / WEIGHTS
    try:
        found = path.stat()
        require_plain(path, found)
    except OSError as error:
        raise damaged_weights_error(path, error) from error
    return found.st_size


def find_kind(folder: Path) -> str | None:
    """Returns what kind of model the facts of a folder say it holds, or None where they say nothing."""
    try:
        facts = read_json(folder / FACTS, MOST_MODEL_BYTES)
    except (OSError, ValueError):
        return None
    return str(facts.get("kind")) if isinstance(facts, dict) else None


def read_facts(folder: Path, kind: str, command: str) -> Facts:
    """Returns the facts of a folder, with old keys renamed. Raises EdgeDistillError unless they describe a `kind`."""
    try:
        facts = read_json(folder / FACTS, MOST_MODEL_BYTES)
    except (OSError, ValueError) as error:
        raise EdgeDistillError(
            f"{folder} holds no {kind}", got=str(error), next_step=f"make one with `{command}`"
        ) from error
    if not isinstance(facts, dict) or facts.get("kind") != kind:
        found = facts.get("kind") if isinstance(facts, dict) else "something else"
        raise EdgeDistillError(f"{folder} holds no {kind}", got=found, expected=kind)
    return {FACT if key == OLD_FACT else key: respell_outputs(value, key) for key, value in facts.items()}


def respell_outputs(value: Any, key: str) -> Any:
    """Returns the names and units of the outputs, of which older folders spell a nameless output the old way."""
    if key != OLD_FACT or not isinstance(value, list):
        return value
    return [[rename(name, OLD_FACT, FACT) for name in part] if isinstance(part, list) else part for part in value]


@contextmanager
def refuse_damaged_facts(folder: Path) -> Iterator[None]:
    """Turns whatever goes wrong with a fact that is missing or of another type into one EdgeDistillError."""
    try:
        yield
    except (ArithmeticError, AttributeError, LookupError, RuntimeError, TypeError, ValueError) as error:
        raise EdgeDistillError(
            f"{folder / FACTS} does not describe a model",
            got=f"{type(error).__name__}: {error}",
            causes=["the file was changed by hand", "another version wrote it"],
            next_step="train it again",
        ) from error


def load_weights(model: nn.Module, folder: Path) -> None:
    """Fills `model` and sets it to evaluation mode. Raises EdgeDistillError for a file that is damaged or foreign."""
    path = folder / WEIGHTS
    size_of_weights(folder)
    try:
        weights = load_file(path)
        weights = {rename(name, OLD_HEAD, HEAD): tensor for name, tensor in weights.items()}
        model.load_state_dict(spread_teacher_head(weights, model))
    except (OSError, SafetensorError, RuntimeError) as error:
        raise damaged_weights_error(path, error) from error
    model.eval()


def damaged_weights_error(path: Path, error: Exception) -> EdgeDistillError:
    """Returns the error for a file of weights that cannot be read, or that does not fit its network."""
    return EdgeDistillError(
        f"{path} is damaged or of another model", got=str(error).splitlines()[0], next_step="train it again"
    )


def spread_teacher_head(weights: Mapping[str, Tensor], model: nn.Module) -> Mapping[str, Tensor]:
    """Returns weights in which each session has the one map to the teacher that older files have for all sessions."""
    if "to_teacher.weight" not in weights:
        return weights
    single = {name: tensor for name, tensor in weights.items() if name.startswith("to_teacher.")}
    copies = {
        name: f"to_teacher.{name.split('.')[-1]}" for name in model.state_dict() if name.startswith("to_teacher.")
    }
    kept = {name: tensor for name, tensor in weights.items() if name not in single}
    return kept | {name: single[old] for name, old in copies.items()}


def hash_checkpoint(model: nn.Module) -> str:
    """Returns the SHA-256 over names, types, shapes and bytes of the model's tensors, in the order of the names.

    The head for behavior counts in its spelling of version 0.1.
    """
    return hash_tensors({rename(name, HEAD, OLD_HEAD): tensor for name, tensor in model.state_dict().items()})


def hash_tensors(tensors: Mapping[str, Tensor], more: str = "") -> str:
    """Returns the SHA-256 over names, types, shapes and bytes of tensors, in the order of the names, then `more`."""
    digest = hashlib.sha256()
    for name in sorted(tensors):
        values = tensors[name].detach().cpu().contiguous()
        digest.update(f"{name} {values.dtype} {tuple(values.shape)}\n".encode())
        digest.update(values.view(-1).view(torch.uint8).numpy().data)
    digest.update(more.encode())
    return digest.hexdigest()


def rename(name: str, before: str, after: str) -> str:
    """Returns a name with `before` at its start replaced by `after`. A session id within a name stays as it is."""
    return after + name.removeprefix(before) if name.startswith(before) else name
