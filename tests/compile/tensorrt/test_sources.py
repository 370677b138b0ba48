"""The sources of a plan compile with CMake alone, as a person would do it."""

from __future__ import annotations

import ctypes
import shutil
import subprocess
from pathlib import Path

import pytest

from edgedistill.bundle import Bundle
from edgedistill.compile.cuda.nvcc import nvcc_path
from edgedistill.compile.tensorrt.sources import cmake_commands, tensorrt_sources
from edgedistill.runtime.c_abi import load_library

from ...kernels.tensorrt_builds import FETCHED, headers


def test_cmake_compiles_plugin_library_and_kernel_from_the_prepared_sources(
    written: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """CMake, nvcc and the headers are real; the results load on a machine with neither GPU nor TensorRT."""
    (_, root, *_), nvcc = headers(FETCHED), nvcc_path("nvcc")
    if nvcc is None or shutil.which("cmake") is None:
        pytest.skip("no nvcc or no cmake")
    monkeypatch.setenv("TENSORRT_ROOT", root)
    for name, data in tensorrt_sources(written).items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(data)
    for command in cmake_commands("test", "sm_87", nvcc):
        done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout + done.stderr
    assert (tmp_path / "append.cubin").read_bytes().startswith(b"\x7fELF")
    ctypes.CDLL(str(tmp_path / "libed_plugin.so"))
    path = tmp_path / "libed_test.so"
    library = load_library(path.name, path.read_bytes())
    assert library.ed_open(str(tmp_path).encode(), ctypes.byref(ctypes.c_void_p())) < 0
