"""The doctor finds what is missing, says who needs it and how to fix it, and never fails itself."""

from __future__ import annotations

import json
import subprocess
import sys
from importlib import metadata
from pathlib import Path

import pytest

from edgedistill import doctor
from edgedistill.doctor import examine, is_healthy


def test_this_machine_has_what_its_tests_run_on() -> None:
    checks = {check.name: check for check in examine()}
    assert checks["python"].ok
    assert checks["numpy"].found == metadata.version("numpy")
    assert {
        "torch",
        "pynwb",
        "onnxruntime",
        "gcc",
        "aarch64-linux-gnu-gcc",
        "arm-none-eabi-gcc",
        "nvcc",
        "gpu driver",
        "jetpack",
        "tensorrt",
        "tensorrt for python",
        "tensorrt headers",
        "cmake",
        "free disk",
        "cores",
    } <= set(checks)


def test_every_check_names_its_command_and_every_failure_its_fix(monkeypatch: pytest.MonkeyPatch) -> None:
    _strip_the_machine(monkeypatch)
    for check in examine():
        assert check.needed_for
        assert check.found
        assert check.ok == (check.fix is None)
    json.dumps([check.to_json() for check in examine()])


def test_a_machine_without_packages_and_tools_is_described_not_crashed_on(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    _strip_the_machine(monkeypatch)
    checks = {check.name: check for check in examine()}
    assert not checks["torch"].ok
    assert "'.[train]'" in str(checks["torch"].fix)
    assert "[train]" not in str(checks["numpy"].fix)
    assert not checks["gcc"].ok
    assert "gcc-aarch64-linux-gnu" in str(checks["aarch64-linux-gnu-gcc"].fix)
    assert not is_healthy(list(checks.values()))


def test_what_only_other_devices_need_does_not_make_a_machine_ill(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor.shutil, "which", lambda name: None)
    needed = {check.name: check.required for check in examine()}
    assert not any(
        needed[name] for name in ("aarch64-linux-gnu-gcc", "arm-none-eabi-gcc", "nvcc", "tensorrt", "jetpack")
    )
    assert needed["gcc"]
    assert is_healthy([check for check in examine() if check.ok or not check.required])


def test_a_tool_that_fails_or_is_broken_counts_as_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    failing = tmp_path / "gcc"
    failing.write_text("#!/bin/sh\necho 'license expired'\nexit 1\n")
    failing.chmod(0o755)
    for program in (failing, tmp_path / "absent"):
        monkeypatch.setattr(doctor.shutil, "which", lambda name, program=program: str(program))
        (check,) = (check for check in examine() if check.name == "gcc")
        assert (check.ok, check.found) == (False, "not found")


def test_a_jetson_is_told_with_board_release_and_power_mode(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor.jetson, "read_board", lambda: "NVIDIA Jetson Orin Nano")
    monkeypatch.setattr(doctor.jetson, "read_power_mode", lambda: "25W")
    monkeypatch.setattr(doctor.jetson, "read_tensorrt_version", lambda: "10.3.0")
    for release, found in (
        ("6.1", "6.1, NVIDIA Jetson Orin Nano, 25W"),
        ("5.1.3", "5.1.3, NVIDIA Jetson Orin Nano, 25W: too old"),
        (None, "not found"),
    ):
        monkeypatch.setattr(doctor.jetson, "read_jetpack_version", lambda release=release: release)
        checks = {check.name: check for check in examine()}
        assert checks["jetpack"].found == found
        assert checks["jetpack"].ok == (release == "6.1")
        assert ("JetPack 6.1 or later" in str(checks["jetpack"].fix)) == (release == "5.1.3")
    assert checks["tensorrt"].found == "10.3.0"
    assert "nvidia-jetpack" in str(checks["jetpack"].fix)  # of the last one, on another machine
    assert "on the board" in checks["tensorrt headers"].needed_for


def test_free_space_is_told_for_a_folder_that_does_not_exist_yet(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(doctor, "MIN_FREE_GB", 1e9)
    (check,) = (check for check in examine(tmp_path / "not" / "yet") if check.name == "free disk")
    assert str(tmp_path) in check.found
    assert not check.ok


def test_examining_imports_neither_torch_nor_pynwb() -> None:
    code = "import sys, edgedistill.doctor as d; d.examine(); assert not {'torch', 'pynwb'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=240)


def _strip_the_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    def absent(name: str) -> str:
        raise metadata.PackageNotFoundError(name)

    monkeypatch.setattr(metadata, "version", absent)
    monkeypatch.setattr(doctor.shutil, "which", lambda name: None)
