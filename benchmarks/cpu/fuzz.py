"""Fuzzes the C engine for a given time, with libFuzzer and the address and undefined-behavior sanitizers.

One program holds a student in every variant that this CPU runs, in that for Cortex-M with its two instructions written
out in C, and in that for Helium with emulated intrinsics, or in those variants that are named: for an array at 250 Hz,
for one that is decimated, leaves two channels out and lets its statistics follow the signal, and for one with bands.
For the last one it also holds the engine of a device, whose student the CPU computes. It is
emulation/fuzz/fuzz_decoder.c, which says what it requires. It begins with the inputs of emulation/fuzz/corpus.txt.
What libFuzzer found is written to `fuzz.json`. The exit code is 1 if an input broke the engine, and that input is
printed.

    python -m benchmarks.cpu.fuzz [--seconds 600 | --inputs N] [--variants scalar avx2 …] [--corpus FOLDER]
                                  [--out benchmarks/results/cpu]
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path

from benchmarks.cpu.array_models import draw_smoothing_model
from benchmarks.cpu.c_models import draw_model, list_variants, make_front_end, write_sources
from benchmarks.harness import RESULTS, describe_conditions, option_parser, read_first_line, write_result
from edgedistill.assets import asset_folder
from edgedistill.compile.c.library import SOURCES
from edgedistill.compile.c.toolchain import VARIANTS
from edgedistill.config import StudentShape
from edgedistill.numerics.tensors import four_bit_parts

SANITIZERS = ("-fsanitize=fuzzer,address,undefined",)
# The program halts by this option, because with -fno-sanitize-recover=all clang 14 takes minutes to compile AVX-512.
HALT = {"UBSAN_OPTIONS": "halt_on_error=1:print_stacktrace=1", "ASAN_OPTIONS": "detect_leaks=1"}
FLAGS = ("-std=c11", "-O1", "-g", "-ffp-contract=off", "-fno-math-errno", "-Wall", "-Wextra", "-Wconversion", "-Werror")
# rules that act, and filters that settle, within a few bins
QUICK = {"highpass_hz": 5.0, "flat_s": 0.05, "recover_s": 0.04, "bridged_s": 0.05}
ARRAYS = {
    "khz": (StudentShape(3, 2, 8, 2, 2, 7, 16, 3, 2, 5), make_front_end(3, Fraction(250), **QUICK)),
    "decimated": (
        StudentShape(5, 1, 21, 1, 3, 20, 31, 1, 1, 0),
        make_front_end(5, Fraction(48828125, 40000), left_out=(0, 3), follow_s=10, **QUICK),
    ),
    "bands": (
        StudentShape(9, 2, 8, 1, 2, 5, 16, 2, 1, 1),
        make_front_end(3, Fraction(500), bands=((20, 60), (70, 200)), follow_s=10, **QUICK),
    ),
}
SMOOTHED = ("decimated", "bands")
FOUR_BITS = ("decimated",)  # arrays whose students have four-bit weights
DEVICE = "bands"  # the array that also has the engine of a device
EMULATION = Path(str(asset_folder("kernels"))).parent / "emulation"
FUZZING = EMULATION / "fuzz"
# Variants for other processors, which this one computes, and the options that this takes.
ELSEWHERE = {"dsp": (), "helium": ("-isystem", str(EMULATION / "helium"))}
MOST_BYTES = 2048  # in one input


def main() -> None:
    parser = option_parser(__doc__, RESULTS / "cpu")
    parser.add_argument("--seconds", type=int, default=600)
    parser.add_argument("--inputs", type=int, help="so many, however long they take")
    parser.add_argument("--seed", type=int, default=0, help="0: another one every time")
    known = (*list_variants(), *ELSEWHERE)
    parser.add_argument("--variants", nargs="+", choices=known, default=known)
    parser.add_argument("--corpus", type=Path, help="folder of inputs to begin with and to add to")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        program = build(Path(folder), options.variants)
        result = {
            **describe_conditions("benchmarks.cpu.fuzz"),
            **describe_settings(options.variants),
            **fuzz(program, choose_limit(options), options.seed, options.corpus),
        }
    write_result(options.out, "fuzz", result)
    kept = {name: value for name, value in result.items() if name not in ("device", "output")}
    print(json.dumps(kept, indent=1))
    if result["found"]:
        print(result["output"], file=sys.stderr)
        sys.exit(1)


def build(folder: Path, variants: Sequence[str]) -> Path:
    """Compiles the fuzzing program with these variants of the engine in `folder` and returns its path."""
    if shutil.which("clang") is None:
        sys.exit("fuzzing needs clang with libFuzzer: sudo apt install clang")
    flags = {ops: ELSEWHERE[ops] if ops in ELSEWHERE else VARIANTS[ops].flags for ops in variants}
    objects = []
    for array, ops in itertools.product(ARRAYS, flags):
        define = write_model(folder, array, ops)
        objects.append(compile_object(folder, "c/ed_engine.c", f"{array}_{ops}.o", (define, *flags[ops])))
    device = write_model(folder, DEVICE, "scalar", "device")
    objects += [
        compile_object(folder, str(source), f"device_{Path(source).stem}.o", (device, "-DED_DEVICE"))
        for source in (SOURCES[0], "c/ed_engine.c", FUZZING / "fuzz_device.c")
    ]
    write_table(folder, list(ARRAYS), list(flags), f"#define DEVICE_ARRAY {list(ARRAYS).index(DEVICE)}")
    objects.append(compile_object(folder, str(FUZZING / "fuzz_decoder.c"), "fuzz_decoder.o", ()))
    return Path(run(folder, ["clang", *SANITIZERS, *objects, "-o", str(folder / "fuzz")], folder / "fuzz"))


def write_table(folder: Path, arrays: Sequence[str], variants: Sequence[str], *further: str) -> None:
    """Writes model/models.h, with the students of arrays in the same variants, and `further` lines."""
    names = [[f"ed_model_{array}_{ops}" for ops in variants] for array in arrays]
    lines = [f"extern const ed_model {name};" for name in sorted({name for row in names for name in row})]
    lines += [f"#define ARRAYS {len(arrays)}", f"#define VARIANTS {len(variants)}", *further]
    lines += ["static const ed_model *const models[ARRAYS][VARIANTS] = {"]
    lines += [f"    {{{', '.join(f'&{name}' for name in row)}}}," for row in names]
    (folder / "model/models.h").write_text("\n".join([*lines, "};", ""]))


def write_model(folder: Path, array: str, ops: str, name: str | None = None) -> str:
    """Writes the sources of the student of an array, and returns the option that names its header."""
    name = name or f"{array}_{ops}"
    shape, config = ARRAYS[array]
    smoothing = draw_smoothing_model(shape.outputs, 2) if array in SMOOTHED else None
    model = draw_model(shape, four=four_bit_parts(shape) if array in FOUR_BITS else ())
    write_sources(folder, model, config, ops, name, smoothing)
    return f'-DED_MODEL_HEADER="model_{name}.h"'


def write_corpus(folder: Path) -> Path:
    """Writes the inputs of corpus.txt, a line of hexadecimal digits each, as files of `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    lines = [line.partition("#")[0].strip() for line in (FUZZING / "corpus.txt").read_text().splitlines()]
    for i, line in enumerate(filter(None, lines)):
        (folder / f"{i:03}").write_bytes(bytes.fromhex(line))
    return folder


def compile_object(folder: Path, source: str, output: str, options: tuple[str, ...]) -> str:
    """Compiles one source with the sanitizers and returns the name of its object file."""
    includes = ("-Iinclude", "-Ic", "-Imodel")
    return str(run(folder, ["clang", *FLAGS, *SANITIZERS, *options, *includes, "-c", source, "-o", output], output))


def run(folder: Path, command: list[str], made: object) -> object:
    """Runs a command in `folder` and returns `made`, or ends the program with what the command complained about."""
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    if done.returncode:
        sys.exit(f"{' '.join(command)}\n{done.stderr[-4000:]}")
    return made


def choose_limit(options: argparse.Namespace) -> str:
    """Returns the option of libFuzzer that ends it after a time, or after a number of inputs."""
    return f"-max_total_time={options.seconds}" if options.inputs is None else f"-runs={options.inputs}"


def fuzz(program: Path, limit: str, seed: int, corpus: Path | None) -> dict[str, object]:
    """Fuzzes up to a limit and returns what libFuzzer found."""
    found = program.parent / "found"
    found.mkdir(exist_ok=True)
    inputs = corpus or program.parent / "corpus"
    inputs.mkdir(parents=True, exist_ok=True)
    committed = write_corpus(program.parent / "committed")
    options = [limit, f"-max_len={MOST_BYTES}", f"-seed={seed}", f"-artifact_prefix={found}/"]
    options += ["-timeout=120", "-rss_limit_mb=2048", "-len_control=10", "-print_final_stats=1"]
    began = time.monotonic()
    done = subprocess.run(
        [str(program), *options, str(inputs), str(committed)],
        env={**os.environ, **HALT},
        capture_output=True,
        text=True,
        errors="replace",
        check=False,
    )
    text = done.stderr
    last = (re.findall(r"cov: (\d+) ft: (\d+) corp: (\d+)", text) or [("0", "0", "0")])[-1]
    runs = re.search(r"stat::number_of_executed_units: (\d+)", text)
    culprits = {file.name: file.read_bytes().hex() for file in sorted(found.iterdir())}
    return {
        "found": len(culprits) + int(done.returncode != 0 and not culprits),
        "inputs": int(runs[1]) if runs else 0,
        "seconds": round(time.monotonic() - began, 1),
        "edges": int(last[0]),
        "features": int(last[1]),
        "corpus": int(last[2]),
        "seed": seed,
        "culprits": culprits,
        "output": text[-6000:] if culprits or done.returncode else "",
    }


def describe_settings(variants: Sequence[str]) -> dict[str, object]:
    """Returns the compiler, the sanitizers, the variants of the engine and the models that were fuzzed."""
    return {
        "compiler": read_first_line("clang", "--version"),
        "sanitizers": SANITIZERS[0].partition("=")[2],
        "variants": list(variants),
        "arrays": {
            name: {"shape": shape.to_json(), "frontend": config.to_json()} for name, (shape, config) in ARRAYS.items()
        },
    }


if __name__ == "__main__":
    main()
