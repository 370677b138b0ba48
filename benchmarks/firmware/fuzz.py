"""Fuzzes the engine on emulated boards: the calls of the C fuzzer, made by a bare Cortex-M7 and a bare Cortex-M55.

The firmware of a board holds the students of `benchmarks.cpu.fuzz`, each in the board's variant and in portable C. It
makes the calls of emulation/fuzz/fuzz_decoder.c, which says what it requires: among it the same bits from both. A
program of this machine with portable C alone makes the same calls. For each input, the digests of all outputs and
states must agree. Inputs are those of emulation/fuzz/corpus.txt and of `--corpus`, which `benchmarks.cpu.fuzz` fills,
then changed ones of them, and bytes at random. What was found is written to `firmware-fuzz.json`, and the exit code is
1 if anything was.

    python -m benchmarks.firmware.fuzz [--board cortex-m55] [--inputs 2000 | --seconds 600] [--corpus FOLDER]
        [--array decimated] [--seed 0] [--out benchmarks/results/emulated]

Debian: gcc-arm-none-eabi libnewlib-arm-none-eabi qemu-system-arm
"""

from __future__ import annotations

import argparse
import json
import struct
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from benchmarks.cpu.c_models import find_host_toolchain
from benchmarks.cpu.fuzz import ARRAYS, FUZZING, write_corpus, write_model, write_table
from benchmarks.firmware.boards import CORTEX_M7, CORTEX_M55, PROGRAM, Board
from benchmarks.firmware.cortex_m7 import BARE, link_program, require_emulator
from benchmarks.harness import RESULTS, Result, describe_conditions, option_parser, read_first_line, say, write_result
from edgedistill.compile.c.library import INCLUDES, SOURCES
from edgedistill.compile.c.toolchain import Toolchain, find_toolchain
from edgedistill.target import load_target

BOARDS = {board.target: board for board in (CORTEX_M7, CORTEX_M55)}
PLAIN = "scalar"
BATCH = 50  # inputs of one run of the emulator
MOST_BYTES = 1024  # of an input that is drawn
MARK = b"FAILED"  # of fuzz_replay.c


def main() -> None:
    parser = option_parser(__doc__, RESULTS / "emulated")
    parser.add_argument("--board", action="append", choices=BOARDS, help="only this one")
    parser.add_argument("--array", action="append", choices=ARRAYS, help="only the student of this array")
    parser.add_argument("--inputs", type=int, default=2000, help="for each board")
    parser.add_argument("--seconds", type=float, help="for each board, in place of a number of inputs")
    parser.add_argument("--corpus", type=Path, help="folder of inputs to begin with")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    require_emulator()
    with tempfile.TemporaryDirectory() as folder:
        boards = {name: fuzz(Path(folder) / name, BOARDS[name], options) for name in options.board or BOARDS}
    found = sum(len(board["culprits"]) for board in boards.values())
    result: Result = {
        **describe_conditions("benchmarks.firmware.fuzz"),
        "emulator": read_first_line(PROGRAM, "--version"),
        "arrays": list(options.array or ARRAYS),
        "found": found,
        "boards": boards,
    }
    write_result(options.out, "firmware-fuzz", result)
    print(json.dumps({name: result[name] for name in ("found", "boards")}, indent=1))
    sys.exit(1 if found else 0)


def fuzz(folder: Path, board: Board, options: argparse.Namespace) -> Result:
    """Replays inputs on a board and on this machine until there are enough, and returns what was found."""
    arrays, toolchain = list(options.array or ARRAYS), find_toolchain(load_target(board.target))
    say(f"compiling for {board.name}")
    firmware, program = folder / "board", folder / "here"
    objects = build(firmware, toolchain, arrays, (toolchain.ops, PLAIN), ("-DED_TEST_BARE",), [BARE / "startup.c"])
    link_program(firmware, toolchain, objects)
    host = find_host_toolchain(PLAIN)
    objects = build(program, host, arrays, (PLAIN, PLAIN), (), [])
    host.run(program, host.compiler.command, *objects, "-lm", "-o", "program")
    inputs = list_inputs(write_corpus(folder / "committed"), options.corpus, options.seed)
    began, count, culprits = time.monotonic(), 0, []
    while not culprits and (time.monotonic() - began < options.seconds if options.seconds else count < options.inputs):
        batch = [next(inputs) for _ in range(BATCH if options.seconds else min(BATCH, options.inputs - count))]
        culprits = compare(
            batch,
            replay(program, ["./program"], batch),
            replay(firmware, [*board.command, "-kernel", "program"], batch),
        )
        count += len(batch)
        if count % (20 * BATCH) == 0:
            say(f"{board.name}: {count:,} inputs")
    seconds = round(time.monotonic() - began, 1)
    return {
        "variants": [toolchain.ops, PLAIN],
        "compiler": toolchain.version,
        "flags": " ".join(toolchain.flags),
        "inputs": count,
        "seconds": seconds,
        "seed": options.seed,
        "culprits": culprits,
    }


def build(
    folder: Path,
    toolchain: Toolchain,
    arrays: Sequence[str],
    variants: tuple[str, str],
    options: tuple[str, ...],
    further: list[Path],
) -> list[str]:
    """Compiles the students of arrays in two variants with the program that replays, and returns the object files."""
    options, objects = (*INCLUDES, f"-I{BARE}", f"-I{FUZZING}", "-DFUZZ_REPLAYED", "-Werror", *options), []
    for array in arrays:
        for ops in dict.fromkeys(variants):
            define = write_model(folder, array, ops)
            objects.append(f"{array}_{ops}.o")
            toolchain.compile(folder, "c/ed_engine.c", objects[-1], (*options, define))
    write_table(folder, arrays, variants)
    for source in (SOURCES[0], FUZZING / "fuzz_decoder.c", FUZZING / "fuzz_replay.c", *further):
        objects.append(f"{Path(source).stem}.o")
        toolchain.compile(folder, str(source), objects[-1], options)
    return objects


def list_inputs(committed: Path, corpus: Path | None, seed: int) -> Iterator[bytes]:
    """Yields the inputs of both folders, and then without end changed ones of them and bytes at random, in turn."""
    known = [file.read_bytes() for folder in (committed, corpus) if folder for file in sorted(folder.iterdir())]
    yield from known
    rng = np.random.default_rng(seed)
    while True:
        changed = bytearray(known[rng.integers(len(known))])
        for at in rng.integers(max(1, len(changed)), size=rng.integers(1, 9)):
            changed[at : at + 1] = rng.bytes(1)
        yield bytes(changed)
        yield rng.bytes(int(rng.integers(1, MOST_BYTES)))


def replay(folder: Path, command: Sequence[str], inputs: Sequence[bytes]) -> tuple[list[int], str]:
    """Runs a program over inputs, and returns the digest of each, up to the first that failed, and why it did."""
    records = (struct.pack("<I", len(one)) + one for one in inputs)
    (folder / "in.bin").write_bytes(b"".join(records) + b"\xff\xff\xff\xff")
    done = subprocess.run(command, cwd=folder, capture_output=True, timeout=1800, check=False)
    told = (folder / "out.bin").read_bytes()
    digests, _, reason = told.partition(MARK) if done.returncode else (told, b"", b"")
    failed = ""
    if done.returncode:
        line = f"line {struct.unpack('<i', reason[:4])[0]}: not {reason[4:].decode()}" if reason else "it crashed"
        failed = f"{line} {done.stderr.decode(errors='replace')[-500:]}".strip()
    return np.frombuffer(digests, "<u4").tolist(), failed


def compare(
    inputs: Sequence[bytes], expected: tuple[list[int], str], found: tuple[list[int], str]
) -> list[dict[str, str]]:
    """Returns the inputs whose digests differ, and the one at which a program ended."""
    culprits = []
    for where, (digests, failed) in (("this machine", expected), ("the board", found)):
        if failed or len(digests) != len(inputs):
            input_ = inputs[min(len(digests), len(inputs) - 1)]
            culprits.append({"what": f"on {where}: {failed or 'no digest'}", "input": input_.hex()})
    for input_, one, other in zip(inputs, expected[0], found[0], strict=False):
        if one != other:
            culprits.append({"what": "the digests differ", "input": input_.hex()})
    return culprits


if __name__ == "__main__":
    main()
