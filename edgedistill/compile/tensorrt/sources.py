"""Collects the sources of the plugin and of the library that runs a plan, and compiles them.

A bundle goes in, and files and CMake's commands come out. A user can type the same commands in the folder. The README
of a build that was prepared on another machine lists them.
"""

from __future__ import annotations

import shlex
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from edgedistill.bundle import Bundle
from edgedistill.bundle.build_record import BuildRecord
from edgedistill.compile.bundle_sources import cmake_file, kernel_files, model_files, model_inputs
from edgedistill.compile.c.model_header import header_name, host_tables, model_header
from edgedistill.compile.commands import run_command
from edgedistill.compile.cuda.nvcc import USUAL
from edgedistill.errors import EngineError
from edgedistill.runtime.tensorrt_engine import PLUGIN
from edgedistill.target import Target

if TYPE_CHECKING:
    from edgedistill.compile.tensorrt.device import Machine

OUT = "out"  # the folder in which CMake works, removed at the end
CUBIN = "append.cubin"


def tensorrt_sources(bundle: Bundle) -> dict[str, bytes]:
    """Returns all files to compile: those of kernels, and the bundle's shape and front end.

    The weights are not among them, because they are in the plan. Raises EngineError for a student that the C ABI cannot
    hold.
    """
    model, front_end, facts = model_inputs(bundle)
    data = header_name(facts, "data")
    texts = {
        header_name(facts): model_header(model, front_end, facts, "tensorrt", {"MODEL_DATA": f'"{data}"'}),
        data: host_tables(front_end, facts),
    }
    files = kernel_files("include", "c", "gpu", "cuda", "tensorrt") | model_files(texts)
    return files | cmake_file()


def cmake_commands(model: str, chip: str, nvcc: str = str(USUAL / "nvcc")) -> tuple[tuple[str, ...], ...]:
    """Returns the commands that build the plugin, the library and the append kernel in the folder."""
    options = (
        f"-DED_MODEL={model}",
        "-DED_ENGINE=tensorrt",
        f"-DCMAKE_CUDA_ARCHITECTURES={chip.removeprefix('sm_')}",
        f"-DCMAKE_CUDA_COMPILER={nvcc}",  # NVIDIA's installers do not put nvcc on the PATH
    )
    return ("cmake", "-B", OUT, *options), ("cmake", "--build", OUT)


def run_cmake(folder: Path, record: BuildRecord, machine: Machine) -> None:
    """Builds the plugin, the library and the append kernel in `folder`. Raises EngineError with CMake's first error."""
    for command in cmake_commands(record.model, machine.gpu.chip, machine.nvcc.command):
        run_command(folder, command, lambda first_error, command=command: _cmake_error(command, first_error))  # type: ignore[misc]
    shutil.rmtree(folder / OUT)
    for name in (record.library, PLUGIN, CUBIN):
        if not (folder / name).exists():
            raise _cmake_error(command, f"no {name} beside CMakeLists.txt")


def _cmake_error(command: Sequence[str], first_error: str) -> EngineError:
    return EngineError(
        "compiling the TensorRT plugin and its library failed",
        got=first_error,
        expected=f"this command to succeed in the build folder: {shlex.join(command)}",
        causes=(
            "TensorRT's headers are not installed: sudo apt install libnvinfer-headers-dev",
            "a C++ compiler is missing: sudo apt install g++",
        ),
        next_step="edgedistill doctor",
    )


def prepared_readme(record: BuildRecord, target: Target) -> str:
    """Returns the README of a folder whose sources have to be compiled on the device."""
    return readme(record, cmake_commands(record.model, target.chips[0] if target.chips else "native"))


def readme(record: BuildRecord, commands: Sequence[Sequence[str]]) -> str:
    """Returns the text that says what the folder contains and how to build the rest."""
    device = record.fingerprint.device
    contents = (
        f"{record.library}, {PLUGIN} and student.plan (form '{device['form']}'; the others: forms.json), for "
        f"{device['chip']} and TensorRT {device['tensorrt']}"
        if record.library
        else "sources, not compiled yet"
    )
    return (
        f"The decoder '{record.model}' for target '{record.target}', by {record.created_by}, from the bundle with"
        f" sha256 {record.manifest}: {contents}.\n"
        f"To compile all of it on the device: edgedistill compile BUNDLE --target {record.target}\n"
        f"To compile only the plugin and the library, in this folder: {' && '.join(map(shlex.join, commands))}\n"
        "include/edgedistill.h says how to call it: ed_open() with the path of this folder.\n"
    )
