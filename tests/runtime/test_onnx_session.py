"""A graph from a stranger takes neither gigabytes nor hours, whatever its operators are, and fails with a message."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise

import numpy as np
import pytest

from edgedistill.errors import EngineError
from edgedistill.runtime import onnx_session
from edgedistill.runtime.onnx_engine import WITHOUT
from edgedistill.runtime.onnx_session import open_session, run_first

onnx = pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")
make = onnx.helper
LONG = 1 << 15


def model_of(nodes: list[object], **arrays: np.ndarray) -> bytes:
    """Returns a graph that takes x (1,) and returns y (1,), with the sum of the tensor `made` added to it."""
    x, y = (make.make_tensor_value_info(name, onnx.TensorProto.FLOAT, [1]) for name in "xy")
    whole = [
        *nodes,
        make.make_node("ReduceSum", ["made"], ["sum"], keepdims=0),
        make.make_node("Add", ["x", "sum"], "y"),
    ]
    kept = [onnx.numpy_helper.from_array(array, name) for name, array in arrays.items()]
    graph = make.make_graph(whole, "graph", [x], [y], kept)
    made: bytes = make.make_model(graph, opset_imports=[make.make_opsetid("", 19)], ir_version=9).SerializeToString()
    return made


def outer_product(of: str) -> bytes:
    """Returns a graph in which two vectors become a matrix of 4 GB, of which one depends on the input or none."""
    first = [make.make_node("Add", ["column", "x"], ["moved"])] if of == "moved" else []
    ones = {"column": np.ones((LONG, 1), np.float32), "row": np.ones((1, LONG), np.float32)}
    return model_of([*first, make.make_node("Mul", [of, "row"], ["made"])], **ones)


def doubling(_: str) -> bytes:
    """Returns a graph that joins a tensor to itself thirty times."""
    names = ["x", *(f"joined{i}" for i in range(29)), "made"]
    return model_of([make.make_node("Concat", [a, a], [b], axis=0) for a, b in pairwise(names)])


def open_and_run(model: bytes) -> None:
    session = open_session(model, WITHOUT)
    run_first(lambda options: session.run(None, {"x": np.ones(1, np.float32)}, options))


@pytest.mark.parametrize(
    ("graph", "of"),
    [
        (outer_product, "moved"),
        pytest.param(outer_product, "column", marks=pytest.mark.variant),
        pytest.param(doubling, "", marks=pytest.mark.variant),
    ],
)
def test_a_small_graph_that_asks_for_gigabytes_is_refused(graph: Callable[[str], bytes], of: str) -> None:
    """The arena says so before it takes the memory, also for what no input changes."""
    model = graph(of)
    assert len(model) < 1 << 20
    with pytest.raises(EngineError, match=r"(?s)cannot run this graph.*smaller than requested bytes"):
        open_and_run(model)


def test_a_graph_that_takes_too_long_is_stopped(monkeypatch: pytest.MonkeyPatch) -> None:
    """It multiplies a matrix with itself 3000 times, and no input changes it."""
    monkeypatch.setattr(onnx_session, "LONGEST_S", 0.01)
    names = ["start", *(f"power{i}" for i in range(3000)), "made"]
    nodes = [make.make_node("MatMul", [a, "start"], [b]) for a, b in pairwise(names)]
    model = model_of(nodes, start=np.eye(300, dtype=np.float32))
    with pytest.raises(EngineError, match="more than 0 s"):
        open_and_run(model)


def test_a_graph_that_fails_in_its_first_run_is_told() -> None:
    nodes = [make.make_node("Gather", ["few", "at"], ["made"])]
    far = model_of(nodes, few=np.ones(3, np.float32), at=np.array([7], np.int64))
    with pytest.raises(EngineError, match="cannot run this graph"):
        open_and_run(far)
