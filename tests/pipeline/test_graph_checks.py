"""A graph whose output differs too much from its source is named, measured and marked unusable."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Any, cast

import numpy as np
import onnx
import pytest
import torch

from edgedistill.bundle import GraphVerdict
from edgedistill.data.bins import Split
from edgedistill.errors import EngineError
from edgedistill.numerics import Oracle
from edgedistill.numerics.near import FARTHEST, R2_APART, largest_deviation, output_spread, why_not_near
from edgedistill.pipeline.graph_checks import (
    PLAIN_GRAPH,
    PLUGIN_GRAPH,
    compute_reference,
    judge_int8_graphs,
    judge_or_refuse,
)
from edgedistill.quantization.onnx_graph import graph_for_plugin, graph_from_integers
from edgedistill.training.batches import TrainingSession

from ..numerics.students import SMALL, random_bins, random_model

MODEL = random_model(SMALL)
START, STOP = 300, 1500
BINS = random_bins(SMALL, 1600)
DECODED = Oracle(MODEL).run(BINS)


@dataclass
class Session:
    """Holds the parts of a TrainingSession that the checks read."""

    split: Split
    scale: tuple[np.ndarray, np.ndarray]
    behavior: torch.Tensor

    def inputs(self, modality: str) -> torch.Tensor:
        assert modality in ("lfp", "spikes")
        return torch.from_numpy(BINS)


def session(known: bool = True) -> TrainingSession:
    """Returns a session whose behavior is what the oracle decodes, with noise."""
    blocks = {"train": slice(0, 200), "validation": slice(200, 290), "test": slice(START, STOP)}
    spread = DECODED.std(0)
    truth = DECODED / spread + 0.5 * np.random.default_rng(0).normal(size=DECODED.shape)
    if not known:
        truth[START:] = np.nan
    behavior = torch.from_numpy(truth.astype(np.float32))
    return cast(TrainingSession, Session(Split(**cast(Any, blocks)), (np.zeros_like(spread), spread), behavior))


@pytest.fixture(autouse=True)
def few_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("edgedistill.pipeline.graph_checks.REFERENCE_BINS", 48)


@cache
def files() -> dict[str, bytes]:
    return {
        PLAIN_GRAPH: graph_from_integers(SMALL, MODEL.tensors).SerializeToString(),
        PLUGIN_GRAPH: graph_for_plugin(SMALL, MODEL.tensors).SerializeToString(),
    }


def wrong_age_bias(model: onnx.ModelProto, name: str) -> None:
    """Replaces the age biases of layer 0, or the bias of the embedding, by other values.

    Both forms can still be loaded.
    """
    size = (SMALL.heads, SMALL.window) if name == PLUGIN_GRAPH else (SMALL.d,)
    tensor = next(t for t in model.graph.initializer if tuple(t.dims) == size and t.data_type == 1)
    _change(tensor, lambda values: values + np.arange(size[-1], dtype=np.float32))


def wrong_weight(model: onnx.ModelProto, name: str) -> None:
    """Changes the sign of one weight of the read-out."""
    shape = (SMALL.d, SMALL.outputs)
    tensor = next(t for t in model.graph.initializer if tuple(t.dims) == shape)

    def flip(values: np.ndarray) -> np.ndarray:
        at = np.unravel_index(np.argmax(np.abs(values.astype(int))), values.shape)
        values[at] = -values[at]
        return values

    _change(tensor, flip)


def wrong_rounding(model: onnx.ModelProto, name: str) -> None:
    """Rounds the input of the last layer on a grid that is 1.5 times as coarse as the scale with which it is read."""
    quantizer = next(n for n in model.graph.node if n.op_type == "QuantizeLinear" and "layers.1" in n.name)
    for node in model.graph.node:
        if node.op_type == "QuantizeLinear" and node.name == quantizer.name:
            scale = next(t for t in model.graph.initializer if t.name == node.input[1])
            coarser = onnx.numpy_helper.from_array(onnx.numpy_helper.to_array(scale) * np.float32(1.5), "coarser")
            model.graph.initializer.append(coarser)
            node.input[1] = "coarser"


def _change(tensor: onnx.TensorProto, change: Callable[[np.ndarray], np.ndarray]) -> None:
    values = change(onnx.numpy_helper.to_array(tensor).copy())
    tensor.CopyFrom(onnx.numpy_helper.from_array(values, tensor.name))


Fault = Callable[[onnx.ModelProto, str], None]


def spoiled(name: str, fault: Fault = wrong_age_bias) -> dict[str, bytes]:
    found = files()
    model = onnx.load_model_from_string(found[name])
    fault(model, name)
    return found | {name: model.SerializeToString()}


def test_the_reference_is_the_oracles() -> None:
    held = compute_reference(MODEL, session())
    oracle = Oracle(MODEL)
    oracle.run(BINS[:START])
    checked = slice(START, START + 48)
    assert np.array_equal(held["bins"], BINS[checked])
    assert all(np.array_equal(held[f"start_{name}"], state) for name, state in oracle.export_state().items())
    assert np.array_equal(held["kinematics"], oracle.run(BINS[checked]))
    assert all(np.array_equal(held[f"state_{name}"], state) for name, state in oracle.export_state().items())


@pytest.mark.exact_int8_products
@pytest.mark.parametrize("modality", ["lfp", "spikes"])
def test_good_graphs_are_usable_and_what_differs_is_told(modality: str) -> None:
    for verdict in judge_int8_graphs(MODEL, session(), files(), modality).values():
        assert verdict.usable
        assert verdict.reason is None
        assert verdict.integers_off_share is not None
        assert verdict.integers_off_share < 0.01
        assert verdict.largest_output_deviation is not None
        assert verdict.largest_output_deviation <= FARTHEST
        assert verdict.r2_difference is not None
        assert abs(verdict.r2_difference) <= R2_APART


@pytest.mark.parametrize("fault", [wrong_age_bias, wrong_weight, wrong_rounding])
@pytest.mark.parametrize("name", [PLAIN_GRAPH, PLUGIN_GRAPH])
def test_a_graph_that_decodes_something_else_is_reasons_left_out(name: str, fault: Fault) -> None:
    verdicts = judge_int8_graphs(MODEL, session(), {name: spoiled(name, fault)[name]})
    assert not verdicts[name].usable
    assert "standard deviations" in str(verdicts[name].reason) or "R²" in str(verdicts[name].reason)
    assert "onnxruntime" not in str(verdicts[name].reason)  # the reason must not blame the version of onnxruntime


@pytest.mark.exact_int8_products
def test_without_known_movement_outputs_decide_alone() -> None:
    good, bad = files()[PLAIN_GRAPH], spoiled(PLAIN_GRAPH)[PLAIN_GRAPH]
    found = [judge_int8_graphs(MODEL, session(known=False), {PLAIN_GRAPH: graph})[PLAIN_GRAPH] for graph in (good, bad)]
    assert [verdict.usable for verdict in found] == [True, False]
    assert found[0].r2_difference is None


@pytest.mark.exact_int8_products
def test_a_graph_that_does_not_open_is_left_out_with_what_was_said() -> None:
    verdicts = judge_int8_graphs(MODEL, session(), files() | {PLAIN_GRAPH: files()[PLAIN_GRAPH][:500]})
    assert not verdicts[PLAIN_GRAPH].usable
    assert "its bytes are no protocol buffer" in str(verdicts[PLAIN_GRAPH].reason)
    assert verdicts[PLUGIN_GRAPH].usable  # each form has a verdict of its own

    def refuses() -> GraphVerdict:
        raise EngineError("it does not fit", got=3)

    assert judge_or_refuse(refuses).reason == "it does not fit (3)"

    def broken() -> GraphVerdict:
        raise ZeroDivisionError  # a defect of edgedistill must not become a verdict on a graph

    with pytest.raises(ZeroDivisionError):
        judge_or_refuse(broken)


# ---------------------------------------------------------------- units of the differences


def test_outputs_are_measured_in_their_own_deviations_at_any_scale() -> None:
    rng = np.random.default_rng(1)
    for scale in (1e-30, 1e-9, 1.0, 1e9, 1e30):
        truth = (scale * rng.normal(size=(500, 2)) * [1, 3]).astype(np.float32)
        spread = output_spread(truth, truth)
        np.testing.assert_allclose(spread, truth.astype(np.float64).std(0))
        assert largest_deviation(truth + spread * [0.02, 0], truth, spread) == pytest.approx(0.02, rel=1e-4)


def test_an_output_that_stands_still_is_not_divided_by_zero() -> None:
    still = np.full((500, 1), 1e9, np.float32)
    spread = output_spread(still, still)
    assert why_not_near(largest_deviation(np.nextafter(still, 2e9), still, spread), None) is None
    assert "off by" in str(why_not_near(largest_deviation(still * 1.01, still, spread), None))
    zero = np.zeros((500, 1), np.float32)
    assert largest_deviation(zero, zero, output_spread(zero, zero)) == 0
    assert why_not_near(largest_deviation(zero + 1e-3, zero, output_spread(zero, zero)), None) is not None


def test_a_holdout_that_stands_still_is_measured_by_what_is_decoded() -> None:
    decoded = np.random.default_rng(2).normal(size=(500, 1))
    truth = np.full((500, 1), 3.0)
    assert output_spread(truth, decoded) == pytest.approx(decoded.std(0))
    assert output_spread(np.full((500, 1), np.nan), decoded) == pytest.approx(decoded.std(0))


def test_what_is_no_number_is_never_near() -> None:
    one = np.ones((1, 2))
    for value in (np.nan, np.inf):
        worst = largest_deviation(np.array([[1, value]]), one, np.ones(2))
        assert why_not_near(worst, None) == "it gave values that are not finite"
    assert "R² on the holdout differs by -0.0100" in str(why_not_near(0.0, -0.01))
    assert why_not_near(0.09, 0.0019) is None
