"""Measures how fast the C engine is, beside the limit of the core and beside other ways to run the same student.

Students have random weights, on which speed does not depend, or with --bundle those of a bundle. Tables, gates and
`latency.json` come out. Everything is measured in one process on one core, in turn: each round times every subject for
a while, so that whatever else the machine does slows all of them. A timed region holds one call, whose inputs lie ready
in memory. The same loop around a function that does nothing is timed beside it.

    python -m benchmarks.cpu.latency [--quick] [--bundle NAME.edge] [--out benchmarks/results/cpu]
"""

from __future__ import annotations

import os
import resource
import subprocess
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.cpu.c_models import (
    Built,
    Decoder,
    build,
    build_sources,
    draw_model,
    list_variants,
    make_front_end,
    write_files,
)
from benchmarks.cpu.c_timing import FRAMES_A_BIN, Roofline, Timer, Times
from benchmarks.cpu.latency_tables import show
from benchmarks.harness import RESULTS, describe_conditions, option_parser, read_first_line, say, write_result
from edgedistill.compile.c.library import kernel_sources, model_sources
from edgedistill.config import StudentShape, load_preset
from edgedistill.frontend import FrontEndConfig
from edgedistill.measure.latency import LatencyUs, time_steps
from edgedistill.measure.work import count_work
from edgedistill.numerics.tensors import four_bit_parts

CHANNELS, OUTPUTS = 96, 2
VNNI = "avx512"
PRESETS = ("edge", "nano", "paper")
TIMED_PEERS = ("edge", "nano")  # presets that are also timed in every variant, in onnxruntime and in PyTorch
WARMUP = 100
BINS = 512  # rows of input, used again from the top
WALK = 2**26  # bytes that another program would read between two steps, far more than L2 holds
LEVELS = {"L1": 2**14, "L2": 2**20, "L3": 2**24, "DRAM or L3": 2**28}
SCALES = {  # what is varied of the preset edge
    "window": (50, 100, 200, 400, 800, 1600),
    "layers": (1, 2, 4, 8),
    "channels": (16, 32, 64, 96, 128, 256),
}


@dataclass(frozen=True)
class Schedule:
    """How many steps each subject is timed for."""

    rounds: int = 10
    steps: int = 20000  # of the C engine
    scale_steps: int = 5000
    peer_steps: int = 1000  # of onnxruntime
    torch_steps: int = 200
    windows: int = 10  # of the paper's model
    paced: int = 300

    def share_round(self, total: int) -> int:
        """Returns the share of `total` steps that belongs to one round."""
        return max(1, total // self.rounds)


QUICK = Schedule(rounds=2, steps=1000, scale_steps=200, peer_steps=60, torch_steps=6, windows=2, paced=20)

Turn = Callable[[], Times]  # times a subject for a while


def main() -> None:
    parser = option_parser(__doc__, RESULTS / "cpu")
    parser.add_argument("--quick", action="store_true", help="a tenth of the steps and less, to try this script")
    parser.add_argument("--bundle", type=Path, help="a bundle (folder), measured beside the presets")
    parser.add_argument("--no-peers", action="store_true", help="the C engine alone")
    options = parser.parse_args()
    schedule = QUICK if options.quick else Schedule()
    compiler = read_first_line("gcc", "--version")
    before = describe_conditions(
        "benchmarks.cpu.latency", compiler=compiler, l2_bytes=read_cache_bytes("LEVEL2"), cores_used=1
    )
    os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})
    with tempfile.TemporaryDirectory() as folder:
        result = before | measure_all(Path(folder), schedule, options.bundle, not options.no_peers)
    result |= {"after": {"load": [round(part, 2) for part in os.getloadavg()], "interruptions": count_interruptions()}}
    result["gates"] = judge_gates(result)
    write_result(options.out, "latency", result)
    show(result)


def read_cache_bytes(level: str) -> int:
    """Returns the size of a cache as the system tells it, or 0."""
    done = subprocess.run(["getconf", f"{level}_CACHE_SIZE"], capture_output=True, text=True, check=False)
    return int(done.stdout.strip() or 0) if done.returncode == 0 else 0


def count_interruptions() -> int:
    """Returns how often another program took the core away."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_nivcsw


# ---------------------------------------------------------------- subjects


class Subjects:
    """Compiled students and the loops that time them. Their names are `what/subject` of the result."""

    def __init__(self, folder: Path, schedule: Schedule) -> None:
        self.folder, self.schedule = folder, schedule
        self.timer = Timer(make_folder(folder / "timer"))
        self.turns: dict[str, Turn] = {}
        self.built: dict[str, Built] = {}
        self.decoders: dict[str, Decoder] = {}
        self.shapes: dict[str, StudentShape] = {}
        self.weight_bytes: dict[str, int] = {}
        self.python: dict[str, tuple[int, Callable[[Any], object], int]] = {}

    def add(
        self,
        name: str,
        shape: StudentShape,
        ops: str,
        steps: int,
        built: Built | None = None,
        config: FrontEndConfig | None = None,
        four: bool = False,
    ) -> str:
        """Adds a student that is timed by `ed_step`, and returns its name with the variant.

        Without `config` each input is a channel of slow LFP. With `four` its weights have four bits where they can.
        """
        key = f"{name}, {ops}"
        say(f"compiling {key}")
        place = make_folder(self.folder / key.replace("/", "-"))
        model = draw_model(shape, four=four_bit_parts(shape) if four else ())
        self.weight_bytes[key] = model.weight_bytes
        self.built[key] = built or build(place, model, ops, config=config)
        self.decoders[key], self.shapes[key] = Decoder(self.built[key]), shape
        bins = draw_bins(shape.channels)
        count, decoder = self.schedule.share_round(steps), self.decoders[key]
        self.turns[f"step/{key}"] = lambda: self.timer.time_steps(decoder, bins, WARMUP + count)[WARMUP:]
        return key

    def add_data(self, key: str) -> None:
        """Adds the same step over other data, because its time must not depend on them."""
        decoder, shape = self.decoders[key], self.shapes[key]
        count = self.schedule.share_round(self.schedule.steps // 4)
        bins = draw_bins(shape.channels)
        fresh = max(1, min(100, count // 2))
        scaled = {"silence": 0.0, "saturated": 1e4, "denormal": 1e-41}
        others = {name: (scale * bins).astype(np.float32) for name, scale in scaled.items()}
        self.turns[f"data/{key}: full rings"] = lambda: self.timer.time_steps(decoder, bins, WARMUP + count)[WARMUP:]
        self.turns[f"data/{key}: fresh rings"] = lambda: self.timer.time_steps(decoder, bins, count, fresh)
        for name, values in others.items():
            self.turns[f"data/{key}: {name}"] = lambda values=values: self.timer.time_steps(
                decoder, values, WARMUP + count
            )[WARMUP:]

    def add_push(self, key: str) -> None:
        """Adds `ed_push` of the ten frames of a bin."""
        decoder = self.decoders[key]
        channels = int(decoder.info.channels)  # a shape counts inputs, and each band of a channel is one
        frames = (25 * np.random.default_rng(1).standard_normal((BINS, FRAMES_A_BIN, channels))).astype(np.float32)
        count = self.schedule.share_round(self.schedule.steps)
        self.turns[f"push/{key}"] = lambda: self.timer.time_pushes(decoder, frames, WARMUP + count)[WARMUP:]
        self.turns["empty/push"] = lambda: self.timer.time_pushes(None, frames, count)

    def add_empty(self) -> None:
        """Adds the loop around a function that does nothing."""
        bins, count = draw_bins(CHANNELS), self.schedule.share_round(self.schedule.steps)
        self.turns["empty/step"] = lambda: self.timer.time_steps(None, bins, count)

    def add_python(self, name: str, step: Callable[[Any], object], channels: int, steps: int) -> None:
        """Adds a step that is called from Python."""
        rows, count = draw_bins(channels), self.schedule.share_round(steps)
        warmup = min(20, count)
        self.turns[name] = lambda: time_steps({"it": step}, rows, warmup, count)["it"].astype(np.uint64)

    def time_paced(self, key: str) -> dict[str, Any]:
        """Times steps every 10 ms, with caches as the wait leaves them, filled by other data, or flushed."""
        decoder, count = self.decoders[key], max(1, self.schedule.paced // 5)
        bins, room = draw_bins(self.shapes[key].channels), np.ones(WALK // 8, np.uint64)
        ways = {"idle between": (room[:0], False), "64 MiB read between": (room, False), "flushed": (room[:0], True)}
        times: dict[str, list[Times]] = {name: [] for name in ways}
        self.timer.time_steps(decoder, bins, WARMUP)
        for _ in range(5):
            for name, (other, flushed) in ways.items():
                times[name].append(self.timer.time_paced(decoder, bins, count, other, flushed))
        return {name: summarize(parts) for name, parts in times.items()}


def make_folder(folder: Path) -> Path:
    folder.mkdir(parents=True)
    return folder


def draw_bins(channels: int) -> Any:
    return np.random.default_rng(0).standard_normal((BINS, channels)).astype(np.float32)


def summarize(parts: list[Times]) -> dict[str, float]:
    return LatencyUs.from_times(np.concatenate(parts)).to_json()


# ---------------------------------------------------------------- the run


def measure_all(folder: Path, schedule: Schedule, bundle: Path | None, with_peers: bool) -> dict[str, Any]:
    """Times all subjects and returns the figures of the result."""
    subjects = Subjects(folder, schedule)
    add_presets(subjects, bundle)
    native = [key for key in subjects.shapes if key.endswith(list_variants()[0])]
    for key in native:
        subjects.add_push(key)
    subjects.add_data(native[0])
    subjects.add_empty()
    add_scales(subjects)
    if with_peers:
        add_peers(subjects)
    roofline = Roofline(make_folder(folder / "roofline"), read_cache_bytes("LEVEL2") or 2**20)
    clocks = time.perf_counter(), time.process_time()
    times = run_rounds(subjects, roofline)
    seconds, own = time.perf_counter() - clocks[0], time.process_time() - clocks[1]
    found: dict[str, Any] = {
        "variants": list_variants(),
        "schedule": vars(schedule),
        "seconds": seconds,
        "core_share": own / seconds,
    }
    for name, parts in times.items():
        what, _, subject = name.partition("/")
        found.setdefault(what, {})[subject] = summarize(parts)
    say("paced at 100 Hz")
    found["paced"] = {key: subjects.time_paced(key) for key in native}
    found["roofline"] = {
        "bytes_per_ns": {name: roofline.bytes_per_ns.get(size) for name, size in LEVELS.items()},
        "multiply_adds_per_ns": roofline.multiply_adds_per_ns,
        "steps": {
            key: compare_with_floor(roofline, shape, found, key)
            for key, shape in subjects.shapes.items()
            if "four-bit" not in key  # whose bytes the floor does not know
        },
    }
    found["sizes"] = {key: count_bytes(subjects, key) for key in subjects.shapes if key.split(", ")[0] not in SCALES}
    return found


def add_presets(subjects: Subjects, bundle: Path | None) -> None:
    for preset in PRESETS:
        shape = load_preset(preset).student.shape(CHANNELS, OUTPUTS)
        for ops in list_variants() if preset in TIMED_PEERS else list_variants()[:1]:
            subjects.add(preset, shape, ops, subjects.schedule.steps if ops == VNNI else subjects.schedule.steps // 4)
            if ops == list_variants()[0]:
                subjects.add(f"{preset} with four-bit weights", shape, ops, subjects.schedule.steps, four=True)
        if bands := load_preset(preset).band_power.bands:
            config = make_front_end(CHANNELS, bands=bands, band_ms=load_preset(preset).band_power.ms)
            inputs = replace(shape, channels=config.inputs)
            subjects.add(f"{preset} with bands", inputs, list_variants()[0], subjects.schedule.steps, config=config)
    if bundle is not None:
        from edgedistill.bundle import open_bundle
        from edgedistill.bundle.contents import read_decoder_spec
        from edgedistill.compile.model_facts import c_identifier

        opened = open_bundle(bundle)
        spec = read_decoder_spec(opened)
        name, shape = spec.name, spec.shape
        place = make_folder(subjects.folder / "bundle")
        write_files(place, {**kernel_sources(), **model_sources(opened, list_variants()[0])})
        built = build_sources(place, list_variants()[0], c_identifier(name), (), ())
        subjects.add(name, shape, list_variants()[0], subjects.schedule.steps, built)


def add_scales(subjects: Subjects) -> None:
    edge = load_preset("edge").student.shape(CHANNELS, OUTPUTS)
    for what, values in SCALES.items():
        for value in values:
            shape = replace(edge, **{what: value})
            subjects.add(f"{what}, {value}", shape, list_variants()[0], subjects.schedule.scale_steps)


def add_peers(subjects: Subjects) -> None:
    from benchmarks.cpu.peers import make_eager_step, make_onnxruntime_steps, make_paper_step, make_python_step

    schedule = subjects.schedule
    for preset in TIMED_PEERS:
        key = f"{preset}, {list_variants()[0]}"
        shape = subjects.shapes[key]
        for name, step in make_onnxruntime_steps(shape, make_folder(subjects.folder / f"onnx-{preset}")).items():
            subjects.add_python(f"peers/{preset}, {name}", step, CHANNELS, schedule.peer_steps)
        step = make_python_step(subjects.built[key], shape)
        subjects.add_python(f"peers/{preset}, C engine from Python", step, CHANNELS, schedule.peer_steps)
        subjects.add_python(
            f"peers/{preset}, PyTorch eager", make_eager_step(preset, shape), CHANNELS, schedule.torch_steps
        )
    window = make_paper_step(CHANNELS, OUTPUTS)
    subjects.add_python("peers/paper, PyTorch, its 5 s window again", window, CHANNELS, schedule.windows)


def run_rounds(subjects: Subjects, roofline: Roofline) -> dict[str, list[Times]]:
    """Times every subject once in each round, and returns the times of all rounds by subject."""
    sizes = sorted({*LEVELS.values(), *(count_work(shape).bytes for shape in subjects.shapes.values())})
    times: dict[str, list[Times]] = {name: [] for name in subjects.turns}
    for number in range(subjects.schedule.rounds):
        say(f"round {number + 1} of {subjects.schedule.rounds}")
        roofline.measure(sizes)
        for name, turn in subjects.turns.items():
            times[name].append(turn())
    return times


def compare_with_floor(
    roofline: Roofline, shape: StudentShape, found: dict[str, Any], key: str
) -> dict[str, float] | None:
    """Returns the floor of a step, and how many times as long the median took."""
    floor = roofline.compute_floor_us(shape)
    return floor and floor | {"ratio": found["step"][key]["p50"] / floor["max_us"]}


def count_bytes(subjects: Subjects, key: str) -> dict[str, int]:
    """Returns the bytes of a decoder's memory, of an exported state, of weights, of code and of constants."""
    info, built = subjects.decoders[key].info, subjects.built[key]
    weights = subjects.weight_bytes[key]
    return {"state": info.state_bytes, "exported": info.export_bytes, "weights": weights, **built.sizes}


# ---------------------------------------------------------------- gates


def judge_gates(result: dict[str, Any]) -> list[dict[str, Any]]:
    """Judges what docs/latency.md promises of a CPU with AVX-512 VNNI. `ok` is None on another CPU."""
    vnni = VNNI in result["variants"]
    edge, nano = f"edge, {VNNI}", f"nano, {VNNI}"
    step, push = result["step"], result["push"]
    peers = [v["p50"] for n, v in result.get("peers", {}).items() if n.startswith("edge, onnxruntime")]
    figures: dict[str, tuple[float | None, float, bool]] = {  # value, limit, whether it is the least allowed
        "edge: ed_step p50, us": (vnni and step[edge]["p50"], 15.0, False),
        "edge: ed_step p50 over roofline": (vnni and result["roofline"]["steps"][edge]["ratio"], 2.2, False),
        "edge: fastest onnxruntime over ed_step": (
            min(peers) / step[edge]["p50"] if vnni and peers else None,
            14.0,
            True,
        ),
        "edge: ed_push of ten frames p50, us": (vnni and push[edge]["p50"], 40.0, False),
        "nano: ed_step p50, us": (vnni and step[nano]["p50"], 3.0, False),
    }
    return [
        {
            "name": name,
            "value": value or None,
            "limit": limit,
            "ok": ((value >= limit) if least else (value <= limit)) if value else None,
        }
        for name, (value, limit, least) in figures.items()
    ]


if __name__ == "__main__":
    main()
