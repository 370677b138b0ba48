"""Which machine a figure was measured on: nothing goes in, a plain dict comes out.

A latency belongs to the device that gave it, so every result carries this beside it. What cannot be found out
is None, never a guess.
"""

from __future__ import annotations

import os
import platform
import subprocess
from importlib import metadata
from pathlib import Path

from edgedistill import __version__

PACKAGES = ("numpy", "onnxruntime", "tensorrt")


def describe_machine() -> dict[str, object]:
    """CPU, cores this process may use, clock governor, system, versions, and how busy the machine is now."""
    return {
        "cpu": cpu_model(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "governor": _text("/sys/devices/system/cpu/cpu0/cpufreq/scaling_governor"),
        "board": _text("/proc/device-tree/model"),
        "power_mode": power_mode(),
        "architecture": platform.machine(),
        "os": platform.platform(),
        "threads": 1,  # of a step
        "versions": {"edgedistill": __version__, "python": platform.python_version()} | _versions(),
        "load": [round(part, 2) for part in os.getloadavg()] if hasattr(os, "getloadavg") else None,
    }


def power_mode() -> str | None:
    """The name of a Jetson's power mode, which sets its clocks; None elsewhere."""
    try:
        told = subprocess.run(["nvpmodel", "-q"], capture_output=True, text=True, timeout=10, check=True).stdout
    except (OSError, subprocess.SubprocessError):
        return None
    return next((line.partition(":")[2].strip() for line in told.splitlines() if "Power Mode" in line), None)


def cpu_model() -> str | None:
    """The name the processor gives itself; on Arm it often has none."""
    for line in (_text("/proc/cpuinfo") or "").splitlines():
        key, _, value = line.partition(":")
        if key.strip() in ("model name", "Model", "Hardware") and value.strip():
            return value.strip()
    return platform.processor() or None


def _versions() -> dict[str, str | None]:
    return {name: _version(name) for name in PACKAGES}


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _text(path: str) -> str | None:
    try:
        return Path(path).read_text(encoding="utf-8", errors="replace").strip().strip("\0") or None
    except OSError:
        return None
