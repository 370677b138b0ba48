"""A compiled engine against its bundle's own reference, on the machine that is to run it.

In comes an opened engine and a bundle; out goes how many steps were held against `reference.npz`, or an error: an
engine that computes something else is never left in a bundle.
"""

from __future__ import annotations

import numpy as np

from edgedistill.bundle.build_record import LABELS
from edgedistill.bundle.contents import REFERENCE, Reference
from edgedistill.errors import EngineError
from edgedistill.runtime.abi_engine import AbiEngine


def require_exact(engine: AbiEngine, reference: Reference) -> int:
    """Steps that gave every bit of the oracle: outputs, and the state at the end. EngineError for the first other."""
    engine.import_state(reference.start)
    for i, (bin, expected) in enumerate(zip(reference.bins, reference.kinematics, strict=True)):
        found = engine.step(bin)
        if found.tobytes() != expected.tobytes():
            raise _other(engine, f"step {i}: {found.tolist()}", f"{expected.tolist()}")
    state = engine.export_state()
    for name, array in reference.end.items():
        if not np.array_equal(state[name], array):
            differ = np.count_nonzero(state[name] != array)
            raise _other(engine, f"{differ} integers of '{name}'", f"all {array.size} of them")
    engine.reset()
    return len(reference.bins)


def _other(engine: AbiEngine, got: str, expected: str) -> EngineError:
    return EngineError(
        f"the {LABELS[engine.engine]} engine does not compute on this machine what the INT8 definition says",
        got=got,
        expected=f"{expected}, from {REFERENCE}",
        causes=("a compiler or driver with a defect", "a GPU that computes wrongly: run the same command again"),
        next_step="update driver and CUDA toolkit, compile again; else use --engine c and report it",
    )
