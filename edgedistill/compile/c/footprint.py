"""Measures how much memory of a device a compiled model needs.

A folder with sources and a toolchain go in, and the bytes of state, flash and RAM come out. Nothing is run. The size of
the state is read from an object file. Flash and RAM are read from a whole program that calls every function of the ABI
and that the linker lays out for the target.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from edgedistill.compile.c.toolchain import Toolchain
from edgedistill.errors import EngineError

MAP = "program.map"
FUNCTIONS = (
    *("ed_strerror", "ed_model_info", "ed_state_bytes", "ed_init", "ed_info_get", "ed_reset", "ed_outputs_for"),
    *("ed_push", "ed_push_i16", "ed_set_gain", "ed_gap", "ed_gap_outputs", "ed_step", "ed_set_normalization"),
    *("ed_latent", "ed_state_export", "ed_state_import"),
)


def state_bytes(folder: Path, toolchain: Toolchain, options: Sequence[str]) -> int:
    """Returns the bytes that `ed_state_bytes` returns on the target. Raises EngineError."""
    source, output = "state_probe.c", "state_probe.o"
    (folder / source).write_text('#include "ed_engine.c"\nchar ed_probe[sizeof(struct ed_engine)];\n')
    toolchain.compile(folder, source, output, (*options, "-O0", "-w"))
    listed = toolchain.run(folder, toolchain.tool("nm"), "-S", output)
    _remove(folder, source, output)
    for line in listed.splitlines():
        fields = line.split()
        if len(fields) == 4 and fields[3].lstrip("_") == "ed_probe":
            return int(fields[1], 16)
    raise EngineError("the size of the decoder's state could not be read", got=listed[:200])


def flash_and_ram(
    folder: Path, toolchain: Toolchain, options: Sequence[str], objects: Sequence[str], model: str, state: int
) -> dict[str, int]:
    """Returns the bytes of flash and RAM of a program with one decoder and every function of the ABI.

    Flash is code, constants and initial values. RAM is all data except the stack, and includes the decoder's state of
    `state` bytes. The program's linker map stays in `folder`. Raises EngineError where the toolchain fails.
    """
    source, output, program = "program.c", "program.o", "program.elf"
    (folder / source).write_text(_program(model, state))
    toolchain.compile(folder, source, output, options)
    layout = ("-nostartfiles", "-Wl,--gc-sections", "-Wl,-e,ed_program", f"-Wl,-Map={MAP}")
    toolchain.run(folder, toolchain.compiler.command, *toolchain.flags, *layout, output, *objects, "-o", program)
    sizes = toolchain.run(folder, toolchain.tool("size"), "-B", program).splitlines()[-1].split()
    text, data, bss = map(int, sizes[:3])
    _remove(folder, source, output, program)
    return {"flash": text + data, "ram": data + bss}


def _program(model: str, state: int) -> str:
    pointers = ", ".join(f"(function){name}" for name in FUNCTIONS)
    return (
        '#include "edgedistill.h"\n'
        "typedef void (*function)(void);\n"
        f"extern const ed_model ed_model_{model};\n"
        f"static _Alignas(ED_ALIGN) unsigned char memory[{state}];\n"
        f"static const function functions[] = {{{pointers}}};\n"
        "int ed_program(volatile unsigned at, ed_decoder **decoder);\n"
        "int ed_program(volatile unsigned at, ed_decoder **decoder) {\n"
        "    functions[at]();\n"
        f"    return ed_init(&ed_model_{model}, memory, sizeof memory, decoder);\n"
        "}\n"
    )


def _remove(folder: Path, *names: str) -> None:
    for name in names:
        (folder / name).unlink()
