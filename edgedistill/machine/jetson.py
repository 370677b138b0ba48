"""What a Jetson says of itself: board, JetPack, power mode, and the TensorRT library that is installed.

Nothing goes in, plain texts come out; a fact that this machine does not tell is None. Asked of files and of packages,
so that neither TensorRT nor a GPU is needed to find out that one of them is missing.
"""

from __future__ import annotations

import ctypes
import re
import subprocess
from pathlib import Path

MODEL, RELEASE = Path("/proc/device-tree/model"), Path("/etc/nv_tegra_release")
MAJORS = (11, 10)  # of libnvinfer that this version knows
# Jetson Linux (L4T) -> JetPack, where the package nvidia-jetpack is not installed to ask
JETPACK_OF_L4T = {
    "36.3": "6.0",
    "36.4.0": "6.1",
    "36.4.3": "6.2",
    "36.4.4": "6.2.1",
    "38.2": "7.0",
    "38.4": "7.1",
}
OF_MAJOR = {32: "4", 34: "5.0", 35: "5.1", 36: "6.2", 38: "7.1"}  # a release unknown here: about


def board() -> str | None:
    """The board's name, of a Jetson only."""
    return _read(MODEL) if RELEASE.exists() else None


def jetpack_version() -> str | None:
    """Such as 6.1: of the package nvidia-jetpack, or by the release of Jetson Linux. None on other machines."""
    told = _answer("dpkg-query", "-W", "-f", "${Version}", "nvidia-jetpack")
    if found := re.match(r"\d+(\.\d+)+", told):
        return found[0]
    return jetpack_of(_read(RELEASE) or "")


def jetpack_of(release: str) -> str | None:
    """The JetPack of a line like "# R36 (release), REVISION: 4.3, ..."; by the major version for one unknown."""
    found = re.search(r"R(\d+) \(release\), REVISION: ([\d.]+)", release)
    if found is None:
        return None
    l4t = f"{found[1]}.{found[2]}"
    known = (jetpack for name, jetpack in JETPACK_OF_L4T.items() if l4t in (name, f"{name}.0"))
    return next(known, OF_MAJOR.get(int(found[1])))


def power_mode() -> str | None:
    """The name of nvpmodel's mode, such as "25W" or "MAXN": modes are counted differently on every board."""
    found = re.search(r"Power Mode: *(\S+)", _answer("nvpmodel", "-q"))
    return found[1] if found else None


def tensorrt_version() -> str | None:
    """Such as 10.3.0: of the library itself, the newest major version that is installed."""
    for major in MAJORS:
        if (version := version_of_library(f"libnvinfer.so.{major}")) is not None:
            return version
    return None


def version_of_library(name: str) -> str | None:
    """What a libnvinfer says of itself; None where it is not installed or is none."""
    try:
        number = int(ctypes.CDLL(name).getInferLibVersion())
    except (OSError, AttributeError):
        return None
    return f"{number // 10000}.{number // 100 % 100}.{number % 100}"


def three_parts(version: str) -> str:
    """A version as plans depend on it: "10.13.3" of "10.13.3.9"."""
    return ".".join(version.split(".")[:3])


def _answer(*command: str) -> str:
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=10, check=True)
    except (OSError, subprocess.SubprocessError):
        return ""
    return done.stdout


def _read(path: Path) -> str | None:
    try:
        return path.read_text(encoding="utf-8", errors="replace").strip().strip("\0") or None
    except OSError:
        return None
