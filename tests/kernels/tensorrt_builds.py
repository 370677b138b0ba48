"""Compiles plugin and engine against TensorRT's headers, which must be given to the tests.

`EDGEDISTILL_TENSORRT_HEADERS` names a folder with one folder of headers for each version: 10.3, 10.7, … The CUDA
headers that they include are those of the toolkit.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path

import pytest

TESTS = Path(__file__).parent
KERNELS = TESTS.parents[1] / "kernels"
VERSIONS = ("10.3", "10.7", "10.13", "10.16", "11.0", "11.1")
STRICT = ("-Wall", "-Wextra", "-Wconversion", "-Werror", "-fPIC", "-fvisibility=hidden")


def headers(version: str) -> tuple[str, ...]:
    """Returns options that find TensorRT's and CUDA's headers; skips the test where there are none."""
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
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-6000:]
    return output
