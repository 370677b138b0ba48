"""Counts the instructions of a decoder on an emulated Cortex-M55 beside those on an emulated Cortex-M7, in one run.

The preset `nano` with random weights, 32 channels and smoothed outputs is compiled for both, with eight and with four
bits, with the preset's bands and without. A table and `cortex-m55.json` come out. QEMU executes instructions and knows
nothing of cycles, so this says nothing of time: an M55 takes two cycles and more for most instructions on vectors.

    python -m benchmarks.firmware.cortex_m55 [--out benchmarks/results/emulated]

Debian: gcc-arm-none-eabi libnewlib-arm-none-eabi qemu-system-arm
"""

from __future__ import annotations

import tempfile
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from benchmarks.cpu.c_models import draw_model, make_front_end
from benchmarks.firmware.boards import CORTEX_M7, CORTEX_M55, PROGRAM, Board
from benchmarks.firmware.cortex_m7 import (
    CALLS,
    CHANNELS,
    OUTPUTS,
    SMOOTHING_ORDER,
    count_instructions,
    emulate,
    link,
    require_emulator,
)
from benchmarks.harness import RESULTS, describe_conditions, option_parser, read_first_line, write_result
from edgedistill.compile.c.toolchain import find_toolchain
from edgedistill.config import NO_BANDS, StudentShape, load_preset
from edgedistill.numerics.tensors import four_bit_parts
from edgedistill.target import load_target

BOARDS = (CORTEX_M7, CORTEX_M55)


def main() -> None:
    options = option_parser(__doc__, RESULTS / "emulated").parse_args()
    require_emulator()
    cases = [(bands, bits) for bands in ("preset", "none") for bits in (8, 4)]
    rows = [measure(board, bands, bits) for bands, bits in cases for board in BOARDS]
    result = {
        **describe_conditions("benchmarks.firmware.cortex_m55"),
        "what": "instructions counted under emulation, no board was measured",
        "emulator": read_first_line(PROGRAM, "--version"),
        "preset": "nano",
        "channels": CHANNELS,
        "smoothing_order": SMOOTHING_ORDER,
        "calls": CALLS,
        "boards": {board.target: describe_board(board) for board in BOARDS},
        "rows": rows,
    }
    show(rows)
    write_result(options.out, "cortex-m55", result)


def describe_board(board: Board) -> dict[str, Any]:
    """Returns how a board was emulated, and with which compiler and flags its firmware was made."""
    toolchain = find_toolchain(load_target(board.target))
    return {
        "emulator_command": " ".join(board.command),
        "resolution_instructions": board.tick,
        "variant": toolchain.ops,
        "compiler": toolchain.version,
        "flags": " ".join(toolchain.flags),
    }


def measure(board: Board, bands: str, bits: int) -> dict[str, Any]:
    """Counts the instructions of `nano` with these bands and bits, and its bytes of flash, RAM and stack."""
    preset = load_preset("nano")
    power = preset.band_power if bands == "preset" else NO_BANDS
    config = make_front_end(CHANNELS, bands=power.bands, band_ms=power.ms)
    shape = StudentShape(config.inputs, OUTPUTS, **asdict(preset.student))
    model = draw_model(shape, four=four_bit_parts(shape) if bits == 4 else ())
    with tempfile.TemporaryDirectory() as folder:
        linked = link(Path(folder), find_toolchain(load_target(board.target)), model, config)
        words = emulate(Path(folder), board)
    counted = count_instructions(words, board)["functions"]
    return {
        "board": board.target,
        "bands": len(power.bands),
        "weight_bits": bits,
        **{f"{name}_instructions": one["instructions_max"] for name, one in counted.items()},
        **{f"{name}_bytes": linked[name] for name in ("flash", "ram", "weights")},
        "stack_bytes": int(words[1]),
    }


def show(rows: list[dict[str, Any]]) -> None:
    table = Table(title=f"nano, {CHANNELS} channels, emulated: instructions, largest of {CALLS} calls")
    for heading in ("board", "bands", "bits", "a step", "a bin of frames", "flash", "RAM", "stack"):
        table.add_column(heading, justify="left" if heading == "board" else "right")
    keys = ("ed_step_instructions", "ed_push_instructions", "flash_bytes", "ram_bytes", "stack_bytes")
    for row in rows:
        table.add_row(row["board"], str(row["bands"]), str(row["weight_bits"]), *(f"{row[key]:,}" for key in keys))
    Console().print(table)


if __name__ == "__main__":
    main()
