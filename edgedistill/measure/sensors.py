"""Finds the power sensor of this machine: the rails of a board go in, and a meter comes out, or why there is none.

There are three kinds. A Jetson has the chips INA3221 and INA238, which are found by the labels of their rails because
their indices differ between releases. An NVIDIA GPU has an energy counter (NVML), except on Orin. An x86 processor has
a counter for each package (RAPL), which wraps and which only root may read. A meter that disappears while it is read
raises EngineError, so that the figure becomes null and is never a part of the true one.
"""

from __future__ import annotations

import ctypes
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from edgedistill.errors import EngineError
from edgedistill.target import Power

I2C = "sys/bus/i2c/drivers"
HWMON = "sys/class/hwmon"
RAPL = "sys/class/powercap"


class Meter(Protocol):
    """A sensor that tells power, or the energy used so far."""

    @property
    def source(self) -> str:
        """The name of the sensor, which stands beside every figure."""

    @property
    def period_s(self) -> float:
        """The time between two readings. Reading more often gains nothing."""

    @property
    def shortest_s(self) -> float:
        """The shortest run worth measuring. A shorter one says more about the sensor than about the run."""

    @property
    def counts_energy(self) -> bool:
        """Whether `read` returns the mJ since some start. Otherwise it returns the mW of now."""

    def read(self) -> float:
        """Returns the mW of now, or the mJ so far. Raises EngineError where the sensor can no longer be read."""


# ---------------------------------------------------------------- rails of a board


@dataclass(frozen=True)
class Rail:
    """One labelled supply of a board, read as voltage and current or as power."""

    label: str
    files: tuple[Path, ...]  # mV and mA, or µW

    def read_mw(self) -> float:
        """Returns the power of now in mW."""
        values = [_integer(file) for file in self.files]
        return values[0] / 1e3 if len(values) == 1 else values[0] * values[1] / 1e3


@dataclass(frozen=True)
class BoardMeter:
    """The rails whose sum is the board's power. Their chips average over many samples, so 10 Hz is enough."""

    rails: tuple[Rail, ...]
    period_s: float = 0.1
    shortest_s: float = 2.0
    counts_energy: bool = False

    @property
    def source(self) -> str:
        """The labels of the rails that are summed."""
        return "board sensor: " + " + ".join(rail.label for rail in self.rails)

    def read(self) -> float:
        """Returns the mW of all rails together."""
        return sum(rail.read_mw() for rail in self.rails)


def find_board_rails(root: Path) -> dict[str, Rail]:
    """Returns the rails of every INA3221 and INA238 under `root`, by label. Labels with NC are not connected."""
    found = {}
    for folder in sorted((root / I2C).glob("ina3221/*/hwmon/hwmon*")):
        for label_file in sorted(folder.glob("in[0-9]_label")):
            number, label = label_file.name[2], _text(label_file)
            if label and "NC" not in label.split("_"):
                found[label] = Rail(label, (folder / f"in{number}_input", folder / f"curr{number}_input"))
    for folder in sorted((root / HWMON).glob("hwmon*")):
        if _text(folder / "name") == "ina238" and (folder / "power1_input").exists():
            label = next(filter(None, (_text(folder / name) for name in ("power1_label", "label"))), "VIN")
            found[label] = Rail(label, (folder / "power1_input",))
    return found


# ---------------------------------------------------------------- counters


@dataclass
class RaplMeter:
    """The energy of all CPU packages. Each counter wraps on its own, and one wrap between two readings is undone."""

    counters: tuple[Path, ...]  # energy_uj
    ranges: tuple[int, ...]  # µJ after which each starts again at 0
    source: str = "RAPL: CPU package"
    period_s: float = 1.0
    shortest_s: float = 0.5
    counts_energy: bool = True
    _last: list[int] = field(default_factory=list)
    _total_uj: int = 0

    def read(self) -> float:
        """Returns the mJ since the first reading."""
        now = [_integer(file) for file in self.counters]
        for before, after, span in zip(self._last or now, now, self.ranges, strict=True):
            self._total_uj += after - before if after >= before else after - before + span
        self._last = now
        return self._total_uj / 1e3


def find_rapl_meter(root: Path) -> RaplMeter | str:
    """Returns the counters of the CPU packages, or why they cannot be used."""
    packages = [p for p in sorted((root / RAPL).glob("intel-rapl:*")) if p.name.count(":") == 1]
    packages = [p for p in packages if (_text(p / "name") or "").startswith("package")]
    if not packages:
        return "this CPU offers no energy counter (no intel-rapl package in /sys/class/powercap)"
    try:
        ranges = tuple(_integer(package / "max_energy_range_uj") for package in packages)
        meter = RaplMeter(tuple(package / "energy_uj" for package in packages), ranges)
        meter.read()
    except EngineError as error:
        return f"the CPU's energy counter cannot be read: {error.got}; only root may (sudo)"
    return meter


@dataclass(frozen=True)
class NvmlMeter:
    """The energy counter of the first GPU, which counts its whole board."""

    library: ctypes.CDLL
    device: ctypes.c_void_p
    source: str = "NVML: GPU board"
    period_s: float = 0.5
    shortest_s: float = 2.0
    counts_energy: bool = True

    def read(self) -> float:
        """Returns the mJ since the driver was loaded."""
        energy = ctypes.c_ulonglong()
        if code := self.library.nvmlDeviceGetTotalEnergyConsumption(self.device, ctypes.byref(energy)):
            raise EngineError("the GPU's energy counter can no longer be read", got=f"NVML error {code}")
        return float(energy.value)


def find_nvml_meter(library: str = "libnvidia-ml.so.1") -> NvmlMeter | str:
    """Returns the counter of the first GPU, or why there is none."""
    try:
        nvml = ctypes.CDLL(library)
    except OSError:
        return "no NVIDIA driver (NVML)"
    device = ctypes.c_void_p()
    if nvml.nvmlInit_v2() or nvml.nvmlDeviceGetHandleByIndex_v2(0, ctypes.byref(device)):
        return "the NVIDIA driver knows no GPU"
    meter = NvmlMeter(nvml, device)
    try:
        meter.read()
    except EngineError as error:
        return f"this GPU has no energy counter ({error.got})"
    return meter


# ---------------------------------------------------------------- which meter


def find_meter(power: Power | None = None, gpu: bool = False, root: Path = Path("/")) -> Meter | str:
    """Returns the meter of the processor that a subject runs on, or the reason why there is none.

    It sums the rails that a target names (`power`), which see all of a board. On a machine without rails it reads the
    counter of the GPU if the subject runs there (`gpu`), or else that of the CPU. On a board with other rails no sensor
    takes their place.
    """
    if power is None:
        return find_nvml_meter() if gpu else find_rapl_meter(root)
    rails = find_board_rails(root)
    missing = [label for label in power.total if label not in rails]
    if not missing:
        return BoardMeter(tuple(rails[label] for label in power.total))
    found = ", ".join(sorted(rails)) or "no sensor"
    reason = f"this machine has not the board's rails {', '.join(missing)} (found: {found})"
    if rails:
        return reason
    own = find_meter(gpu=gpu, root=root)
    return f"{reason}; {own}" if isinstance(own, str) else own


def _integer(file: Path) -> int:
    try:
        return int(file.read_text(encoding="ascii"))
    except OSError as error:
        raise EngineError(f"{file}: the power sensor cannot be read", got=error.strerror) from error
    except ValueError as error:
        raise EngineError(f"{file}: the power sensor gave no number", got=error) from error


def _text(file: Path) -> str | None:
    try:
        return file.read_text(encoding="utf-8", errors="replace").strip() or None
    except OSError:
        return None
