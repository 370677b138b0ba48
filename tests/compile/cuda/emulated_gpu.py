"""Emulates a machine with a GPU: a driver, an energy counter, a compiler, and the environment in which all are found.

The driver is emulation/cuda/driver.cpp, and the energy counter nvml.cpp beside it. The compiler is a script that prints
its version as nvcc does and compiles a kernel for the emulator instead. edgedistill runs in that environment unchanged,
in a process of its own.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from edgedistill.compile.cuda.nvcc import Nvcc, nvcc_path
from edgedistill.machine.programs import ask_program

from ...compiled_once import run_compiler

ROOT = Path(__file__).parents[3]
DRIVER = ROOT / "emulation" / "cuda" / "driver.cpp"
NVCC = """#!/bin/sh
case "$1" in
--version) echo "Cuda compilation tools, release ${FAKE_CUDA:-13.0}, V13.0.88"; exit ;;
--list-gpu-code) echo sm_87; echo sm_90; exit ;;
--dryrun) echo '#$ INCLUDES="@INCLUDES@" ' >&2; exit ;;
esac
for word; do
    shift
    case "$word" in
    -arch=* | --fmad=false | --prec-* | --ftz=false | -cubin | -O3) ;;
    *) set -- "$@" "$word" ;;
    esac
done
exec g++ -DED_EMULATED -O1 -fPIC -shared -ffp-contract=off -fno-math-errno -x c++ "$@" -I@EMULATION@
"""


class EmulatedGpu:
    """Describes a machine with an emulated GPU, whose driver and compiler lie in `folder`."""

    def __init__(self, folder: Path) -> None:
        includes = cuda_headers()
        for name in ("bin", "lib"):
            (folder / name).mkdir(parents=True)
        script = folder / "bin" / "nvcc"
        script.write_text(NVCC.replace("@INCLUDES@", " ".join(includes)).replace("@EMULATION@", str(DRIVER.parent)))
        script.chmod(0o755)
        for name, source in (("libcuda.so.1", DRIVER), ("libnvidia-ml.so.1", DRIVER.with_name("nvml.cpp"))):
            options = ("-std=c++17", "-O1", "-shared", "-fPIC", f"-Wl,-soname,{name}", *includes)
            output = folder / "lib" / name
            done = run_compiler(["g++", *options, str(source), "-o", str(output), "-ldl"], output, [source])
            assert done.returncode == 0, done.stderr
        self.env = {
            **os.environ,
            "PATH": f"{folder / 'bin'}{os.pathsep}{os.environ['PATH']}",
            "LD_LIBRARY_PATH": str(folder / "lib"),
            "OMP_NUM_THREADS": "1",
        }

    def python(self, *words: str | Path, **env: str) -> subprocess.CompletedProcess[str]:
        """Runs Python on that machine. `env` selects another chip, another driver or a fault."""
        command = [sys.executable, *map(str, words)]
        return subprocess.run(
            command, env=self.env | env, cwd=ROOT, capture_output=True, text=True, timeout=300, check=False
        )

    def edgedistill(self, *words: str | Path, code: int | tuple[int, ...] = 0, **env: str) -> dict[str, Any]:
        """Returns the JSON of a command, which must end with `code` or one of the values in it."""
        done = self.python("-m", "edgedistill", *words, "--json", **env)
        assert done.returncode in (code if isinstance(code, tuple) else (code,)), done.stdout + done.stderr
        found = json.loads(done.stdout)
        assert isinstance(found, dict)
        return found


def cuda_headers() -> tuple[str, ...]:
    """Returns the options with which <cuda.h> is found. Skips a test on a machine without a toolkit."""
    command = nvcc_path("nvcc")
    found = Nvcc("cuda", command, "", "sm_87", ()).includes if command and ask_program(command, "--version") else ()
    if not found:
        pytest.skip("no <cuda.h> on this machine: it comes with the CUDA toolkit")
    return found
