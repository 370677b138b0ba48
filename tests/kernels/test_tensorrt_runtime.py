"""The TensorRT engine opens NVIDIA's own runtime, and reports what that says, as far as it goes without a GPU.

The engine is driven through the C ABI over the emulated driver, which NVIDIA's libraries do not see. The lean runtime
of 10.16 therefore stops before it looks at a plan. TensorRT for RTX looks at plans without a driver, but the engine
fits it only with headers of TensorRT 11, which no wheel holds. The words of that runtime for damaged plans are also
tested in tests/compile/tensorrt/test_nvidia_builder.py, without headers.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.tensorrt.libraries import compile_plugin, lean_library, rtx_library
from benchmarks.tensorrt.process import TensorRTProcess
from benchmarks.tensorrt.wheels import BINDINGS, LEAN_10, RTX
from edgedistill.quantization.onnx_graph import graph_for_plugin

from ..numerics.students import SMALL, random_model
from ..nvidia_wheels import require_wheels
from . import c_builds
from .cuda_engines import emulated_driver
from .tensorrt_builds import FETCHED, headers
from .tensorrt_fakes import append_kernel, engine_library, looks_for, plugin_library

DRIVER, CHIP = -11, -12
OPEN = (
    "import ctypes, sys; from pathlib import Path; from tests.kernels.tensorrt_fakes import load\n"
    "library, opened = load(Path(sys.argv[1])), ctypes.c_void_p()\n"
    "print(library.ed_open(sys.argv[2].encode(), ctypes.byref(opened)))\n"
)


def make_build(folder: Path, version: str, tensorrt: Path) -> Path:
    """Compiles a `tensorrt` build over a library of NVIDIA's, without plugin and plan. Returns the engine's library."""
    c_builds.write_sources(folder, random_model(SMALL), "scalar")
    (folder / "append.cubin").write_bytes(append_kernel(folder).read_bytes())
    return engine_library(folder, version, looks_for(emulated_driver(folder), tensorrt))


def open_engine(library: Path, log: Path) -> tuple[int, str]:
    """Returns the code of ed_open, called in a process of its own, and what TensorRT said."""
    environment = {**os.environ, "EDGEDISTILL_TENSORRT_LOG": str(log)}
    command = [sys.executable, "-c", OPEN, str(library), str(library.parent)]
    root = Path(__file__).parents[2]
    done = subprocess.run(command, env=environment, cwd=root, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return int(done.stdout), log.read_text()


def test_a_runtime_that_finds_no_driver_of_its_own_says_so(tmp_path: Path) -> None:
    require_wheels(LEAN_10)
    library = make_build(tmp_path, FETCHED, lean_library(10))
    (tmp_path / "student.plan").write_bytes(b"not read")
    code, said = open_engine(library, tmp_path / "log")
    assert code == DRIVER
    assert "createInferRuntime: Error Code 6" in said
    assert "CUDA initialization failure with error: 35" in said


@pytest.fixture(scope="module")
def rtx_plan(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """Returns a plan of SMALL by NVIDIA's builder."""
    require_wheels(RTX, BINDINGS["11.4.0.106"])
    folder = tmp_path_factory.mktemp("plan")
    plugin = compile_plugin(folder / "libed_plugin.so")
    (folder / "graph.onnx").write_bytes(graph_for_plugin(SMALL, random_model(SMALL).tensors).SerializeToString())
    (folder / "process").mkdir()
    process = TensorRTProcess(folder / "process")
    process.ask("load", plugin=str(plugin))
    plan = Path(process.ask("build", graph=str(folder / "graph.onnx"))["plan"]).read_bytes()
    process.close()
    return plan


@pytest.mark.parametrize("version", ["11.0", "11.1"])
def test_the_words_of_the_runtime_for_each_damage_reach_the_log(tmp_path: Path, rtx_plan: bytes, version: str) -> None:
    headers(version)
    library = make_build(tmp_path, version, rtx_library())
    plugin_library(tmp_path, version)
    for plan, says in (
        (b"not a plan at all" * 100, "magicTag == kEXPECTED_MAGIC_TAG"),
        (rtx_plan[: len(rtx_plan) // 2], "plan.header.size == blobSize"),
        (rtx_plan, "cudaError 35"),
    ):
        (tmp_path / "log").unlink(missing_ok=True)
        (tmp_path / "student.plan").write_bytes(plan)
        code, said = open_engine(library, tmp_path / "log")
        assert code == CHIP
        assert says in said
