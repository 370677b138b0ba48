"""Describes the GPU of this machine for a result, as the driver, nvidia-smi and the tools of a Jetson tell it.

An open GPU goes in, and a dict comes out. What cannot be found out is None and never a guess. Clocks and power mode are
read as they are, and nothing is set.
"""

from __future__ import annotations

import re
from importlib import metadata
from pathlib import Path
from typing import Any

from benchmarks.gpu.device import Gpu
from benchmarks.harness import describe_conditions
from edgedistill.compile.cuda.nvcc import Nvcc
from edgedistill.machine.description import describe_machine
from edgedistill.machine.gpu import Gpu as Found
from edgedistill.machine.programs import ask_program

QUERY = "driver_version,pstate,clocks.sm,clocks.mem,clocks.max.sm,power.limit,temperature.gpu"
DEVFREQ = Path("/sys/class/devfreq")
PACKAGES = ("torch", "triton", "pycuda", "cupy-cuda13x", "cupy-cuda12x")


def describe_gpu_conditions(found: Found, nvcc: Nvcc, gpu: Gpu) -> dict[str, Any]:
    """Returns what a figure depends on besides the kernels: command, date, GPU, toolkit, clocks and packages."""
    return {
        **describe_conditions("benchmarks.gpu.kernels"),
        "device": {
            "name": found.name,
            "chip": found.chip,
            "driver_cuda": found.cuda,
            "toolkit": nvcc.version,
            "nvcc_flags": list(nvcc.flags),
            **gpu.read_attributes(),
            "clocks": read_clocks(),
            "packages": {name: read_version(name) for name in PACKAGES},
            "machine": describe_machine(),
        },
    }


def read_clocks() -> dict[str, Any]:
    """Returns the figures of nvidia-smi where it has them, and the power mode and GPU clock of a Jetson."""
    asked = ask_program("nvidia-smi", f"--query-gpu={QUERY}", "--format=csv,noheader")
    values = [part.strip() for part in asked[0].split(",")] if asked else []
    known = dict(zip(QUERY.split(","), values, strict=True)) if len(values) == len(QUERY.split(",")) else None
    mode = ask_program("nvpmodel", "-q")
    return {"nvidia_smi": known, "nvpmodel": mode or None, "devfreq_hz": read_gpu_frequency()}


def read_gpu_frequency() -> dict[str, dict[str, str]] | None:
    """Returns the current, lowest and highest frequency of a Jetson's GPU in Hz, by the name of its device."""
    found = {}
    for folder in sorted(DEVFREQ.glob("*")) if DEVFREQ.exists() else []:
        if re.search(r"gpu|ga10b|gv11b|gb10|gpc", folder.name):
            names = ("cur_freq", "min_freq", "max_freq")
            found[folder.name] = {
                name: (folder / name).read_text().strip() for name in names if (folder / name).exists()
            }
    return found or None


def name_device_folder(found: Found) -> str:
    """Returns the folder's name in results/: that of the board if there is one, or else of the GPU.

    All Orins call their GPU "Orin", so the name of the GPU would not tell them apart.
    """
    board = describe_machine()["board"]
    return re.sub(r"[^a-z0-9]+", "-", str(board or found.name).lower()).strip("-")


def read_version(package: str) -> str | None:
    """Returns the version of an installed package, or None."""
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None
