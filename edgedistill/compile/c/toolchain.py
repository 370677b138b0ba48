"""From a target's [compiler] table to the commands that build its C engine.

In comes a Target; out goes a Toolchain: a compiler that was found and asked for its version and architecture, the
variant of the engine's inner loops, and the instructions that variant needs. Flags that pin the arithmetic come
last, so that nothing in a target's file can undo them.
"""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from edgedistill.compile.commands import run_command
from edgedistill.errors import ConfigError, DeviceError, EngineError
from edgedistill.machine.processor import read_architecture, read_cpu_features
from edgedistill.machine.programs import ask_program
from edgedistill.target import Compiler, Target

# No -Werror: a compiler of next year may warn of something new, and its user cannot help it. The tests have it.
BASE_FLAGS = ("-std=c11", "-O3", "-Wall", "-Wextra", "-Wconversion")
PINNED_FLAGS = ("-ffp-contract=off", "-fno-math-errno")  # numerics.md: each operation rounded, no errno
CPP_OF_C = {"-std=c11": "-std=c++17"}  # for the side of a GPU engine that runs on the CPU
LIBRARY_FLAGS = {"shared": ("-fPIC",), "static": ()}


@dataclass(frozen=True)
class Variant:
    """One set of inner loops: where it runs and what that takes."""

    architecture: str | None  # None: any
    requires: tuple[str, ...] = ()  # names of /proc/cpuinfo
    flags: tuple[str, ...] = ()


VARIANTS = {  # the fastest first
    "avx512": Variant(
        "x86_64",
        ("avx512f", "avx512bw", "avx512dq", "avx512vl", "avx512_vnni"),
        ("-mavx512f", "-mavx512bw", "-mavx512dq", "-mavx512vl", "-mavx512vnni", "-mprefer-vector-width=512"),
    ),
    "avx2": Variant("x86_64", ("avx2",), ("-mavx2",)),
    "neon": Variant("aarch64", ("asimddp", "asimdrdm", "atomics"), ("-march=armv8.2-a+dotprod",)),
    "dsp": Variant("arm"),
    "scalar": Variant(None),
}


@dataclass(frozen=True)
class Toolchain:
    """A compiler of this machine for one target."""

    target: str
    compiler: Compiler
    version: str  # first line of --version
    architecture: str  # it compiles for
    ops: str  # a variant's name, never "native"

    @property
    def variant(self) -> Variant:
        """What the chosen inner loops need."""
        return VARIANTS[self.ops]

    @property
    def flags(self) -> tuple[str, ...]:
        """All that is passed to compile one source."""
        chosen = any(flag.startswith(("-march=", "-mcpu=")) for flag in self.compiler.flags)
        march = () if chosen and self.architecture != "x86_64" else self.variant.flags
        return (*BASE_FLAGS, *LIBRARY_FLAGS[self.compiler.library], *march, *self.compiler.flags, *PINNED_FLAGS)

    def compile(self, folder: Path, source: str, output: str, options: Sequence[str] = ()) -> None:
        """`source` to an object file; names relative to `folder`, so that no path of this machine gets in."""
        flags = self.flags if source.endswith(".c") else tuple(CPP_OF_C.get(flag, flag) for flag in self.flags)
        self.run(folder, self.compiler.command, *flags, *options, "-c", source, "-o", output)

    def link(self, folder: Path, objects: Sequence[str], output: str, libraries: Sequence[str] = ()) -> None:
        """Object files to the target's kind of library."""
        if self.compiler.library == "shared":
            whole = ("-shared", "-Wl,--no-undefined", "-Wl,-z,now")
            self.run(folder, self.compiler.command, *self.flags, *whole, *objects, *libraries, "-o", output)
        else:
            self.run(folder, self.tool("ar"), "rcsD", output, *objects)

    def tool(self, name: str) -> str:
        """The `ar`, `nm` or `size` that belongs to the compiler."""
        return _first_line(self.compiler.command, f"-print-prog-name={name}") or name

    def run(self, folder: Path, *command: str) -> str:
        """What a command of the toolchain prints. EngineError with its first error line where it fails."""
        return run_command(folder, command, lambda said: self._failed(command, said))

    def _failed(self, command: Sequence[str], said: str) -> EngineError:
        return EngineError(
            f"compiling the C engine for target '{self.target}' failed",
            got=said,
            expected=f"this command to succeed: {' '.join(command)}",
            causes=(
                f"a part of the toolchain is missing: sudo apt install {self.compiler.debian_package}",
                f"`flags` in [compiler] of the target's file do not suit {self.version}",
            ),
            next_step="edgedistill doctor",
        )


def find_toolchain(target: Target) -> Toolchain:
    """The compiler of a target. ConfigError for a target without one or loops of another architecture,
    EngineError, naming the Debian package, for a compiler that is not installed."""
    compiler = target.compiler
    if compiler is None:
        raise ConfigError(
            f"target '{target.name}' has no C engine", got="no table [compiler]", next_step="edgedistill targets"
        )
    version, triple = _first_line(compiler.command, "--version"), _first_line(compiler.command, "-dumpmachine")
    if not version or not triple:
        raise _missing(target.name, compiler)
    made_for = triple.split("-")[0]
    return Toolchain(target.name, compiler, version, made_for, _chosen_ops(target.name, compiler.ops, made_for))


def native_ops() -> str:
    """The fastest variant that this machine's CPU can run."""
    own, features = read_architecture(), read_cpu_features()
    fits = (n for n, v in VARIANTS.items() if v.architecture in (own, None) and features.issuperset(v.requires))
    return next(fits)


def _chosen_ops(target: str, ops: str, made_for: str) -> str:
    found = native_ops() if ops == "native" else ops
    wanted = read_architecture() if ops == "native" else VARIANTS[found].architecture
    if wanted not in (None, made_for):
        raise ConfigError(
            f"target '{target}': ops = \"{ops}\" does not go with this compiler",
            got=f"a compiler for {made_for}",
            expected=f"one for {wanted}",
            next_step='name the variant in [compiler] of the target\'s file; ops = "scalar" runs anywhere',
        )
    return found


def _missing(target: str, compiler: Compiler) -> DeviceError:
    where = shutil.which(compiler.command)
    return DeviceError(
        f"target '{target}' needs the C compiler '{compiler.command}'",
        got="no such command on this machine" if where is None else f"{where}, which does not answer --version",
        expected=f"a C compiler, named by `command` in the table [compiler] of the file of target '{target}'",
        next_step=f"sudo apt install {compiler.debian_package}   (Debian, Ubuntu)",
    )


def _first_line(command: str, option: str) -> str:
    """Returns the first line of a program's answer; "" if it does not answer."""
    return next(iter(ask_program(command, option)), "")
