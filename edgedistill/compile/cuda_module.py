"""A bundle and a GPU in, the CUDA engine with this model out: `build/<target>/` inside the bundle.

The folder holds the sources (`include/`, `c/`, `gpu/`, `cuda/`, the generated `model/`), the kernel as machine code of
one chip, the library over the driver API that runs it, a README and `build.json`. With that GPU at hand the engine is
held against the bundle's reference before it is kept. A machine that lacks nvcc or a GPU leaves the sources there,
prepared.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from edgedistill.assets import asset_folder
from edgedistill.bundle import Bundle
from edgedistill.compile.built_folder import CompiledEngine, made_once, planned
from edgedistill.compile.bundle_sources import encoded, kernel_files, model_inputs
from edgedistill.compile.c_library import INCLUDES, SOURCES, facts_of
from edgedistill.compile.cuda_packing import cuda_sources
from edgedistill.compile.gpu_chip import Chip, chosen_chip
from edgedistill.compile.nvcc import Nvcc, find_nvcc
from edgedistill.compile.self_check import reference_of, require_exact
from edgedistill.compile.toolchain import Toolchain, find_toolchain
from edgedistill.errors import DeviceError, EngineError
from edgedistill.runtime.abi_engine import AbiEngine
from edgedistill.runtime.build_record import BuildRecord, Fingerprint, build_folder, read_record
from edgedistill.runtime.cuda_driver import Gpu
from edgedistill.runtime.cuda_engine import opened_build
from edgedistill.runtime.decoder import described
from edgedistill.target import Target

KERNEL, CUBIN = "cuda/student_step.cu", "student_step.cubin"
HOST_SOURCES = (*SOURCES, "cuda/engine.cpp")
CUDA_INCLUDES = (*INCLUDES, "-Igpu", "-Icuda")
CPP_FLAGS = ("-fno-exceptions", "-fno-rtti")  # so that nothing of C++'s own library is needed
LIBRARIES = ("-ldl",)  # not libcuda: the library loads on a machine without a driver and says so
MAX_WINDOW = 2048  # bins that a kernel attends to


def compile_cuda_module(bundle: Bundle, target: Target, force: bool = False, chip: str | None = None) -> CompiledEngine:
    """Compile the bundle's INT8 student for the GPU at hand, or for `chip`, unless that is done already.

    DeviceError where nvcc or a GPU is missing (the sources are left, prepared); EngineError for a zip, a compiler that
    fails, a student the kernels cannot run, or an engine that does not compute the reference.
    """
    sources = cuda_module_sources(bundle)
    try:
        chosen = chosen_chip(target, chip)
        nvcc, toolchain = find_nvcc(target, chosen.name), find_toolchain(target)
        _require_driver(nvcc, chosen.gpu)
    except DeviceError as error:
        prepare(bundle, target, sources)
        raise _finished_there(error, bundle, target) from error
    facts = facts_of(toolchain)
    device = {"chip": chosen.name, "toolkit": nvcc.version, "driver": chosen.gpu.driver if chosen.gpu else ""}
    facts = replace(facts, flags=(*facts.flags, *nvcc.flags), device=device)
    plan = planned(bundle, target, sources, facts, (toolchain.compiler.command, nvcc.command), ".so")
    return made_once(plan, lambda folder, record: _compile(folder, record, nvcc, toolchain, chosen, bundle), force)


def require_kernels_fit(window: int, keep: tuple[str, ...]) -> None:
    """EngineError for a student that the kernels cannot run, known before it is trained."""
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


def cuda_module_sources(bundle: Bundle) -> dict[str, bytes]:
    """All that is compiled: the kernels' files, and the bundle's numbers in the order the GPU reads them."""
    model, front_end, facts = model_inputs(bundle, "cuda")
    require_kernels_fit(model.shape.window, tuple(model.keep))
    files = kernel_files("include", "c", "gpu", "cuda") | encoded(cuda_sources(model, front_end, facts))
    cmake = asset_folder("kernels") / "CMakeLists.txt"  # builds the same without Python
    return files | {cmake.name: cmake.read_bytes()}


def prepare(bundle: Bundle, target: Target, sources: dict[str, bytes]) -> None:
    """Leave the sources for a device to compile, unless what was compiled of this bundle lies there."""
    folder = build_folder(bundle, target.name)
    try:
        found = read_record(folder)
        if found.library and found.manifest == bundle.sha256:
            return
    except EngineError:
        pass  # nothing there, or nothing that could be kept
    plan = planned(bundle, target, sources, Fingerprint("", "", (), "", (), ""), (), None)
    made_once(plan, _prepared)


def _prepared(folder: Path, record: BuildRecord) -> BuildRecord:
    (folder / "README").write_text(_readme(record), encoding="utf-8")
    return replace(record, notes=("prepared: to be compiled on the device",))


# ---------------------------------------------------------------- compiling


def _compile(
    folder: Path, record: BuildRecord, nvcc: Nvcc, toolchain: Toolchain, chosen: Chip, bundle: Bundle
) -> BuildRecord:
    options = (*CUDA_INCLUDES, f'-DED_MODEL_HEADER="model_{record.model}.h"')
    nvcc.cubin(folder, KERNEL, CUBIN, options)
    objects = []
    for source in HOST_SOURCES:
        objects.append(f"{Path(source).stem}.o")
        own = (*CPP_FLAGS, *nvcc.includes) if source.endswith(".cpp") else ()
        toolchain.compile(folder, source, objects[-1], (*options, "-DED_DEVICE", *own))
    toolchain.link(folder, objects, record.library, LIBRARIES)
    for name in objects:
        (folder / name).unlink()
    (folder / "README").write_text(_readme(record), encoding="utf-8")
    sizes = {"library": (folder / record.library).stat().st_size, "kernel": (folder / CUBIN).stat().st_size}
    note = chosen.note or _checked(folder, record, bundle, chosen.gpu)
    return replace(record, sizes=sizes, notes=(note,))


def _checked(folder: Path, record: BuildRecord, bundle: Bundle, gpu: Gpu | None) -> str:
    """Runs what was compiled; returns what that showed."""
    shape, front_end, *_ = described(bundle, "cuda")
    engine = AbiEngine(opened_build(folder, record), shape, front_end)
    reference = reference_of(bundle)
    name = gpu.name if gpu else "no GPU"
    if reference is None:
        return f"opened on {name}; the bundle holds no reference to check it against"
    return f"checked on {name}: {require_exact(engine, reference)} steps of the reference, every bit"


def _readme(record: BuildRecord) -> str:
    device = record.fingerprint.device
    made = f"{record.library} and {CUBIN}, for {device['chip']}" if record.library else "sources, not compiled yet"
    return (
        f"The INT8 decoder '{record.model}' for target '{record.target}', by {record.created_by}, from the bundle with"
        f" sha256 {record.manifest}: {made}.\n"
        f"To compile it where the GPU is: edgedistill compile BUNDLE --target {record.target}; or without Python, in"
        f" this folder: cmake -B out -DED_MODEL={record.model} -DED_ENGINE=cuda && cmake --build out\n"
        "include/edgedistill.h tells how to call it: ed_open() with the path of this folder.\n"
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


def _finished_there(error: DeviceError, bundle: Bundle, target: Target) -> DeviceError:
    """The error with the command that finishes the work; what to install goes first where the GPU is here."""
    command = f"edgedistill compile {bundle.path} --target {target.name}"
    install = error.next_step if error.next_step and "install" in error.next_step else None
    step = f"{install}; then {command}" if install else f"{command}   (on the machine with the GPU)"
    causes = (
        *error.causes,
        "this machine is not the device: copy the bundle there, it holds the sources",
        "the GPU is elsewhere and its chip is known: --chip sm_87 compiles for it here",
    )
    return DeviceError(error.what, got=error.got, expected=error.expected, causes=causes, next_step=step)
