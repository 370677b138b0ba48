"""What the driver tells of the GPU, and what is said where there is no driver, no GPU, or one that does not start."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from edgedistill.errors import DeviceError
from edgedistill.machine import gpu
from edgedistill.machine.gpu import Gpu, find_gpu

DRIVER = """
int cuInit(unsigned flags) { return INIT; }
int cuDriverGetVersion(int *version) { *version = 12060; return 0; }
int cuDeviceGetCount(int *count) { *count = COUNT; return 0; }
int cuDeviceGet(int *device, int i) { *device = 7; return i; }
int cuDeviceGetName(char *name, int n, int device) { __builtin_strncpy(name, "Orin \\xff", n); return device - 7; }
int cuDeviceGetAttribute(int *value, int which, int device) { *value = which == 75 ? 8 : 7; return device - 7; }
int cuGetErrorString(int code, const char **text) { *text = "system has unsupported driver mismatch"; return 0; }
"""


def driver(folder: Path, monkeypatch: pytest.MonkeyPatch, text: str = DRIVER, init: int = 0, count: int = 1) -> None:
    """A driver that answers what a test needs."""
    (folder / "driver.c").write_text(text)
    library = folder / "libcuda.so.1"
    given = (f"-DINIT={init}", f"-DCOUNT={count}")
    subprocess.run(["gcc", "-shared", "-fPIC", *given, folder / "driver.c", "-o", library], check=True, timeout=240)
    monkeypatch.setattr(gpu, "LIBRARY", str(library))


def test_a_gpu_is_told_by_name_chip_and_driver(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    driver(tmp_path, monkeypatch)
    gpu = find_gpu()
    assert gpu == Gpu("Orin \ufffd", "sm_87", "12060")
    assert gpu.cuda == "12.6"
    assert Gpu("", "", "13010").cuda == "13.1"


@pytest.mark.parametrize(
    ("changes", "mentions"),
    [
        ({"count": 0}, "but no GPU"),
        ({"init": 100}, "but no GPU"),
        ({"init": 803}, r"803 \(system has unsupported driver mismatch\)"),
        ({"text": "int cuInit(unsigned flags) { return 0; }"}, "no function cuDriverGetVersion"),
    ],
)
def test_what_is_wrong_with_a_driver_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, changes: dict, mentions: str
) -> None:
    driver(tmp_path, monkeypatch, **changes)
    with pytest.raises(DeviceError, match=mentions):
        find_gpu()


def test_a_machine_without_a_driver_is_told_what_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu, "LIBRARY", "libcuda-of-dreams.so.1")
    with pytest.raises(DeviceError, match="no CUDA driver") as caught:
        find_gpu()
    assert caught.value.next_step == "edgedistill doctor"
