"""Tests the rails and totals of every board, counters that wrap, and sensors that are missing, locked or vanish."""

from __future__ import annotations

import ctypes
import shutil
from pathlib import Path

import pytest

from edgedistill.errors import EngineError
from edgedistill.measure.sensors import (
    BoardMeter,
    RaplMeter,
    find_board_rails,
    find_meter,
    find_nvml_meter,
    find_rapl_meter,
)
from edgedistill.target import load_target

from .boards import BOARDS, TOTAL_MW, write, write_board, write_rapl


@pytest.mark.parametrize("board", BOARDS)
def test_a_board_gives_its_own_total(board: str, tmp_path: Path) -> None:
    power = load_target(board).power
    assert power is not None
    meter = find_meter(power, root=write_board(tmp_path, board))
    assert isinstance(meter, BoardMeter)
    assert meter.read() == pytest.approx(TOTAL_MW[board], rel=1e-12)
    assert all(label in meter.source for label in power.total)
    assert set(power.rails) <= set(find_board_rails(tmp_path))


def test_rails_that_are_not_connected_are_left_out(tmp_path: Path) -> None:
    rails = find_board_rails(write_board(tmp_path, "jetson-agx-orin"))
    assert "NC" not in rails
    assert "VDDQ_VDD2_1V8AO" in rails


def test_on_another_board_no_other_sensor_takes_the_place_of_its_rails(tmp_path: Path) -> None:
    write_rapl(write_board(tmp_path, "jetson-agx-orin"))
    reason = find_meter(load_target("jetson-orin-nano").power, root=tmp_path)
    assert isinstance(reason, str)
    assert "VDD_IN" in reason
    assert "VDD_GPU_SOC" in reason
    assert "no sensor" in str(find_meter(load_target("jetson-orin-nano").power, root=tmp_path / "nothing"))


def test_a_rail_that_vanishes_is_an_error_that_names_its_file(tmp_path: Path) -> None:
    meter = find_meter(load_target("jetson-orin-nx").power, root=write_board(tmp_path, "jetson-orin-nx"))
    assert isinstance(meter, BoardMeter)
    shutil.rmtree(tmp_path / "sys/bus")
    with pytest.raises(EngineError, match="in1_input"):
        meter.read()


@pytest.mark.parametrize("text", ["", "many", "1.5"])
def test_a_rail_that_gives_no_number_is_an_error(text: str, tmp_path: Path) -> None:
    meter = find_meter(load_target("jetson-orin-nx").power, root=write_board(tmp_path, "jetson-orin-nx"))
    assert isinstance(meter, BoardMeter)
    write(next(tmp_path.rglob("curr1_input")), text)
    with pytest.raises(EngineError, match="no number"):
        meter.read()


def test_packages_are_counted_once_each_and_wrap(tmp_path: Path) -> None:
    meter = find_rapl_meter(write_rapl(tmp_path, packages=2, largest=10_000))
    assert isinstance(meter, RaplMeter)
    first, second = meter.counters
    start = meter.read()
    write(first, 9_000)
    assert meter.read() - start == pytest.approx(8.0)
    write(first, 500)  # wrapped: 1000 to the end and 500 after it
    write(second, 1_700)
    assert meter.read() - start == pytest.approx(8.0 + 1.5 + 0.7)


def test_a_machine_without_counters_says_so(tmp_path: Path) -> None:
    assert "no energy counter" in str(find_meter(root=tmp_path))


def test_a_locked_counter_says_who_may_read_it(tmp_path: Path) -> None:
    write_rapl(tmp_path)
    counter = tmp_path / "sys/class/powercap/intel-rapl:0/energy_uj"
    counter.unlink()
    counter.mkdir()  # a folder cannot be read as a file, not even by root
    reason = find_meter(root=tmp_path)
    assert isinstance(reason, str)
    assert "root" in reason


class Nvml:
    """A driver with one GPU that has used 41 mJ."""

    code = 0

    def nvmlInit_v2(self) -> int:  # noqa: N802
        return 0

    def nvmlDeviceGetHandleByIndex_v2(self, index: int, device: object) -> int:  # noqa: N802
        return 0

    def nvmlDeviceGetTotalEnergyConsumption(self, device: object, energy: object) -> int:  # noqa: N802
        energy._obj.value = 41  # type: ignore[attr-defined]
        return self.code


def test_the_gpus_counter(monkeypatch: pytest.MonkeyPatch) -> None:
    driver = Nvml()
    monkeypatch.setattr(ctypes, "CDLL", lambda name: driver)
    meter = find_nvml_meter()
    assert not isinstance(meter, str)
    assert meter.read() == 41
    driver.code = 3
    with pytest.raises(EngineError, match="no longer"):
        meter.read()
    assert "NVML error 3" in str(find_nvml_meter())


def test_no_nvidia_driver_is_a_reason() -> None:
    assert "NVML" in str(find_nvml_meter("libnvidia-ml-of-nobody.so.1"))
