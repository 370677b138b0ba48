"""A graph whose output differs too much is marked unusable, with the reason, and the bundle is still written."""

from __future__ import annotations

import io
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import onnx
import pytest

from edgedistill import pipeline as stages
from edgedistill.bench import QUICK, bench
from edgedistill.bundle import GraphVerdict, open_bundle, reasons_left_out
from edgedistill.bundle.spike_student import open_spike_student
from edgedistill.compile.build_folder import CompiledEngine
from edgedistill.errors import EngineError
from edgedistill.pipeline import BuildResult, student_files, written_bundle
from edgedistill.pipeline.default_engine import why_engine_is_off
from edgedistill.pipeline.student_files import GRAPHS
from edgedistill.runtime import Decoder

from .tiny_builds import options


def spoil(monkeypatch: pytest.MonkeyPatch, *writers: str) -> None:
    """Moves every bias in the graphs that these functions write, so that the outputs of the graphs are wrong."""
    for name in writers:
        write = getattr(student_files, name)

        def wrong(*given: Any, write: Any = write, **named: Any) -> onnx.ModelProto:
            graph = write(*given, **named)
            for tensor in graph.graph.initializer:
                if tensor.data_type == onnx.TensorProto.FLOAT and list(tensor.dims) in ([2], [1, 2], [8]):
                    values = onnx.numpy_helper.to_array(tensor) + np.float32(50)
                    tensor.CopyFrom(onnx.numpy_helper.from_array(values, tensor.name))
            return graph

        monkeypatch.setattr(student_files, name, wrong)


def test_a_build_says_what_it_measured_of_each_graph(first: BuildResult) -> None:
    named = {*GRAPHS, *(f"subjects/spike-student/{name}" for name in GRAPHS)}
    assert set(first.graphs) == named
    assert all(verdict.usable and verdict.reason is None for verdict in first.graphs.values())
    held = open_bundle(first.bundle).manifest.graphs
    assert held == first.graphs
    assert first.to_json()["graphs"] == {name: verdict.to_json() for name, verdict in held.items()}
    assert held["student.int8.onnx"].integers_off_share is not None
    assert held["student.onnx"].largest_output_deviation is not None


def test_a_graph_that_is_off_is_left_out_and_the_bundle_is_written(
    home: Path, first: BuildResult, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spoil(monkeypatch, "graph_from_integers")
    result = stages.build(options(home, tmp_path / "x.edge"))
    assert set(reasons_left_out(result.graphs)) == {"student.int8.onnx", "subjects/spike-student/student.int8.onnx"}
    # The default engine is C, which needs no graph, so that no gate is added.
    assert [gate.name for gate in result.gates] == [gate.name for gate in first.gates]
    bundle = open_bundle(result.bundle)
    by_default, oracle = Decoder(bundle), Decoder(bundle, "oracle")
    assert by_default.info.engine == "c"
    with np.load(io.BytesIO(bundle.read("holdout.npz"))) as holdout:
        for bin_ in holdout["bins"][:100]:
            assert (by_default.step(bin_) == oracle.step(bin_)).all()
    with pytest.raises(EngineError, match="standard deviations") as caught:
        Decoder(bundle, "onnxruntime-int8")
    assert "c, onnxruntime, oracle" in str(caught.value)
    with pytest.raises(EngineError, match=r"marked student\.int8\.onnx as unusable"):
        Decoder(open_spike_student(bundle), "onnxruntime-int8")
    absent = {one.name: one.reason for one in bench(bundle, replace(QUICK, steps=10)).absent}
    assert "marked student.int8.onnx as unusable: one of its outputs" in absent["onnxruntime-int8"]


def test_where_the_default_engine_is_off_another_decodes_and_a_gate_says_so(
    home: Path, first: BuildResult, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spoil(monkeypatch, "graph_from_student")
    result = stages.build(options(home, tmp_path / "x.zip"))
    assert Decoder.open(result.bundle).info.engine == "onnxruntime-int8"
    gate = next(gate for gate in result.gates if gate.name == "default_engine_usable")
    assert gate.ok is False
    assert str(gate.reason).startswith("'onnxruntime-int8' decodes by default in place of 'onnxruntime': student.onnx:")
    spoil(monkeypatch, "graph_from_integers", "graph_for_plugin")
    result = stages.build(options(home, tmp_path / "y.zip"))
    assert len(reasons_left_out(result.graphs)) == len(result.graphs)
    decoder = Decoder.open(result.bundle)
    assert decoder.info.engine == "oracle"
    assert np.isfinite(decoder.step(np.zeros(4, np.float32))).all()
    gates = {gate.name: gate for gate in result.gates}
    assert gates["step_p99_us"].ok is None
    assert "as unusable" in str(gates["step_p99_us"].reason) or "none of the subjects" in str(
        gates["step_p99_us"].reason
    )


def test_an_engine_is_off_where_none_of_its_graphs_is_left() -> None:
    off, fine = GraphVerdict(usable=False, reason="off"), GraphVerdict(usable=True)
    graphs = dict.fromkeys(GRAPHS, off)
    assert why_engine_is_off("tensorrt", {**graphs, "student.fp16.onnx": fine}) is None
    reason = str(why_engine_is_off("tensorrt", {**graphs, "student.onnx": fine}))
    assert reason.split(": off")[0] == "student.int8.plugin.onnx"
    assert why_engine_is_off("c", graphs) is None  # it needs no graph
    assert why_engine_is_off("onnxruntime", {**graphs, "student.onnx": fine}) is None


@pytest.mark.variant
@pytest.mark.parametrize("scale", [1e9, 1e-9])
def test_behavior_of_an_odd_scale_is_built_as_any_other(
    home: Path, first: BuildResult, tmp_path: Path, scale: float
) -> None:
    shutil.copytree(home / "data", tmp_path / "data")
    for path in (tmp_path / "data").iterdir():
        with h5py.File(path, "r+") as file:
            velocity = file["processing/behavior/Velocity/cursor_vel/data"]
            velocity[...] = velocity[()] * scale
    result = stages.build(options(home, tmp_path / "x.zip", data=(tmp_path / "data",)))
    assert result.metrics["int8_r2"] == pytest.approx(first.metrics["int8_r2"], abs=5e-3)
    assert {name.rsplit("/")[-1] for name in reasons_left_out(result.graphs)} <= {"student.fp16.onnx"}
    # of the two tiny students it is the one on spikes that decodes anything, so that rounding shows
    reason = reasons_left_out(result.graphs)["subjects/spike-student/student.fp16.onnx"]
    assert ("float16 cannot hold this weight" if scale > 1 else "is allowed") in reason
    assert ("student.fp16.onnx" in open_bundle(result.bundle).names) == (scale < 1)


@pytest.mark.parametrize("fails_at", [pytest.param(1, marks=pytest.mark.variant), 2])
def test_an_engine_that_cannot_be_compiled_does_not_throw_the_training_away(
    home: Path, first: BuildResult, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fails_at: int
) -> None:
    compile_really, calls = written_bundle.compile_or_prepare, []

    def fail(*given: Any) -> CompiledEngine:
        calls.append(given)
        if len(calls) < fails_at:
            return compile_really(*given)
        raise EngineError("no form of the student computes what its definition says", got="int8: self-check")

    monkeypatch.setattr(written_bundle, "compile_or_prepare", fail)
    result = stages.build(options(home, tmp_path / "x.edge"))
    assert Decoder.open(result.bundle).info.engine == "onnxruntime-int8"
    gate = next(gate for gate in result.gates if gate.name == "default_engine_usable")
    assert gate.ok is False
    assert "in place of 'c': no form of the student" in str(gate.reason)
    assert [g.name for g in open_bundle(result.bundle).manifest.gates or ()] == [g.name for g in result.gates]
