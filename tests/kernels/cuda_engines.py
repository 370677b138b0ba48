"""Builds `cuda` engines of random students over the emulated driver, and drives them through the C ABI.

The engine of these builds looks for a driver with a name of its own, so that neither a GPU of the machine nor another
test in the process is touched.
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edgedistill.compile.cuda.model_source import cuda_sources
from edgedistill.numerics import Int8Model

from . import c_builds
from .cuda_emulation import EMULATION, KERNELS, SANITIZERS, compile_emulated
from .tensorrt_builds import TESTS, compile_cpp, cuda_headers
from .tensorrt_fakes import Device

CUBIN = "student_step.cubin"
# The flags of compile_cuda_module: engine.cpp needs nothing of the C++ library, and hides what is not in the ABI.
HOST = ("-fno-exceptions", "-fno-rtti", "-fvisibility=default")


@dataclass(frozen=True)
class Build:
    """Names a build directory with its library, and the driver that the library looks for."""

    model: Int8Model
    folder: Path
    library: Path
    driver: Path

    def opened(self) -> Device:
        return Device(self.library, self.model, self.folder)

    def fake(self) -> Fake:
        return Fake(self.driver)


class Fake:
    """Controls the emulated driver."""

    def __init__(self, driver: Path) -> None:
        self.c = ctypes.CDLL(str(driver))
        self.c.fake_cuda_calls.restype = ctypes.c_char_p
        self.c.fake_cuda_alive.restype = self.c.fake_cuda_current.restype = ctypes.c_size_t
        self.c.fake_cuda_fail.restype = None

    def fail(self, function: str, call: int = 1, code: int = 719) -> None:
        """Makes the `call`-th call of a function from now on return `code`."""
        self.c.fake_cuda_fail(f"{function}:{call}:{code}".encode())

    def heal(self) -> None:
        self.c.fake_cuda_fail(b"none:0:0")

    def calls(self) -> list[str]:
        """Returns the names of the calls since the last time."""
        said: bytes = self.c.fake_cuda_calls()
        return said.decode().split()

    @property
    def left(self) -> tuple[int, int]:
        """Returns how many allocations are not freed, and how many contexts were pushed and not popped."""
        return self.c.fake_cuda_alive(), self.c.fake_cuda_current()


def emulated_driver(folder: Path, options: Sequence[str] = ("-O1",), compiler: str = "g++") -> Path:
    """Compiles the emulated driver; skips the test where there is no cuda.h."""
    source = EMULATION / "driver.cpp"
    return compile_cpp(folder / "libfake_cuda.so", [source], (*options, *headers()), compiler)


def headers() -> tuple[str, str]:
    return "-isystem", cuda_headers()


def write_sources(folder: Path, model: Int8Model, name: str = "test", pack: bool = False, **changed: Any) -> None:
    """Writes `model/` of a build. Facts that should differ are given by name."""
    front_end = c_builds.front_end_of(model)
    facts = c_builds.facts_of(model, front_end, name)
    for file, text in cuda_sources(model, front_end, facts, pack=pack).items():
        for old, new in changed.items():
            text = text.replace(getattr(facts, old), new)
        (folder / file).write_text(text)


def build_cuda(
    folder: Path,
    model: Int8Model,
    driver: Path,
    name: str = "test",
    options: Sequence[str] = ("-O0",),
    sanitize: bool = False,
    pack: bool = False,
    **changed: Any,
) -> Build:
    """Compiles kernel and library in `folder`, without optimization, as their tests run few bins."""
    write_sources(folder, model, name, pack, **changed)
    define = f'-DED_MODEL_HEADER="model_{name}.h"'
    compile_emulated(
        folder / CUBIN, [KERNELS / "cuda/student_step.cu"], (*options, define), [folder], sanitize=sanitize
    )
    library = build_library(folder, driver, (*options, *(SANITIZERS if sanitize else ()), define))
    return Build(model, folder, library, driver)


def build_library(folder: Path, driver: Path | str, options: Sequence[str]) -> Path:
    """Compiles libed.so of the model whose sources lie in `folder`; `options` name the header of the model."""
    objects = [
        c_builds.compile_c(folder, f"{source.stem}.o", [source], (*options, "-fPIC", "-c", "-DED_DEVICE"), "gcc")
        for source in (KERNELS / "c/ed_api.c", KERNELS / "c/ed_engine.c", TESTS / "trace.c")
    ]
    name = f'-DED_CUDA_DRIVER="{driver}"'
    sources = [KERNELS / "cuda/engine.cpp", *objects]
    return compile_cpp(folder / "libed.so", sources, (*options, *HOST, name, "-I", str(folder), *headers()))
