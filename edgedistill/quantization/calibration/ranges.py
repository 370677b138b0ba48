"""Holds the ranges of a student's activations and where they came from, and keeps both in a JSON file.

A range is the largest magnitude that eight bits represent: one number for an activation, or one for each head. A file
names the checkpoint, sessions and windows that it was found on, because ranges fit no other student.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from edgedistill.config import StudentShape, StudentSize
from edgedistill.errors import ConfigError, EdgeDistillError
from edgedistill.files import atomic_write_text
from edgedistill.limits import MOST_RESULT_BYTES, read_json
from edgedistill.numerics.tensors import four_bit_parts
from edgedistill.quantization.calibration.recipe import Recipe
from edgedistill.quantization.integers import check_ranges, require_four_bit_parts, require_parts

KIND, FORMAT = "edgedistill ranges", 1
Facts = dict[str, Any]


@dataclass(frozen=True)
class Ranges:
    """Holds ranges and where they come from. Parts of type Facts are as they stand in the file."""

    values: dict[str, list[float]]  # activation -> largest magnitude; q, k, v and context have one for each head
    recipe: Recipe
    seed: int
    checkpoint_sha256: str  # of the student, see `models.files.hash_checkpoint`
    sessions: dict[str, str | None]  # id -> sha256 of its file
    windows: tuple[Facts, ...]  # session, first_bin, bins
    left_out: tuple[Facts, ...]  # windows that were left out: the same, with reason and value
    table: tuple[Facts, ...]  # see `make_table_row`

    def to_json(self) -> Facts:
        """Returns the ranges as they stand in the file."""
        facts = {field.name: getattr(self, field.name) for field in fields(self)}
        lists = {name: list(facts[name]) for name in ("windows", "left_out", "table")}
        return {"kind": KIND, "format": FORMAT, **facts, **lists, "recipe": self.recipe.to_json()}

    @classmethod
    def from_json(cls, facts: object, where: str = "ranges") -> Ranges:
        """Builds ranges from `to_json`. Raises EdgeDistillError for a foreign, newer, incomplete or unusable file."""
        known = require_ranges_file(facts, where)
        try:
            parts = {field.name: known[field.name] for field in fields(cls)}
            parts["recipe"] = Recipe.from_json(parts["recipe"], f"{where}, recipe")
            for name in ("windows", "left_out", "table"):
                parts[name] = tuple(map(dict, parts[name]))
            found = cls(**parts)
            require_positive(found.values, where)
        except (KeyError, TypeError, ValueError, AttributeError, ConfigError) as error:
            raise damaged_file_error(where, f"{type(error).__name__}: {error}") from error
        return found

    def write(self, path: Path) -> None:
        """Writes the ranges as a whole file. Raises OutputError."""
        text = json.dumps(self.to_json(), indent=1, allow_nan=False)
        atomic_write_text(path, text, "the ranges", next_step="choose another place")

    def require_for(self, sha256: str, where: str = "ranges") -> None:
        """Raises EdgeDistillError when these ranges belong to another checkpoint than the one with this hash."""
        if self.checkpoint_sha256 != sha256:
            raise EdgeDistillError(
                f"{where}: made for another student",
                got=f"ranges of {self.checkpoint_sha256[:16]}",
                expected=f"ranges of {sha256[:16]}",
                causes=("the student was trained again after it was calibrated", "a file of another run"),
                next_step="edgedistill calibrate, with this student",
            )

    def require_size(self, size: StudentSize) -> None:
        """Raises EdgeDistillError that names the first activation without a range for a student of `size`."""
        check_ranges(shape_from_size(size), self.values)


def require_recipe_fits(shape: StudentShape, recipe: Recipe) -> None:
    """Raises EdgeDistillError for a part that the recipe names and a student of this shape does not have."""
    require_parts(shape, recipe.keep)
    require_four_bit_parts(shape, recipe.eight)


def choose_four_bit_parts(shape: StudentShape, recipe: Recipe) -> tuple[str, ...]:
    """Returns the parts whose weights have four bits by the recipe."""
    if recipe.weights == 8:
        return ()
    return tuple(part for part in four_bit_parts(shape) if part not in (*recipe.eight, *recipe.keep))


def read_ranges(path: Path, size: StudentSize | None = None) -> Ranges:
    """Reads what `Ranges.write` wrote, and checks that it is whole for a student of `size` where that is given."""
    try:
        facts = read_json(path, MOST_RESULT_BYTES)
    except OSError as error:
        raise EdgeDistillError(
            f"{path}: cannot read these ranges",
            got=error.strerror or str(error),
            next_step="make them with `edgedistill calibrate`",
        ) from error
    except ValueError as error:  # not JSON, or not UTF-8
        raise damaged_file_error(str(path), str(error)) from error
    ranges = Ranges.from_json(facts, str(path))
    if size is not None:
        ranges.require_size(size)
    return ranges


def require_ranges_file(facts: object, where: str) -> Facts:
    """Raises EdgeDistillError for a file of something else, or of a later version."""
    if not isinstance(facts, dict) or facts.get("kind") != KIND:
        found = facts.get("kind", "another JSON object") if isinstance(facts, dict) else type(facts).__name__
        raise EdgeDistillError(f"{where}: holds no ranges", got=found, expected=f'kind "{KIND}"')
    if type(facts.get("format")) is not int or facts["format"] < 1:
        raise damaged_file_error(where, f"format {facts.get('format')!r}")
    if facts["format"] > FORMAT:
        raise EdgeDistillError(
            f"{where}: written by a later version of edgedistill",
            got=f"format {facts['format']}",
            expected=f"at most {FORMAT}",
            next_step="upgrade edgedistill, or calibrate again",
        )
    return facts


def require_positive(values: dict[str, list[float]], where: str) -> None:
    """Raises EdgeDistillError that names the first range that gives no scale."""
    for name, numbers in values.items():
        for head, number in enumerate(numbers):
            if type(number) not in (int, float) or not 0 < number < float("inf"):
                which = f"'{name}'" + (f", head {head}" if len(numbers) > 1 else "")
                raise EdgeDistillError(
                    f"{where}: the range of {which} gives no scale", got=number, expected="a finite number above 0"
                )


def damaged_file_error(where: str, got: str) -> EdgeDistillError:
    """Returns the error for a file of ranges that cannot be read."""
    return EdgeDistillError(
        f"{where}: not a whole file of ranges",
        got=got,
        causes=("the file was cut off or changed by hand",),
        next_step="make it again with `edgedistill calibrate`",
    )


def make_table_row(
    name: str,
    limits: npt.NDArray[np.float64],
    clipped: npt.NDArray[np.float64],
    noise_db: npt.NDArray[np.float64],
) -> Facts:
    """Returns one line of the table, from arrays (groups,).

    Over heads it has the widest range, the mean share clipped, and the signal to quantization noise in dB of the
    noisiest.
    """
    return {
        "name": name,
        "range": float(limits.max()),
        "clipped": float(clipped.mean()),
        "noise_db": float(noise_db.min()),
    }


def shape_from_size(size: StudentSize) -> StudentShape:
    """Returns a shape of this size with one channel and one output, for code that depends on neither number."""
    return size.shape(channels=1, outputs=1)
