"""What this machine has and lacks: nothing goes in, a list of checks comes out.

Each check says what was found, which command needs it, and the command that fixes it. Nothing is
imported to be found (torch alone takes seconds), nothing is changed, and a missing GPU is no failure:
it is only needed for what names it.
"""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
import sys
from dataclasses import asdict, dataclass
from importlib import metadata
from pathlib import Path

from edgedistill.compile.cuda.nvcc import install_step, nvcc_path
from edgedistill.errors import DeviceError
from edgedistill.machine import jetson
from edgedistill.machine.gpu import find_gpu
from edgedistill.target import Target, all_targets

MIN_PYTHON = (3, 10)
MIN_FREE_GB = 5  # a build with its cache, its sessions and its checkpoints

HEADERS = (  # where Debian's packages and NVIDIA's archives put TensorRT's
    "/usr/include/aarch64-linux-gnu/NvInferRuntime.h",
    "/usr/include/x86_64-linux-gnu/NvInferRuntime.h",
    "/usr/include/NvInferRuntime.h",
)

# package, the commands that stop without it, the extra that brings it ("" is the core)
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
    """One thing looked for. `fix` is a command or an instruction, None when nothing is to be done."""

    name: str
    ok: bool
    found: str
    needed_for: str
    fix: str | None
    required: bool = True  # False: only for other devices than this machine, and for planned ones

    def to_json(self) -> dict[str, object]:
        """The check as it stands in `doctor --json`."""
        return asdict(self)


def examine(folder: Path | str = ".") -> list[Check]:
    """Look this machine over; free space is that of `folder`, where results would go."""
    packages = [_package(name, needed_for, extra) for name, needed_for, extra in PACKAGES]
    return [_python(), *packages, _cores(), _free_disk(Path(folder)), *_compilers(), *_device_tools()]


def healthy(checks: list[Check]) -> bool:
    """Whether everything that this version's commands need is there."""
    return all(check.ok for check in checks if check.required)


def _python() -> Check:
    ok = sys.version_info >= MIN_PYTHON
    wanted = ".".join(map(str, MIN_PYTHON))
    return Check("python", ok, platform.python_version(), "every command", None if ok else f"install Python {wanted}")


def _package(name: str, needed_for: str, extra: str) -> Check:
    source = f"'.[{extra}]'" if extra else "--force-reinstall ."
    fix = f"pip install -c constraints.txt {source}   (in the checkout of edgedistill)"
    try:
        return Check(name, True, metadata.version(name), needed_for, None)
    except metadata.PackageNotFoundError:
        return Check(name, False, "not installed", needed_for, fix)


def _cores() -> Check:
    # A container or taskset may leave fewer cores than the machine has.
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    fix = None if cores >= 2 else "give this machine or container a second core; training works, slowly"
    return Check("cores", cores >= 2, str(cores), "pretrain, distill, build in reasonable time", fix, required=False)


def _free_disk(folder: Path) -> Check:
    existing = next(path for path in (folder.absolute(), *folder.absolute().parents) if path.exists())
    free_gb = shutil.disk_usage(existing).free / 1e9
    ok = free_gb >= MIN_FREE_GB
    fix = None if ok else f"free {MIN_FREE_GB} GB there, or pass an --out on another disk"
    return Check("free disk", ok, f"{free_gb:.1f} GB at {existing}", "simulate, build", fix)


def _compilers() -> list[Check]:
    """Those that the targets name; only that of this machine itself is needed on every one."""
    users: dict[str, list[Target]] = {}
    for target in all_targets():
        if target.compiler is not None:
            users.setdefault(target.compiler.command, []).append(target)
    return [
        _tool(
            command,
            _first_line(shutil.which(command), "--version"),
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
        _tool("nvcc", _last_line(nvcc_path("nvcc"), "--version"), compiling, install_step()),
        _tool("gpu driver", _gpu_driver(), running, "install the NVIDIA driver, where there is an NVIDIA GPU"),
        *_jetson_tools(),
    ]


def _jetson_tools() -> list[Check]:
    """What `compile --target jetson` takes beyond CUDA, on the board itself; a bundle is built without any of it."""
    compiling, running = "compile for a Jetson, on the board", "run and bench on a Jetson"
    headers = next((path for path in HEADERS if Path(path).exists()), None)
    tensorrt = _version_of("tensorrt", "tensorrt-cu12", "tensorrt-cu13")
    return [
        _jetpack(running),
        _tool("tensorrt", jetson.tensorrt_version(), running, "on the board: sudo apt install tensorrt"),
        _tool(
            "tensorrt for python",
            tensorrt,
            compiling,
            "on the board: sudo apt install python3-libnvinfer, and python3 -m venv --system-site-packages",
        ),
        _tool("tensorrt headers", headers, compiling, "on the board: sudo apt install libnvinfer-headers-dev"),
        _tool("cmake", _first_line(shutil.which("cmake"), "--version"), compiling, "sudo apt install cmake"),
    ]


def _jetpack(needed_for: str) -> Check:
    """Release, board and power mode."""
    found = jetson.jetpack_version()
    if found is None:
        fix = "none is needed elsewhere; on a Jetson: sudo apt install nvidia-jetpack"
        return Check("jetpack", False, "not found", needed_for, fix, required=False)
    told = ", ".join(filter(None, (found, jetson.board(), jetson.power_mode())))
    known = [target.jetpack for target in all_targets() if target.jetpack is not None]
    if all(versions.is_before(found) for versions in known):
        oldest = min((versions.oldest for versions in known), key=lambda version: [*map(int, version.split("."))])
        fix = f"install JetPack {oldest} or later (developer.nvidia.com/embedded/jetpack)"
        return Check("jetpack", False, f"{told}: too old", needed_for, fix, required=False)
    return Check("jetpack", True, told, needed_for, None, required=False)


def _tool(name: str, found: str | None, needed_for: str, fix: str, required: bool = False) -> Check:
    return Check(name, bool(found), found or "not found", needed_for, None if found else fix, required)


def _gpu_driver() -> str | None:
    try:
        gpu = find_gpu()
    except DeviceError:
        return None
    board = _read("/etc/nv_tegra_release").partition(",")[0].lstrip("# ")  # a Jetson: its driver is part of JetPack
    return ", ".join(filter(None, (gpu.name, gpu.chip, f"driver for CUDA {gpu.cuda}", board)))


def _version_of(*names: str) -> str | None:
    versions = {dist.name: dist.version for dist in metadata.distributions()}
    return next((versions[name] for name in names if name in versions), None)


def _first_line(program: str | None, *options: str) -> str | None:
    lines = _output(program, *options).splitlines()
    return lines[0] if lines else None


def _last_line(program: str | None, *options: str) -> str | None:
    lines = _output(program, *options).splitlines()
    return lines[-1] if lines else None


def _output(program: str | None, *options: str) -> str:
    """What a program says about itself; nothing when it is absent, fails or hangs."""
    if program is None:
        return ""
    try:
        answer = subprocess.run([program, *options], capture_output=True, text=True, timeout=10, check=True)
    except (OSError, subprocess.SubprocessError):
        return ""
    return answer.stdout.strip()


def _read(path: str) -> str:
    try:
        return Path(path).read_text(encoding="utf-8")
    except OSError:
        return ""
