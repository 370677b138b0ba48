"""Tests that every kernel compiles with nvcc for the chips we name, and has the registers of its header comment."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

import pytest

from edgedistill.compile.cuda.nvcc import PINNED_FLAGS

from .cuda_emulation import FOLDERS, KERNELS

CHIPS = ("sm_87", "sm_90", "sm_110")  # Orin, Hopper, Thor
STRICT = ("-std=c++17", "--Werror", "all-warnings", "-Xptxas", "-v")
SOURCES = ("attention_step", "append")
MOST_REGISTERS = {  # most registers of a thread, so that a block fits into the 65,536 of a multiprocessor
    "ed_attention_step": 64,
    "ed_append": 64,
}


@dataclass(frozen=True)
class Kernel:
    """Holds what ptxas reports of one kernel."""

    name: str
    chip: str
    registers: int
    shared: int  # static, bytes
    spilled: int  # bytes, stores and loads
    stack: int


def nvcc() -> str:
    """Returns the path of nvcc; skips the test where there is none."""
    roots = [os.environ.get("CUDA_HOME"), "/usr/local/cuda"]
    found = shutil.which("nvcc") or next((p for r in roots if r and (p := shutil.which(f"{r}/bin/nvcc"))), None)
    return found or pytest.skip("nvcc is not installed")


def compiled(folder: Path, source: Path, options: tuple[str, ...] = ()) -> list[Kernel]:
    """Compiles the kernels of a source for all CHIPS, and the host code that launches them. A warning is an error."""
    chips = [f"-gencode=arch=compute_{chip[3:]},code={chip}" for chip in CHIPS]
    include = [f"-I{path}" for path in (folder, *FOLDERS)]
    output = ("-c", "-o", str(folder / f"{source.stem}.o"))
    command = [nvcc(), *STRICT, *PINNED_FLAGS, *chips, *include, *options, *output, str(source)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-6000:]
    return read_ptxas(done.stderr)


def read_ptxas(said: str) -> list[Kernel]:
    found = []
    for part in re.split(r"Compiling entry function ", said)[1:]:
        name, chip = re.match(r"'(\w+)' for '(\w+)'", part).groups()  # type: ignore[union-attr]
        numbers = [
            sum(map(int, re.findall(pattern, part)))
            for pattern in (r"Used (\d+) registers", r"(\d+) bytes smem", r"(\d+) bytes spill", r"(\d+) bytes stack")
        ]
        found.append(Kernel(name, chip, *numbers))
    return found


@pytest.mark.parametrize("source", SOURCES)
def test_compiles_for_every_chip_without_a_spill(tmp_path: Path, source: str) -> None:
    kernels = compiled(tmp_path, KERNELS / f"cuda/{source}.cu")
    assert {kernel.chip for kernel in kernels} == set(CHIPS)
    for kernel in kernels:
        assert (kernel.spilled, kernel.stack) == (0, 0), kernel
        assert kernel.registers <= MOST_REGISTERS[kernel.name], kernel
        assert kernel.shared <= 48 << 10, kernel


def test_reads_what_ptxas_says() -> None:
    said = """
ptxas info    : Compiling entry function 'ed_one' for 'sm_87'
    16 bytes stack frame, 4 bytes spill stores, 8 bytes spill loads
ptxas info    : Used 44 registers, used 1 barriers, 4176 bytes smem, 448 bytes cmem[0]
ptxas info    : Compiling entry function 'ed_two' for 'sm_110'
    0 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads
ptxas info    : Used 58 registers, used 1 barriers
"""
    assert read_ptxas(said) == [
        Kernel("ed_one", "sm_87", registers=44, shared=4176, spilled=12, stack=16),
        Kernel("ed_two", "sm_110", registers=58, shared=0, spilled=0, stack=0),
    ]
