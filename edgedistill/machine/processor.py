"""What this machine's processor is and can do, from the system: nothing goes in, names come out.

A library that was compiled for another processor ends the process at its first foreign instruction, so this is asked
before one is loaded, and when the target says `ops = "native"`.
"""

from __future__ import annotations

import platform
from functools import lru_cache
from pathlib import Path

CPUINFO = Path("/proc/cpuinfo")
ALIASES = {"amd64": "x86_64", "arm64": "aarch64"}


def architecture() -> str:
    """As compilers name it: "x86_64", "aarch64", ..."""
    machine = platform.machine().lower()
    return ALIASES.get(machine, machine)


def cpu_features() -> frozenset[str]:
    """Extensions of the instruction set as Linux names them ("avx512_vnni", "asimddp"); empty where it says nothing.

    On a machine of different cores (big.LITTLE) those that every core has.
    """
    return _features(CPUINFO)


@lru_cache(maxsize=4)
def _features(path: Path) -> frozenset[str]:
    try:
        lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return frozenset()
    pairs = (line.partition(":") for line in lines)
    found = [frozenset(names.split()) for key, _, names in pairs if key.strip() in ("flags", "Features")]
    return frozenset.intersection(*found) if found else frozenset()
