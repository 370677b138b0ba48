"""Finds the nvcc that a target's table [cuda] names, and runs it.

A Target and a chip go in. An Nvcc comes out, whose version is known and which supports the chip. Flags that fix the
arithmetic come last, so that nothing in a target's file can undo them.
"""

from __future__ import annotations

import os
import shlex
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from edgedistill.compile.commands import run_command
from edgedistill.errors import DeviceError, EngineError, did_you_mean
from edgedistill.machine.programs import ask_program
from edgedistill.target import Cuda, Target

USUAL = Path("/usr/local/cuda/bin")  # where NVIDIA's installers put nvcc, which is not on the PATH
JETSON = Path("/etc/nv_tegra_release")
BASE_FLAGS = ("-std=c++17", "-O3")
# Every operation is rounded, also roots and divisions. No operations are fused, and denormals are kept
# (docs/numerics.md).
PINNED_FLAGS = ("--fmad=false", "--prec-div=true", "--prec-sqrt=true", "--ftz=false")
APPENDED = "NVCC_APPEND_FLAGS"  # an environment variable whose flags nvcc reads after its command line
OLDEST_CHIP = 75  # Turing, the oldest chip that nvcc 13 compiles for


@dataclass(frozen=True)
class Nvcc:
    """Holds NVIDIA's compiler on this machine, for one chip."""

    target: str  # name of the target
    command: str  # path of nvcc
    version: str  # of the CUDA toolkit, such as "13.0"
    chip: str  # "sm_87"
    own_flags: tuple[str, ...]  # from the target's file

    @property
    def flags(self) -> tuple[str, ...]:
        """Returns all flags with which a kernel is compiled."""
        return (*BASE_FLAGS, f"-arch={self.chip}", *self.own_flags, *PINNED_FLAGS)

    @property
    def includes(self) -> tuple[str, ...]:
        """Returns the options by which another compiler finds cuda.h, or none if nvcc does not print them."""
        printed = ask_program(self.command, "--dryrun", "any.cu", on_stderr=True)
        lines = (line.partition("INCLUDES=") for line in printed if line.startswith("#$ INCLUDES="))
        return tuple(option for _, _, options in lines for option in shlex.split(options))

    def compile_cubin(self, folder: Path, source: str, output: str, options: Sequence[str]) -> None:
        """Compiles a kernel to machine code of the chip. Names are relative to `folder`.

        Raises EngineError with nvcc's first error line.
        """
        command = (self.command, *self.flags, *options, "-cubin", source, "-o", output)
        appended = " ".join((os.environ.get(APPENDED, ""), *PINNED_FLAGS))
        run_command(
            folder, command, lambda first_error: self._command_error(command, first_error), **{APPENDED: appended}
        )

    def _command_error(self, command: Sequence[str], first_error: str) -> EngineError:
        return EngineError(
            f"compiling the kernel of target '{self.target}' for {self.chip} failed",
            got=first_error,
            expected=f"this command to succeed: {' '.join(command)}",
            causes=(
                f"CUDA {self.version} does not work with this machine's C++ compiler: see its release notes",
                "`flags` in [cuda] of the target's file hold one that nvcc does not know",
            ),
            next_step="edgedistill doctor",
        )


def find_nvcc(target: Target, chip: str) -> Nvcc:
    """Finds the nvcc of a target.

    Raises DeviceError, which names the package to install, where nvcc is missing. Raises EngineError where nvcc does
    not support the chip.
    """
    cuda = target.cuda or Cuda()
    command = nvcc_path(cuda.nvcc)
    printed = ask_program(command, "--version") if command else []
    version = next((line.split("release ")[1].split(",")[0] for line in printed if "release " in line), "")
    if command is None or not version:
        raise _missing_nvcc_error(target.name, cuda.nvcc, command)
    known = [line for line in ask_program(command, "--list-gpu-code") if line.startswith("sm_")]
    if known and chip not in known:
        raise EngineError(
            f"the nvcc of this machine does not compile for {chip}",
            got=f"CUDA {version}, {command}",
            expected=did_you_mean(chip, known),
            causes=_causes_of_unknown_chip(chip),
            next_step='name another nvcc in [cuda] of the target\'s file: nvcc = "/usr/local/cuda-VERSION/bin/nvcc"',
        )
    return Nvcc(target.name, command, version, chip, cuda.flags)


def nvcc_path(name: str) -> str | None:
    """Returns the path of the program, which is on the PATH or where NVIDIA's installers put it, or None."""
    usual = USUAL / name
    return shutil.which(name) or (str(usual) if os.access(usual, os.X_OK) else None)


def install_step() -> str:
    """Returns the command that installs nvcc on this machine."""
    if JETSON.exists():
        return "sudo apt install nvidia-jetpack   (JetPack's CUDA toolkit; cuda-toolkit-12-6 alone is smaller)"
    return "sudo apt install nvidia-cuda-toolkit   (Debian, Ubuntu), or developer.nvidia.com/cuda-downloads"


def _missing_nvcc_error(target: str, name: str, found: str | None) -> DeviceError:
    return DeviceError(
        f"target '{target}' needs NVIDIA's compiler '{name}'",
        got="no such command on this machine" if found is None else f"{found}, which does not print its release",
        expected=f"nvcc of CUDA 12 or later, on the PATH, in {USUAL}, or named in [cuda] of the target's file",
        next_step=install_step(),
    )


def _causes_of_unknown_chip(chip: str) -> tuple[str, ...]:
    number = chip.removeprefix("sm_")
    if number.isdecimal() and int(number) < OLDEST_CHIP:
        return (f"{chip} is older than sm_{OLDEST_CHIP} (Turing), the oldest that CUDA 13 knows",)
    return ("the GPU is newer than this nvcc", "sm_110 (Thor) is called sm_101 by CUDA 12")
