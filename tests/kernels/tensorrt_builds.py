"""Compiles plugin and engine against TensorRT's headers.

Those of one version are in a wheel that `make setup` fetches, with the CUDA headers that they include. Others must be
given: `EDGEDISTILL_TENSORRT_HEADERS` names a folder with one folder of headers for each version: 10.3, 10.7, … The
CUDA headers that those include are the toolkit's.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path

import pytest

from benchmarks.tensorrt.wheels import CUDA_HEADERS, HEADERS, tensorrt_headers

from ..compiled_once import run_compiler
from ..nvidia_wheels import require_wheels

TESTS = Path(__file__).parent
KERNELS = TESTS.parents[1] / "kernels"
FETCHED = "10.14"  # the version whose headers are in a wheel
VERSIONS = (FETCHED, "10.3", "10.7", "10.13", "10.16", "11.0", "11.1")
STRICT = ("-Wall", "-Wextra", "-Wconversion", "-Werror", "-fPIC", "-fvisibility=hidden")


def headers(version: str) -> tuple[str, ...]:
    """Returns options that find TensorRT's and CUDA's headers; skips the test where there are none."""
    if version == FETCHED:
        require_wheels(HEADERS, *CUDA_HEADERS)
        return tuple(word for folder in tensorrt_headers() for word in ("-isystem", str(folder)))
    given = os.environ.get("EDGEDISTILL_TENSORRT_HEADERS")
    if not given:
        pytest.skip("EDGEDISTILL_TENSORRT_HEADERS names no folder of TensorRT headers")
    folder = Path(given) / version
    if not (folder / "NvInferRuntime.h").exists():
        pytest.skip(f"no headers of TensorRT {version} in {given}")
    return "-isystem", str(folder), "-isystem", cuda_headers()


def cuda_headers() -> str:
    """Returns the folder of the toolkit's headers; skips the test where there are none."""
    nvcc = shutil.which("nvcc")
    roots = [os.environ.get("CUDA_HOME"), nvcc and Path(nvcc).resolve().parents[1], "/usr/local/cuda"]
    for root in filter(None, roots):
        if (Path(root) / "include/cuda_runtime_api.h").exists():
            return str(Path(root) / "include")
    pytest.skip("no CUDA toolkit: cuda_runtime_api.h is not found")


def compilers() -> list[str]:
    return [name for name in ("g++", "clang++") if shutil.which(name)]


def compile_cpp(
    output: Path, sources: Sequence[Path], options: Sequence[str], compiler: str = "g++", shared: bool = True
) -> Path:
    """Compiles C++17 sources (also .cu) and objects to a shared library, or an object. A warning is an error."""
    kind = ("-shared",) if shared else ("-c",)
    inputs = [word for source in sources for word in (*(("-x", "c++") if source.suffix == ".cu" else ()), str(source))]
    include = [word for name in ("include", "c", "gpu", "cuda") for word in ("-I", str(KERNELS / name))]
    command = [compiler, "-std=c++17", *STRICT, *kind, *include, *options, *inputs, "-o", str(output)]
    own = [Path(folder) for option, folder in pairwise(options) if option == "-I"]
    done = run_compiler(command, output, [*sources, *own])
    assert done.returncode == 0, done.stderr[-6000:]
    return output
