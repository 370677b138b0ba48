"""Graphs of trained students are near their source for any number of training steps and any scale of behavior."""

from __future__ import annotations

import numpy as np
import onnx
import pytest

from edgedistill.bundle import GraphVerdict, reasons_left_out
from edgedistill.pipeline import graph_checks
from edgedistill.pipeline.graph_checks import FLOAT_GRAPH, HALF_GRAPH, PLAIN_GRAPH, PLUGIN_GRAPH

from .trained_students import Trained, small_session, trained

FEW = {"REFERENCE_BINS": 48, "CHECKED_BINS": 120}
ODD_SCALES = [(1e9, 0.0), (1e-9, 0.0), (1.0, 1e9), (1e4, 1e9)]  # factor and offset of the behavior


@pytest.fixture(scope="module")
def nano() -> Trained:
    return trained("nano", 5, small_session())


@pytest.fixture
def few_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, count in FEW.items():
        monkeypatch.setattr(graph_checks, name, count)


def check(verdicts: dict[str, GraphVerdict], without: tuple[str, ...] = ()) -> None:
    assert set(reasons_left_out(verdicts)) <= set(without), reasons_left_out(verdicts)
    for name, verdict in verdicts.items():
        if verdict.usable and verdict.largest_output_deviation is not None:
            assert verdict.largest_output_deviation <= 0.1, name


@pytest.mark.usefixtures("few_steps")
def test_a_trained_student_has_four_usable_graphs(nano: Trained) -> None:
    verdicts = nano.judge_or_refuse()
    check(verdicts)
    assert list(verdicts) == [FLOAT_GRAPH, HALF_GRAPH, PLAIN_GRAPH, PLUGIN_GRAPH]


@pytest.mark.usefixtures("few_steps")
@pytest.mark.parametrize("name", [FLOAT_GRAPH, PLAIN_GRAPH, PLUGIN_GRAPH])
def test_one_wrong_weight_in_a_graph_of_a_trained_student_is_found(nano: Trained, name: str) -> None:
    graph = onnx.load_model_from_string(nano.files[name])
    floats = (onnx.TensorProto.FLOAT,)
    kinds = floats if name == FLOAT_GRAPH else (onnx.TensorProto.INT8,)
    tensors = [t for t in graph.graph.initializer if t.data_type in kinds and nano.shape.outputs in t.dims]
    weight = max(tensors, key=lambda t: int(np.prod(t.dims)))  # of the read-out, which has the smallest matrix
    values = onnx.numpy_helper.to_array(weight).copy()
    at = np.unravel_index(np.argmax(np.abs(values.astype(np.float64))), values.shape)
    values[at] = -values[at]
    weight.CopyFrom(onnx.numpy_helper.from_array(values, weight.name))
    verdict = nano.judge_or_refuse({name: graph.SerializeToString()})[name]
    assert not verdict.usable
    assert "is allowed" in str(verdict.reason)


@pytest.mark.usefixtures("few_steps")
def test_an_untrained_student_of_two_outputs_of_which_one_never_moves() -> None:
    found = trained("nano", 0, small_session(offset=3.0, still=(1,)))
    check(found.judge_or_refuse())


@pytest.mark.slow
@pytest.mark.parametrize("seed", [0, 1])
@pytest.mark.parametrize("steps", [0, 5, 30, 300])
@pytest.mark.parametrize("preset", ["nano", "edge"])
def test_students_of_any_training(preset: str, steps: int, seed: int) -> None:
    check(trained(preset, steps, small_session(seed), seed).judge_or_refuse())


@pytest.mark.slow
@pytest.mark.parametrize(("scale", "offset"), ODD_SCALES)
@pytest.mark.parametrize("preset", ["nano", "edge"])
def test_behavior_of_an_odd_scale(preset: str, scale: float, offset: float) -> None:
    verdicts = trained(preset, 30, small_session(2, scale, offset), 2).judge_or_refuse()
    check(verdicts, without=(HALF_GRAPH,))
    assert (HALF_GRAPH in reasons_left_out(verdicts)) == (scale in (1e9, 1e-9))
