"""Every graph of a bundle held against what it was written from, and what a device holds itself against.

Comes in: a student, its integers, its graphs, a session. Goes out: the arrays of `reference.npz`, or an error: a
graph that computes something else is never shipped.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from edgedistill.config import StudentShape
from edgedistill.errors import EdgeDistillError
from edgedistill.models.student import Student
from edgedistill.numerics import Int8Model, Oracle
from edgedistill.runtime.onnx_engine import OnnxEngine
from edgedistill.training.batches import TrainingSession
from edgedistill.training.evaluate import Readout

REFERENCE_BINS = 256
CHECKED_BINS = 1024
TOLERANCE = 1e-3  # of an output's standard deviation, graph against PyTorch: sums in another order, no more
NEAR = 1e-2  # the same for INT8 graphs, which flip an integer here and there
NEAR_SHARE = 1e-3  # of the integers may differ
FARTHEST = 0.1  # and none further than this
FAR_SHARE = 1e-2  # of the outputs may be further off than NEAR: a flip in an early layer moves later ones

Floats = npt.NDArray[np.float32]


@torch.no_grad()
def require_same_function(
    student: Student, readout: Readout, session: TrainingSession, shape: StudentShape, graph: bytes
) -> None:
    """EdgeDistillError where the float32 graph does not follow PyTorch, stepping over the test block."""
    bins = session.inputs("lfp")[session.split.test][:CHECKED_BINS]
    engine, state, expected = OnnxEngine(graph, shape), student.fresh_state(session.id), []
    lagged = torch.zeros(shape.lags + 1, shape.channels)
    for bin_ in bins:
        lagged = torch.cat([bin_[None], lagged[:-1]])
        latent = student.step(session.id, bin_, state)
        features = torch.cat([latent, lagged.flatten()]).double().numpy()
        expected.append(readout(features[None])[0])
    found = np.stack([engine.step(bin_.numpy()) for bin_ in bins])
    worst = float(np.max(np.abs(found - np.array(expected)) / session.scale[1]))
    if not worst <= TOLERANCE:  # NaN included
        raise other_function(
            "the ONNX graph", "the student", f"an output by {worst:.2g} deviations", f"at most {TOLERANCE:g}"
        )


def reference(model: Int8Model, session: TrainingSession, graph: bytes) -> dict[str, npt.NDArray[Any]]:
    """What a device checks itself against: bins, kinematics and integers of the oracle, its state before and after.

    The state before (`start_*`) is that of the session's stream at the test block, rings full and wrapped. The INT8
    graph is held against it here: fed the oracle's state at each step, it must stay within the near class.
    """
    block = session.split.test
    bins = session.inputs("lfp")[: block.start + REFERENCE_BINS].numpy()[: block.stop]
    oracle = Oracle(model)
    oracle.run(bins[: block.start])
    start, bins = oracle.export_state(), bins[block.start :]
    require_near(model, start, bins, graph, session.scale[1])
    arrays: dict[str, npt.NDArray[Any]] = {"bins": bins, **{f"start_{n}": a for n, a in start.items()}}
    arrays |= {f"int_{name}" if a.dtype == np.int8 else name: a for name, a in oracle.trace(bins).items()}
    return arrays | {f"state_{name}": array for name, array in oracle.export_state().items()}


def require_near(
    model: Int8Model,
    state: dict[str, npt.NDArray[Any]],
    bins: Floats,
    graph: bytes,
    spread: npt.NDArray[Any],
) -> None:
    """EdgeDistillError where the INT8 graph leaves the near class; `spread` is each output's deviation (K,)."""
    oracle, engine = Oracle(model), OnnxEngine(graph, model.shape)
    oracle.import_state(state)
    differ, entries, apart = 0, 0, np.zeros(len(bins))
    for i, bin_ in enumerate(bins):
        before = oracle.export_state()
        engine.import_state(before)
        apart[i] = np.max(np.abs(oracle.step(bin_) - engine.step(bin_)) / spread)
        slot, theirs = int(before["pos"][0]), engine.export_state()
        for name, state_ in oracle.export_state().items():
            if name in ("pos", "live"):
                continue
            new = (slice(None), slot) if name.startswith("ring") else slice(1)  # of lags: the bin itself
            differ += int(np.count_nonzero(state_[new] != theirs[name][new]))
            entries += state_[new].size
    far = int(np.count_nonzero(~(apart <= NEAR)))
    few = differ <= max(1, NEAR_SHARE * entries) and far <= FAR_SHARE * len(bins)
    if not (few and apart.max(initial=0) <= FARTHEST):
        found = f"{differ} of {entries} integers, {far} of {len(bins)} outputs, worst by {apart.max():.2g} deviations"
        allowed = (
            f"{NEAR_SHARE:.1%} of the integers, {FAR_SHARE:.0%} of the outputs by over {NEAR:g}, none by {FARTHEST:g}"
        )
        raise other_function("the INT8 graph", "the oracle", found, f"at most {allowed}")


def other_function(what: str, than: str, got: str, expected: str) -> EdgeDistillError:
    """The error of a graph that computes something else."""
    return EdgeDistillError(
        f"{what} does not compute what {than} computes",
        got=f"different: {got}",
        expected=expected,
        causes=["onnxruntime or onnxsim of an untested version"],
        next_step="pip install -c constraints.txt 'edgedistill[train]'",
    )
