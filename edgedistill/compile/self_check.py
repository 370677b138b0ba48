"""Checks a compiled engine against its bundle's own reference, on the machine that will run it.

An opened engine and a bundle go in. The number of steps that were compared with `reference.npz` comes out, or an error.
An engine with other results is never left in a bundle.
"""

from __future__ import annotations

import numpy as np

from edgedistill.bundle.build_record import LABELS
from edgedistill.bundle.contents import REFERENCE, Reference
from edgedistill.errors import EngineError
from edgedistill.numerics.smoothing import SmoothingModel
from edgedistill.runtime.abi_engine import AbiEngine


def require_exact(engine: AbiEngine, reference: Reference, smoothing: SmoothingModel | None) -> int:
    """Compares every bit of the outputs and of the last state with the oracle's, and returns the number of steps.

    Outputs are compared before and after they were smoothed by `smoothing`. Raises EngineError for the first
    difference. The engine is reset before and after the comparison.
    """
    engine.reset()
    engine.import_state(reference.start)
    smooth = reference.kinematics if smoothing is None else smoothing.run(reference.kinematics)
    for i, (bin, *expected) in enumerate(zip(reference.bins, reference.kinematics, smooth, strict=True)):
        smoothed = engine.step(bin)
        found = [engine.raw_kinematics, smoothed]
        if np.stack(found).tobytes() != np.stack(expected).tobytes():
            raise _mismatch_error(engine, f"step {i}: {np.stack(found).tolist()}", f"{np.stack(expected).tolist()}")
    state = engine.export_state()
    for name, array in reference.end.items():
        if not np.array_equal(state[name], array):
            differ = np.count_nonzero(state[name] != array)
            raise _mismatch_error(engine, f"{differ} integers of '{name}'", f"all {array.size} of them")
    engine.reset()
    return len(reference.bins)


def _mismatch_error(engine: AbiEngine, got: str, expected: str) -> EngineError:
    return EngineError(
        f"the {LABELS[engine.engine]} engine does not compute on this machine what the INT8 definition says",
        got=got,
        expected=f"{expected}, from {REFERENCE}",
        causes=("a compiler or driver with a defect", "a GPU that computes wrongly: run the same command again"),
        next_step="update the driver and the CUDA toolkit and compile again, or use --engine c and report it",
    )
