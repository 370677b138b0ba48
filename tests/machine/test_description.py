"""The description of a machine has every key on every machine, and no guess where something cannot be found out."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from edgedistill.machine import jetson, processor
from edgedistill.machine.description import describe_machine, read_package_version
from edgedistill.machine.system_files import read_system_file


def test_a_machine_is_described_in_json() -> None:
    found = json.loads(json.dumps(describe_machine()))
    assert {
        "cpu",
        "cores",
        "governor",
        "board",
        "power_mode",
        "architecture",
        "os",
        "threads",
        "versions",
        "load",
    } == set(found)
    assert 1 <= found["cores"] <= (os.cpu_count() or 1)
    assert found["versions"]["numpy"] == read_package_version("numpy")


def test_what_is_not_there_is_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(jetson, "RELEASE", tmp_path / "absent")
    assert (describe_machine()["power_mode"], jetson.read_jetpack_version()) == (None, None)
    assert read_package_version("no-such-package") is None


@pytest.mark.parametrize(
    ("text", "model"),
    [
        ("processor : 0\nmodel name\t: AMD EPYC 9B14\n\nprocessor : 1\nmodel name : AMD\n", "AMD EPYC 9B14"),
        ("processor : 0\nFeatures : fp asimd\n\nModel : Raspberry Pi 5\n", "Raspberry Pi 5"),
    ],
)
def test_a_processor_is_named_as_it_names_itself(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str, model: str
) -> None:
    (tmp_path / "cpuinfo").write_text(text)
    monkeypatch.setattr(processor, "CPUINFO", tmp_path / "cpuinfo")
    assert processor.read_cpu_model() == model


def test_a_file_of_the_system_is_read_without_its_nul(tmp_path: Path) -> None:
    (tmp_path / "model").write_bytes(b"NVIDIA Jetson\0")
    (tmp_path / "empty").write_bytes(b"\n")
    assert read_system_file(tmp_path / "model") == "NVIDIA Jetson"
    assert read_system_file(tmp_path / "empty") is read_system_file(tmp_path / "absent") is None
