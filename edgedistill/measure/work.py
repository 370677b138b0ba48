"""What a step of a student has to do, part by part: a shape in, bytes and multiply-adds out, counted without padding.

The floor of every engine's time follows from it, and where the work lies is the same on every machine.
"""

from __future__ import annotations

from dataclasses import dataclass

from edgedistill.config import StudentShape
from edgedistill.numerics.tensors import part_of, weight_matrices


@dataclass(frozen=True)
class Work:
    """Of a step or of a part of it."""

    bytes: int  # read once: weights, their multipliers, biases, rings, lagged bins
    multiply_adds: int  # of eight bits


def work_by_part(shape: StudentShape) -> dict[str, Work]:
    """Parts in the order of the step; the attention core of a layer is a part of its own."""
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


def work_of(shape: StudentShape) -> Work:
    """Of the whole step."""
    parts = work_by_part(shape).values()
    return Work(sum(part.bytes for part in parts), sum(part.multiply_adds for part in parts))
