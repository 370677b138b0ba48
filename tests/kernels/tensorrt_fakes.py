"""Builds `tensorrt` engines of random students over fakes of libnvinfer and libcuda, driven through the C ABI."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from pathlib import Path

from edgedistill.config import StudentShape
from edgedistill.numerics import Int8Model

from . import c_builds
from .c_builds import Engine, Info
from .cuda_emulation import compile_emulated, emulated_object
from .tensorrt_builds import KERNELS, TESTS, compile_cpp, headers
from .tensorrt_stubs import stubs

FLOAT, HALF, INT8, INT32 = range(4)  # nvinfer1::DataType
MODEL = '-DED_MODEL_HEADER="model_test.h"'


def fake_tensorrt(folder: Path, version: str, driver: Path) -> Path:
    """Compiles a libnvinfer of one version, whose plans launch kernels on that driver."""
    include = headers(version)
    (folder / "tensorrt_stubs.h").write_text(stubs(Path(include[1])))
    options = ("-O1", f'-DED_CUDA_DRIVER="{driver}"', "-I", str(folder), *include)
    return compile_cpp(folder / "libfake_nvinfer.so", [TESTS / "fake_tensorrt.cpp"], options)


def engine_library(folder: Path, version: str, named: Sequence[str] = ()) -> Path:
    """Compiles libed_test.so of the model whose sources lie in `folder`: the C engine's front end over engine.cpp.

    `named` says what it looks for in place of libcuda and libnvinfer: see `looks_for`.
    """
    objects = []
    for source in (KERNELS / "c/ed_api.c", KERNELS / "c/ed_engine.c", TESTS / "trace.c"):
        flags = ("-O1", "-fPIC", "-c", MODEL, "-DED_DEVICE")
        objects.append(c_builds.compile_c(folder, f"{source.stem}.o", [source], flags, "gcc"))
    sources = [KERNELS / "tensorrt/engine.cpp", *objects]
    return compile_cpp(folder / "libed_test.so", sources, ("-O1", MODEL, *named, "-I", str(folder), *headers(version)))


def looks_for(driver: Path | str, tensorrt: Path | str) -> tuple[str, str]:
    return f'-DED_CUDA_DRIVER="{driver}"', f'-DED_NVINFER="{tensorrt}"'


def student_kernel(folder: Path) -> Path:
    """Compiles the kernel that a plan of the fake launches, for the model whose sources lie in `folder`."""
    step = TESTS / "fake_student.c"
    flags = ("-O1", "-fPIC", "-c", MODEL, "-Wno-unused-function")
    step_object = c_builds.compile_c(folder, "fake_student_step.o", [step], flags, "gcc")
    options = ("-O1", MODEL)
    return compile_emulated(folder / "student.so", [TESTS / "fake_student.cu", step_object], options, [folder])


def append_kernel(folder: Path) -> Path:
    """Compiles append.cubin for the fake driver."""
    return compile_emulated(folder / "append.so", [KERNELS / "cuda/append.cu"])


def plugin_library(folder: Path, version: str) -> Path:
    """Compiles libed_plugin.so around the emulated kernel."""
    kernel = emulated_object(folder / "attention_step.o", KERNELS / "cuda/attention_step.cu")
    sources = [KERNELS / "tensorrt/plugin.cpp", kernel]
    return compile_cpp(folder / "libed_plugin.so", sources, ("-O1", *headers(version)))


def tensors_of(shape: StudentShape, ring: int = INT8) -> list[str]:
    """Returns the lines of the fake's plan, in the order in which its kernel takes tensors."""
    slots, new = f"{shape.heads} {shape.window - 1} {shape.head_dim}", f"{shape.heads} {shape.head_dim}"
    lag = INT8 if ring == INT8 else FLOAT
    lines = [
        f"tensor bin in {FLOAT} {shape.channels}",
        f"tensor pos in {INT32} 1",
        f"tensor live in {INT32} 1",
        f"tensor lags in {lag} {shape.lag_rows} {shape.channels}" if shape.lag_rows else "absent",
        f"tensor kinematics out {FLOAT} {shape.outputs}",
        f"tensor latent out {FLOAT} {shape.d}",
        f"tensor bin_new out {INT8} {shape.channels}" if ring == INT8 else "absent",
    ]
    for i in range(shape.layers):
        lines += [f"tensor ring_{kind}_{i} in {ring} {slots}" for kind in "kv"]
        lines += [f"tensor {kind}_new_{i} out {ring} {new}" for kind in "kv"]
    return lines


def plan(version: str, kernel: Path, name: str, tensors: Sequence[str], plugin: bool = True) -> str:
    needs = ["plugin EdAttention"] if plugin else []
    return "\n".join([f"version {version}", *needs, f"kernel {kernel} {name}", *tensors]) + "\n"


class Device(Engine):
    """Holds a decoder opened from a build directory."""

    def __init__(self, library: Path, model: Int8Model, folder: Path) -> None:
        self.c, self.shape = load(library), model.shape
        self.decoder = ctypes.c_void_p()
        code = self.open(folder)
        assert code == 0, self.c.ed_strerror(code)
        self.info = self.c.ed_info_get(self.decoder).contents

    def open(self, folder: Path) -> int:
        return int(self.c.ed_open(str(folder).encode(), ctypes.byref(self.decoder)))

    def close(self) -> None:
        self.c.ed_close(self.decoder)


def load(library: Path) -> ctypes.CDLL:
    c = ctypes.CDLL(str(library))
    c.ed_info_get.restype = ctypes.POINTER(Info)
    c.ed_strerror.restype = ctypes.c_char_p
    c.ed_reset.restype = c.ed_close.restype = None
    c.ed_outputs_for.restype = ctypes.c_size_t
    return c
