"""Times four-bit weights beside int8 weights and beside other ways to run the same student, in one run and in turn.

Students of `edge` and `nano` with random weights go in. A table, gates and `four_bits.json` come out, with the name of
the processor and the size of its L2. Flat out, each round times every subject for a while. Cold, a step follows every
10 ms, and the steps of both kinds of weights alternate, so that both meet the same neighbors. ExecuTorch is measured
where it is installed (`executorch_steps`). What could not be run stands in the result with its reason (`not_run`).

    python -m benchmarks.cpu.four_bits [--quick] [--no-compile] [--out benchmarks/results/cpu]
"""

from __future__ import annotations

import os
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.cpu.c_models import list_variants
from benchmarks.cpu.c_timing import Times
from benchmarks.cpu.executorch_steps import make_executorch_steps
from benchmarks.cpu.latency import (
    CHANNELS,
    OUTPUTS,
    QUICK,
    TIMED_PEERS,
    VNNI,
    WARMUP,
    Schedule,
    Subjects,
    draw_bins,
    make_folder,
    read_cache_bytes,
    summarize,
)
from benchmarks.cpu.peers import ONNXRUNTIME, make_compiled_step, make_eager_step, make_onnxruntime_steps
from benchmarks.harness import RESULTS, describe_conditions, option_parser, read_first_line, say, write_result
from edgedistill.config import load_preset

WEIGHTS = {8: "", 4: " with four-bit weights"}
COLD_TURNS = 60  # rounds of cold steps
COLD_STEPS = 5  # of one subject in a round


def main() -> None:
    parser = option_parser(__doc__, RESULTS / "cpu")
    parser.add_argument("--quick", action="store_true", help="a tenth of the steps and less, to try this script")
    parser.add_argument("--no-compile", action="store_true", help="without torch.compile, which takes minutes")
    options = parser.parse_args()
    schedule = QUICK if options.quick else Schedule(steps=4000, peer_steps=600)
    l2 = read_cache_bytes("LEVEL2")
    before = describe_conditions(
        "benchmarks.cpu.four_bits", compiler=read_first_line("gcc", "--version"), l2_bytes=l2, cores_used=1
    )
    os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})
    with tempfile.TemporaryDirectory() as folder:
        result = before | measure(Path(folder), schedule, with_compile=not options.no_compile)
    result |= {"after": {"load": [round(part, 2) for part in os.getloadavg()]}, "gates": judge(result, l2)}
    write_result(options.out, "four_bits", result)
    show(result)


def measure(folder: Path, schedule: Schedule, with_compile: bool) -> dict[str, Any]:
    """Returns the times of every subject flat out (`step`, `peers`) and cold (`cold`), in us."""
    subjects, ops = Subjects(folder, schedule), list_variants()[0]
    keys, not_run = {}, {}
    for preset in TIMED_PEERS:
        shape = load_preset(preset).student.shape(CHANNELS, OUTPUTS)
        for bits, name in WEIGHTS.items():
            keys[preset, bits] = subjects.add(preset + name, shape, ops, schedule.steps, four=bits == 4)
        for name, step in make_onnxruntime_steps(shape, make_folder(folder / f"onnx-{preset}")).items():
            subjects.add_python(f"peers/{preset}, {name}", step, CHANNELS, schedule.peer_steps)
        torch_steps = {"PyTorch eager": make_eager_step} | (
            {"torch.compile": make_compiled_step} if with_compile else {}
        )
        for name, make in torch_steps.items():
            subjects.add_python(f"peers/{preset}, {name}", make(preset, shape), CHANNELS, schedule.torch_steps)
        steps, missing = make_executorch_steps(shape)
        for name, step in steps.items():
            subjects.add_python(f"peers/{preset}, {name}", step, CHANNELS, schedule.peer_steps)
        not_run |= {f"{preset}, {name}": reason for name, reason in missing.items()}
    times: dict[str, list[Times]] = {name: [] for name in subjects.turns}
    for number in range(schedule.rounds):
        say(f"round {number + 1} of {schedule.rounds}")
        for name, turn in subjects.turns.items():
            times[name].append(turn())
    found: dict[str, Any] = {"variant": ops, "schedule": vars(schedule), "step": {}, "peers": {}}
    for name, parts in times.items():
        what, _, subject = name.partition("/")
        # the best round is the one that was disturbed least
        found[what][subject] = summarize(parts) | {"best_round_p50": min(float(np.median(one)) / 1e3 for one in parts)}
    found["cold"] = time_cold(subjects, keys, 2 if schedule is QUICK else COLD_TURNS)
    found |= {"weight_bytes": subjects.weight_bytes, "not_run": not_run}
    return found


def time_cold(subjects: Subjects, keys: dict[tuple[str, int], str], turns: int) -> dict[str, Any]:
    """Times steps every 10 ms whose caches were flushed, a few of each subject in turn."""
    times: dict[str, list[Times]] = {key: [] for key in keys.values()}
    empty = np.ones(0, np.uint64)
    for key in times:
        subjects.timer.time_steps(subjects.decoders[key], draw_bins(CHANNELS), WARMUP)
    for _ in range(turns):
        for key, parts in times.items():
            parts.append(
                subjects.timer.time_paced(subjects.decoders[key], draw_bins(CHANNELS), COLD_STEPS, empty, True)
            )
    return {key: summarize(parts) for key, parts in times.items()}


def judge(result: dict[str, Any], l2: int) -> list[dict[str, Any]]:
    """Compares the figures of `edge` with what was aimed at. `ok` is None on a processor without AVX-512 VNNI.

    Flat out, the best round of each subject counts, because a busy machine slows long steps more than short ones.
    """
    ops = result["variant"]
    eight, four = f"edge, {ops}", f"edge with four-bit weights, {ops}"
    fastest = min(v["best_round_p50"] for n, v in result["peers"].items() if n.startswith(f"edge, {ONNXRUNTIME}"))
    step, cold = result["step"], result["cold"]
    figures = {  # value, limit, whether it is the least allowed
        "edge, four bits: ed_step p50, us": (step[four]["best_round_p50"], 9.0, False),
        "edge, four bits over int8, cold p50": (cold[four]["p50"] / cold[eight]["p50"], 0.65, False),
        "edge: fastest onnxruntime over four bits": (
            fastest / step[four]["best_round_p50"],
            18.0 if l2 >= 2**21 else 14.0,
            True,
        ),
    }
    return [
        {"name": name, "value": value, "limit": limit, "ok": (value >= limit) == least if ops == VNNI else None}
        for name, (value, limit, least) in figures.items()
    ]


def show(result: dict[str, Any]) -> None:
    """Prints the table and the gates."""
    for what in ("step", "peers", "cold"):
        for name, found in result[what].items():
            best = f"{found['best_round_p50']:9.1f}" if "best_round_p50" in found else " " * 9
            print(f"{what:6}{name:52}p50 {found['p50']:9.1f}  p99 {found['p99']:9.1f}  best round {best}")
    for name, reason in result["not_run"].items():
        print(f"not run: {name}: {reason}")
    for gate in result["gates"]:
        print(f"{gate['name']:45}{gate['value']:8.2f}  limit {gate['limit']:g}  {'met' if gate['ok'] else 'missed'}")


if __name__ == "__main__":
    main()
