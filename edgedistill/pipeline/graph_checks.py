"""Every graph of a bundle held against what it was written from, and what a device holds itself against.

Comes in: a student, its integers, its graphs, a session. Goes out: the arrays of `reference.npz`, or an error: a
graph that computes something else is never shipped.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import torch

from edgedistill.config import StudentShape
from edgedistill.errors import EdgeDistillError
from edgedistill.models.student import Student
from edgedistill.numerics import Int8Model, Oracle
from edgedistill.numerics.near import ALLOWED, nearness
from edgedistill.quantization.onnx_graph import add_definition
from edgedistill.runtime.onnx_engine import OnnxEngine
from edgedistill.training.batches import TrainingSession
from edgedistill.training.evaluate import Readout

PLAIN_GRAPH, PLUGIN_GRAPH = "student.int8.onnx", "student.int8.plugin.onnx"
REFERENCE_BINS = 256
CHECKED_BINS = 1024
TOLERANCE = 1e-3  # of an output's standard deviation, graph against PyTorch: sums in another order, no more

Floats = npt.NDArray[np.float32]


@torch.no_grad()
def require_same_function(
    student: Student, readout: Readout, session: TrainingSession, shape: StudentShape, graph: bytes
) -> None:
    """EdgeDistillError where the float32 graph does not follow PyTorch, stepping over the test block."""
    bins = session.inputs("lfp")[session.split.test][:CHECKED_BINS]
    engine, state, expected = OnnxEngine(graph, shape), student.make_fresh_state(session.id), []
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


def reference(model: Int8Model, session: TrainingSession, files: Mapping[str, bytes]) -> dict[str, npt.NDArray[Any]]:
    """What a device checks itself against: bins, kinematics and integers of the oracle, its state before and after.

    The state before (`start_*`) is that of the session's stream at the test block, rings full and wrapped. The INT8
    graphs among `files` are held against it here: fed the oracle's state at each step, they must stay within the near
    class.
    """
    bins, start = session.inputs("lfp")[: session.split.test.stop].numpy(), session.split.test.start
    oracle, bins = _oracle_after(model, bins[:start]), bins[start : start + REFERENCE_BINS]
    before = oracle.export_state()
    _require_int8_graphs(model, before, bins, files, session.scale[1])
    arrays: dict[str, npt.NDArray[Any]] = {"bins": bins, **{f"start_{n}": a for n, a in before.items()}}
    arrays |= {f"int_{name}" if a.dtype == np.int8 else name: a for name, a in oracle.trace(bins).items()}
    return arrays | {f"state_{name}": array for name, array in oracle.export_state().items()}


def require_spike_graphs(model: Int8Model, session: TrainingSession, files: Mapping[str, bytes]) -> None:
    """The same check of the spike student's INT8 graphs, after a run-up that fills and wraps its rings."""
    bins, start = session.inputs("spikes")[: session.split.test.stop].numpy(), session.split.test.start
    before = _oracle_after(model, bins[max(0, start - 2 * model.shape.window) : start]).export_state()
    _require_int8_graphs(model, before, bins[start : start + REFERENCE_BINS], files, session.scale[1])


def _oracle_after(model: Int8Model, bins: Floats) -> Oracle:
    oracle = Oracle(model)
    oracle.run(bins)
    return oracle


def _require_int8_graphs(
    model: Int8Model,
    state: dict[str, npt.NDArray[Any]],
    bins: Floats,
    files: Mapping[str, bytes],
    spread: npt.NDArray[Any],
) -> None:
    """Both forms on onnxruntime, the one for TensorRT with the definition of its custom node."""
    defined = add_definition(onnx.load_model_from_string(files[PLUGIN_GRAPH])).SerializeToString()
    for name, graph in ((PLAIN_GRAPH, files[PLAIN_GRAPH]), (PLUGIN_GRAPH, defined)):
        require_near(model, state, bins, graph, spread, name)


def require_near(
    model: Int8Model,
    state: dict[str, npt.NDArray[Any]],
    bins: Floats,
    graph: bytes,
    spread: npt.NDArray[Any],
    name: str = PLAIN_GRAPH,
) -> None:
    """EdgeDistillError where an INT8 graph leaves the near class; `spread` is each output's deviation (K,)."""
    found = nearness(model, OnnxEngine(graph, model.shape), state, bins, spread)
    if not found.ok:
        raise other_function(f"the INT8 graph {name}", "the oracle", str(found), f"at most {ALLOWED}")


def other_function(what: str, than: str, got: str, expected: str) -> EdgeDistillError:
    """The error of a graph that computes something else."""
    return EdgeDistillError(
        f"{what} does not compute what {than} computes",
        got=f"different: {got}",
        expected=expected,
        causes=["onnxruntime or onnxsim of an untested version"],
        next_step="pip install -c constraints.txt 'edgedistill[train]'",
    )
