"""The ranges of a student's activations, where they came from, and the JSON file that holds both.

A range is the largest magnitude that eight bits represent: one number an activation, or one a head. A file tells
the checkpoint, sessions and windows it was found on, since ranges of another student fit nothing.
"""

from __future__ import annotations

import json
import os
from contextlib import suppress
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from edgedistill.config import StudentShape, StudentSize
from edgedistill.errors import ConfigError, EdgeDistillError, OutputError
from edgedistill.quantization.calibration.recipe import Recipe
from edgedistill.quantization.integers import checked_ranges

KIND, FORMAT = "edgedistill ranges", 1
Facts = dict[str, Any]


@dataclass(frozen=True)
class Ranges:
    """Ranges and their provenance; the JSON-ready parts are as they stand in the file."""

    values: dict[str, list[float]]  # activation -> largest magnitude, of q, k, v and context one a head
    recipe: Recipe
    seed: int
    checkpoint_sha256: str  # of the student, see `models.files.checkpoint_sha256`
    sessions: dict[str, str | None]  # id -> sha256 of its file
    windows: tuple[Facts, ...]  # session, first_bin, bins
    left_out: tuple[Facts, ...]  # the same, with reason and value
    table: tuple[Facts, ...]  # see `table_row`

    def to_json(self) -> Facts:
        """As it stands in the file."""
        facts = {field.name: getattr(self, field.name) for field in fields(self)}
        lists = {name: list(facts[name]) for name in ("windows", "left_out", "table")}
        return {"kind": KIND, "format": FORMAT, **facts, **lists, "recipe": self.recipe.to_json()}

    @classmethod
    def from_json(cls, facts: object, where: str = "ranges") -> Ranges:
        """The inverse of `to_json`. EdgeDistillError for what is foreign, too new, incomplete or gives no scale."""
        known = require_ours(facts, where)
        try:
            parts = {field.name: known[field.name] for field in fields(cls)}
            parts["recipe"] = Recipe.from_json(parts["recipe"], f"{where}, recipe")
            for name in ("windows", "left_out", "table"):
                parts[name] = tuple(map(dict, parts[name]))
            found = cls(**parts)
            require_positive(found.values, where)
        except (KeyError, TypeError, ValueError, AttributeError, ConfigError) as error:
            raise damaged(where, f"{type(error).__name__}: {error}") from error
        return found

    def write(self, path: Path) -> None:
        """The file appears whole or not at all. Raises OutputError."""
        partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            partial.write_text(json.dumps(self.to_json(), indent=1, allow_nan=False), encoding="utf-8")
            partial.replace(path)
        except OSError as error:
            raise OutputError(
                f"{path}: the ranges cannot be written",
                got=error.strerror or str(error),
                causes=("the disk is full", "the folder is read-only"),
                next_step="choose another place",
            ) from error
        finally:
            with suppress(OSError):
                partial.unlink(missing_ok=True)

    def require_for(self, sha256: str, where: str = "ranges") -> None:
        """EdgeDistillError when these are the ranges of another checkpoint than the one of this hash."""
        if self.checkpoint_sha256 != sha256:
            raise EdgeDistillError(
                f"{where}: made for another student",
                got=f"ranges of {self.checkpoint_sha256[:16]}",
                expected=f"ranges of {sha256[:16]}",
                causes=("the student was trained again after it was calibrated", "a file of another run"),
                next_step="edgedistill calibrate, with this student",
            )

    def require_size(self, size: StudentSize) -> None:
        """EdgeDistillError names the first activation of a student of `size` that has no range, or a wrong one."""
        checked_ranges(plain_shape(size), self.values)


def read_ranges(path: Path, size: StudentSize | None = None) -> Ranges:
    """What `Ranges.write` wrote; with `size`, also whole for a student of that size."""
    try:
        facts = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise EdgeDistillError(
            f"{path}: cannot read these ranges",
            got=error.strerror or str(error),
            next_step="make them with `edgedistill calibrate`",
        ) from error
    except ValueError as error:  # not JSON, or not UTF-8
        raise damaged(str(path), str(error)) from error
    ranges = Ranges.from_json(facts, str(path))
    if size is not None:
        ranges.require_size(size)
    return ranges


def require_ours(facts: object, where: str) -> Facts:
    """EdgeDistillError for a file of something else, or of a later version."""
    if not isinstance(facts, dict) or facts.get("kind") != KIND:
        found = facts.get("kind", "another JSON object") if isinstance(facts, dict) else type(facts).__name__
        raise EdgeDistillError(f"{where}: holds no ranges", got=found, expected=f'kind "{KIND}"')
    if type(facts.get("format")) is not int or facts["format"] < 1:
        raise damaged(where, f"format {facts.get('format')!r}")
    if facts["format"] > FORMAT:
        raise EdgeDistillError(
            f"{where}: written by a later version of edgedistill",
            got=f"format {facts['format']}",
            expected=f"at most {FORMAT}",
            next_step="upgrade edgedistill, or calibrate again",
        )
    return facts


def require_positive(values: dict[str, list[float]], where: str) -> None:
    """EdgeDistillError names the first range that gives no scale."""
    for name, numbers in values.items():
        for head, number in enumerate(numbers):
            if type(number) not in (int, float) or not 0 < number < float("inf"):
                which = f"'{name}'" + (f", head {head}" if len(numbers) > 1 else "")
                raise EdgeDistillError(
                    f"{where}: the range of {which} gives no scale", got=number, expected="a finite number above 0"
                )


def damaged(where: str, got: str) -> EdgeDistillError:
    """The error of a file that is ours and cannot be read."""
    return EdgeDistillError(
        f"{where}: not a whole file of ranges",
        got=got,
        causes=("the file was cut off or changed by hand",),
        next_step="make it again with `edgedistill calibrate`",
    )


def table_row(
    name: str,
    limits: npt.NDArray[np.float64],
    clipped: npt.NDArray[np.float64],
    noise_db: npt.NDArray[np.float64],
) -> Facts:
    """One line of the table, from arrays (groups,): over heads the widest range, the mean share clipped, and the
    signal to quantization noise in dB of the noisiest."""
    return {
        "name": name,
        "range": float(limits.max()),
        "clipped": float(clipped.mean()),
        "noise_db": float(noise_db.min()),
    }


def plain_shape(size: StudentSize) -> StudentShape:
    """A shape of this size, for what depends on neither channels nor outputs."""
    return size.shape(channels=1, outputs=1)
