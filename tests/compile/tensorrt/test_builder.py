"""The builder gets the inputs of a plan, and each of its failures is reported with its cause."""

from __future__ import annotations

from pathlib import Path

import pytest

from edgedistill.bundle import Bundle
from edgedistill.compile.tensorrt.plan import compile_tensorrt_plan
from edgedistill.errors import EngineError
from edgedistill.runtime.tensorrt_engine import PLUGIN

from .jetsons import NANO, Jetson


def test_the_builder_is_given_workspace_strong_typing_and_the_tactics_of_the_plan_before(
    jetson: Jetson, bundle: Bundle
) -> None:
    compile_tensorrt_plan(bundle, NANO)
    assert jetson.tensorrt.workspace == [512 << 20] * 3
    assert jetson.tensorrt.flags == [2] * 3
    assert jetson.tensorrt.caches == [b"", b"tactics", b"tacticstactics"]
    assert len(jetson.tensorrt.loaded) == 1
    assert jetson.tensorrt.loaded[0].endswith(PLUGIN)
    compile_tensorrt_plan(bundle, NANO, force=True)
    assert jetson.tensorrt.caches[3] == b"tactics" * 3


def test_a_timing_cache_of_another_version_is_replaced_by_an_empty_one(jetson: Jetson, bundle: Bundle) -> None:
    engine = compile_tensorrt_plan(bundle, NANO)
    (engine.folder / "timing.cache").write_bytes(b"foreign")
    compile_tensorrt_plan(bundle, NANO, force=True)
    assert jetson.tensorrt.caches[3:5] == [b"foreign", b""]


def test_memory_that_runs_out_in_the_builder_is_reported_with_the_workspace(jetson: Jetson, bundle: Bundle) -> None:
    jetson.tensorrt.build_error = {
        b"": "[virtualMemoryBuffer.cpp] Error Code 2: OutOfMemory (requested 2147483648 bytes)"
    }
    with pytest.raises(EngineError, match=r"ran out of memory when it built student.int8.plugin.onnx") as caught:
        compile_tensorrt_plan(bundle, NANO)
    for part in ("requested 2147483648", "workspace_mb = 512", "'jetson'", "isolate multi-user.target", "other forms"):
        assert part in str(caught.value)


def test_a_layer_without_a_kernel_is_named(jetson: Jetson, bundle: Bundle) -> None:
    jetson.tensorrt.build_error = {
        b"": "Error Code 10: Could not find any implementation for node {ForeignNode[a...b]}."
    }
    with pytest.raises(EngineError, match=r"no kernel for a layer of student.int8") as caught:
        compile_tensorrt_plan(bundle, NANO)
    assert "ForeignNode" in str(caught.value)
    assert "larger workspace_mb" in str(caught.value)


def test_an_operator_that_the_parser_does_not_know_is_named(jetson: Jetson, bundle: Bundle) -> None:
    jetson.tensorrt.parse_error = {b"": ("node_12", "QuantizeLinear", "unsupported data type")}
    with pytest.raises(EngineError, match=r"TensorRT 10.3.0 cannot read student.int8.plugin.onnx") as caught:
        compile_tensorrt_plan(bundle, NANO)
    assert "node 'node_12' (QuantizeLinear): unsupported data type" in str(caught.value)


def test_a_plugin_that_does_not_load_and_a_builder_that_does_not_start_are_reported(
    jetson: Jetson, bundle: Bundle
) -> None:
    jetson.tensorrt.plugin_refused = True
    with pytest.raises(EngineError, match="does not load the plugin") as caught:
        compile_tensorrt_plan(bundle, NANO)
    assert "libnvinfer-dev" in str(caught.value)
    jetson.tensorrt.plugin_refused, jetson.tensorrt.no_start = False, True
    with pytest.raises(EngineError, match="does not start on this machine") as caught:
        compile_tensorrt_plan(bundle, NANO)
    assert "error: 35" in str(caught.value)


def test_progress_is_reported_and_ctrl_c_stops_the_builder_without_an_exception_in_it(
    jetson: Jetson, bundle: Bundle
) -> None:
    reported: list[tuple[str, int, int]] = []
    compile_tensorrt_plan(bundle, NANO, report=lambda *progress: reported.append(progress))
    assert reported[:2] == [("Building Engine", 1, 2), ("Building Engine", 2, 2)]

    def interrupted(*progress: object) -> None:
        raise KeyboardInterrupt

    jetson.tensorrt.steps.clear()
    with pytest.raises(KeyboardInterrupt):
        compile_tensorrt_plan(bundle, NANO, force=True, report=interrupted)
    assert jetson.tensorrt.steps == [False]
    assert not list((bundle.path / "build").glob(".*"))
    assert not compile_tensorrt_plan(bundle, NANO).compiled  # the earlier plan is still there


def test_an_error_of_cmake_is_reported_with_the_command(jetson: Jetson, bundle: Bundle, tmp_path: Path) -> None:
    (tmp_path / "programs/cmake").write_text("#!/bin/sh\necho 'CMake Error: NvInferRuntime.h not found' >&2\nexit 1\n")
    with pytest.raises(EngineError, match="plugin and its library failed") as caught:
        compile_tensorrt_plan(bundle, NANO)
    for part in ("NvInferRuntime.h not found", "cmake -B out -DED_MODEL=test", "libnvinfer-headers-dev"):
        assert part in str(caught.value)
