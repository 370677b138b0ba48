"""Checks that a GPU computes what the definition says: kernels against numerics, whole students against the C engine.

Students run for many steps over inputs that fill the rings, wrap them and saturate. The kinematics of every step and
the exported state of every few thousand must be the bytes of the C engine, which other tests hold to the oracle. The
first steps are compared with the oracle here as well. compute-sanitizer runs the same checks with fewer steps, in a
process of its own.
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
from benchmarks.gpu.kernel_checks import Finding, check_kernels, compare_values
from benchmarks.gpu.students import OpenDecoder, Student, draw_bins
from edgedistill.assets import asset_folder
from edgedistill.numerics import Oracle

KERNELS = {  # source -> its kernels
    "attention_step": ("ed_attention_step",),
    "append": ("ed_append",),
}
BLOCK = 5000  # steps between two comparisons of the state
ORACLE_STEPS = 300
TOOLS = ("memcheck", "racecheck", "synccheck")
TOOL_SECONDS = 150
FOUND = 86  # exit status of compute-sanitizer when it found something


def load_kernels(gpu: Gpu) -> tuple[Module, dict[str, Module]]:
    """Compiles the benchmark's floors and the kernels that run alone for this chip, and loads them."""
    sources = asset_folder("kernels") / "cuda"
    kernels = {name: gpu.compile_kernels(Path(str(sources / f"{name}.cu"))) for name in KERNELS}
    return gpu.compile_kernels(CUDA / "floors.cu"), kernels


class GpuDevice:
    """The GPU with the methods that kernel_checks asks for."""

    def __init__(self, gpu: Gpu, kernels: dict[str, Module]) -> None:
        self.array = gpu.array
        self._gpu, self._of = gpu, {name: kernels[source] for source, names in KERNELS.items() for name in names}

    def fetch(self, array: Any) -> Any:
        """Returns a copy of the array as it is now."""
        return array.fetch()

    def launch(self, kernel: str, grid: tuple[int, int], block: int, shared: int, *arguments: Any) -> None:
        """Launches a kernel by its name and waits for its end."""
        self._gpu.run(Launch.of(self._of[kernel].find_function(kernel, shared), grid, block, shared, *arguments))


# ---------------------------------------------------------------- what is checked


def sum_findings(findings: list[Finding]) -> dict[str, Any]:
    """Sums findings up. The first one that differs stands for the others."""
    wrong = [finding for finding in findings if finding.differ]
    return {
        "cases": len(findings),
        "compared": sum(finding.compared for finding in findings),
        "differ": sum(finding.differ for finding in findings),
        "first": asdict(wrong[0]) if wrong else None,
    }


def check_all_kernels(gpu: Gpu, kernels: dict[str, Module], **sizes: Any) -> dict[str, dict[str, Any]]:
    """Checks the kernels, and returns the cases, the values compared and those that differ for each."""
    found: dict[str, list[Finding]] = {}
    for finding in check_kernels(GpuDevice(gpu, kernels), **sizes):
        found.setdefault(finding.case.split(",")[0], []).append(finding)
    return {kernel: sum_findings(findings) for kernel, findings in found.items()}


def check_student(student: Student, steps: int) -> dict[str, Any]:
    """Compares the CUDA engine of a student with its C engine over `steps` steps, with states exchanged in between."""
    on_gpu, on_cpu = OpenDecoder(student), Decoder(student.on_cpu)
    findings = []
    for start in range(0, steps, BLOCK):
        bins = draw_bins(student.shape.channels, min(BLOCK, steps - start), seed=start)
        if start == 0:
            first = bins[:ORACLE_STEPS]
            expected = Oracle(student.model).run(first)
            findings.append(_compare_bits("oracle", step_through(on_gpu, first), expected))
            on_gpu.reset()
        case = f"steps {start} to {start + len(bins)}"
        findings.append(_compare_bits(f"kinematics, {case}", step_through(on_gpu, bins), step_through(on_cpu, bins)))
        findings.append(compare_values(f"state after {case}", on_gpu.export(), on_cpu.export()))
        exchange_states(on_gpu, on_cpu)
    on_gpu.call.ed_close(on_gpu.handle)
    return sum_findings(findings) | {"steps": steps, "oracle_steps": min(ORACLE_STEPS, steps)}


def _compare_bits(case: str, found: Any, expected: Any) -> Finding:
    return compare_values(case, found.view(np.uint32), np.ascontiguousarray(expected, np.float32).view(np.uint32))


def step_through(decoder: Decoder, bins: Any) -> Any:
    """Returns the kinematics (T, K) of bins (T, C), step by step."""
    found = np.full((len(bins), decoder.info.outputs), np.nan, np.float32)
    step, handle = decoder.call.ed_step, decoder.handle
    for row, into in zip(bins, found, strict=True):
        decoder.check(step(handle, row.ctypes.data, into.ctypes.data))
    return found


def exchange_states(one: Decoder, other: Decoder) -> None:
    """Lets each decoder go on from the other's state, which equals its own if nothing is wrong."""
    states = [decoder.export() for decoder in (other, one)]
    for decoder, state in zip((one, other), states, strict=True):
        decoder.check(decoder.call.ed_state_import(decoder.handle, state.ctypes.data, state.nbytes))


# ---------------------------------------------------------------- compute-sanitizer


def sanitize(work: Path, command: list[str], say: Callable[[str], None]) -> dict[str, dict[str, Any]]:
    """Runs `command` under each tool of compute-sanitizer. It finds everything compiled in `work`."""
    program = shutil.which("compute-sanitizer") or "/usr/local/cuda/bin/compute-sanitizer"
    if not os.access(program, os.X_OK):
        reason = "compute-sanitizer is not installed; on a Jetson: sudo apt install cuda-sanitizer-12-6"
        return {tool: {"ok": None, "reason": reason} for tool in TOOLS}
    found = {}
    for tool in TOOLS:
        say(f"compute-sanitizer: {tool}")
        options = ["--tool", tool, "--error-exitcode", str(FOUND), "--print-limit", "5"]
        found[tool] = _run_tool([program, *options, sys.executable, *command, "--work", str(work)])
    return found


def _run_tool(command: list[str]) -> dict[str, Any]:
    try:
        done = subprocess.run(command, capture_output=True, text=True, errors="replace", timeout=TOOL_SECONDS)
    except (OSError, subprocess.TimeoutExpired) as error:
        return {"ok": None, "reason": f"{type(error).__name__}: {error}"}
    last = [line for line in (done.stdout + done.stderr).splitlines() if line.strip()][-12:]
    if done.returncode == 0:
        return {"ok": True, "said": next((line for line in reversed(last) if "SUMMARY" in line), last[-1:])}
    said = done.stdout + done.stderr
    # Where the driver or a virtual machine does not let a tool run, that is no finding.
    wrong = done.returncode == FOUND or "Target application returned an error" in said
    unsupported = not wrong or "Device not supported" in said
    return {"ok": None if unsupported else False, "status": done.returncode, "reason": "\n".join(last)}
