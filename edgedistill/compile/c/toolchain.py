"""Finds the C compiler that a target's table [compiler] names, and runs it.

A Target goes in. A Toolchain comes out, with a compiler that has told its version and architecture, the variant of the
engine's inner loops, and the instructions that the variant needs. Flags that fix the arithmetic come last, so that
nothing in a target's file can undo them.
"""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from edgedistill.bundle.build_record import Fingerprint
from edgedistill.compile.commands import run_command
from edgedistill.errors import ConfigError, DeviceError, EngineError
from edgedistill.machine.processor import read_architecture, read_cpu_features
from edgedistill.machine.programs import ask_program
from edgedistill.target import Compiler, Target

# -Werror is used only in the tests, because a later compiler may have new warnings, and its user could not fix them.
BASE_FLAGS = ("-std=c11", "-O3", "-Wall", "-Wextra", "-Wconversion")
PINNED_FLAGS = ("-ffp-contract=off", "-fno-math-errno")  # docs/numerics.md: every operation is rounded
CPP_OF_C = {"-std=c11": "-std=c++17"}  # for the part of a GPU engine that runs on the CPU
LIBRARY_FLAGS = {"shared": ("-fPIC",), "static": ()}


@dataclass(frozen=True)
class Variant:
    """Describes one set of inner loops, and the processors that can run it."""

    architecture: str | None  # None if every architecture will do
    requires: tuple[str, ...] = ()  # extensions, as /proc/cpuinfo names them
    flags: tuple[str, ...] = ()  # to choose the chip, unless the target's file does
    pinned: tuple[str, ...] = ()  # to fix the arithmetic, beside PINNED_FLAGS


VARIANTS = {  # the fastest first
    "avx512": Variant(
        "x86_64",
        ("avx512f", "avx512bw", "avx512dq", "avx512vl", "avx512_vnni"),
        ("-mavx512f", "-mavx512bw", "-mavx512dq", "-mavx512vl", "-mavx512vnni", "-mprefer-vector-width=512"),
    ),
    "avx2": Variant("x86_64", ("avx2",), ("-mavx2",)),
    "neon": Variant("aarch64", ("asimddp", "asimdrdm", "atomics"), ("-march=armv8.2-a+dotprod",)),
    # Helium's floats flush denormals to zero, and compilers put loops of floats into them by themselves (ed_math.h).
    "helium": Variant("arm", ("mve",), pinned=("-fno-tree-vectorize", "-DED_NO_FLOAT_VECTORS")),
    "dsp": Variant("arm"),
    "scalar": Variant(None),
}


@dataclass(frozen=True)
class Toolchain:
    """Holds a compiler of this machine, for one target."""

    target: str  # name of the target
    compiler: Compiler
    version: str  # first line of --version
    architecture: str  # the architecture that it compiles for
    ops: str  # name of a variant, never "native"

    @property
    def variant(self) -> Variant:
        """Returns the variant of the inner loops, with the instructions that it needs."""
        return VARIANTS[self.ops]

    @property
    def flags(self) -> tuple[str, ...]:
        """Returns all flags with which a C source is compiled."""
        names_chip = any(flag.startswith(("-march=", "-mcpu=")) for flag in self.compiler.flags)
        march = () if names_chip and self.architecture != "x86_64" else self.variant.flags
        own = (*march, *self.compiler.flags, *PINNED_FLAGS, *self.variant.pinned)
        return (*BASE_FLAGS, *LIBRARY_FLAGS[self.compiler.library], *own)

    @property
    def fingerprint(self) -> Fingerprint:
        """Returns the compiler's part of a build's fingerprint, without its digest."""
        return Fingerprint(self.architecture, self.ops, self.variant.requires, self.version, self.flags, "")

    def compile(self, folder: Path, source: str, output: str, options: Sequence[str] = ()) -> None:
        """Compiles a source to an object file.

        Names are relative to `folder`, so that no path of this machine appears in the object file. Raises EngineError.
        """
        flags = self.flags if source.endswith(".c") else tuple(CPP_OF_C.get(flag, flag) for flag in self.flags)
        self.run(folder, self.compiler.command, *flags, *options, "-c", source, "-o", output)

    def compile_all(
        self, folder: Path, sources: Sequence[str], options: Sequence[str], cpp_options: Sequence[str] = ()
    ) -> list[str]:
        """Compiles each source to an object file in `folder`. Returns their names. C++ also gets `cpp_options`."""
        objects = []
        for source in sources:
            objects.append(f"{Path(source).stem}.o")
            own = cpp_options if source.endswith(".cpp") else ()
            self.compile(folder, source, objects[-1], (*options, *own))
        return objects

    def link(self, folder: Path, objects: Sequence[str], output: str, libraries: Sequence[str] = ()) -> None:
        """Links object files into the target's kind of library. Raises EngineError."""
        if self.compiler.library == "shared":
            whole = ("-shared", "-Wl,--no-undefined", "-Wl,-z,now")
            self.run(folder, self.compiler.command, *self.flags, *whole, *objects, *libraries, "-o", output)
        else:
            self.run(folder, self.tool("ar"), "rcsD", output, *objects)

    def tool(self, name: str) -> str:
        """Returns the name of the `ar`, `nm` or `size` that belongs to the compiler."""
        return _first_line(self.compiler.command, f"-print-prog-name={name}") or name

    def run(self, folder: Path, *command: str) -> str:
        """Runs a command of the toolchain and returns what it prints. Raises EngineError with its first error line."""
        return run_command(folder, command, lambda first_error: self._command_error(command, first_error))

    def _command_error(self, command: Sequence[str], first_error: str) -> EngineError:
        return EngineError(
            f"compiling the C engine for target '{self.target}' failed",
            got=first_error,
            expected=f"this command to succeed: {' '.join(command)}",
            causes=(
                f"a part of the toolchain is missing: sudo apt install {self.compiler.debian_package}",
                f"`flags` in [compiler] of the target's file do not suit {self.version}",
            ),
            next_step="edgedistill doctor",
        )


def find_toolchain(target: Target) -> Toolchain:
    """Finds the compiler of a target.

    Raises ConfigError for a target without a compiler and for inner loops of another architecture. Raises DeviceError,
    which names the Debian package, for a compiler that is not installed.
    """
    compiler = target.compiler
    if compiler is None:
        raise ConfigError(
            f"target '{target.name}' has no C engine", got="no table [compiler]", next_step="edgedistill targets"
        )
    version, triple = _first_line(compiler.command, "--version"), _first_line(compiler.command, "-dumpmachine")
    if not version or not triple:
        raise _missing_compiler_error(target.name, compiler)
    made_for = triple.split("-")[0]
    return Toolchain(target.name, compiler, version, made_for, _choose_ops(target.name, compiler.ops, made_for))


def native_ops() -> str:
    """Returns the name of the fastest variant that this machine's processor can run."""
    own, features = read_architecture(), read_cpu_features()
    fits = (n for n, v in VARIANTS.items() if v.architecture in (own, None) and features.issuperset(v.requires))
    return next(fits)


def _choose_ops(target: str, ops: str, made_for: str) -> str:
    """Returns a variant's name for `ops` of a target's file. Raises ConfigError if the compiler is for another chip."""
    found = native_ops() if ops == "native" else ops
    wanted = read_architecture() if ops == "native" else VARIANTS[found].architecture
    if wanted not in (None, made_for):
        raise ConfigError(
            f"target '{target}': ops = \"{ops}\" does not fit this compiler",
            got=f"a compiler for {made_for}",
            expected=f"one for {wanted}",
            next_step='name the variant in [compiler] of the target\'s file; ops = "scalar" runs anywhere',
        )
    return found


def _missing_compiler_error(target: str, compiler: Compiler) -> DeviceError:
    where = shutil.which(compiler.command)
    return DeviceError(
        f"target '{target}' needs the C compiler '{compiler.command}'",
        got="no such command on this machine" if where is None else f"{where}, which does not answer --version",
        expected=f"a C compiler, named by `command` in the table [compiler] of the file of target '{target}'",
        next_step=f"sudo apt install {compiler.debian_package}   (Debian, Ubuntu)",
    )


def _first_line(command: str, option: str) -> str:
    """Returns the first line that a program prints, or "" if the program is missing, fails or hangs."""
    return next(iter(ask_program(command, option)), "")
