"""Whether this machine can make a target's plan: a Target in, all that its plan will depend on out.

What is missing or of the wrong version is told one at a time, in the order in which a person would put it right: GPU,
chip, JetPack, TensorRT, nvcc, CMake.
"""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from importlib import import_module
from types import ModuleType

from edgedistill.compile.cuda.nvcc import Nvcc, find_nvcc
from edgedistill.errors import DeviceError
from edgedistill.machine import jetson
from edgedistill.machine.gpu import Gpu, find_gpu
from edgedistill.target import Target

BUILDER = "edgedistill.compile.tensorrt.builder"


@dataclass(frozen=True, eq=False)
class Machine:
    """A device that makes its own plans."""

    gpu: Gpu
    nvcc: Nvcc
    tensorrt: str  # version: "10.3.0"
    jetpack: str | None  # None: not a Jetson, or one that does not tell
    builder: ModuleType  # tensorrt_builder, which cannot be imported without TensorRT
    notes: tuple[str, ...]  # what to know of its versions

    @property
    def facts(self) -> dict[str, str]:
        """Its part of the fingerprint."""
        return {
            "chip": self.gpu.chip,
            "toolkit": self.nvcc.version,
            "driver": self.gpu.driver,
            "tensorrt": self.tensorrt,
            "jetpack": self.jetpack or "",
        }


def find_machine(target: Target) -> Machine:
    """DeviceError for what this machine lacks or has of another version than the target takes."""
    gpu = find_gpu()
    if target.chips and gpu.chip not in target.chips:
        raise _other_chip(target, gpu)
    jetpack = jetson.read_jetpack_version()
    notes = _require_jetpack(target, jetpack)
    builder = _import_builder(target)
    version = jetson.shorten_version(builder.VERSION)
    notes += _require_tensorrt(target, version)
    nvcc = find_nvcc(target, gpu.chip)
    _require_cmake(target)
    return Machine(gpu, nvcc, version, jetpack, builder, notes)


def _require_jetpack(target: Target, found: str | None) -> tuple[str, ...]:
    """What to note of it."""
    if target.jetpack is None or found is None:
        return ()
    if target.jetpack.is_before(found):
        raise DeviceError(
            f"JetPack is too old for target '{target.name}'",
            got=f"JetPack {found}",
            expected=f"JetPack {target.jetpack}: older ones have no plugins of TensorRT's third interface",
            next_step=f"install JetPack {target.jetpack.oldest} or later (developer.nvidia.com/embedded/jetpack)",
        )
    beyond = target.jetpack.is_beyond(found)
    return (f"JetPack {found} is newer than any that this version knows ({target.jetpack.newest})",) if beyond else ()


def _import_builder(target: Target) -> ModuleType:
    try:
        return import_module(BUILDER)
    except (ImportError, OSError) as error:
        raise DeviceError(
            f"target '{target.name}' needs TensorRT and its Python package",
            got=str(error).splitlines()[0],
            expected=f"TensorRT {target.tensorrt}, which comes with JetPack",
            causes=(
                "the virtual environment does not see JetPack's packages: python3 -m venv --system-site-packages",
                "this Python is another than JetPack's own (3.10 in JetPack 6, 3.12 in JetPack 7)",
            ),
            next_step="sudo apt install nvidia-jetpack   (or only: tensorrt python3-libnvinfer)",
        ) from error


def _require_tensorrt(target: Target, found: str) -> tuple[str, ...]:
    if target.tensorrt is None:
        return ()
    if target.tensorrt.is_before(found):
        raise DeviceError(
            f"TensorRT is too old for target '{target.name}'",
            got=f"TensorRT {found}",
            expected=f"TensorRT {target.tensorrt}",
            next_step="sudo apt install --only-upgrade tensorrt, or a later JetPack",
        )
    beyond = target.tensorrt.is_beyond(found)
    return (f"TensorRT {found} is newer than any tried ({target.tensorrt.newest})",) if beyond else ()


def _require_cmake(target: Target) -> None:
    if shutil.which("cmake") is None:
        raise DeviceError(
            f"target '{target.name}' needs CMake, which makes plugin and runtime",
            got="no such command on this machine",
            expected="cmake 3.18 or later",
            next_step="sudo apt install cmake",
        )


def _other_chip(target: Target, gpu: Gpu) -> DeviceError:
    return DeviceError(
        f"this machine's GPU is not that of target '{target.name}'",
        got=f"{gpu.name}, {gpu.chip}",
        expected=f"one of its chips: {', '.join(target.chips)}",
        causes=("another target of this board: edgedistill targets",),
    )
