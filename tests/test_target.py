"""Targets: every profile is sound, and only what can be built is offered."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from edgedistill.assets import asset_folder
from edgedistill.errors import ConfigError
from edgedistill.target import (
    ENGINES_AVAILABLE,
    Compiler,
    Cuda,
    Target,
    VersionRange,
    all_targets,
    load_target,
    require_buildable,
    target_names,
)

DESIGNED = {
    "host",
    "aarch64",
    "cortex-m7",
    "cortex-m55",
    "jetson",
    "jetson-orin-nano",
    "jetson-orin-nx",
    "jetson-agx-orin",
    "jetson-thor",
    "cuda",
}


def test_every_device_of_the_design_has_a_profile_and_host_comes_first() -> None:
    assert set(target_names()) >= DESIGNED
    assert target_names()[0] == "host"


@pytest.mark.parametrize("name", target_names())
def test_a_profile_is_named_like_its_file_and_says_what_it_is(name: str) -> None:
    target = load_target(name)
    assert target.name == name
    assert target.description
    assert target.available == (target.engine in ENGINES_AVAILABLE)


@pytest.mark.parametrize("name", [name for name in target_names() if name.startswith("jetson")])
def test_a_jetson_profile_carries_versions_and_builder_memory(name: str) -> None:
    target = load_target(name)
    assert target.available
    assert target.engine == "tensorrt"
    assert target.tensorrt is not None
    assert target.jetpack is not None
    assert target.jetpack.is_before("6.0")  # which has no IPluginV3
    assert target.tensorrt.is_before("10.2")
    assert target.workspace_mb
    assert target.workspace_mb <= 8192
    assert target.chips == ("sm_110",) if name == "jetson-thor" else ("sm_87",)
    assert target.power is not None
    assert target.power.modes
    assert set(target.gates) == {"step_p99_us_max", "int8_r2_drop_max", "fp16_r2_drop_max"}
    assert target.gates["step_p99_us_max"] <= target.deadline_ms * 1000


def test_jetson_is_the_orin_nano() -> None:
    """The first board to think of, and the one with the least memory: what fits there fits any Orin."""
    nano = load_target("jetson-orin-nano")
    assert replace(load_target("jetson"), name=nano.name, description=nano.description) == nano


def test_versions_are_within_a_range_before_or_beyond_it() -> None:
    versions = VersionRange("6.1", "7.2")
    within = {version: (versions.is_before(version), versions.is_beyond(version)) for version in
              ("5.1.3", "6.0", "6.1", "6.2.1", "7.2", "7.2.2", "7.3", "10.0")}  # fmt: skip
    assert [version for version, (before, _) in within.items() if before] == ["5.1.3", "6.0"]
    assert [version for version, (_, beyond) in within.items() if beyond] == ["7.3", "10.0"]
    assert not VersionRange("10.3.0", "10.16.2").is_before("10.3.0")


def test_only_available_targets_can_be_built() -> None:
    require_buildable(load_target("host"))
    for target in all_targets():
        require_buildable(target)
        planned = replace(target, status="planned")
        with pytest.raises(ConfigError, match="available: host") as caught:
            require_buildable(planned)
        assert target.name in str(caught.value)


def test_an_unknown_target_is_answered_with_the_nearest() -> None:
    with pytest.raises(ConfigError, match="did you mean 'jetson-thor'"):
        load_target("jetson-tor")


def test_a_profile_of_ones_own_is_read_and_checked(tmp_path: Path) -> None:
    path = tmp_path / "lab.toml"
    text = (asset_folder("targets") / "jetson-thor.toml").read_text(encoding="utf-8")
    path.write_text(text.replace('"jetson-thor"', '"lab"'))
    assert load_target(path).name == "lab"
    for wrong, mentions in {
        'engine = "tensorrtt"': "did you mean 'tensorrt'",
        "deadline_ms = 20": "deadline_ms",
        'total = ["VOUT"]': "not listed",
        'jetpack = { oldest = "9", newest = "7.2" }': "newer than the newest",
        'tensorrt = { oldest = "ten", newest = "11" }': "not a version",
        "workspace_mb = 4": "workspace_mb",
        "workspace_mb = 0.5": "workspace_mb",
    }.items():
        key = wrong.split(" = ")[0]
        path.write_text("\n".join(wrong if line.startswith(key) else line for line in text.splitlines()))
        with pytest.raises(ConfigError, match=mentions) as caught:
            load_target(path)
        assert str(path) in str(caught.value)


def test_gates_judge_floors_ceilings_and_what_was_not_measured() -> None:
    gates = {"step_p99_us_max": 100.0, "deployed_r2_min": 0.5, "absent_min": 1.0}
    target = Target("t", "d", "onnxruntime", "available", 10.0, gates=gates)
    latency, r2, absent = target.judge({"step_p99_us": 100.0, "deployed_r2": 0.4})
    assert (latency.ok, r2.ok, absent.ok) == (True, False, None)
    assert absent.value is None
    with pytest.raises(ConfigError, match="_min or _max"):
        Target("t", "d", "onnxruntime", "available", 10.0, gates={"deployed_r2": 0.5})


@pytest.mark.parametrize("name", ["host", "aarch64", "cortex-m7", "cortex-m55"])
def test_a_target_of_the_c_engine_says_how_it_is_compiled(name: str) -> None:
    compiler = load_target(name).compiler
    assert compiler is not None
    assert compiler.debian_package
    assert (compiler.library == "static") == name.startswith("cortex-m")
    assert (compiler.ops == "native") == (name == "host")


@pytest.mark.parametrize("name", ["cortex-m7", "cortex-m55"])
def test_a_microcontroller_has_gates_on_its_memory(name: str) -> None:
    flash, ram, _ = load_target(name).judge({"flash_bytes": 400_000, "ram_bytes": 200_000})
    assert (flash.name, flash.limit, flash.ok) == ("flash_bytes", 512 * 1024, True)
    assert (ram.name, ram.limit, ram.ok) == ("ram_bytes", 160 * 1024, False)


def test_a_compiler_of_ones_own_is_read_and_checked(tmp_path: Path) -> None:
    path = tmp_path / "pi4.toml"
    text = (asset_folder("targets") / "aarch64.toml").read_text(encoding="utf-8")
    text = text.replace('"aarch64"', '"pi4"', 1).replace('ops = "neon"', 'ops = "scalar"\nflags = ["-mcpu=cortex-a72"]')
    path.write_text(text)
    assert load_target(path).compiler == Compiler(
        "aarch64-linux-gnu-gcc",
        "gcc-aarch64-linux-gnu libc6-dev-arm64-cross",
        "shared",
        "scalar",
        ("-mcpu=cortex-a72",),
        ("qemu-aarch64", "-cpu", "max", "-L", "/usr/aarch64-linux-gnu"),
    )
    for wrong, mentions in {
        'ops = "neno"': r"\[compiler\] unknown ops 'neno'",
        'library = "dynamic"': "unknown library",
        'flags = ["-O2", "-ffast-math"]': "'-ffast-math' is refused",
        'flags = ["-march=native"]': "refused",
        'command = " "': "empty",
        "comand = 1": "did you mean 'command'",
        'command = "./gcc"': "names no compiler",
        'command = "/bin/sh"': "names no compiler",
        'command = "gcc; touch x"': "names no compiler",
        'command = "--version"': "names no compiler",
        'debian_package = "gcc; curl x | sh"': "no name of a package",
        'name = "../elsewhere"': "not a name for a target",
    }.items():
        key = wrong.split(" = ")[0].replace("comand", "command")
        path.write_text("\n".join(wrong if line.startswith(key) else line for line in text.splitlines()))
        with pytest.raises(ConfigError, match=mentions) as caught:
            load_target(path)
        assert str(path) in str(caught.value)
        assert ("from a stranger" in str(caught.value)) == (mentions == "names no compiler")


def test_an_engine_for_a_gpu_says_how_both_sides_are_compiled(tmp_path: Path) -> None:
    target = load_target("cuda")
    assert (target.cuda, target.chips) == (Cuda(), ())
    assert target.compiler is not None
    text = (asset_folder("targets") / "cuda.toml").read_text(encoding="utf-8")
    path = tmp_path / "own.toml"
    for wrong, mentions in {
        'nvcc = ""': "'nvcc' is empty",
        'nvcc = "nvcc"\nflags = ["--use_fast_math"]': "'--use_fast_math' is refused",
        'nvcc = "nvcc"\nflags = ["-fmad=true"]': "refused",
        'nvcc = "nvcc"\nflags = ["-arch=sm_90"]': "refused",
        'nvc = "nvcc"': "did you mean 'nvcc'",
        'nvcc = "nvcc"\npack_four_bit = true': "did you mean 'pack_four_bits'",
    }.items():
        path.write_text("\n".join(wrong if line.startswith("nvcc") else line for line in text.splitlines()))
        with pytest.raises(ConfigError, match=mentions):
            load_target(path)
    path.write_text(text[: text.index("[cuda]")] + text[text.index("[compiler]") :])
    with pytest.raises(ConfigError, match=r"\[cuda\]"):
        load_target(path)


HARMFUL = (
    *("-wrapper", "-wrapper=/bin/sh", "/bin/sh,-c,touch ran", "@file", "-specs=evil.specs", "--specs=evil.specs"),
    *("-fplugin=evil.so", "-fplugin-arg-x-y", "-fpass-plugin=evil.so", "-B/tmp/evil", "-B.", "--sysroot=/tmp/evil"),
    *("-Wl,-plugin,evil.so", "-Wl,-T,evil.ld", "-Wp,-include,evil.h", "-Wa,--evil", "-Xlinker", "-Xclang", "-load"),
    *("-fuse-ld=/tmp/evil", "-fuse-linker-plugin", "-fplugin=x", "-mllvm", "-mllvm=-load=evil.so", "-imacros", "-x"),
    *("-include", "evil.h", "-I/tmp/evil", "-isystem/tmp/evil", "-L/tmp/evil", "-levil", "evil.c", "/tmp/evil.o"),
    *('-DED_MODEL_HEADER="/etc/passwd"', "-Dmemcpy=evil", "-o/tmp/x", "-save-temps=cwd", "-fdump-tree-all=/tmp/x"),
    *("-fprofile-generate=/tmp/x", "-ftest-coverage", "-fcallgraph-info", "-pass-exit-codes", "-no-canonical-prefixes"),
    *("-O3 -wrapper sh", "-O3\n-wrapper", "-mtune=native;sh", "-mcpu=$(sh)", "-march=../x", "", "-", "--", "-O9"),
)
HARMLESS = (
    *("-O0", "-O2", "-Os", "-g", "-g3", "-pipe", "-mtune=native", "-mcpu=cortex-m7", "-mthumb", "-mfpu=fpv5-d16"),
    *("-mfloat-abi=hard", "-march=armv8.2-a+dotprod", "-mno-unaligned-access", "-ffunction-sections", "-w", "-Werror"),
    *("-fdata-sections", "-fno-omit-frame-pointer", "-funroll-loops", "-Wall", "-Wno-padded", "-Wstack-usage=512"),
)


@pytest.mark.parametrize("flag", HARMFUL)
def test_a_flag_that_names_a_file_or_starts_a_program_is_refused(flag: str) -> None:
    host = load_target("host").compiler
    assert host is not None
    with pytest.raises(ConfigError, match="is refused"):
        replace(host, flags=("-O2", flag))
    with pytest.raises(ConfigError, match="is refused"):
        Cuda(flags=(flag,))


@pytest.mark.parametrize(
    "flag",
    [
        "-ccbin=/bin/sh",
        "--compiler-bindir=x",
        "-Xcompiler=-wrapper",
        "--run",
        "-optf=x",
        "--options-file",
        "-O0",
        "-Xptxas",
    ],
)
def test_a_flag_of_nvcc_that_starts_a_program_is_refused(flag: str) -> None:
    with pytest.raises(ConfigError, match="is refused"):
        Cuda(flags=(flag,))


def test_flags_that_only_tune_are_taken() -> None:
    host = load_target("host").compiler
    assert host is not None
    assert replace(host, flags=HARMLESS).flags == HARMLESS
    taken = ("--generate-line-info", "-lineinfo", "--maxrregcount=96", "--restrict", "-O3")
    assert Cuda(flags=taken).flags == taken
    for command in ("gcc", "gcc-12", "clang-15", "cc", "arm-none-eabi-gcc", "/opt/sdk/bin/aarch64-poky-linux-gcc"):
        assert replace(host, command=command).command == command
    assert [Cuda(name).nvcc for name in ("nvcc", "/usr/local/cuda-12.6/bin/nvcc")]


def test_an_engine_in_c_needs_a_compiler() -> None:
    with pytest.raises(ConfigError, match=r"\[compiler\]"):
        Target("t", "d", "c", "available", 10.0)
