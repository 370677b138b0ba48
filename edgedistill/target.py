"""What can be built for: a file of `targets/` goes in, a checked, frozen Target comes out.

A target names the engine that runs the decoder, the chip and the versions it was planned for, the
time a step may take, how its engine is compiled, where the board's power is read, and the gates a build must
pass. A new device is one new TOML file. Profiles may stand here before their engine exists: they are listed as planned,
and `require_buildable` refuses to build for them.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType

from edgedistill.assets import asset_folder
from edgedistill.config import load_named, names_in
from edgedistill.errors import ConfigError, did_you_mean

ENGINES = ("onnxruntime", "c", "cuda", "tensorrt")
ENGINES_AVAILABLE = ENGINES  # in this version
GPU_ENGINES = ("cuda", "tensorrt")  # finished on the device; elsewhere a build ends with what it needs
STATUSES = ("available", "planned")
OPS = ("native", "scalar", "avx2", "avx512", "neon", "dsp")  # native: the best that this machine's CPU has
LIBRARIES = ("shared", "static")  # .so for a machine with an operating system, .a for firmware
# What would change results, or what cannot be named when a library is loaded (-march=native).
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
    """Dotted versions, both ends included."""

    oldest: str
    newest: str

    def __post_init__(self) -> None:
        if _numbers(self.oldest) > _numbers(self.newest):
            raise ConfigError("the oldest version is newer than the newest", got=f"{self.oldest} to {self.newest}")

    def __str__(self) -> str:
        return f"{self.oldest} to {self.newest}"

    def is_before(self, version: str) -> bool:
        """Whether a version is older than all of these; 10.3.0.26 is 10.3.0."""
        return _numbers(version) < _numbers(self.oldest)

    def is_beyond(self, version: str) -> bool:
        """Whether a version is newer than all of these, as far as `newest` says."""
        newest = _numbers(self.newest)
        return _numbers(version)[: len(newest)] > newest


@dataclass(frozen=True)
class Power:
    """The board's own power sensors, by the labels of their rails."""

    rails: tuple[str, ...]
    total: tuple[str, ...]  # rails whose sum is the board's power
    modes: tuple[str, ...] = ()  # names of nvpmodel's modes as they are shipped; the board's own are asked for there

    def __post_init__(self) -> None:
        if unknown := [rail for rail in self.total if rail not in self.rails]:
            raise ConfigError("the total names a rail that is not listed", got=unknown, expected=list(self.rails))


@dataclass(frozen=True)
class Compiler:
    """How the C engine is compiled for a target; what every target needs is added by `compile.toolchain`."""

    command: str  # a GCC or Clang on the PATH, or with its path
    debian_package: str  # that brings it
    library: str = "shared"  # "shared" or "static"
    ops: str = "native"  # which of the engine's inner loops: they all compute the same
    flags: tuple[str, ...] = ()  # such as -mcpu=cortex-m7; come after -O3
    run: tuple[str, ...] = ()  # what runs a program of the target on another machine: an emulator and its options

    def __post_init__(self) -> None:
        _one_of("library", self.library, LIBRARIES)
        _one_of("ops", self.ops, OPS)
        if not self.command.strip():
            raise ConfigError("'command' is empty", expected="the name of a C compiler, such as gcc")
        for flag in self.flags:
            if flag.startswith(REFUSED_FLAGS):
                raise ConfigError(
                    f"the flag '{flag}' is refused: the engine's results are pinned to the last bit",
                    expected="flags that change neither arithmetic nor the instruction set behind edgedistill's back",
                )


@dataclass(frozen=True)
class Cuda:
    """How kernels are compiled for a target's GPU; what every target needs is added by `compile.nvcc`."""

    nvcc: str = "nvcc"  # on the PATH, in /usr/local/cuda/bin, or with its path
    flags: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if not self.nvcc.strip():
            raise ConfigError("'nvcc' is empty", expected="the name of NVIDIA's compiler, nvcc")
        for flag in self.flags:
            if flag.lstrip("-").startswith(REFUSED_NVCC_FLAGS):
                raise ConfigError(
                    f"the flag '{flag}' is refused: the engine's results are pinned to the last bit",
                    expected="flags that change neither arithmetic nor the chip that is compiled for",
                )


@dataclass(frozen=True)
class Gate:
    """One figure against its limit. `ok` and `value` are None when it was not measured."""

    name: str  # of the figure, without _min or _max
    value: float | None
    limit: float
    ok: bool | None
    reason: str | None = None  # why it was not measured


@dataclass(frozen=True)
class Target:
    """One device a bundle can be built for, or will be."""

    name: str
    description: str
    engine: str
    status: str  # "available" or "planned"
    deadline_ms: float  # time a step may take: at most one bin
    chips: tuple[str, ...] = ()  # instruction sets or CUDA architectures; empty: that of this machine
    jetpack: VersionRange | None = None
    tensorrt: VersionRange | None = None
    workspace_mb: int | None = None  # builder memory of TensorRT; small boards run out of theirs
    compiler: Compiler | None = None  # of the C engine; on a GPU, of the side that runs on the CPU
    cuda: Cuda | None = None
    power: Power | None = None
    gates: dict[str, float] = field(default_factory=dict)  # name_min is a floor, name_max a ceiling

    def __post_init__(self) -> None:
        if not re.fullmatch(r"[A-Za-z0-9][\w.-]*", self.name):  # it names a folder of the bundle
            raise ConfigError("not a name for a target", got=repr(self.name), expected="letters, digits, - _ .")
        _one_of("engine", self.engine, ENGINES)
        _one_of("status", self.status, STATUSES)
        if self.engine == "c" and self.compiler is None:
            raise ConfigError(f"'{self.name}' has engine 'c' and no compiler", expected="a table [compiler]")
        if self.engine == "cuda" and None in (self.compiler, self.cuda):
            raise ConfigError(
                f"'{self.name}' has engine 'cuda' and no compiler", expected="tables [compiler] and [cuda]"
            )
        if self.engine == "tensorrt" and None in (self.tensorrt, self.workspace_mb):
            raise ConfigError(
                f"'{self.name}' has engine 'tensorrt' and does not say which", expected="keys tensorrt and workspace_mb"
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
        """Whether this version can build for the target."""
        return self.status == "available"

    def judge(self, values: Mapping[str, float | None], why: Mapping[str, str] = NO_REASONS) -> tuple[Gate, ...]:
        """Each gate against the figure of its name without _min or _max; absent figures stay None, with the reason
        that `why` gives."""
        figures = ((name, name[:-4], limit) for name, limit in self.gates.items())
        return tuple(_judge(name, values.get(key), limit, why.get(key)) for name, key, limit in figures)


def load_target(name_or_path: str | Path) -> Target:
    """The target of that name, or the one in a TOML file of your own."""
    return load_named(Target, "target", name_or_path, asset_folder("targets"), "edgedistill targets")


def target_names() -> tuple[str, ...]:
    """The targets that have a profile, `host` first, the others in alphabetical order."""
    return tuple(sorted(names_in(asset_folder("targets")), key=lambda name: (name != "host", name)))


def all_targets() -> tuple[Target, ...]:
    """Every profile, in the order of `target_names`."""
    return tuple(load_target(name) for name in target_names())


def require_buildable(target: Target) -> None:
    """ConfigError when this version has no engine for the target yet."""
    if target.available:
        return
    buildable = ", ".join(other.name for other in all_targets() if other.available)
    raise ConfigError(
        f"cannot build for target '{target.name}' in this version: its profile is planned",
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
