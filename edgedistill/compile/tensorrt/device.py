"""Finds out whether this machine can build a target's plan.

A Target goes in, and a Machine comes out, with everything that a plan will depend on. If several things are missing or
have the wrong version, the first one is reported, in the order in which a user would install them: GPU, chip, JetPack,
TensorRT, nvcc, CMake.
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
    """Describes a device that builds its own plans."""

    gpu: Gpu
    nvcc: Nvcc
    tensorrt: str  # version of TensorRT, such as "10.3.0"
    jetpack: str | None  # version of JetPack, or None if it is unknown or the machine is not a Jetson
    builder: ModuleType  # the module `tensorrt/builder.py`, which cannot be imported without TensorRT
    notes: tuple[str, ...]  # what the user must know about its versions

    @property
    def facts(self) -> dict[str, str]:
        """Returns the machine's part of a build's fingerprint."""
        return {
            "chip": self.gpu.chip,
            "toolkit": self.nvcc.version,
            "driver": self.gpu.driver,
            "tensorrt": self.tensorrt,
            "jetpack": self.jetpack or "",
        }


def find_machine(target: Target) -> Machine:
    """Returns this machine.

    Raises DeviceError for a part that is missing, or that has a version which the target does not support.
    """
    gpu = find_gpu()
    if target.chips and gpu.chip not in target.chips:
        raise _other_chip_error(target, gpu)
    jetpack = jetson.read_jetpack_version()
    notes = _require_jetpack(target, jetpack)
    builder = _import_builder(target)
    version = jetson.shorten_version(builder.VERSION)
    notes += _require_tensorrt(target, version)
    nvcc = find_nvcc(target, gpu.chip)
    _require_cmake(target)
    return Machine(gpu, nvcc, version, jetpack, builder, notes)


def _require_jetpack(target: Target, found: str | None) -> tuple[str, ...]:
    """Returns a note if the JetPack is newer than any known. Raises DeviceError if it is too old."""
    if target.jetpack is None or found is None:
        return ()
    if target.jetpack.is_before(found):
        raise DeviceError(
            f"JetPack is too old for target '{target.name}'",
            got=f"JetPack {found}",
            expected=f"JetPack {target.jetpack}: older ones lack the plugin interface IPluginV3",
            next_step=f"install JetPack {target.jetpack.oldest} or later (developer.nvidia.com/embedded/jetpack)",
        )
    beyond = target.jetpack.is_beyond(found)
    return (f"JetPack {found} is newer than any that this version knows ({target.jetpack.newest})",) if beyond else ()


def _import_builder(target: Target) -> ModuleType:
    """Imports the module that calls TensorRT. Raises DeviceError where TensorRT's Python package is missing."""
    try:
        return import_module(BUILDER)
    except (ImportError, OSError) as error:
        raise DeviceError(
            f"target '{target.name}' needs TensorRT and its Python package",
            got=str(error).splitlines()[0],
            expected=f"TensorRT {target.tensorrt}, which comes with JetPack",
            causes=(
                "the virtual environment does not see JetPack's packages: python3 -m venv --system-site-packages",
                "this is not JetPack's own Python (3.10 in JetPack 6, 3.12 in JetPack 7)",
            ),
            next_step="sudo apt install nvidia-jetpack   (or only: tensorrt python3-libnvinfer)",
        ) from error


def _require_tensorrt(target: Target, found: str) -> tuple[str, ...]:
    """Returns a note if the TensorRT is newer than any tried. Raises DeviceError if it is too old."""
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
            f"target '{target.name}' needs CMake, which builds the plugin and the library",
            got="no such command on this machine",
            expected="cmake 3.18 or later",
            next_step="sudo apt install cmake",
        )


def _other_chip_error(target: Target, gpu: Gpu) -> DeviceError:
    return DeviceError(
        f"this machine's GPU is not that of target '{target.name}'",
        got=f"{gpu.name}, {gpu.chip}",
        expected=f"one of its chips: {', '.join(target.chips)}",
        causes=("the board has another target: edgedistill targets",),
    )
