"""What plugin and runtime of a plan are compiled from, and how: a bundle in, files and CMake's commands out.

The commands are those that a person would type in the folder; a build that was prepared on another machine says them in
its README.
"""

from __future__ import annotations

import shlex
import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from edgedistill.assets import asset_folder
from edgedistill.bundle import Bundle
from edgedistill.bundle.build_record import BuildRecord, Fingerprint, build_folder, read_record
from edgedistill.compile.build_folder import made_once, planned
from edgedistill.compile.bundle_sources import encoded, kernel_files, model_inputs
from edgedistill.compile.c.frontend_source import frontend_constants, normalization_tables
from edgedistill.compile.c.model_source import facts_text, require_fits, shape_header
from edgedistill.compile.commands import run_command
from edgedistill.compile.cuda.nvcc import USUAL
from edgedistill.compile.model_facts import c_identifier
from edgedistill.errors import EngineError
from edgedistill.runtime.tensorrt_engine import PLUGIN
from edgedistill.target import Target

if TYPE_CHECKING:
    from edgedistill.compile.tensorrt.device import Machine

OUT = "out"  # CMake's folder, removed at the end
CUBIN = "append.cubin"


def tensorrt_sources(bundle: Bundle) -> dict[str, bytes]:
    """All that is compiled: the kernels' files, and the bundle's shape and front end; weights are in the plan."""
    model, front_end, facts = model_inputs(bundle)
    require_fits(model, front_end, facts)
    name = c_identifier(facts.name)
    data = f"model_{name}_data.h"
    header = shape_header(model, front_end, facts, name, "tensorrt", group=0)
    texts = {
        f"model_{name}.h": f'{header}#define ED_MODEL_DATA "{data}"\n\n{frontend_constants(front_end)}',
        data: facts_text(facts) + "\n" + normalization_tables(front_end, facts.mean, facts.std),
    }
    files = kernel_files("include", "c", "cuda", "tensorrt") | encoded(texts)
    cmake = asset_folder("kernels") / "CMakeLists.txt"
    return files | ({cmake.name: cmake.read_bytes()} if cmake.is_file() else {})


def cmake_commands(model: str, chip: str, nvcc: str = str(USUAL / "nvcc")) -> tuple[tuple[str, ...], ...]:
    """What makes plugin, runtime and append kernel in the folder."""
    options = (
        f"-DED_MODEL={model}",
        "-DED_ENGINE=tensorrt",
        f"-DCMAKE_CUDA_ARCHITECTURES={chip.removeprefix('sm_')}",
        f"-DCMAKE_CUDA_COMPILER={nvcc}",  # on no PATH by default
    )
    return ("cmake", "-B", OUT, *options), ("cmake", "--build", OUT)


def made_by_cmake(folder: Path, record: BuildRecord, machine: Machine) -> None:
    """Plugin, runtime and append kernel, in `folder`. EngineError with the first error that was told."""
    for command in cmake_commands(record.model, machine.gpu.chip, machine.nvcc.command):
        run_command(folder, command, lambda said, command=command: _failed(command, said))  # type: ignore[misc]
    shutil.rmtree(folder / OUT)
    for name in (record.library, PLUGIN, CUBIN):
        if not (folder / name).exists():
            raise _failed(command, f"no {name} beside CMakeLists.txt")


def _failed(command: Sequence[str], said: str) -> EngineError:
    return EngineError(
        "making the TensorRT plugin and its runtime failed",
        got=said,
        expected=f"this command to succeed in the build folder: {shlex.join(command)}",
        causes=(
            "TensorRT's headers are not installed: sudo apt install libnvinfer-headers-dev",
            "a C++ compiler is missing: sudo apt install g++",
        ),
        next_step="edgedistill doctor",
    )


def prepare(bundle: Bundle, target: Target, sources: dict[str, bytes]) -> None:
    """Leave the sources for a device to compile, unless a plan of this bundle lies there."""
    try:
        found = read_record(build_folder(bundle, target.name))
        if found.library and found.manifest == bundle.sha256:
            return
    except EngineError:
        if not bundle.path.is_dir():
            raise
    plan = planned(bundle, target, sources, Fingerprint("", "", (), "", (), ""), (), None)
    made_once(plan, lambda folder, record: _prepared(folder, record, target))


def _prepared(folder: Path, record: BuildRecord, target: Target) -> BuildRecord:
    commands = cmake_commands(record.model, target.chips[0] if target.chips else "native")
    (folder / "README").write_text(readme(record, commands), encoding="utf-8")
    return replace(record, notes=("prepared: to be compiled on the device",))


def readme(record: BuildRecord, commands: Sequence[Sequence[str]]) -> str:
    """What lies in the folder and how to make the rest, as text."""
    device = record.fingerprint.device
    made = (
        f"{record.library}, {PLUGIN} and student.plan (form '{device['form']}'; the others: forms.json), for "
        f"{device['chip']} and TensorRT {device['tensorrt']}"
        if record.library
        else "sources, not compiled yet"
    )
    return (
        f"The decoder '{record.model}' for target '{record.target}', by {record.created_by}, from the bundle with"
        f" sha256 {record.manifest}: {made}.\n"
        f"To make all of it on the device: edgedistill compile BUNDLE --target {record.target}\n"
        f"Plugin and runtime alone, in this folder: {' && '.join(map(shlex.join, commands))}\n"
        "include/edgedistill.h tells how to call it: ed_open() with the path of this folder.\n"
    )
