"""Tests that peers compute what the student computes, and that a peer that cannot run says why."""

from __future__ import annotations

import sys

import numpy as np
import pytest
from safetensors.numpy import load

from edgedistill.bench.peers import TorchEager, WindowTeacher, dynamic_int8_graph
from edgedistill.config import TeacherSize
from edgedistill.errors import EngineError
from edgedistill.quantization.onnx_graph.teacher_window import count_parameters, make_timing_graph
from edgedistill.runtime.onnx_engine import OnnxEngine

from ..bundles import SHAPE, student_files

FILES = student_files(SHAPE, seed=3)
BINS = np.random.default_rng(0).normal(size=(40, SHAPE.channels)).astype(np.float32)
TEACHER = TeacherSize(
    d=16, layers=1, heads=2, ff=16, patch=8, span=4, predictor_layers=1, predictor_d=8, mask_share=0.2
)


def test_pytorch_decodes_what_the_float_graph_decodes_and_starts_again() -> None:
    eager, graph = TorchEager(SHAPE, load(FILES["student.safetensors"])), OnnxEngine(FILES["student.onnx"], SHAPE)
    expected = np.stack([graph.step(bin) for bin in BINS])
    for _ in range(2):
        found = np.stack([eager.step(bin) for bin in BINS])
        np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)
        eager.reset()
    assert sum(a.nbytes for a in eager.export_state().values()) > 0


@pytest.mark.exact_int8_products
def test_dynamic_int8_is_near_the_float_graph_but_not_equal() -> None:
    dynamic = OnnxEngine(dynamic_int8_graph(FILES["student.onnx"]), SHAPE)
    graph = OnnxEngine(FILES["student.onnx"], SHAPE)
    found, expected = (np.stack([engine.step(bin) for bin in BINS]) for engine in (dynamic, graph))
    assert not np.array_equal(found, expected)
    assert np.abs(found - expected).max() < 0.2 * expected.std()


def test_the_teacher_sees_its_window_and_forgets_it() -> None:
    graph = make_timing_graph(TEACHER, units=5, window=12, outputs=2)
    teacher, counts = WindowTeacher(graph.SerializeToString()), np.ones(5, np.float32)
    first = teacher.step(counts)
    assert first.shape == (2,)
    assert teacher.export_state()["counts"].sum() == 5
    teacher.reset()
    assert not teacher.export_state()["counts"].any()
    assert np.array_equal(teacher.step(counts), first)
    assert count_parameters(graph) > TEACHER.d * TEACHER.d


def test_bytes_that_are_no_graph_are_refused() -> None:
    with pytest.raises(EngineError, match="no protocol buffer"):
        WindowTeacher(b"no graph")
    with pytest.raises(EngineError, match="cannot load this graph"):
        WindowTeacher(b"")


@pytest.mark.parametrize("shape", [[1 << 40, 5], [None, 5], [5], [0, 5], ["window", "units"]])
def test_a_teacher_whose_window_has_no_size_or_no_end_is_refused(shape: list[int | str | None]) -> None:
    onnx = pytest.importorskip("onnx")
    make = onnx.helper
    counts, sums = (make.make_tensor_value_info(name, 1, shape) for name in ("counts", "sums"))
    graph = make.make_graph([make.make_node("Sqrt", ["counts"], ["sums"])], "teacher", [counts], [sums])
    model = make.make_model(graph, opset_imports=[make.make_opsetid("", 19)], ir_version=9)
    with pytest.raises(EngineError, match="other inputs"):
        WindowTeacher(model.SerializeToString())


def test_a_teacher_whose_data_lie_outside_its_graph_is_refused() -> None:
    onnx = pytest.importorskip("onnx")
    tensor = onnx.TensorProto(data_location=onnx.TensorProto.EXTERNAL, name="weight")
    graph = onnx.GraphProto(initializer=[tensor], node=[onnx.NodeProto(op_type="Pad")])
    with pytest.raises(EngineError, match="lie outside"):
        WindowTeacher(onnx.ModelProto(graph=graph).SerializeToString())


@pytest.mark.parametrize("operator", ["Loop", "If", "Scan", "SequenceMap", "RandomNormal", "Resize"])
def test_a_teacher_that_could_run_without_an_end_is_refused(operator: str) -> None:
    """A bench steps it many times, and no limit of time holds but for the first."""
    onnx = pytest.importorskip("onnx")
    graph = onnx.GraphProto(node=[onnx.NodeProto(op_type=operator)])
    with pytest.raises(EngineError, match=f"the operator {operator}"):
        WindowTeacher(onnx.ModelProto(graph=graph).SerializeToString())


@pytest.mark.parametrize(
    ("module", "make"),
    [
        ("torch", lambda: TorchEager(SHAPE, {})),
        ("onnxruntime.quantization", lambda: dynamic_int8_graph(b"")),
        ("onnxruntime", lambda: WindowTeacher(b"")),
    ],
)
def test_a_missing_package_is_named(module: str, make: object, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(EngineError, match="not installed"):
        make()  # type: ignore[operator]
