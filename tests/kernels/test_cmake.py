"""Tests that kernels/CMakeLists.txt builds a GPU engine in a build folder, as a person on a device would do it."""

from __future__ import annotations

import ctypes
import shutil
import subprocess
from pathlib import Path

import pytest

from edgedistill.compile.c.toolchain import PINNED_FLAGS as PINNED_C
from edgedistill.compile.cuda.nvcc import PINNED_FLAGS

from ..numerics.students import SMALL, random_model
from . import c_builds, cuda_engines
from .tensorrt_builds import KERNELS, VERSIONS, headers
from .test_cuda_compiles import nvcc

CHIP = "-DCMAKE_CUDA_ARCHITECTURES=87"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Returns a build folder before anything is made in it, except for model/."""
    if shutil.which("cmake") is None:
        pytest.skip("cmake is not installed")
    for name in ("include", "c", "gpu", "cuda", "tensorrt"):
        shutil.copytree(KERNELS / name, tmp_path / name)
    shutil.copy(KERNELS / "CMakeLists.txt", tmp_path)
    (tmp_path / "model").mkdir()
    return tmp_path


def make(folder: Path, *options: str) -> str:
    """Runs CMake; returns the end of an error message, or an empty text."""
    for command in (["cmake", "-B", "out", f"-DCMAKE_CUDA_COMPILER={nvcc()}", *options], ["cmake", "--build", "out"]):
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
        if done.returncode:
            return done.stdout[-2000:] + done.stderr[-4000:]
    return ""


def opened(folder: Path) -> int:
    """Returns the code of ed_open for the folder, on a machine that has no driver of that name."""
    library, decoder = ctypes.CDLL(str(folder / "libed_test.so")), ctypes.c_void_p()
    return int(library.ed_open(str(folder).encode(), ctypes.byref(decoder)))


NO_DRIVER = ('-DCMAKE_CXX_FLAGS=-DED_CUDA_DRIVER=\\"libno_such_driver.so\\"',)


def test_a_cuda_engine_is_built(folder: Path) -> None:
    cuda_engines.write_sources(folder / "model", random_model(SMALL))
    assert make(folder, "-DED_MODEL=test", CHIP, *NO_DRIVER) == ""
    assert (folder / "student_step.cubin").read_bytes()[:4] == b"\x7fELF"
    assert opened(folder) == -11


@pytest.mark.variant  # test_sources.py builds the same of prepared sources
@pytest.mark.parametrize("version", [VERSIONS[0], VERSIONS[-1]])
def test_a_tensorrt_engine_is_built(folder: Path, version: str) -> None:
    root = f"-DTENSORRT_ROOT={headers(version)[1]}"
    c_builds.write_sources(folder / "model", random_model(SMALL), "scalar")
    assert make(folder, "-DED_MODEL=test", "-DED_ENGINE=tensorrt", root, CHIP, *NO_DRIVER) == ""
    assert (folder / "append.cubin").read_bytes()[:4] == b"\x7fELF"
    assert opened(folder) == -11
    plugin = ctypes.CDLL(str(folder / "libed_plugin.so"))  # compiled by nvcc, and loads where there is no GPU
    count = ctypes.c_int32()
    plugin.getCreators.restype = ctypes.c_void_p
    assert plugin.getCreators(ctypes.byref(count))
    assert count.value == 1


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (("-DED_MODEL=other", CHIP), "say -DED_MODEL=NAME"),
        *(
            pytest.param(*case, marks=pytest.mark.variant)
            for case in (
                (("-DED_MODEL=test", CHIP, "-DED_ENGINE=opencl"), "cuda or tensorrt"),
                (("-DED_MODEL=test", "-DCMAKE_CUDA_ARCHITECTURES=87;110"), "a build is for one chip"),
                (("-DED_MODEL=test", "-DED_ENGINE=tensorrt", CHIP, "-DTENSORRT_INCLUDE="), "libnvinfer-headers-dev"),
            )
        ),
    ],
)
def test_errors_name_what_is_missing(folder: Path, options: tuple[str, ...], says: str) -> None:
    if "libnvinfer" in says and any(Path("/usr/include").rglob("NvInferRuntime.h")):
        pytest.skip("this machine has TensorRT's headers")
    (folder / "model/model_test.h").write_text("")
    assert says in " ".join(make(folder, *options).split())


def test_a_machine_without_a_gpu_must_be_told_the_chip(folder: Path) -> None:
    """Without this check nvcc would warn, and compile for a chip that is not there."""
    if any(Path("/dev").glob("nvidia*")) or Path("/dev/nvhost-gpu").exists():
        pytest.skip("there is a GPU")
    (folder / "model/model_test.h").write_text("")
    assert "no GPU here: which chip?" in make(folder, "-DED_MODEL=test")


def test_the_flags_pin_the_same_arithmetic() -> None:
    text = (KERNELS / "CMakeLists.txt").read_text()
    assert f"set(PINNED_CUDA {' '.join(PINNED_FLAGS)})" in text
    assert f"set(PINNED_C {' '.join(PINNED_C)})" in text
