"""The GPU of this machine as a result names it: what the driver, nvidia-smi and a Jetson's own tools say of it.

Nothing goes in but what has been opened; a dict comes out. What cannot be found out is None, never a guess. Nothing is
set: clocks and power mode are read as they are.
"""

from __future__ import annotations

import re
import subprocess
from importlib import metadata
from pathlib import Path
from typing import Any

from benchmarks.gpu.device import Gpu
from benchmarks.harness import conditions as run_conditions
from edgedistill.compile.cuda.nvcc import Nvcc
from edgedistill.machine.description import describe_machine
from edgedistill.machine.gpu import Gpu as Found

QUERY = "driver_version,pstate,clocks.sm,clocks.mem,clocks.max.sm,power.limit,temperature.gpu"
DEVFREQ = Path("/sys/class/devfreq")
PACKAGES = ("torch", "triton", "pycuda", "cupy-cuda13x", "cupy-cuda12x")


def conditions(found: Found, nvcc: Nvcc, gpu: Gpu) -> dict[str, Any]:
    """What a figure depends on besides the kernels."""
    return {
        **run_conditions("benchmarks.gpu.kernels"),
        "device": {
            "name": found.name,
            "chip": found.chip,
            "driver_cuda": found.cuda,
            "toolkit": nvcc.version,
            "nvcc_flags": list(nvcc.flags),
            **gpu.attributes(),
            "clocks": clocks(),
            "packages": {name: version_of(name) for name in PACKAGES},
            "machine": describe_machine(),
        },
    }


def clocks() -> dict[str, Any]:
    """nvidia-smi's figures where it has them, the power mode and GPU clock of a Jetson."""
    asked = answer("nvidia-smi", f"--query-gpu={QUERY}", "--format=csv,noheader")
    values = [part.strip() for part in asked.splitlines()[0].split(",")] if asked else []
    known = dict(zip(QUERY.split(","), values, strict=True)) if len(values) == len(QUERY.split(",")) else None
    mode = answer("nvpmodel", "-q")
    return {"nvidia_smi": known, "nvpmodel": mode.splitlines() or None, "devfreq_hz": gpu_frequency()}


def gpu_frequency() -> dict[str, dict[str, str]] | None:
    """Current, lowest and highest frequency of the GPU on a Jetson, by the name of its device."""
    found = {}
    for folder in sorted(DEVFREQ.glob("*")) if DEVFREQ.exists() else []:
        if re.search(r"gpu|ga10b|gv11b|gb10|gpc", folder.name):
            names = ("cur_freq", "min_freq", "max_freq")
            found[folder.name] = {
                name: (folder / name).read_text().strip() for name in names if (folder / name).exists()
            }
    return found or None


def device_folder(found: Found) -> str:
    """results/<this>: the board's name where it has one (all Orins call their GPU "Orin"), else the GPU's."""
    board = describe_machine()["board"]
    return re.sub(r"[^a-z0-9]+", "-", str(board or found.name).lower()).strip("-")


def version_of(package: str) -> str | None:
    """Of an installed package."""
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def answer(*command: str) -> str:
    """What a program prints; "" if it is missing, fails or hangs."""
    try:
        return subprocess.run(command, capture_output=True, text=True, timeout=20, check=True).stdout.strip()
    except (OSError, subprocess.SubprocessError, UnicodeDecodeError):
        return ""
