"""Compares every step graph of a bundle with its source, and makes the reference that devices check themselves with.

A student, its integers, its graphs and a session go in. The arrays of `reference.npz` come out, and a verdict on each
graph. A graph whose output differs too much, or that cannot be written or opened, must not be used.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import torch

from edgedistill.bundle import GraphVerdict
from edgedistill.config import StudentShape
from edgedistill.errors import EdgeDistillError
from edgedistill.measure.score import Fit, r2_difference, score_kinematics
from edgedistill.models.student import Student
from edgedistill.numerics import Int8Model, Oracle
from edgedistill.numerics.near import FARTHEST, largest_deviation, nearness, output_spread, why_not_near
from edgedistill.quantization.onnx_graph import add_definition
from edgedistill.runtime.onnx_engine import OnnxEngine
from edgedistill.training.batches import TrainingSession
from edgedistill.training.evaluate import Readout, unscale_behavior

FLOAT_GRAPH, HALF_GRAPH = "student.onnx", "student.fp16.onnx"
PLAIN_GRAPH, PLUGIN_GRAPH = "student.int8.onnx", "student.int8.plugin.onnx"
REFERENCE_BINS = 256
CHECKED_BINS = 1024
FLOAT_FARTHEST = 1e-3  # standard deviations between the float32 graph and PyTorch, which sums in another order

Floats = npt.NDArray[np.float32]


def judge_float_graphs(
    student: Student,
    readout: Readout,
    session: TrainingSession,
    shape: StudentShape,
    files: Mapping[str, bytes],
    modality: str = "lfp",
) -> dict[str, GraphVerdict]:
    """Returns verdicts on the float32 and float16 graphs among `files`, compared with PyTorch on the test block.

    The float32 graph may differ from PyTorch only as much as another order of summation explains. The float16 graph is
    judged like an engine whose results are near those of the oracle.
    """
    test = session.split.test
    bins = session.inputs(modality)[test][:CHECKED_BINS]
    expected = _torch_stream(student, readout, session.id, shape, bins)
    truth, trained = unscale_behavior(session)[test][: len(bins)], unscale_behavior(session)[: session.split.train.stop]

    def judge(graph: bytes, farthest: float) -> GraphVerdict:
        engine = OnnxEngine(graph, shape)
        found = np.stack([engine.step(bin_.numpy()) for bin_ in bins])
        worst = largest_deviation(found, expected, output_spread(trained, expected, farthest))
        apart = r2_difference(_fit(found, truth), _fit(expected, truth))
        reason = why_not_near(worst, apart, farthest)
        return GraphVerdict(reason is None, reason, largest_output_deviation=worst, r2_difference=apart)

    verdicts = {}
    if FLOAT_GRAPH in files:
        verdicts[FLOAT_GRAPH] = judge_or_refuse(lambda: judge(files[FLOAT_GRAPH], FLOAT_FARTHEST))
    if HALF_GRAPH in files:
        verdicts[HALF_GRAPH] = judge_or_refuse(lambda: judge(files[HALF_GRAPH], FARTHEST))
    return verdicts


def judge_int8_graphs(
    model: Int8Model, session: TrainingSession, files: Mapping[str, bytes], modality: str = "lfp"
) -> dict[str, GraphVerdict]:
    """Returns verdicts on both forms of the INT8 graph among `files`, run by onnxruntime and compared with the oracle.

    The form for TensorRT is run with a definition of its custom node added. At first each graph gets the oracle's state
    before every step. That state comes after enough bins to fill the rings and make them wrap around. Then the graph
    decodes the whole holdout with its own state.
    """
    bins, test = session.inputs(modality).numpy(), session.split.test
    behavior = unscale_behavior(session)
    stretch = holdout_stretch(session, model.shape)
    truth = behavior[test]
    decoded = Oracle(model).run(bins[stretch])[-len(truth) :]
    spread = output_spread(behavior[: session.split.train.stop], decoded)
    run_up = bins[max(0, test.start - 2 * model.shape.window) : test.start]
    state = _oracle_after(model, run_up).export_state()
    checked = bins[test.start : min(test.start + REFERENCE_BINS, test.stop)]

    def judge(graph: bytes) -> GraphVerdict:
        engine = OnnxEngine(graph, model.shape)
        near = nearness(model, engine, state, checked, spread)
        engine.reset()
        found = np.stack([engine.step(bin_) for bin_ in bins[stretch]])[-len(truth) :]
        apart = r2_difference(_fit(found, truth), _fit(decoded, truth))
        reason = why_not_near(near.largest_output, apart)
        if reason is None and not np.isfinite(found).all():
            reason = "it gave values that are not finite"
        figures = (near.share_off, near.largest_integer, near.largest_output, apart)
        return GraphVerdict(reason is None, reason, *figures)

    def plugin_with_definition() -> bytes:
        return bytes(add_definition(onnx.load_model_from_string(files[PLUGIN_GRAPH])).SerializeToString())

    verdicts = {}
    if PLAIN_GRAPH in files:
        verdicts[PLAIN_GRAPH] = judge_or_refuse(lambda: judge(files[PLAIN_GRAPH]))
    if PLUGIN_GRAPH in files:
        verdicts[PLUGIN_GRAPH] = judge_or_refuse(lambda: judge(plugin_with_definition()))
    return verdicts


def judge_or_refuse(judge: Callable[[], GraphVerdict]) -> GraphVerdict:
    """Returns the verdict of `judge`, or an unusable verdict if the graph cannot be opened or run."""
    try:
        return judge()
    except EdgeDistillError as error:
        return refuse_graph(error)
    except Exception as error:  # onnxruntime's errors share no base class of their own
        if not type(error).__module__.startswith("onnxruntime"):
            raise
        return GraphVerdict(usable=False, reason=f"onnxruntime cannot run it: {str(error).splitlines()[0]}")


def refuse_graph(error: EdgeDistillError) -> GraphVerdict:
    """Returns the verdict on a graph that could not be written or opened."""
    return GraphVerdict(usable=False, reason=f"{error.what} ({error.got})" if error.got is not None else error.what)


def holdout_stretch(session: TrainingSession, shape: StudentShape) -> slice:
    """Returns the bins of a bundle's holdout, which is the test block after a run-up of one receptive field."""
    block = session.split.test
    return slice(max(0, block.start - shape.receptive_field - shape.lag_rows), block.stop)


def find_run_up(shape: StudentShape, start: int) -> int:
    """Returns a bin from which a fresh stream comes to the state that the whole stream has at bin `start`.

    A ring holds what depends on one receptive field before it. The bin is a multiple of the slots of a ring, so that
    every slot holds the same bin as in the whole stream.
    """
    slots = max(1, shape.window - 1)
    return max(0, start - shape.receptive_field - shape.lag_rows) // slots * slots


def compute_reference(model: Int8Model, session: TrainingSession) -> dict[str, npt.NDArray[Any]]:
    """Returns the arrays that a device checks itself with: bins, and what the oracle computes from them.

    These are the kinematics and integers, the state before the first bin (`start_*`), and the state after the last
    (`state_*`). The state before is that of the session's stream at the test block, with rings that are full and have
    wrapped around.
    """
    bins, start = session.inputs("lfp")[: session.split.test.stop].numpy(), session.split.test.start
    first = find_run_up(model.shape, start)
    oracle, bins = _oracle_after(model, bins[first:start]), bins[start : start + REFERENCE_BINS]
    before = oracle.export_state()
    arrays: dict[str, npt.NDArray[Any]] = {"bins": bins, **{f"start_{n}": a for n, a in before.items()}}
    arrays |= {f"int_{name}" if a.dtype == np.int8 else name: a for name, a in oracle.trace(bins).items()}
    return arrays | {f"state_{name}": array for name, array in oracle.export_state().items()}


@torch.no_grad()
def _torch_stream(
    student: Student, readout: Readout, session: str, shape: StudentShape, bins: torch.Tensor
) -> npt.NDArray[np.float64]:
    """Returns kinematics (T, K) that PyTorch computes for bins (T, C), beginning with a fresh state."""
    state, expected = student.make_fresh_state(session), []
    lagged = torch.zeros(shape.lags + 1, shape.channels)
    for bin_ in bins:
        lagged = torch.cat([bin_[None], lagged[:-1]])
        latent = student.step(session, bin_, state)
        features = torch.cat([latent, lagged.flatten()]).double().numpy()
        expected.append(readout(features[None])[0])
    return np.array(expected)


def _oracle_after(model: Int8Model, bins: Floats) -> Oracle:
    oracle = Oracle(model)
    oracle.run(bins)
    return oracle


def _fit(decoded: npt.NDArray[Any], truth: npt.NDArray[Any]) -> Fit:
    return score_kinematics(decoded, truth, "the test block")
