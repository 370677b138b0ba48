"""Asks a Jetson for its board, its JetPack, its power mode, and the TensorRT library that is installed.

Each fact is a plain text, or None if this machine does not have it. The facts come from files, packages and programs,
so that the functions work on a machine without TensorRT or a GPU.
"""

from __future__ import annotations

import ctypes
import re
from pathlib import Path

from edgedistill.machine.programs import ask_program
from edgedistill.machine.system_files import read_system_file

MODEL, RELEASE = Path("/proc/device-tree/model"), Path("/etc/nv_tegra_release")
MAJORS = (11, 10)  # major versions of libnvinfer that this version of edgedistill knows
# The JetPack that a release of Jetson Linux (L4T) belongs to, for boards without the package nvidia-jetpack.
JETPACK_OF_L4T = {
    "36.3": "6.0",
    "36.4.0": "6.1",
    "36.4.3": "6.2",
    "36.4.4": "6.2.1",
    "38.2": "7.0",
    "38.4": "7.1",
}
# The JetPack that most releases of a major version belong to, for releases that are not in the table above.
JETPACK_OF_MAJOR = {32: "4", 34: "5.0", 35: "5.1", 36: "6.2", 38: "7.1"}


def read_board() -> str | None:
    """Returns the name of the board, such as "NVIDIA Jetson Orin Nano", or None if this machine is not a Jetson."""
    return read_system_file(MODEL) if RELEASE.exists() else None


def read_jetpack_version() -> str | None:
    """Returns the version of JetPack, such as "6.1", or None on other machines.

    The package nvidia-jetpack has the exact version. If it is not installed, the version follows from the release of
    Jetson Linux.
    """
    told = "".join(ask_program("dpkg-query", "-W", "-f", "${Version}", "nvidia-jetpack"))
    if found := re.match(r"\d+(\.\d+)+", told):
        return found[0]
    return jetpack_from_release(read_system_file(RELEASE) or "")


def jetpack_from_release(release: str) -> str | None:
    """Returns the JetPack that a line like "# R36 (release), REVISION: 4.3, ..." belongs to.

    An unknown revision gives the usual JetPack of its major version, or None if that is unknown too.
    """
    found = re.search(r"R(\d+) \(release\), REVISION: ([\d.]+)", release)
    if found is None:
        return None
    l4t = f"{found[1]}.{found[2]}"
    known = (jetpack for name, jetpack in JETPACK_OF_L4T.items() if l4t in (name, f"{name}.0"))
    return next(known, JETPACK_OF_MAJOR.get(int(found[1])))


def read_power_mode() -> str | None:
    """Returns the name of the power mode that nvpmodel has set, such as "25W" or "MAXN", or None on other machines.

    The mode sets the clocks. It is reported by name, because the numbers of the modes differ between boards.
    """
    found = re.search(r"Power Mode: *(.*\S)", "\n".join(ask_program("nvpmodel", "-q")))
    return found[1] if found else None


def read_tensorrt_version() -> str | None:
    """Returns the version of the newest TensorRT library that is installed, such as "10.3.0", or None without one."""
    for major in MAJORS:
        if (version := read_library_version(f"libnvinfer.so.{major}")) is not None:
            return version
    return None


def read_library_version(name: str) -> str | None:
    """Returns the version that a libnvinfer reports, or None if it is not installed or is another library."""
    try:
        number = int(ctypes.CDLL(name).getInferLibVersion())
    except (OSError, AttributeError):
        return None
    return f"{number // 10000}.{number // 100 % 100}.{number % 100}"


def shorten_version(version: str) -> str:
    """Returns the part of a TensorRT version that plans depend on, such as "10.13.3" of "10.13.3.9"."""
    return ".".join(version.split(".")[:3])
