"""Checks the CUDA kernels on this GPU and times them beside their floor and PyTorch.

Students have random weights, on which speed does not depend, of eight bits and of packed four bits. Everything is
compiled for the chip of this machine. `DEVICE/kernels.json` under --out, tables and gates come out. Numerics come
first, and a kernel that computes something else is not timed (exit status 1). Then all subjects take turns in one
process, so that changing clocks meet all of them: floors, the step host to host and alone, the attention core, and
PyTorch. The exit status is 2 where all is right but a gate of speed was missed.

    python -m benchmarks.gpu.kernels [--quick] [--steps 100000] [--no-peers] [--no-compile] [--out benchmarks/results]
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from benchmarks.gpu.checks import KERNELS, check_all_kernels, check_student, load_kernels, sanitize
from benchmarks.gpu.device import Gpu, GpuError, Module, Times
from benchmarks.gpu.machine import describe_gpu_conditions, name_device_folder
from benchmarks.gpu.students import CHANNELS, Student, build_students, with_threads
from benchmarks.gpu.tables import format_markdown, judge_gates
from benchmarks.harness import RESULTS, say, write_result
from edgedistill.compile.c.toolchain import find_toolchain
from edgedistill.compile.cuda.nvcc import find_nvcc
from edgedistill.errors import EdgeDistillError
from edgedistill.machine.gpu import find_gpu
from edgedistill.measure.latency import LatencyUs
from edgedistill.target import load_target

if TYPE_CHECKING:
    from benchmarks.gpu.subjects import Subjects

EMULATED = "emulated"  # in the name of a GPU that is emulated
ROUNDS, CALLS = 10, 200  # calls of every subject in each round
QUICK_ROUNDS, QUICK_CALLS = 2, 6
FEWER = {
    "eager": 5,
    "torch.compile, ": 5,
    "L2 flushed": 2,
}  # divides the calls of subjects that take longer, by a part of their name
SANITIZED_STEPS = 30
WARMUP = 50


def main() -> None:
    options = parse_options()
    try:
        with tempfile.TemporaryDirectory() as folder:
            sys.exit(run(options, options.work or Path(folder)))
    except (EdgeDistillError, GpuError) as error:
        sys.exit(f"{error}")


def parse_options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="few steps and calls, to try this script")
    parser.add_argument("--steps", type=int, help="steps of each student held against the C engine (100000)")
    parser.add_argument("--presets", nargs="+", default=["edge", "nano"], help="presets, or files of your own")
    parser.add_argument(
        "--blocks", nargs="+", type=int, default=[], help="also time the kernel of a step with so many threads"
    )
    parser.add_argument("--channels", type=int, default=CHANNELS)
    parser.add_argument("--no-peers", action="store_true", help="leave PyTorch out")
    parser.add_argument("--no-compile", action="store_true", help="PyTorch without torch.compile, which takes minutes")
    parser.add_argument("--only-check", action="store_true", help="check numerics only, and write nothing")
    parser.add_argument("--small", action="store_true", help="check only the smallest sizes of the kernels")
    parser.add_argument("--work", type=Path, help="folder to compile in; what lies there is not compiled again")
    parser.add_argument("--out", type=Path, default=RESULTS, help="folder for DEVICE/kernels.json")
    options = parser.parse_args()
    if options.steps is None:
        options.steps = 2000 if options.quick else 100_000
    return options


# ---------------------------------------------------------------- the run


def run(options: argparse.Namespace, work: Path) -> int:
    """Checks, times and writes the result, and returns the exit status."""
    found = find_gpu()
    target = load_target("cuda")
    nvcc, tools = find_nvcc(target, found.chip), find_toolchain(target)
    if EMULATED in found.name and options.out == RESULTS and not options.only_check:
        raise SystemExit("this GPU is emulated: name a folder of your own with --out; results/ is for devices")
    began = time.monotonic()
    say(f"{found.name} ({found.chip}): compiling with {nvcc.command}, CUDA {nvcc.version}")
    gpu = Gpu(work / "device", nvcc, tools)
    floors, kernels = load_kernels(gpu)
    gpu.flush_with(floors)
    students = build_students(work, options.presets, target, options.channels)
    result = describe_gpu_conditions(found, nvcc, gpu) | {"compiled_s": time.monotonic() - began, "complete": False}
    result["numerics"] = check_numerics(options, gpu, kernels, students)
    result["kernels"] = read_kernel_facts(gpu, kernels, students)
    exact = all(part["differ"] == 0 for part in result["numerics"].values())
    if options.only_check:
        print(json.dumps(result["numerics"], indent=1))
        return 0 if exact else 1
    place = options.out / name_device_folder(found)
    write_result(place, "kernels", result)
    if exact:
        others = [with_threads(gpu, s, target, n) for s in students for n in options.blocks if n != s.sizes["threads"]]
        result |= time_all(options, gpu, floors, kernels, students, others)
        write_result(place, "kernels", result)
    result["sanitizer"] = sanitize(work, make_check_command(options), say)
    result |= {"gates": judge_gates(result), "complete": True, "seconds": time.monotonic() - began}
    result["after"] = describe_gpu_conditions(found, nvcc, gpu)["device"]["clocks"]
    write_result(place, "kernels", result)
    print(format_markdown(result))
    say(f"written: {place / 'kernels.json'}")
    return choose_exit_status(result["gates"])


def choose_exit_status(judged: list[dict[str, Any]]) -> int:
    """Returns 1 where something is wrong, 2 where it is only slower than promised, and 0 otherwise."""
    missed = [gate for gate in judged if gate["ok"] is False]
    return 1 if any(gate["kind"] == "right" for gate in missed) else 2 if missed else 0


def make_check_command(options: argparse.Namespace) -> list[str]:
    """Returns this script's command for compute-sanitizer, with few steps, since each takes a hundred times longer."""
    sizes = ["--presets", *options.presets, "--channels", str(options.channels)]
    return ["-m", "benchmarks.gpu.kernels", "--only-check", "--small", "--steps", str(SANITIZED_STEPS), *sizes]


def check_numerics(
    options: argparse.Namespace, gpu: Gpu, kernels: dict[str, Module], students: list[Student]
) -> dict[str, dict[str, Any]]:
    """Returns what was compared and what differs, by kernel or student."""
    say("numerics: kernels")
    small: dict[str, Any] = {"windows": (1, 31), "head_dims": (16, 20)} if options.small else {}
    found = check_all_kernels(gpu, kernels, **small)
    for student in students:
        say(f"numerics: {options.steps} steps of {student.preset}")
        found[f"ed_student_step, {student.preset}"] = check_student(student, options.steps)
    for name, part in found.items():
        verdict = "exact" if part["differ"] == 0 else f"WRONG: {part['differ']} differ, first {part['first']}"
        say(f"  {name}: {part['compared']} values in {part['cases']} cases: {verdict}")
    return found


def read_kernel_facts(gpu: Gpu, kernels: dict[str, Module], students: list[Student]) -> dict[str, dict[str, int]]:
    """Returns registers, shared and local memory of each kernel, as the driver tells them."""
    facts = {name: kernels[source].read_facts(name) for source, names in KERNELS.items() for name in names}
    for student in students:
        facts[f"ed_student_step, {student.preset}"] = gpu.load_module(student.kernel).read_facts("ed_student_step")
    return facts


# ---------------------------------------------------------------- times


def time_all(
    options: argparse.Namespace,
    gpu: Gpu,
    floors: Module,
    kernels: dict[str, Module],
    students: list[Student],
    others: list[Student],
) -> dict[str, Any]:
    """Times everything, and returns the times by `what` and then by subject.

    Of `others`, which are the same students in blocks of other sizes, the kernel alone is timed.
    """
    # Imported here, because it loads PyTorch for seconds, which checks do not need.
    from benchmarks.gpu.subjects import Subjects, measure_streaming

    subjects = Subjects(gpu, floors, kernels)
    subjects.add_floors()
    for student in students:
        subjects.add_step(student)
        if not student.packed:
            subjects.add_core(student.preset, student.shape)
    for student in others:
        subjects.add_kernel(student)
    if not options.no_peers:
        say("peers: PyTorch" + ("" if options.no_compile else ", torch.compile (minutes)"))
        subjects.add_peers([student for student in students if not student.packed], not options.no_compile)
    rounds, calls = (QUICK_ROUNDS, QUICK_CALLS) if options.quick else (ROUNDS, CALLS)
    times = time_in_turn(subjects, rounds, calls)
    clock = gpu.read_attributes()["clock_khz"]
    found: dict[str, Any] = {"missing": subjects.reasons, "roofline": {}}
    for name, parts in times.items():
        what, _, subject = name.partition("/")
        found.setdefault(what, {})[subject] = LatencyUs.from_times(np.concatenate(parts)).to_json()
    for student in students:
        parts_of = {"weights": student.sizes["weight"], "weights, tables, rings": student.read_bytes}
        found["roofline"][student.preset] = {
            part: measure_streaming(gpu, floors, size, clock) for part, size in parts_of.items()
        }
    return found


def time_in_turn(subjects: Subjects, rounds: int, calls: int) -> dict[str, list[Times]]:
    """Times every subject once in each round, warmed up, and returns the times of all rounds."""
    times: dict[str, list[Times]] = {name: [] for name in subjects.turns}
    for number in range(rounds):
        say(f"round {number + 1} of {rounds}")
        for name, turn in subjects.turns.items():
            less = max([1, *(factor for part, factor in FEWER.items() if part in name)])
            count = max(2, calls // less)
            warmup = min(WARMUP, count)
            times[name].append(turn(warmup + count)[warmup:])
    return times


if __name__ == "__main__":
    main()
