"""Checks the state that engines exchange, before any of them takes it (docs/numerics.md, "State")."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from edgedistill.errors import EngineError

State = Mapping[str, npt.NDArray[Any]]


def require_state(own: State, found: State) -> None:
    """Raises EngineError unless `found` can take the place of `own`, an engine's state of any precision.

    `found` must have the same names, types and shapes, `pos` and `live` within the rings, no -128 among its integers,
    and finite floats.
    """
    if unknown := sorted(found.keys() - own.keys()):
        raise EngineError(
            f"state '{unknown[0]}' does not fit this engine",
            expected=", ".join(sorted(own)),
            causes=("it was exported from a student of another shape",),
        )
    for name, array in own.items():
        new = found.get(name)
        if new is None or new.shape != array.shape or new.dtype != array.dtype:
            raise EngineError(
                f"state '{name}' does not fit this engine",
                got="nothing of that name" if new is None else f"{new.dtype} {new.shape}",
                expected=f"{array.dtype} {array.shape}",
                causes=("it was exported from a student of another shape or precision",),
            )
        if array.dtype == np.int8 and (new == -128).any():
            raise EngineError(f"state '{name}' holds -128", expected="-127 to 127: the range is symmetric")
        if array.dtype.kind == "f" and not np.isfinite(new).all():
            raise EngineError(f"state '{name}' holds a value that is not finite", expected="finite floats")
    pos, live, slots = int(found["pos"][0]), int(found["live"][0]), own["ring_k_0"].shape[1]
    if not (0 <= pos < slots and 0 <= live <= slots):
        raise EngineError("the state's ring is out of range", got=f"pos {pos}, live {live}, {slots} slots")
