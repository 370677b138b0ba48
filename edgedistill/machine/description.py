"""Describes the machine that a figure was measured on, as a plain dict.

A latency means little without the device, so every result contains this description.
"""

from __future__ import annotations

import os
import platform
from importlib import metadata

from edgedistill import __version__
from edgedistill.machine.jetson import read_power_mode
from edgedistill.machine.processor import count_cores, read_cpu_model
from edgedistill.machine.system_files import read_system_file

PACKAGES = ("numpy", "onnxruntime", "tensorrt")


def describe_machine() -> dict[str, object]:
    """Returns processor, cores, clock governor, system and versions, and how busy the machine is at this moment.

    The keys are those of "device" in `edgedistill bench --json`. A fact that is unknown is None.
    """
    return {
        "cpu": read_cpu_model(),
        "cores": count_cores(),
        "governor": read_system_file("/sys/devices/system/cpu/cpu0/cpufreq/scaling_governor"),
        "board": read_system_file("/proc/device-tree/model"),
        "power_mode": read_power_mode(),
        "architecture": platform.machine(),
        "os": platform.platform(),
        "threads": 1,  # every engine computes a step on one thread
        "versions": {"edgedistill": __version__, "python": platform.python_version()}
        | {name: read_package_version(name) for name in PACKAGES},
        "load": [round(part, 2) for part in os.getloadavg()] if hasattr(os, "getloadavg") else None,
    }


def read_package_version(name: str) -> str | None:
    """Returns the version of an installed Python package without importing it, or None if it is not installed."""
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None
