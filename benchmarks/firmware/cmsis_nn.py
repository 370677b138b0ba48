"""Measures what the operators of a step cost a Cortex-M7 in CMSIS-NN, beside the engine: instructions, flash and RAM.

The preset `nano` with random weights and without bands runs four times under the emulator of `cortex_m7`: our engine
with eight-bit and with four-bit weights, and CMSIS-NN with `arm_fully_connected_per_channel_s8` and with
`arm_fully_connected_s4`. The sources of CMSIS-NN are yours to get; `--cmsis-nn`, or the variable CMSIS_NN, names their
folder. What CMSIS-NN lacks costs it nothing here (`lacks` in the result), so its figures are a bound from below, for it
and for what is built on it. A table and `cmsis-nn.json` come out.

    git clone https://github.com/ARM-software/CMSIS-NN
    python -m benchmarks.firmware.cmsis_nn --cmsis-nn CMSIS-NN [--out benchmarks/results/emulated]
"""

from __future__ import annotations

import hashlib
import os
import tempfile
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

from benchmarks.cpu.c_models import draw_model, make_front_end
from benchmarks.firmware import cortex_m7
from benchmarks.firmware.boards import CORTEX_M7
from benchmarks.firmware.peer_source import peer_source
from benchmarks.harness import RESULTS, Result, describe_conditions, option_parser, write_result
from edgedistill.compile.c.toolchain import Toolchain, find_toolchain
from edgedistill.config import StudentShape, load_preset
from edgedistill.numerics import Int8Model
from edgedistill.numerics.tensors import four_bit_parts
from edgedistill.target import load_target

PROGRAM = Path(__file__).parent / "c" / "cmsis_nn.c"
CALLS = 20
KINDS = ("step", "softmax", "fully connected", "products of attention", "elementwise")  # as the program times them
SOURCES = {  # of CMSIS-NN, by their folder
    "FullyConnectedFunctions": ("fully_connected_per_channel_s8", "fully_connected_s4", "batch_matmul_s8"),
    "NNSupportFunctions": ("nn_vec_mat_mult_t_per_ch_s8", "nn_vec_mat_mult_t_s8", "nn_vec_mat_mult_t_s4"),
    "SoftmaxFunctions": ("softmax_s8", "nn_softmax_common_s8"),
    "BasicMathFunctions": ("elementwise_add_s8", "elementwise_mul_s8"),
}
LACKS = (
    "root mean square norm",
    "SiLU",
    "rings of keys and values",
    "age bias that turns with the ring",
    "conversion from and to float",
    "front end, fill-in and exchange of states",
    "four-bit weights with a scale for each row or group: arm_fully_connected_s4 has one for a matrix",
)


def main() -> None:
    parser = option_parser(__doc__, RESULTS / "emulated")
    parser.add_argument("--cmsis-nn", type=Path, default=os.environ.get("CMSIS_NN"), help="folder of its sources")
    options = parser.parse_args()
    sources = find_sources(options.cmsis_nn)
    toolchain = find_toolchain(load_target("cortex-m7"))
    config = make_front_end(cortex_m7.CHANNELS)
    shape = StudentShape(config.inputs, cortex_m7.OUTPUTS, **asdict(load_preset("nano").student))
    rows = {}
    for bits, parts in (("eight", ()), ("four", four_bit_parts(shape))):
        model = draw_model(shape, four=parts)
        with tempfile.TemporaryDirectory() as folder:
            linked = cortex_m7.link(Path(folder), toolchain, model, config)
            rows[f"edgedistill, {bits} bits"] = describe_engine(linked, cortex_m7.emulate(Path(folder), CORTEX_M7))
        with tempfile.TemporaryDirectory() as folder:
            linked = link(Path(folder), toolchain, model, options.cmsis_nn, sources)
            rows[f"CMSIS-NN, {bits} bits"] = describe_peer(linked, cortex_m7.emulate(Path(folder), CORTEX_M7))
    result = {
        **describe_conditions("benchmarks.firmware.cmsis_nn"),
        **cortex_m7.describe_settings(CORTEX_M7, toolchain, shape, config),
        "calls": CALLS,
        "cmsis_nn_sources_sha256": digest(sources),
        "lacks": list(LACKS),
        "rows": rows,
    }
    show(rows)
    write_result(options.out, "cmsis-nn", result)


def find_sources(folder: Path | None) -> list[Path]:
    """Returns the sources that the step needs. Ends the program where they are missing."""
    if folder is None:
        raise SystemExit("name the folder of CMSIS-NN: --cmsis-nn DIR, or the variable CMSIS_NN")
    found = [
        Path(folder).resolve() / "Source" / of / f"arm_{name}.c" for of, names in SOURCES.items() for name in names
    ]
    if missing := [path for path in found if not path.is_file()]:
        raise SystemExit(f"{folder} is not a folder of CMSIS-NN: {missing[0]} is missing")
    return found


def digest(sources: Sequence[Path]) -> str:
    """Returns the sha256 of the sources, one after another."""
    return hashlib.sha256(b"".join(path.read_bytes() for path in sources)).hexdigest()


def link(
    folder: Path, toolchain: Toolchain, model: Int8Model, cmsis_nn: Path, sources: Sequence[Path]
) -> dict[str, int]:
    """Links `program` in `folder` and returns the bytes of its flash and RAM."""
    (folder / "peer_model.h").write_text(peer_source(model, CALLS))
    options = ("-I.", f"-I{cortex_m7.BARE}", f"-I{cmsis_nn.resolve() / 'Include'}", "-w")
    objects = []
    for source in (*sources, cortex_m7.BARE / "startup.c", PROGRAM):
        objects.append(f"{source.stem}.o")
        toolchain.compile(folder, str(source), objects[-1], options)
    return cortex_m7.link_program(folder, toolchain, objects)


def describe_engine(linked: dict[str, int], words: Any) -> Result:
    """Returns the figures of our engine. Its flash and RAM hold the front end and everything else."""
    ticks = words[2 : 2 + cortex_m7.CALLS]
    return describe(linked, words, {"step": ticks})


def describe_peer(linked: dict[str, int], words: Any) -> Result:
    """Returns the figures of CMSIS-NN, of the whole step and of each kind of operator alone."""
    ticks = words[2:].reshape(CALLS, len(KINDS))
    return describe(linked, words, {kind: ticks[:, i] for i, kind in enumerate(KINDS)})


def describe(linked: dict[str, int], words: Any, ticks: dict[str, Any]) -> Result:
    """Returns the bytes and the instructions of one program."""
    counted = {
        kind: {
            "instructions_min": CORTEX_M7.instructions(int(np.min(of_kind))),
            "instructions_max": CORTEX_M7.instructions(int(np.max(of_kind))),
        }
        for kind, of_kind in ticks.items()
    }
    sizes = {"flash_bytes": linked["flash"], "ram_bytes": linked["ram"], "stack_bytes": int(words[1])}
    return {**sizes, "instructions": counted}


def show(rows: dict[str, Result]) -> None:
    table = Table(title=f"Cortex-M7, nano, {cortex_m7.CHANNELS} channels, no bands: emulated")
    for heading in ("", *rows):
        table.add_column(heading, justify="right" if heading else "left")
    for kind in KINDS:
        counted = (row["instructions"].get(kind) for row in rows.values())
        table.add_row(f"instructions, {kind}", *(f"{of['instructions_max']:,}" if of else "" for of in counted))
    for size in ("flash", "ram", "stack"):
        table.add_row(f"{size}, bytes", *(f"{row[f'{size}_bytes']:,}" for row in rows.values()))
    Console().print(table)


if __name__ == "__main__":
    main()
