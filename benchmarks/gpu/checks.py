"""Is what the GPU computes what the definition says? Kernels against numerics, whole students against the C engine.

Students run freely for many steps over inputs that fill, wrap and saturate: kinematics of every step, and the exported
state every few thousand, must be the bytes of the C engine's, whose own are the oracle's; the first steps are held
against the oracle here as well. compute-sanitizer runs the same checks, fewer steps, in a process of its own.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.cpu.c_models import Decoder
from benchmarks.gpu.device import CUDA, Gpu, Launch, Module
from benchmarks.gpu.kernel_checks import Finding, check_kernels, compared
from benchmarks.gpu.students import OpenDecoder, Student, random_bins
from edgedistill.assets import asset_folder
from edgedistill.numerics import Oracle

KERNELS = {  # source -> its kernels
    "attention_step": ("ed_attention_step",),
    "append": ("ed_append",),
}
BLOCK = 5000  # steps between two looks at the state
ORACLE_STEPS = 300
TOOLS = ("memcheck", "racecheck", "synccheck")
TOOL_SECONDS = 150
FOUND = 86  # exit status of compute-sanitizer where it found something


def load_kernels(gpu: Gpu) -> tuple[Module, dict[str, Module]]:
    """The floors of the benchmark, and the kernels that stand alone, compiled for this chip."""
    sources = asset_folder("kernels") / "cuda"
    kernels = {name: gpu.compiled(Path(str(sources / f"{name}.cu"))) for name in KERNELS}
    return gpu.compiled(CUDA / "floors.cu"), kernels


class GpuDevice:
    """gpu_device as kernel_checks asks for it."""

    def __init__(self, gpu: Gpu, kernels: dict[str, Module]) -> None:
        self.array = gpu.array
        self._gpu, self._of = gpu, {name: kernels[source] for source, names in KERNELS.items() for name in names}

    def fetched(self, array: Any) -> Any:
        """A copy of what is there now."""
        return array.fetched()

    def launch(self, kernel: str, grid: tuple[int, int], block: int, shared: int, *arguments: Any) -> None:
        """A kernel by its name, until it is done."""
        self._gpu.run(Launch.of(self._of[kernel].function(kernel, shared), grid, block, shared, *arguments))


# ---------------------------------------------------------------- what is checked


def checked(findings: list[Finding]) -> dict[str, Any]:
    """Findings summed up; the first that differs stands for the others."""
    wrong = [finding for finding in findings if finding.differ]
    return {
        "cases": len(findings),
        "compared": sum(finding.compared for finding in findings),
        "differ": sum(finding.differ for finding in findings),
        "first": asdict(wrong[0]) if wrong else None,
    }


def kernels_checked(gpu: Gpu, kernels: dict[str, Module], **sizes: Any) -> dict[str, dict[str, Any]]:
    """By kernel: cases, values compared, values that differ."""
    found: dict[str, list[Finding]] = {}
    for finding in check_kernels(GpuDevice(gpu, kernels), **sizes):
        found.setdefault(finding.case.split(",")[0], []).append(finding)
    return {kernel: checked(findings) for kernel, findings in found.items()}


def student_checked(student: Student, steps: int) -> dict[str, Any]:
    """The CUDA engine of a student against its C engine, `steps` steps from a fresh stream, and states exchanged."""
    on_gpu, on_cpu = OpenDecoder(student), Decoder(student.on_cpu)
    findings = []
    for start in range(0, steps, BLOCK):
        bins = random_bins(student.shape.channels, min(BLOCK, steps - start), seed=start)
        if start == 0:
            first = bins[:ORACLE_STEPS]
            expected = Oracle(student.model).run(first)
            findings.append(_differing("oracle", stepped(on_gpu, first), expected))
            on_gpu.reset()
        case = f"steps {start} to {start + len(bins)}"
        findings.append(_differing(f"kinematics, {case}", stepped(on_gpu, bins), stepped(on_cpu, bins)))
        findings.append(compared(f"state after {case}", on_gpu.export(), on_cpu.export()))
        exchange(on_gpu, on_cpu)
    on_gpu.call.ed_close(on_gpu.handle)
    return checked(findings) | {"steps": steps, "oracle_steps": min(ORACLE_STEPS, steps)}


def _differing(case: str, found: Any, expected: Any) -> Finding:
    return compared(case, found.view(np.uint32), np.ascontiguousarray(expected, np.float32).view(np.uint32))


def stepped(decoder: Decoder, bins: Any) -> Any:
    """Kinematics (T, K) of bins (T, C), step by step."""
    found = np.full((len(bins), decoder.info.outputs), np.nan, np.float32)
    step, handle = decoder.call.ed_step, decoder.handle
    for row, into in zip(bins, found, strict=True):
        decoder.done(step(handle, row.ctypes.data, into.ctypes.data))
    return found


def exchange(one: Decoder, other: Decoder) -> None:
    """Each goes on from the other's state, which is its own if nothing is wrong."""
    states = [decoder.export() for decoder in (other, one)]
    for decoder, state in zip((one, other), states, strict=True):
        decoder.done(decoder.call.ed_state_import(decoder.handle, state.ctypes.data, state.nbytes))


# ---------------------------------------------------------------- compute-sanitizer


def sanitized(work: Path, command: list[str], say: Callable[[str], None]) -> dict[str, dict[str, Any]]:
    """What each tool of compute-sanitizer says of `command`, which finds everything compiled in `work`."""
    program = shutil.which("compute-sanitizer") or "/usr/local/cuda/bin/compute-sanitizer"
    if not os.access(program, os.X_OK):
        reason = "compute-sanitizer is not installed; on a Jetson: sudo apt install cuda-sanitizer-12-6"
        return {tool: {"ok": None, "reason": reason} for tool in TOOLS}
    found = {}
    for tool in TOOLS:
        say(f"compute-sanitizer: {tool}")
        options = ["--tool", tool, "--error-exitcode", str(FOUND), "--print-limit", "5"]
        found[tool] = _tool_says([program, *options, sys.executable, *command, "--work", str(work)])
    return found


def _tool_says(command: list[str]) -> dict[str, Any]:
    try:
        done = subprocess.run(command, capture_output=True, text=True, errors="replace", timeout=TOOL_SECONDS)
    except (OSError, subprocess.TimeoutExpired) as error:
        return {"ok": None, "reason": f"{type(error).__name__}: {error}"}
    last = [line for line in (done.stdout + done.stderr).splitlines() if line.strip()][-12:]
    if done.returncode == 0:
        return {"ok": True, "said": next((line for line in reversed(last) if "SUMMARY" in line), last[-1:])}
    said = done.stdout + done.stderr
    # A tool that this machine's driver or virtualization does not let run is no finding.
    wrong = done.returncode == FOUND or "Target application returned an error" in said
    unsupported = not wrong or "Device not supported" in said
    return {"ok": None if unsupported else False, "status": done.returncode, "reason": "\n".join(last)}
