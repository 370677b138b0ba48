"""Writes the files of power sensors as each board has them, under a folder that stands for `/`."""

from __future__ import annotations

from pathlib import Path

# board -> chips; a chip -> (label, mV, mA) of each channel. Indices and order differ between boards and releases.
BOARDS = {
    "jetson-orin-nano": [[("VDD_IN", 4952, 1120), ("VDD_CPU_GPU_CV", 4952, 256), ("VDD_SOC", 4944, 344)]],
    "jetson-orin-nx": [[("VDD_IN", 5016, 1240), ("VDD_CPU_GPU_CV", 5016, 400), ("VDD_SOC", 5008, 360)]],
    "jetson-agx-orin": [
        [("VDD_GPU_SOC", 19096, 168), ("VDD_CPU_CV", 19096, 40), ("VIN_SYS_5V0", 5040, 760)],
        [("NC", 0, 0), ("VDDQ_VDD2_1V8AO", 1792, 128), ("NC", 0, 0)],
    ],
    "jetson-thor": [[("VDD_GPU", 11968, 300), ("VDD_CPU_SOC_MSS", 11976, 700), ("VIN_SYS_5V0", 5032, 900)]],
}
TOTAL_MW = {
    "jetson-orin-nano": 4952 * 1120 / 1e3,
    "jetson-orin-nx": 5016 * 1240 / 1e3,
    "jetson-agx-orin": (19096 * 168 + 19096 * 40 + 5040 * 760) / 1e3,
    "jetson-thor": 26123.456,  # what the INA238 reads
}


def write_board(root: Path, board: str) -> Path:
    """Writes the sensors of `board` under `root`, and returns `root`."""
    for chip, rails in enumerate(BOARDS[board]):
        folder = root / f"sys/bus/i2c/drivers/ina3221/1-004{chip}/hwmon/hwmon{3 + chip}"
        write(folder / "name", "ina3221")
        for number, (label, mv, ma) in enumerate(rails, start=1):
            write(folder / f"in{number}_label", label)
            write(folder / f"in{number}_input", mv)
            write(folder / f"curr{number}_input", ma)
        write(folder / "in7_label", "Sum of shunt voltages")  # the driver has this label too, and it is no supply
        write(folder / "in7_input", 3)
    if board == "jetson-thor":
        write(root / "sys/class/hwmon/hwmon5/name", "ina238")
        write(root / "sys/class/hwmon/hwmon5/power1_input", 26123456)
    write(root / "sys/class/hwmon/hwmon0/name", "tmp451")
    return root


def write_rapl(root: Path, packages: int = 1, largest: int = 262143328850) -> Path:
    """Writes the counters of an x86 machine. Each package holds a core domain, which must not be counted twice."""
    for package in range(packages):
        for name, folder in ((f"package-{package}", f"intel-rapl:{package}"), ("core", f"intel-rapl:{package}:0")):
            write(root / f"sys/class/powercap/{folder}/name", name)
            write(root / f"sys/class/powercap/{folder}/energy_uj", 1000)
            write(root / f"sys/class/powercap/{folder}/max_energy_range_uj", largest)
    write(root / "sys/class/powercap/intel-rapl/enabled", 1)
    return root


def write(path: Path, value: object) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"{value}\n")
