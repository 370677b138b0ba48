"""Describes this machine's processor with the names and numbers that the system reports.

A library that was compiled for another processor ends the process at the first instruction that this one lacks. These
facts are therefore read before a library is loaded, and when a target says `ops = "native"`.
"""

from __future__ import annotations

import os
import platform
from functools import lru_cache
from pathlib import Path

from edgedistill.machine.system_files import read_system_file

CPUINFO = Path("/proc/cpuinfo")
ALIASES = {"amd64": "x86_64", "arm64": "aarch64"}


def read_architecture() -> str:
    """Returns the architecture as compilers name it, such as "x86_64" or "aarch64"."""
    machine = platform.machine().lower()
    return ALIASES.get(machine, machine)


def read_cpu_features() -> frozenset[str]:
    """Returns the extensions of the instruction set as Linux names them, such as "avx512_vnni" or "asimddp".

    On a machine with different cores (big.LITTLE) these are the extensions that every core has. The set is empty where
    Linux lists none.
    """
    return _features(CPUINFO)


@lru_cache(maxsize=4)
def _features(path: Path) -> frozenset[str]:
    found = [frozenset(value.split()) for key, value in _cpuinfo(path) if key in ("flags", "Features")]
    return frozenset.intersection(*found) if found else frozenset()


def read_cpu_model() -> str | None:
    """Returns the name that the processor reports, such as "AMD EPYC 9B14". Arm processors often report none."""
    names = (value for key, value in _cpuinfo(CPUINFO) if key in ("model name", "Model", "Hardware") and value)
    return next(names, None) or platform.processor() or None


def count_cores() -> int:
    """Returns how many cores this process may use. A container or taskset may allow fewer than the machine has."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _cpuinfo(path: Path) -> list[tuple[str, str]]:
    """Returns the keys and values of all cores in order."""
    pairs = (line.partition(":") for line in (read_system_file(path) or "").splitlines())
    return [(key.strip(), value.strip()) for key, _, value in pairs]
