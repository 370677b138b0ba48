"""The target's compiler is found, its flags cannot undo the arithmetic, and errors name the next command."""

from __future__ import annotations

import ctypes
import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from edgedistill.compile.c import toolchain
from edgedistill.compile.c.toolchain import VARIANTS, find_toolchain, native_ops
from edgedistill.errors import ConfigError, EngineError
from edgedistill.machine import processor
from edgedistill.target import Compiler, Target, load_target

HOST = load_target("host")


def with_compiler(**changes: object) -> Target:
    assert HOST.compiler is not None
    return replace(HOST, compiler=replace(HOST.compiler, **changes))  # type: ignore[arg-type]


def pretend_cpu(monkeypatch: pytest.MonkeyPatch, architecture: str, features: set[str]) -> None:
    monkeypatch.setattr(toolchain, "read_architecture", lambda: architecture)
    monkeypatch.setattr(toolchain, "read_cpu_features", lambda: frozenset(features))


needs_gcc = pytest.mark.skipif(shutil.which("gcc") is None, reason="gcc is not installed")


@needs_gcc
def test_the_toolchain_of_this_machine_compiles_a_library(tmp_path: Path) -> None:
    found = find_toolchain(HOST)
    assert found.version
    assert (found.architecture, found.ops) == (processor.read_architecture(), native_ops())
    (tmp_path / "one.c").write_text("int one(void); int one(void) { return 1; }")
    found.compile(tmp_path, "one.c", "one.o", ("-Werror",))
    found.link(tmp_path, ["one.o"], "libone.so")
    assert ctypes.CDLL(str(tmp_path / "libone.so")).one() == 1
    assert str(tmp_path).encode() not in (tmp_path / "libone.so").read_bytes()


@needs_gcc
def test_a_static_library_is_an_archive(tmp_path: Path) -> None:
    found = find_toolchain(with_compiler(library="static"))
    (tmp_path / "one.c").write_text("int one(void); int one(void) { return 1; }")
    found.compile(tmp_path, "one.c", "one.o")
    found.link(tmp_path, ["one.o"], "libone.a")
    assert "one.o" in found.run(tmp_path, found.tool("ar"), "t", "libone.a")


@needs_gcc
def test_flags_of_a_target_come_before_those_that_pin_the_arithmetic() -> None:
    flags = find_toolchain(with_compiler(flags=("-O2", "-funroll-loops"))).flags
    assert flags.index("-O3") < flags.index("-O2")
    assert flags.index("-funroll-loops") < flags.index("-fno-math-errno")
    assert flags[-2:] == ("-ffp-contract=off", "-fno-math-errno")


@pytest.mark.parametrize(
    ("architecture", "features", "expected"),
    [
        ("x86_64", set(VARIANTS["avx512"].requires) | {"avx2", "sse2"}, "avx512"),
        ("x86_64", {"avx2", "avx512f"}, "avx2"),
        ("x86_64", {"sse2"}, "scalar"),
        ("aarch64", {"asimd", "asimddp", "asimdrdm", "atomics"}, "neon"),
        ("aarch64", {"asimd"}, "scalar"),
        ("riscv64", set(), "scalar"),
    ],
)
def test_native_takes_the_best_variant_that_the_processor_can_run(
    monkeypatch: pytest.MonkeyPatch, architecture: str, features: set[str], expected: str
) -> None:
    pretend_cpu(monkeypatch, architecture, features)
    assert native_ops() == expected


def test_a_missing_compiler_names_its_package_and_the_key() -> None:
    target = with_compiler(command="no-such-gcc", debian_package="gcc-of-dreams")
    with pytest.raises(EngineError, match="no-such-gcc") as caught:
        find_toolchain(target)
    for part in ("sudo apt install gcc-of-dreams", "`command`", "[compiler]", "'host'"):
        assert part in str(caught.value)


def test_a_compiler_that_does_not_answer_counts_as_missing(tmp_path: Path) -> None:
    broken = tmp_path / "cc"
    broken.write_text("#!/bin/sh\nexit 1\n")
    broken.chmod(0o755)
    with pytest.raises(EngineError, match="does not answer"):
        find_toolchain(with_compiler(command=str(broken)))


def test_a_target_without_a_compiler_has_no_c_engine() -> None:
    with pytest.raises(ConfigError, match="jetson-thor"):
        find_toolchain(load_target("jetson-thor"))


@needs_gcc
def test_loops_of_another_chip_are_refused_before_anything_is_compiled(monkeypatch: pytest.MonkeyPatch) -> None:
    foreign = "neon" if processor.read_architecture() == "x86_64" else "avx2"
    with pytest.raises(ConfigError, match=foreign):
        find_toolchain(with_compiler(ops=foreign))
    pretend_cpu(monkeypatch, "sparc64", set())  # native means this machine, whose gcc does not compile for a sparc
    with pytest.raises(ConfigError, match="sparc64"):
        find_toolchain(HOST)


@needs_gcc
def test_a_failing_compiler_is_reported_with_its_first_error_and_the_command(tmp_path: Path) -> None:
    (tmp_path / "bad.c").write_text('#warning first\nint f(void) { return "x" + ; }\nint g(void) { return h; }\n')
    with pytest.raises(EngineError) as caught:
        find_toolchain(HOST).compile(tmp_path, "bad.c", "bad.o")
    assert str(caught.value.got).startswith("bad.c:2:")
    assert "gcc -std=c11 -O3" in str(caught.value.expected)
    assert "apt install" in str(caught.value)
    with pytest.raises(EngineError, match="no-such-flag"):
        find_toolchain(with_compiler(flags=("-mno-such-flag",))).compile(tmp_path, "bad.c", "bad.o")


@pytest.mark.parametrize("name", ["host", "aarch64", "cortex-m7", "cortex-m55"])
def test_the_shipped_targets_name_compilers_that_fit(name: str, tmp_path: Path) -> None:
    target = load_target(name)
    assert isinstance(target.compiler, Compiler)
    if shutil.which(target.compiler.command) is None:
        pytest.skip(f"{target.compiler.command} is not installed: apt install {target.compiler.debian_package}")
    found = find_toolchain(target)
    (tmp_path / "root.c").write_text("float root(float x); float root(float x) { return __builtin_sqrtf(x); }")
    found.compile(tmp_path, "root.c", "root.o", ("-Werror",))
    # The square root is an instruction and not a call of a function.
    assert " U " not in found.run(tmp_path, found.tool("nm"), "root.o")


def test_only_features_of_every_core_count(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cpuinfo = tmp_path / "cpuinfo"
    cpuinfo.write_text("processor : 0\nFeatures\t: fp asimd asimddp\n\nprocessor : 1\nFeatures\t: fp asimd\n")
    monkeypatch.setattr(processor, "CPUINFO", cpuinfo)
    assert processor.read_cpu_features() == {"fp", "asimd"}
    monkeypatch.setattr(processor, "CPUINFO", tmp_path / "absent")
    assert processor.read_cpu_features() == frozenset()
