"""Examines what this machine has and lacks, and returns a list of checks.

Each check says what was found, which command needs it, and the command that installs it. Packages are looked up without
importing them, because torch alone takes seconds. Nothing is changed. A missing GPU is no failure, because only the
targets that name a GPU need one.
"""

from __future__ import annotations

import platform
import shutil
import sys
from dataclasses import asdict, dataclass
from pathlib import Path

from edgedistill.compile.cuda.nvcc import install_step, nvcc_path
from edgedistill.errors import DeviceError
from edgedistill.machine import jetson
from edgedistill.machine.description import read_package_version
from edgedistill.machine.gpu import find_gpu
from edgedistill.machine.processor import count_cores
from edgedistill.machine.programs import ask_program
from edgedistill.machine.system_files import read_system_file
from edgedistill.target import Target, all_targets

MIN_PYTHON = (3, 10)
MIN_FREE_GB = 5  # enough for sessions and for a build with its cache and its checkpoints

HEADERS = (  # the places where Debian's packages and NVIDIA's archives put the headers of TensorRT
    "/usr/include/aarch64-linux-gnu/NvInferRuntime.h",
    "/usr/include/x86_64-linux-gnu/NvInferRuntime.h",
    "/usr/include/NvInferRuntime.h",
)

# Package, the commands that stop without it, and the extra that installs it ("" where every installation has it).
PACKAGES = (
    ("numpy", "every command", ""),
    ("scipy", "every command", ""),
    ("click", "every command", ""),
    ("rich", "every command", ""),
    ("safetensors", "build, run, bench", ""),
    ("pynwb", "simulate, inspect, pretrain, distill, build, run on a .nwb file", "train"),
    ("torch", "pretrain, distill, build", "train"),
    ("onnx", "build", "train"),
    ("onnxsim", "build", "train"),
    ("onnxruntime", "build, run, bench", "train"),
    ("matplotlib", "the pictures of demo and benchmarks", "train"),
)


@dataclass(frozen=True)
class Check:
    """Describes one item that was looked for.

    `fix` is a command or an instruction, or None if nothing has to be done.
    """

    name: str
    ok: bool
    found: str
    needed_for: str
    fix: str | None
    required: bool = True  # False if only some targets or only faster training need it

    def to_json(self) -> dict[str, object]:
        """Returns the check as `doctor --json` prints it."""
        return asdict(self)


def examine(folder: Path | str = ".") -> list[Check]:
    """Examines this machine. The free space is measured in `folder`, where results would be written."""
    packages = [_package(name, needed_for, extra) for name, needed_for, extra in PACKAGES]
    return [_python(), *packages, _cores(), _free_disk(Path(folder)), *_compilers(), *_device_tools()]


def is_healthy(checks: list[Check]) -> bool:
    """Returns whether this machine has everything that the commands need on every machine."""
    return all(check.ok for check in checks if check.required)


def _python() -> Check:
    ok = sys.version_info >= MIN_PYTHON
    fix = None if ok else f"install Python {'.'.join(map(str, MIN_PYTHON))} or later"
    return Check("python", ok, platform.python_version(), "every command", fix)


def _package(name: str, needed_for: str, extra: str) -> Check:
    source = f"'.[{extra}]'" if extra else "--force-reinstall ."
    fix = f"pip install -c constraints.txt {source}   (in the checkout of edgedistill)"
    version = read_package_version(name)
    return Check(name, version is not None, version or "not installed", needed_for, None if version else fix)


def _cores() -> Check:
    cores = count_cores()
    fix = None if cores >= 2 else "give this machine or container a second core; with one, training works but is slow"
    return Check("cores", cores >= 2, str(cores), "pretrain, distill, build in reasonable time", fix, required=False)


def _free_disk(folder: Path) -> Check:
    existing = next(path for path in (folder.absolute(), *folder.absolute().parents) if path.exists())
    free_gb = shutil.disk_usage(existing).free / 1e9
    ok = free_gb >= MIN_FREE_GB
    fix = None if ok else f"free {MIN_FREE_GB} GB there, or pass an --out on another disk"
    return Check("free disk", ok, f"{free_gb:.1f} GB at {existing}", "simulate, build", fix)


def _compilers() -> list[Check]:
    """Checks the C compilers that the targets name. Only the compiler of the target `host` is required everywhere."""
    users: dict[str, list[Target]] = {}
    for target in all_targets():
        if target.compiler is not None:
            users.setdefault(target.compiler.command, []).append(target)
    return [
        _tool(
            command,
            _first_line(shutil.which(command)),
            f"compile and build for {', '.join(target.name for target in targets)}",
            f"sudo apt install {' '.join(_packages(targets))}",
            required=any(target.name == "host" for target in targets),
        )
        for command, targets in users.items()
    ]


def _packages(targets: list[Target]) -> list[str]:
    named = (target.compiler.debian_package.split() for target in targets if target.compiler is not None)
    return sorted({package for packages in named for package in packages})


def _device_tools() -> list[Check]:
    compiling = "compile for cuda and for a Jetson"
    running = "run and bench on cuda or a Jetson; faster training, for which a CPU is enough"
    return [
        _tool("nvcc", _last_line(nvcc_path("nvcc")), compiling, install_step()),
        _tool("gpu driver", _gpu_driver(), running, "install the NVIDIA driver, where there is an NVIDIA GPU"),
        *_jetson_tools(),
    ]


def _jetson_tools() -> list[Check]:
    """Checks what `compile --target jetson` needs beyond CUDA. The board needs it, the machine that builds does not."""
    compiling, running = "compile for a Jetson, on the board", "run and bench on a Jetson"
    headers = next((path for path in HEADERS if Path(path).exists()), None)
    names = ("tensorrt", "tensorrt-cu12", "tensorrt-cu13")  # NVIDIA names the package by its CUDA
    tensorrt = next(filter(None, map(read_package_version, names)), None)
    return [
        _jetpack(running),
        _tool("tensorrt", jetson.read_tensorrt_version(), running, "on the board: sudo apt install tensorrt"),
        _tool(
            "tensorrt for python",
            tensorrt,
            compiling,
            "on the board: sudo apt install python3-libnvinfer, and python3 -m venv --system-site-packages",
        ),
        _tool("tensorrt headers", headers, compiling, "on the board: sudo apt install libnvinfer-headers-dev"),
        _tool("cmake", _first_line(shutil.which("cmake")), compiling, "sudo apt install cmake"),
    ]


def _jetpack(needed_for: str) -> Check:
    """Checks the JetPack of a Jetson. The text of what was found also names the board and its power mode."""
    found = jetson.read_jetpack_version()
    if found is None:
        fix = "on a Jetson, which alone needs it: sudo apt install nvidia-jetpack"
        return Check("jetpack", False, "not found", needed_for, fix, required=False)
    summary = ", ".join(filter(None, (found, jetson.read_board(), jetson.read_power_mode())))
    known = [target.jetpack for target in all_targets() if target.jetpack is not None]
    if all(versions.is_before(found) for versions in known):
        oldest = min((versions.oldest for versions in known), key=lambda version: [*map(int, version.split("."))])
        fix = f"install JetPack {oldest} or later (developer.nvidia.com/embedded/jetpack)"
        return Check("jetpack", False, f"{summary}: too old", needed_for, fix, required=False)
    return Check("jetpack", True, summary, needed_for, None, required=False)


def _tool(name: str, found: str | None, needed_for: str, fix: str, required: bool = False) -> Check:
    return Check(name, bool(found), found or "not found", needed_for, None if found else fix, required)


def _gpu_driver() -> str | None:
    try:
        gpu = find_gpu()
    except DeviceError:
        return None
    # The driver of a Jetson is a part of Jetson Linux, so the release of Jetson Linux is reported with it.
    release = (read_system_file("/etc/nv_tegra_release") or "").partition(",")[0].lstrip("# ")
    return ", ".join(filter(None, (gpu.name, gpu.chip, f"driver for CUDA {gpu.cuda}", release)))


def _first_line(program: str | None) -> str | None:
    return next(iter(_version_lines(program)), None)


def _last_line(program: str | None) -> str | None:
    return next(reversed(_version_lines(program)), None)


def _version_lines(program: str | None) -> list[str]:
    """Returns what a program prints with --version, or nothing if there is no such program."""
    return ask_program(program, "--version") if program else []
