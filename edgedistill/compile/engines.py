"""Compiles a bundle's engine for a target, whichever engine the target names.

A bundle and a target go in. The engine in the user's cache comes out, with a copy in `build/<target>/` of the bundle.
If this machine lacks the compiler or the GPU for a GPU engine, the bundle still gets the sources and packed weights.
The error then says what is missing and which command finishes the work on the device.
"""

from __future__ import annotations

from dataclasses import replace

from edgedistill.bundle import Bundle
from edgedistill.bundle.spike_student import holds_spike_student, open_spike_student
from edgedistill.compile.build_folder import CompiledEngine, copy_to_bundle
from edgedistill.compile.c.library import compile_c_library
from edgedistill.compile.cuda.module import compile_cuda_module, require_kernels_fit
from edgedistill.compile.prepared import describe_prepared
from edgedistill.compile.tensorrt import Report
from edgedistill.compile.tensorrt.plan import compile_tensorrt_plan
from edgedistill.errors import ConfigError, DeviceError
from edgedistill.target import GPU_ENGINES, Target


def compile_bundle(
    bundle: Bundle, target: Target, force: bool = False, chip: str | None = None, report: Report | None = None
) -> CompiledEngine:
    """Compiles a bundle for a target, unless that is done already, and copies the engine into the bundle.

    With `force` it is compiled in any case. `chip` names a GPU that is not in this machine. `report` is called with
    TensorRT's progress. Raises EngineError for a bundle that cannot be compiled, DeviceError for a tool or GPU that
    this machine lacks, and ConfigError for a chip that the target's engine cannot be compiled for.
    """
    if chip is not None and target.engine not in GPU_ENGINES:
        raise ConfigError(
            f"target '{target.name}' runs on no GPU",
            got=f"--chip {chip}",
            expected="a target with engine 'cuda'",
            next_step="edgedistill targets",
        )
    if chip is not None and target.engine == "tensorrt":
        raise ConfigError(
            f"a plan for target '{target.name}' is built on its own device",
            got=f"--chip {chip}",
            expected="no --chip: TensorRT times its kernels on the GPU that will run them",
            next_step=f"edgedistill compile {bundle.path} --target {target.name}   (on the device)",
        )
    return copy_to_bundle(_compile(bundle, target, force, chip, report), bundle)


def _compile(bundle: Bundle, target: Target, force: bool, chip: str | None, report: Report | None) -> CompiledEngine:
    if target.engine == "cuda":
        return compile_cuda_module(bundle, target, force, chip)
    if target.engine == "tensorrt":
        return compile_tensorrt_plan(bundle, target, force, report)
    return compile_c_library(bundle, target, force)


def compile_spike_student(bundle: Bundle, target: Target, force: bool = False, chip: str | None = None) -> None:
    """Compiles the spike student of a bundle with the same compiler, so that a bench compares the two fairly.

    Does nothing for firmware. Does nothing for TensorRT either, whose plan is chosen by the holdout of the LFP student.
    """
    firmware = target.compiler is not None and target.compiler.library == "static"
    if target.engine in ("c", "cuda") and not firmware and holds_spike_student(bundle):
        _compile(open_spike_student(bundle), target, force, chip, None)


def require_engine_fits(target: Target, window: int, keep: tuple[str, ...]) -> None:
    """Raises EngineError for a student that the target's engine cannot run. It needs no training for that.

    `window` is the student's in bins. `keep` names the parts that its recipe keeps in float32.
    """
    if target.engine in GPU_ENGINES:
        require_kernels_fit(window, keep if target.engine == "cuda" else ())


def compile_or_prepare(bundle: Bundle, target: Target) -> CompiledEngine:
    """Compiles a bundle for `build`, or only prepares it on a machine that lacks a compiler or a GPU.

    Where something is missing, the sources are prepared and the result's `lacking` says what is missing. Raises
    EngineError otherwise.
    """
    try:
        return compile_bundle(bundle, target)
    except DeviceError as error:
        if target.engine not in GPU_ENGINES:
            raise
        return replace(describe_prepared(bundle, target), lacking=error)
