"""Measures what a decoder costs a Cortex-M7: instructions a step under emulation, flash, RAM, stack and estimated time.

The preset `nano` with random weights is linked into a firmware that counts the instructions of its calls. It sees the
power of the preset's bands beside the slow LFP, unless `--bands none` leaves them out, and its outputs are smoothed.
With `--weights 4` the embedding and the layers have four-bit weights. A table and `cortex-m7.json` come out, with
`-no-bands` and `-four-bit` in the name where they hold. The emulator executes instructions and knows nothing of cycles,
caches or flash. So the instructions are a measurement, and the milliseconds are an ESTIMATE from them, for a range of
instructions a cycle that stands in the result.

    python -m benchmarks.firmware.cortex_m7 [--bands preset|none] [--weights 8|4] [--out benchmarks/results/emulated]

Debian: gcc-arm-none-eabi libnewlib-arm-none-eabi qemu-system-arm
"""

from __future__ import annotations

import re
import shutil
import subprocess
import tempfile
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from rich.console import Console
from rich.table import Table

from benchmarks.cpu.array_models import draw_smoothing_model
from benchmarks.cpu.c_models import draw_model, make_front_end, write_sources
from benchmarks.firmware.boards import CORTEX_M7, PROGRAM, Board
from benchmarks.harness import RESULTS, describe_conditions, option_parser, read_first_line, write_result
from edgedistill.assets import asset_folder
from edgedistill.compile.c.footprint import state_bytes
from edgedistill.compile.c.library import INCLUDES, SOURCES
from edgedistill.compile.c.toolchain import Toolchain, find_toolchain
from edgedistill.config import NO_BANDS, StudentShape, load_preset
from edgedistill.frontend import FrontEndConfig
from edgedistill.numerics import Int8Model
from edgedistill.numerics.smoothing import ORDERS
from edgedistill.numerics.tensors import four_bit_parts
from edgedistill.target import Target, load_target

FIRMWARE = Path(__file__).parent / "c" / "cortex_m7.c"
BARE = Path(str(asset_folder("kernels"))).parent / "emulation" / "cortex-m"
CHANNELS, OUTPUTS, FRAMES, CALLS = 32, 2, 10, 300
SMOOTHING_ORDER = max(ORDERS)
CLOCK_HZ = 480e6  # of the fastest STM32H7
# The core issues two instructions at once. Integer loops with their data in the cache come near 1.5 a cycle. Filters in
# double precision, with a multiplication every four cycles, and weights that stream from flash fall below 1.
INSTRUCTIONS_A_CYCLE = {"pessimistic": 0.5, "likely": 1.0, "optimistic": 1.5}


def main() -> None:
    parser = option_parser(__doc__, RESULTS / "emulated")
    parser.add_argument("--bands", choices=("preset", "none"), default="preset", help="what it sees beside slow LFP")
    parser.add_argument(
        "--weights", type=int, choices=(8, 4), default=8, help="bits of the weights, the read-out's aside"
    )
    options = parser.parse_args()
    require_emulator()
    target = load_target("cortex-m7")
    toolchain = find_toolchain(target)
    preset = load_preset("nano")
    power = preset.band_power if options.bands == "preset" else NO_BANDS
    config = make_front_end(CHANNELS, bands=power.bands, band_ms=power.ms)
    shape = StudentShape(config.inputs, OUTPUTS, **asdict(preset.student))
    with tempfile.TemporaryDirectory() as folder:
        model = draw_model(shape, four=four_bit_parts(shape) if options.weights == 4 else ())
        linked = link(Path(folder), toolchain, model, config)
        words = emulate(Path(folder), CORTEX_M7)
    result = {
        **describe_conditions("benchmarks.firmware.cortex_m7"),
        **describe_settings(CORTEX_M7, toolchain, shape, config),
        "weight_bits": options.weights,
        **describe_memory(target, linked, int(words[1])),
        **count_instructions(words, CORTEX_M7),
    }
    show(result)
    name = "cortex-m7" + ("" if power.bands else "-no-bands") + ("-four-bit" if options.weights == 4 else "")
    write_result(options.out, name, result)


# ------------------------------------------------------------------------------------------- the firmware


def link(folder: Path, toolchain: Toolchain, model: Int8Model, config: FrontEndConfig) -> dict[str, int]:
    """Links `program` in `folder`, and returns the bytes of flash and RAM, and those of state and weights."""
    smoothing = draw_smoothing_model(OUTPUTS, SMOOTHING_ORDER)
    write_sources(folder, model, config, toolchain.ops, "subject", smoothing)
    options = (*INCLUDES, f"-I{BARE}", '-DED_MODEL_HEADER="model_subject.h"')
    state = state_bytes(folder, toolchain, options)
    objects = []
    for source in (*SOURCES, str(BARE / "startup.c"), str(FIRMWARE)):
        objects.append(f"{Path(source).stem}.o")
        toolchain.compile(folder, source, objects[-1], (*options, f"-DSTATE_BYTES={state}", "-Werror"))
    linked = link_program(folder, toolchain, objects)
    weights = toolchain.run(folder, toolchain.tool("nm"), "-S", "program")
    (packed,) = re.findall(r"^\w+ (\w+) \w ed_weights$", weights, re.M)
    return {**linked, "state": state, "weights": int(packed, 16)}


def link_program(folder: Path, toolchain: Toolchain, objects: Sequence[str]) -> dict[str, int]:
    """Links object files to `program` in `folder`, and returns the bytes of flash and RAM."""
    layout = ("-nostartfiles", f"-T{BARE}/mps2.ld", "-Wl,--gc-sections", "-Wl,--print-memory-usage")
    said = toolchain.run(folder, toolchain.compiler.command, *toolchain.flags, *layout, *objects, "-o", "program")
    sizes = re.findall(r"(\w+): +(\d+) (K?)B ", said)  # whole kilobytes are printed as such
    used = {name: int(size) * (1024 if kilo else 1) for name, size, kilo in sizes}
    return {"flash": used["FLASH"], "ram": used["RAM"]}


def require_emulator() -> None:
    """Ends the program where the emulator is missing."""
    if shutil.which(PROGRAM) is None:
        raise SystemExit(f"{PROGRAM} is not installed: apt install qemu-system-arm")


def emulate(folder: Path, board: Board) -> npt.NDArray[np.int64]:
    """Runs the firmware and returns the words that it wrote."""
    command = (*board.command, "-kernel", "program")
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=600, check=False)
    if done.returncode:
        raise SystemExit(f"the firmware failed under emulation: {done.stderr[-500:]}")
    words = np.fromfile(folder / "out.bin", "<u4").astype(np.int64)
    counted = board.instructions(int(words[0]))
    if abs(counted - 2_000_000) > 2 * board.tick:
        raise SystemExit(f"the emulator's clock does not count instructions: {counted} for 2000000")
    return words


# ------------------------------------------------------------------------------------------- the figures


def describe_settings(
    board: Board, toolchain: Toolchain, shape: StudentShape, config: FrontEndConfig
) -> dict[str, Any]:
    """Returns the emulator, the compiler and the model that were used."""
    return {
        "what": "an ESTIMATE: instructions counted under emulation, no board was measured",
        "emulator": read_first_line(PROGRAM, "--version"),
        "emulator_command": " ".join(board.command),
        "compiler": toolchain.version,
        "flags": " ".join(toolchain.flags),
        "preset": "nano",
        "channels": config.channels,
        "bands": config.bands,
        "smoothing_order": SMOOTHING_ORDER,
        "model": shape.to_json(),
        "frames_a_bin": FRAMES,
        "calls": CALLS,
    }


def describe_memory(target: Target, linked: dict[str, int], stack: int) -> dict[str, Any]:
    """Returns the bytes of flash and RAM, and the gates of the target that are set on them."""
    gates = target.judge({"flash_bytes": linked["flash"], "ram_bytes": linked["ram"]})
    return {
        "flash_bytes": linked["flash"],
        "weights_bytes": linked["weights"],
        "ram_bytes": linked["ram"],
        "state_bytes": linked["state"],
        "stack_bytes": stack,
        "gates": [{"name": g.name, "value": g.value, "limit": g.limit, "ok": g.ok} for g in gates if g.value],
    }


def count_instructions(words: npt.NDArray[np.int64], board: Board) -> dict[str, Any]:
    """Returns the instructions of each function, and the milliseconds estimated from them."""
    calls = {"ed_step": words[2 : 2 + CALLS], "ed_push": words[2 + CALLS :]}
    counted = {
        name: {
            "instructions_min": board.instructions(int(ticks.min())),
            "instructions_max": board.instructions(int(ticks.max())),
            "estimated_ms_at_480_mhz": {
                guess: round(board.instructions(int(ticks.max())) / rate / CLOCK_HZ * 1e3, 3)
                for guess, rate in INSTRUCTIONS_A_CYCLE.items()
            },
        }
        for name, ticks in calls.items()
    }
    return {"resolution_instructions": board.tick, "instructions_a_cycle": INSTRUCTIONS_A_CYCLE, "functions": counted}


def show(result: dict[str, Any]) -> None:
    what = f"{CHANNELS} channels, {len(result['bands'])} bands"
    table = Table(title=f"Cortex-M7, nano, {what}: emulated; times are an estimate")
    for heading in ("", "instructions", *(f"ms at 480 MHz, {rate} a cycle" for rate in INSTRUCTIONS_A_CYCLE.values())):
        table.add_column(heading, justify="right" if heading else "left")
    for name, figures in result["functions"].items():
        times = (f"{ms:.2f}" for ms in figures["estimated_ms_at_480_mhz"].values())
        table.add_row(name, f"{figures['instructions_max']:,}", *times)
    console = Console()
    console.print(table)
    for name in ("flash", "ram", "stack"):
        console.print(f"{name}: {result[f'{name}_bytes']:,} bytes")


if __name__ == "__main__":
    main()
