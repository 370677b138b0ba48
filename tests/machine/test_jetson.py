"""What a Jetson says of itself is read from what it has: packages, release files, nvpmodel, libnvinfer."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

from edgedistill.machine import jetson

ORIN = "# R36 (release), REVISION: 4.3, GCID: 38968081, BOARD: generic, EABI: aarch64, DATE: Wed Jan  8 2025"


@pytest.mark.parametrize(
    ("release", "jetpack"),
    [
        (ORIN, "6.2"),
        (ORIN.replace("4.3", "4.0"), "6.1"),
        (ORIN.replace("4.3", "3.0"), "6.0"),
        (ORIN.replace("4.3", "9.9"), "6.2"),
        (ORIN.replace("R36", "R38").replace("4.3", "2.0"), "7.0"),
        (ORIN.replace("R36", "R35").replace("4.3", "4.1"), "5.1"),
        (ORIN.replace("R36", "R32").replace("4.3", "7.1"), "4"),
        (ORIN.replace("R36", "R99"), None),
        ("", None),
    ],
)
def test_the_release_of_jetson_linux_names_its_jetpack(release: str, jetpack: str | None) -> None:
    assert jetson.jetpack_from_release(release) == jetpack


def test_the_package_goes_before_the_release(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    _program(monkeypatch, tmp_path, "dpkg-query", "printf '6.2.1+b38'")
    monkeypatch.setattr(jetson, "RELEASE", _file(tmp_path, ORIN))
    assert jetson.read_jetpack_version() == "6.2.1"
    _program(monkeypatch, tmp_path, "dpkg-query", "echo 'no packages found' >&2; exit 1")
    assert jetson.read_jetpack_version() == "6.2"


def test_a_board_is_named_on_a_jetson_only(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    model = tmp_path / "model"
    model.write_bytes(b"NVIDIA Jetson Orin Nano Developer Kit\0")
    monkeypatch.setattr(jetson, "MODEL", model)
    monkeypatch.setattr(jetson, "RELEASE", tmp_path / "absent")
    assert jetson.read_board() is None
    monkeypatch.setattr(jetson, "RELEASE", _file(tmp_path, ORIN))
    assert jetson.read_board() == "NVIDIA Jetson Orin Nano Developer Kit"


def test_the_power_mode_is_a_name_and_no_index(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    _program(monkeypatch, tmp_path, "nvpmodel", "printf 'NV Power Mode: MAXN_SUPER\\n2\\n'")
    assert jetson.read_power_mode() == "MAXN_SUPER"
    _program(monkeypatch, tmp_path, "nvpmodel", "exit 1")
    assert jetson.read_power_mode() is None


@pytest.mark.parametrize(("number", "version"), [(100300, "10.3.0"), (101303, "10.13.3"), (110401, "11.4.1")])
def test_the_library_says_its_version(tmp_path: Path, number: int, version: str) -> None:
    if shutil.which("gcc") is None:
        pytest.skip("no gcc")
    source, library = tmp_path / "nvinfer.c", tmp_path / "libnvinfer.so.10"
    source.write_text(f"int getInferLibVersion(void) {{ return {number}; }}\n")
    subprocess.run(["gcc", "-shared", "-fPIC", str(source), "-o", str(library)], check=True)
    assert jetson.read_library_version(str(library)) == version


def test_no_library_no_version(tmp_path: Path) -> None:
    assert jetson.read_library_version(str(tmp_path / "libnvinfer.so.10")) is None
    assert jetson.read_library_version("libm.so.6") is None
    assert jetson.shorten_version("10.13.3.9") == "10.13.3"


def _file(folder: Path, text: str) -> Path:
    path = folder / "nv_tegra_release"
    path.write_text(text)
    return path


def _program(monkeypatch: pytest.MonkeyPatch, folder: Path, name: str, body: str) -> None:
    path = folder / name
    path.write_text(f"#!/bin/sh\n{body}\n")
    path.chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}{os.pathsep}{os.environ['PATH']}")
