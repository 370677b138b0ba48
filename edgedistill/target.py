"""Reads the profiles of the devices that a decoder can be built for. A TOML file goes in, a frozen Target comes out.

A target names the engine that runs the decoder, the chip and the versions that it was made for, the time that a step
may take, how its engine is compiled, where the board's power is read, and the gates that a build must pass. A new
device is one new file in `targets/`. A profile may be added before its engine exists. It is then listed as planned, and
`require_buildable` refuses to build for it.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType

from edgedistill.assets import asset_folder
from edgedistill.compiler_flags import (
    C_COMPILER,
    C_FORMS,
    NVCC,
    NVCC_FORMS,
    require_flags,
    require_packages,
    require_program,
)
from edgedistill.config import load_named, names_in
from edgedistill.errors import ConfigError, did_you_mean

ENGINES = ("onnxruntime", "c", "cuda", "tensorrt")
ENGINES_AVAILABLE = ENGINES  # the engines of this version
GPU_ENGINES = ("cuda", "tensorrt")  # other machines only prepare the sources of these, and the device compiles them
STATUSES = ("available", "planned")
OPS = (
    "native",
    "scalar",
    "avx2",
    "avx512",
    "neon",
    "dsp",
    "helium",
)  # native means the fastest variant that this machine's CPU can run
LIBRARIES = ("shared", "static")  # .so for a machine with an operating system, .a for firmware
# Flags that would change results. -march=native is refused because a library that is compiled with it does not tell
# which instructions it needs, and so cannot be checked before it is loaded.
REFUSED_FLAGS = (
    *("-Ofast", "-ffast-math", "-funsafe-math-optimizations", "-fassociative-math", "-freciprocal-math"),
    *("-ffinite-math-only", "-ffp-contract=", "-ffp-model=", "-fexcess-precision=", "-mfpmath=", "-mrecip"),
    *("-fsingle-precision-constant", "-fno-signed-zeros", "-fno-rounding-math", "-mdaz-ftz", "-march=native"),
)
NO_REASONS: Mapping[str, str] = MappingProxyType({})
REFUSED_NVCC_FLAGS = (
    *("use_fast_math", "fmad", "ftz", "prec-div", "prec-sqrt", "arch", "gpu-architecture", "gencode", "code"),
    *("generate-code", "gpu-code", "O0", "G", "device-debug"),
)


@dataclass(frozen=True)
class VersionRange:
    """Describes a range of versions such as 10.3.0 to 10.16.2, with both ends."""

    oldest: str
    newest: str

    def __post_init__(self) -> None:
        if _numbers(self.oldest) > _numbers(self.newest):
            raise ConfigError("the oldest version is newer than the newest", got=f"{self.oldest} to {self.newest}")

    def __str__(self) -> str:
        return f"{self.oldest} to {self.newest}"

    def is_before(self, version: str) -> bool:
        """Returns whether a version is older than the whole range. 10.3.0.26 is not older than 10.3.0."""
        return _numbers(version) < _numbers(self.oldest)

    def is_beyond(self, version: str) -> bool:
        """Returns whether a version is newer than the whole range. 7.2.2 is not newer than a `newest` of 7.2."""
        newest = _numbers(self.newest)
        return _numbers(version)[: len(newest)] > newest


@dataclass(frozen=True)
class Power:
    """Names the power sensors of a board by the labels of the rails that they measure."""

    rails: tuple[str, ...]
    total: tuple[str, ...]  # the rails whose sum is the power of the board
    modes: tuple[str, ...] = ()  # nvpmodel's modes, as the board is shipped; `nvpmodel -q` lists its present ones

    def __post_init__(self) -> None:
        if unknown := [rail for rail in self.total if rail not in self.rails]:
            raise ConfigError("the total names a rail that is not listed", got=unknown, expected=list(self.rails))


@dataclass(frozen=True)
class Compiler:
    """Says how to compile the C engine for a target. `edgedistill.compile.c.toolchain` adds what every target needs."""

    command: str  # a GCC or Clang, by its name on the PATH or by its path
    debian_package: str  # the package, or packages, that install it
    library: str = "shared"  # "shared" or "static"
    ops: str = "native"  # the variant of the inner loops; all variants compute the same
    flags: tuple[str, ...] = ()  # more flags, such as -mcpu=cortex-m7; they come after -O3
    run: tuple[str, ...] = ()  # the emulator, with its options, that runs a program of the target elsewhere

    def __post_init__(self) -> None:
        _one_of("library", self.library, LIBRARIES)
        _one_of("ops", self.ops, OPS)
        if not self.command.strip():
            raise ConfigError("'command' is empty", expected="the name of a C compiler, such as gcc")
        require_program("command", self.command, C_COMPILER, "the name of a GCC or Clang, or its whole path")
        require_packages(self.debian_package)
        for flag in self.flags:
            if flag.startswith(REFUSED_FLAGS):
                raise ConfigError(
                    f"the flag '{flag}' is refused: the engine's results are pinned to the last bit",
                    expected="flags that change neither arithmetic nor the instruction set behind edgedistill's back",
                )
        require_flags(self.flags, C_FORMS, "forms such as -O2, -mcpu=cortex-a72, -funroll-loops and -Wall")


@dataclass(frozen=True)
class Cuda:
    """Says how to compile kernels for a target's GPU. `edgedistill.compile.cuda.nvcc` adds what every target needs."""

    nvcc: str = "nvcc"  # by its name on the PATH or in /usr/local/cuda/bin, or by its path
    flags: tuple[str, ...] = ()
    pack_four_bits: bool = False  # whether four-bit weights are read as such, and not as the int8 weights that they are

    def __post_init__(self) -> None:
        if not self.nvcc.strip():
            raise ConfigError("'nvcc' is empty", expected="the name of NVIDIA's compiler, nvcc")
        require_program("nvcc", self.nvcc, NVCC, "nvcc, or its whole path")
        for flag in self.flags:
            if flag.lstrip("-").startswith(REFUSED_NVCC_FLAGS):
                raise ConfigError(
                    f"the flag '{flag}' is refused: the engine's results are pinned to the last bit",
                    expected="flags that change neither arithmetic nor the chip that is compiled for",
                )
        require_flags(self.flags, NVCC_FORMS, "forms such as --generate-line-info and --maxrregcount=128")


@dataclass(frozen=True)
class Gate:
    """Compares one measured figure with its limit. `ok` and `value` are None if the figure was not measured."""

    name: str  # the figure's name, without _min or _max
    value: float | None
    limit: float
    ok: bool | None
    reason: str | None = None  # why the figure was not measured


@dataclass(frozen=True)
class Target:
    """Describes one device that a bundle can be built for, now or in a later version."""

    name: str
    description: str
    engine: str
    status: str  # "available" or "planned"
    deadline_ms: float  # the time that a step may take, which is at most one bin of 10 ms
    chips: tuple[str, ...] = ()  # instruction sets or CUDA architectures, or empty for those of this machine
    jetpack: VersionRange | None = None
    tensorrt: VersionRange | None = None
    workspace_mb: int | None = None  # MB that TensorRT's builder may use; small boards run out of memory
    compiler: Compiler | None = None  # for the C engine, or for the part of a GPU engine that runs on the CPU
    cuda: Cuda | None = None
    power: Power | None = None
    gates: dict[str, float] = field(default_factory=dict)  # NAME_min is the least value allowed, NAME_max the largest

    def __post_init__(self) -> None:
        if not re.fullmatch(r"[A-Za-z0-9][\w.-]*", self.name):  # the name is also that of a folder in the bundle
            raise ConfigError("not a name for a target", got=repr(self.name), expected="letters, digits, - _ and .")
        _one_of("engine", self.engine, ENGINES)
        _one_of("status", self.status, STATUSES)
        if self.engine == "c" and self.compiler is None:
            raise ConfigError(f"'{self.name}' has engine 'c', but no compiler", expected="a table [compiler]")
        if self.engine == "cuda" and None in (self.compiler, self.cuda):
            raise ConfigError(
                f"'{self.name}' has engine 'cuda', but no compiler", expected="tables [compiler] and [cuda]"
            )
        if self.engine == "tensorrt" and None in (self.tensorrt, self.workspace_mb):
            raise ConfigError(
                f"'{self.name}' has engine 'tensorrt', but no versions or no workspace",
                expected="the keys tensorrt and workspace_mb",
            )
        if self.workspace_mb is not None and self.workspace_mb < 16:
            raise ConfigError("'workspace_mb' is out of range", got=self.workspace_mb, expected="16 or more, in MB")
        if self.status == "available" and self.engine not in ENGINES_AVAILABLE:
            raise ConfigError(
                f"'{self.name}' is marked available, but engine '{self.engine}' is not part of this version",
                expected=f'status = "planned", or an engine of: {", ".join(ENGINES_AVAILABLE)}',
            )
        if not 0 < self.deadline_ms <= 10:
            raise ConfigError("'deadline_ms' is out of range", got=self.deadline_ms, expected="above 0, at most 10")
        for name in self.gates:
            if not name.endswith(("_min", "_max")):
                raise ConfigError(f"the gate '{name}' has no direction", expected="a name ending in _min or _max")

    @property
    def available(self) -> bool:
        """Returns whether this version of edgedistill can build for the target."""
        return self.status == "available"

    def judge(self, values: Mapping[str, float | None], why: Mapping[str, str] = NO_REASONS) -> tuple[Gate, ...]:
        """Returns each gate with its figure from `values`, whose names have no _min or _max.

        A figure that is absent or None stays None, with the reason that `why` gives for it.
        """
        figures = ((name, name[:-4], limit) for name, limit in self.gates.items())
        return tuple(_judge(name, values.get(key), limit, why.get(key)) for name, key, limit in figures)


def load_target(name_or_path: str | Path) -> Target:
    """Returns the target of that name, or the target in a TOML file of the user's. Raises ConfigError."""
    return load_named(Target, "target", name_or_path, asset_folder("targets"), "edgedistill targets")


def load_own_target(name: object) -> Target:
    """Returns the target that a bundle names, which must be one of edgedistill's own, and never a path.

    Raises ConfigError for any other name.
    """
    if name not in target_names():
        raise ConfigError(
            f"the bundle names a target that this edgedistill does not have: {name!r}",
            expected=f"one of: {', '.join(target_names())}",
            causes=("it was built for a target of its maker's own",),
            next_step="name the target with --target: one of these, or a .toml file of your own",
        )
    return load_target(str(name))


def target_names() -> tuple[str, ...]:
    """Returns the names of all targets, `host` first and the others in alphabetical order."""
    return tuple(sorted(names_in(asset_folder("targets")), key=lambda name: (name != "host", name)))


def all_targets() -> tuple[Target, ...]:
    """Returns every target, in the order of `target_names`."""
    return tuple(load_target(name) for name in target_names())


def require_buildable(target: Target) -> None:
    """Raises ConfigError if this version has no engine for the target yet."""
    if target.available:
        return
    buildable = ", ".join(other.name for other in all_targets() if other.available)
    raise ConfigError(
        f"this version cannot build for target '{target.name}' yet: its profile is planned",
        got=f"engine '{target.engine}'",
        expected=f"a target that is available: {buildable}",
        next_step=f"edgedistill build --target {buildable.split(',')[0]}",
    )


def _judge(name: str, value: float | None, limit: float, why: str | None) -> Gate:
    if value is None:
        return Gate(name[:-4], None, limit, None, why)
    return Gate(name[:-4], value, limit, value >= limit if name.endswith("_min") else value <= limit)


def _one_of(key: str, value: str, known: tuple[str, ...]) -> None:
    if value not in known:
        raise ConfigError(f"unknown {key} '{value}'", expected=did_you_mean(value, known))


def _numbers(version: str) -> tuple[int, ...]:
    parts = version.split(".")
    if not all(part.isdecimal() for part in parts):
        raise ConfigError("not a version", got=version, expected="numbers and dots, such as 10.3.0")
    return tuple(int(part) for part in parts)
