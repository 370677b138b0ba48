"""Counts what each part of a student's step must read and multiply: a shape goes in, bytes and multiply-adds come out.

Padding is not counted. The floor of every engine's time follows from these counts, which are the same on every machine.
"""

from __future__ import annotations

from dataclasses import dataclass

from edgedistill.config import StudentShape
from edgedistill.numerics.tensors import part_of, weight_matrices


@dataclass(frozen=True)
class Work:
    """The work of a step or of one of its parts."""

    bytes: int  # read once: weights, their multipliers, biases, rings, lagged bins
    multiply_adds: int  # of eight bits


def count_work_by_part(shape: StudentShape) -> dict[str, Work]:
    """Returns the work of each part, in the order of the step. The attention core of a layer is a part of its own."""
    found: dict[str, Work] = {}
    for name, ((rows, n), _) in weight_matrices(shape).items():
        part = part_of(name)
        before = found.get(part, Work(0, 0))
        found[part] = Work(before.bytes + rows * n + 4 * rows, before.multiply_adds + rows * n)
        if name.endswith(".wv"):
            ring = 2 * shape.window * shape.d  # each byte of k and v is read once and multiplied once
            found[f"{part.removesuffix('qkv')}attention"] = Work(ring + 4 * shape.heads * shape.window, ring)
    for part, floats in (("embed", shape.d), ("readout", shape.outputs)):  # biases
        lags = shape.lag_rows * shape.channels if part == "embed" else 0
        found[part] = Work(found[part].bytes + 4 * floats + lags, found[part].multiply_adds)
    return found


def count_work(shape: StudentShape) -> Work:
    """Returns the work of the whole step."""
    parts = count_work_by_part(shape).values()
    return Work(sum(part.bytes for part in parts), sum(part.multiply_adds for part in parts))
