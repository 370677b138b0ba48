"""Compiles the CUDA engine of a bundle in the user's cache.

A bundle and a target go in, and optionally the name of a chip. A folder comes out with the sources (`include/`, `c/`,
`gpu/`, `cuda/` and the generated `model/`), the kernel as machine code for one chip, the library that runs it through
the driver API, a README and `build.json`. If the GPU is in this machine, the engine is checked against the bundle's
reference before it is kept. On a machine without nvcc or a GPU, the bundle gets the sources, prepared for the device.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from edgedistill.bundle import Bundle
from edgedistill.bundle.build_record import BuildRecord, list_loaded_files
from edgedistill.bundle.contents import read_decoder_spec, read_reference, read_smoothing_model
from edgedistill.compile.build_folder import CompiledEngine, build_if_missing, build_spec, write_readme
from edgedistill.compile.bundle_sources import cmake_file, kernel_files, model_files, model_inputs
from edgedistill.compile.c.library import INCLUDES, SOURCES, header_option
from edgedistill.compile.c.toolchain import Toolchain, find_toolchain
from edgedistill.compile.cuda.chip import Chip, find_chip
from edgedistill.compile.cuda.model_source import cuda_sources
from edgedistill.compile.cuda.nvcc import Nvcc, find_nvcc
from edgedistill.compile.cuda.packing import find_packable_parts
from edgedistill.compile.prepared import compile_command, prepare_sources, replace_next_step
from edgedistill.compile.self_check import require_exact
from edgedistill.errors import DeviceError, EngineError
from edgedistill.machine.gpu import Gpu
from edgedistill.numerics import Int8Model
from edgedistill.runtime.abi_engine import AbiEngine
from edgedistill.runtime.cuda_engine import open_build
from edgedistill.target import Target

KERNEL, CUBIN = "cuda/student_step.cu", "student_step.cubin"
HOST_SOURCES = (*SOURCES, "cuda/engine.cpp")
CUDA_INCLUDES = (*INCLUDES, "-Igpu", "-Icuda")
CPP_FLAGS = ("-fno-exceptions", "-fno-rtti")  # so that the C++ library is not needed
LIBRARIES = ("-ldl",)  # not libcuda, so that the library loads on a machine without a driver and says what is missing
OTHER_MACHINE = (  # the likely causes in every error about something that this machine lacks
    "this machine is not the device: copy the bundle there, it holds the sources",
    "the GPU is elsewhere and its chip is known: --chip sm_87 compiles for it here",
)
MAX_WINDOW = 2048  # bins that the attention kernel can hold


def compile_cuda_module(bundle: Bundle, target: Target, force: bool = False, chip: str | None = None) -> CompiledEngine:
    """Compiles the bundle's INT8 student for this machine's GPU, or for `chip`, unless that is done already.

    Raises DeviceError where nvcc or a GPU is missing, and leaves the sources prepared in the bundle. Raises EngineError
    for a compiler that fails, a student that the kernels cannot run, and an engine that does not reproduce the
    reference. Raises ConfigError for a chip that the target does not have.
    """
    sources = cuda_module_sources(bundle, target)
    try:
        found = find_chip(target, chip)
    except DeviceError as error:
        raise _prepare_elsewhere(error, bundle, target, sources) from error
    try:
        nvcc, toolchain = find_nvcc(target, found.name), find_toolchain(target)
        _require_driver(nvcc, found.gpu)
    except DeviceError as error:
        raise _prepare_until_installed(error, bundle, target, sources) from error
    device = {"chip": found.name, "toolkit": nvcc.version, "driver": found.gpu.driver if found.gpu else ""}
    fingerprint = replace(toolchain.fingerprint, flags=(*toolchain.flags, *nvcc.flags), device=device)
    spec = build_spec(bundle, target, sources, fingerprint, (toolchain.compiler.command, nvcc.command), ".so")
    return build_if_missing(
        spec, lambda folder, record: _compile(folder, record, nvcc, toolchain, found, bundle, target), force
    )


def require_kernels_fit(window: int, keep: tuple[str, ...]) -> None:
    """Raises EngineError for a student that the kernels cannot run. It needs no training for that.

    `window` is the student's in bins. `keep` names the parts that its recipe keeps in float32.
    """
    if window > MAX_WINDOW:
        raise EngineError(
            "the student's window is too large for the GPU kernels",
            got=f"window = {window}",
            expected=f"at most {MAX_WINDOW} bins",
            next_step="set `window` of [student] in the preset, or choose a target with engine 'c'",
        )
    if keep:
        raise EngineError(
            "the GPU kernels compute every part of a step in INT8",
            got=f"keep = {list(keep)} in the recipe",
            expected="a recipe without `keep`",
            next_step="choose another --recipe, or a target with engine 'c'",
        )


def cuda_module_sources(bundle: Bundle, target: Target) -> dict[str, bytes]:
    """Returns all files to compile: those of kernels, and the bundle's numbers in the order the GPU reads them."""
    model, front_end, facts = model_inputs(bundle)
    require_kernels_fit(model.shape.window, tuple(model.keep))
    files = kernel_files("include", "c", "gpu", "cuda") | model_files(
        cuda_sources(model, front_end, facts, pack=_packs(target))
    )
    return files | cmake_file()


def describe_four_bits(model: Int8Model, target: Target) -> tuple[str, ...]:
    """Returns how the GPU reads the four-bit weights of a student, as a line for the user, or none without any."""
    if not model.four:
        return ()
    if not _packs(target):
        how = "pack_four_bits = true in [cuda] of a target's file keeps them packed"
        return (f"four-bit weights are read as the int8 weights that they are; {how}",)
    packed = find_packable_parts(model)
    return (
        f"four-bit weights are packed in: {', '.join(packed) or 'no part, since in none all layers have four bits'}",
    )


def _packs(target: Target) -> bool:
    return target.cuda is not None and target.cuda.pack_four_bits


# ---------------------------------------------------------------- compiling


def _compile(
    folder: Path, record: BuildRecord, nvcc: Nvcc, toolchain: Toolchain, chip: Chip, bundle: Bundle, target: Target
) -> BuildRecord:
    options = (*CUDA_INCLUDES, header_option(record.model))
    nvcc.compile_cubin(folder, KERNEL, CUBIN, options)
    cpp_options = (*CPP_FLAGS, *nvcc.includes)
    objects = toolchain.compile_all(folder, HOST_SOURCES, (*options, "-DED_DEVICE"), cpp_options)
    toolchain.link(folder, objects, record.library, LIBRARIES)
    for name in objects:
        (folder / name).unlink()
    write_readme(folder, _readme(record))
    sizes = {"library": (folder / record.library).stat().st_size, "kernel": (folder / CUBIN).stat().st_size}
    note = chip.note or _check_on_gpu(folder, record, bundle, chip.gpu)
    return replace(record, sizes=sizes, notes=(note, *describe_four_bits(model_inputs(bundle)[0], target)))


def _check_on_gpu(folder: Path, record: BuildRecord, bundle: Bundle, gpu: Gpu | None) -> str:
    """Runs the compiled engine over the bundle's reference, and returns a note about the result.

    Raises EngineError for an engine that differs from the reference in any bit.
    """
    spec = read_decoder_spec(bundle)
    engine = AbiEngine(open_build(record, list_loaded_files(folder)), spec.shape, spec.front_end)
    reference = read_reference(bundle)
    name = gpu.name if gpu else "no GPU"
    if reference is None:
        return f"opened on {name}; not checked, because the bundle holds no reference"
    steps = require_exact(engine, reference, read_smoothing_model(bundle, spec.shape))
    return f"checked on {name}: {steps} steps of the reference, every bit"


def _readme(record: BuildRecord) -> str:
    device = record.fingerprint.device
    contents = f"{record.library} and {CUBIN}, for {device['chip']}" if record.library else "sources, not compiled yet"
    return (
        f"The INT8 decoder '{record.model}' for target '{record.target}', by {record.created_by}, from the bundle with"
        f" sha256 {record.manifest}: {contents}.\n"
        f"To compile it where the GPU is: edgedistill compile BUNDLE --target {record.target}; or without Python, in"
        f" this folder: cmake -B out -DED_MODEL={record.model} -DED_ENGINE=cuda && cmake --build out\n"
        "include/edgedistill.h says how to call it: ed_open() with the path of this folder.\n"
    )


# ---------------------------------------------------------------- what this machine lacks


def _require_driver(nvcc: Nvcc, gpu: Gpu | None) -> None:
    if gpu and int(nvcc.version.split(".")[0]) > int(gpu.cuda.split(".")[0]):
        raise DeviceError(
            "the driver of this machine is older than its CUDA toolkit",
            got=f"a driver for CUDA {gpu.cuda}, nvcc of CUDA {nvcc.version}",
            expected=f"a driver for CUDA {nvcc.version.split('.')[0]}, or an nvcc of CUDA {gpu.cuda.split('.')[0]}",
            next_step="update the driver, or name an older nvcc in [cuda] of the target's file",
        )


def _prepare_elsewhere(error: DeviceError, bundle: Bundle, target: Target, sources: Mapping[str, bytes]) -> DeviceError:
    """Prepares the sources, and returns the error with the command that compiles them on the machine with the GPU."""
    prepare_sources(bundle, target, sources, _readme)
    step = f"{compile_command(bundle, target)}   (on the machine with the GPU)"
    return replace_next_step(error, step, (*error.causes, *OTHER_MACHINE))


def _prepare_until_installed(
    error: DeviceError, bundle: Bundle, target: Target, sources: Mapping[str, bytes]
) -> DeviceError:
    """Prepares the sources, and returns the error with the command that installs what is missing and then compiles."""
    prepare_sources(bundle, target, sources, _readme)
    step = f"{error.next_step}; then {compile_command(bundle, target)}"
    return replace_next_step(error, step, (*error.causes, *OTHER_MACHINE))
