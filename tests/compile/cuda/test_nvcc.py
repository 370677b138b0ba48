"""nvcc is found or the error names its package. It must support the chip, and its arithmetic flags come last."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from edgedistill.compile.cuda import chip, nvcc
from edgedistill.compile.cuda.chip import find_chip
from edgedistill.compile.cuda.nvcc import PINNED_FLAGS, find_nvcc, nvcc_path
from edgedistill.errors import ConfigError, DeviceError, EngineError
from edgedistill.machine.gpu import Gpu
from edgedistill.target import Cuda, Target, load_target

SCRIPT = """#!/bin/sh
case "$1" in
--version) echo "nvcc: NVIDIA (R) Cuda compiler driver"; echo "Cuda compilation tools, release 12.6, V12.6.68" ;;
--list-gpu-code) echo sm_75; echo sm_87; echo sm_90 ;;
*) echo "warning: old"; echo "x.cu(3): error: no such thing" >&2; exit 2 ;;
esac
"""


def target_with(folder: Path, script: str = SCRIPT, flags: tuple[str, ...] = ()) -> Target:
    """Returns the target cuda with a compiler of the test's own."""
    program = folder / "nvcc"
    program.write_text(script)
    program.chmod(0o755)
    return replace(load_target("cuda"), cuda=Cuda(str(program), flags))


def test_the_arithmetic_is_pinned_after_all_other_flags(tmp_path: Path) -> None:
    found = find_nvcc(target_with(tmp_path, flags=("--maxrregcount=96",)), "sm_87")
    assert (found.version, found.chip) == ("12.6", "sm_87")
    assert found.flags[-len(PINNED_FLAGS) :] == PINNED_FLAGS
    assert {"-arch=sm_87", "--maxrregcount=96", "--fmad=false", "--ftz=false"} <= set(found.flags)


@pytest.mark.skipif(nvcc_path("nvcc") is None, reason="no nvcc on this machine")
def test_the_environment_cannot_undo_the_arithmetic(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "any.cu").write_text('extern "C" __global__ void fused(float *x) { x[0] = x[1] * x[2] + x[3]; }\n')
    found = find_nvcc(load_target("cuda"), "sm_87")

    def cubin(appended: str) -> bytes:
        monkeypatch.setenv("NVCC_APPEND_FLAGS", appended)
        found.compile_cubin(tmp_path, "any.cu", "any.cubin", ())
        return (tmp_path / "any.cubin").read_bytes()

    assert cubin("--fmad=true") == cubin("")
    assert cubin("-lineinfo") != cubin("")  # flags in the environment that do not change the arithmetic are used


@pytest.mark.skipif(nvcc_path("nvcc") is None, reason="no nvcc on this machine")
def test_the_nvcc_of_this_machine_knows_the_chips_of_the_design() -> None:
    for name in ("sm_87", "sm_90"):
        found = find_nvcc(load_target("cuda"), name)
        assert float(found.version) >= 12
        assert all(Path(option.removeprefix("-I"), "cuda.h").exists() for option in found.includes)


def test_a_missing_compiler_is_reported_with_its_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    absent = replace(load_target("cuda"), cuda=Cuda("of-dreams-nvcc"))
    with pytest.raises(DeviceError, match="needs NVIDIA's compiler") as caught:
        find_nvcc(absent, "sm_87")
    assert "nvidia-cuda-toolkit" in str(caught.value.next_step)
    board = tmp_path / "nv_tegra_release"
    board.touch()
    monkeypatch.setattr(nvcc, "JETSON", board)
    with pytest.raises(DeviceError) as caught:
        find_nvcc(absent, "sm_87")
    assert "nvidia-jetpack" in str(caught.value.next_step)
    with pytest.raises(DeviceError, match="does not print its release"):
        find_nvcc(target_with(tmp_path, "#!/bin/sh\nexit 1\n"), "sm_87")


@pytest.mark.parametrize(
    ("chip", "mentions"), [("sm_72", "older than sm_75"), ("sm_110", "sm_101"), ("sm_78", "did you mean 'sm_87'")]
)
def test_a_chip_it_does_not_know_is_refused(tmp_path: Path, chip: str, mentions: str) -> None:
    with pytest.raises(EngineError, match=f"does not compile for {chip}") as caught:
        find_nvcc(target_with(tmp_path), chip)
    assert not isinstance(caught.value, DeviceError)  # the nvcc of the device would lack this chip too
    assert mentions in str(caught.value)


def test_a_failure_is_reported_with_the_first_error_and_the_command(tmp_path: Path) -> None:
    found = find_nvcc(target_with(tmp_path), "sm_87")
    with pytest.raises(EngineError, match="for sm_87 failed") as caught:
        found.compile_cubin(tmp_path, "x.cu", "x.cubin", ("-Icuda",))
    assert caught.value.got == "x.cu(3): error: no such thing"
    assert "-Icuda -cubin x.cu -o x.cubin" in str(caught.value.expected)


# ---------------------------------------------------------------- the choice of the chip


HERE = Gpu("NVIDIA H200", "sm_90", "13000")


def gpu_here(monkeypatch: pytest.MonkeyPatch, gpu: Gpu | None) -> None:
    def find() -> Gpu:
        if gpu is None:
            raise DeviceError("no GPU here")
        return gpu

    monkeypatch.setattr(chip, "find_gpu", find)


def test_the_gpu_of_this_machine_is_compiled_for(monkeypatch: pytest.MonkeyPatch) -> None:
    gpu_here(monkeypatch, HERE)
    found = find_chip(load_target("cuda"), None)
    assert (found.name, found.gpu, found.note) == ("sm_90", HERE, None)
    assert find_chip(load_target("cuda"), "sm_90").gpu == HERE
    other = find_chip(load_target("cuda"), "sm_87")
    assert (other.name, other.gpu) == ("sm_87", None)
    assert "not run" in str(other.note)


def test_without_a_gpu_the_only_chip_of_the_target_is_compiled_for(monkeypatch: pytest.MonkeyPatch) -> None:
    gpu_here(monkeypatch, None)
    target = load_target("cuda")
    assert find_chip(replace(target, chips=("sm_87",)), None).name == "sm_87"
    assert find_chip(target, "sm_75").name == "sm_75"
    for chips in ((), ("sm_87", "sm_110")):
        with pytest.raises(DeviceError, match="no GPU here"):
            find_chip(replace(target, chips=chips), None)


def test_a_name_that_is_no_chip_or_none_of_the_target_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    gpu_here(monkeypatch, HERE)
    with pytest.raises(ConfigError, match="'h200' is not the name of an NVIDIA chip"):
        find_chip(load_target("cuda"), "h200")
    with pytest.raises(ConfigError, match="is not for sm_90"):
        find_chip(replace(load_target("cuda"), chips=("sm_87",)), None)
