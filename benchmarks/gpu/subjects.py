"""Prepares what kernels.py times: for each name, a function that times a number of calls.

Names are `what/subject, how`. The subjects are floors (launches and graphs that do nothing), steps of students through
the C ABI and as kernels alone, the attention core, the append, and peers. With "L2 flushed" all multiprocessors read a
buffer of four times the L2 between two calls. Inputs rotate: students stream over 512 bins, and the core has eight sets
of all its inputs.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from time import perf_counter_ns
from typing import Any

import numpy as np
import numpy.typing as npt

from benchmarks.cpu.c_models import draw_weights
from benchmarks.gpu.device import Gpu, GpuError, Graph, Launch, Module, Times
from benchmarks.gpu.kernel_checks import THREADS, count_shared_bytes, draw_core, make_step_arguments
from benchmarks.gpu.peers import Call, Peer, make_core_peers, make_student_peers
from benchmarks.gpu.students import OpenDecoder, Student, draw_bins, find_step, make_launches
from edgedistill.config import StudentShape
from edgedistill.measure.latency import pause_garbage_collection

SETS = 8  # of inputs to the core
CHAIN = 32  # launches in one graph, which shows a kernel without the cost of a launch
COMPILED = "edge"  # the only preset for torch.compile, which takes half a minute for each form
LINK_BYTES_A_CLOCK = 64  # through one multiprocessor's port to the L2, by NVIDIA's documents
STREAM_THREADS = (256, 512, 1024)

Turn = Callable[[int], Times]


class Subjects:
    """Everything that is timed on one GPU. `reasons` says why a peer is missing."""

    def __init__(self, gpu: Gpu, floors: Module, kernels: dict[str, Module]) -> None:
        self.gpu, self.floors, self.kernels = gpu, floors, kernels
        self.turns: dict[str, Turn] = {}
        self.reasons: dict[str, str] = {}
        self.decoders: list[OpenDecoder] = []

    def _add_graphs(self, name: str, graphs: list[Graph]) -> None:
        """Adds graphs that are timed host to host and from event to event, with the L2 warm and flushed."""
        for how, flushed in (("warm", False), ("L2 flushed", True)):
            self.turns[f"{name}, {how}"] = lambda n, f=flushed: self.gpu.time_graphs(graphs, n, f)
            self.turns[f"{name}, on the device, {how}"] = lambda n, f=flushed: self.gpu.time_device(graphs, n, f)

    def add_floors(self) -> None:
        """Adds what any launch costs, and any graph."""
        empty = Launch.of(self.floors.find_function("ed_empty"), 1, 1, 0)
        self.turns["floor/empty kernel, launched"] = lambda n: self.gpu.time_launches([empty], n)
        self._add_graphs("floor/graph of an empty node", [self.gpu.make_empty_graph()])
        self._add_graphs("floor/graph of an empty kernel", [self.gpu.record_graph(empty)])

    def add_step(self, student: Student) -> None:
        """Adds the engine host to host, called from C and from Python, and its kernel alone."""
        name, bins = f"step/{student.preset}", draw_bins(student.shape.channels)
        decoder = OpenDecoder(student)
        self.decoders.append(decoder)
        for how, flushed in (("warm", False), ("L2 flushed", True)):
            self.turns[f"{name}, {how}"] = lambda n, f=flushed: self.gpu.time_steps(find_step(decoder), bins, n, f)
        self.turns[f"{name}, from Python, warm"] = self._make_python_turn(
            make_engine_call(decoder, student), bins, False
        )
        self.turns[f"{name}, from Python, L2 flushed"] = self._make_python_turn(
            make_engine_call(decoder, student), bins, True
        )
        launches = make_launches(self.gpu, student, bins[:CHAIN])
        self._add_graphs(f"kernel/{student.preset}", [self.gpu.record_graph(launch) for launch in launches[:SETS]])
        self._add_chain(f"kernel/{student.preset}", launches)

    def add_kernel(self, student: Student) -> None:
        """Adds the kernel of a step alone, back to back on the device."""
        bins = np.zeros((CHAIN, student.shape.channels), np.float32)
        self._add_chain(f"blocks/{student.preset}", make_launches(self.gpu, student, bins))

    def _add_chain(self, name: str, launches: list[Launch]) -> None:
        """Adds launches back to back in one graph, timed from event to event and divided by their number."""
        graph = self.gpu.record_graph(*launches)
        self.turns[f"{name}, back to back"] = lambda n: self.gpu.time_device([graph], n) // len(launches)

    def add_core(self, preset: str, shape: StudentShape) -> None:
        """Adds one layer's attention over a full ring, and the append."""
        attention = self.kernels["attention_step"].find_function("ed_attention_step", count_shared_bytes(shape.window))
        slots = shape.window - 1
        launches = []
        for seed in range(SETS):
            core = draw_core(shape.heads, shape.window, shape.head_dim, (slots // 3, slots), seed=seed)
            arguments, _ = make_step_arguments(self.gpu, core)
            launches.append(Launch.of(attention, shape.heads, THREADS, count_shared_bytes(shape.window), *arguments))
        self._add_graphs(f"core/{preset}", [self.gpu.record_graph(launch) for launch in launches])
        self._add_chain(f"core/{preset}", launches * (CHAIN // SETS))
        append = self._make_append_launch(shape)
        self._add_graphs(f"append/{preset}", [self.gpu.record_graph(append)])
        self._add_chain(f"append/{preset}", [append] * CHAIN)

    def _make_append_launch(self, shape: StudentShape) -> Launch:
        heads, slots, head_dim = shape.heads, shape.window - 1, shape.head_dim
        sizes = {
            "fresh": (shape.layers, 2, heads, head_dim),
            "rings": (shape.layers, 2, heads, slots, head_dim),
            "bin": (shape.channels,),
            "lags": (shape.lag_rows, shape.channels),
        }
        places = {name: self.gpu.array(np.ones(size, np.int8)) for name, size in sizes.items()}
        state = [self.gpu.array(np.array([number], np.int32)) for number in (0, slots)]
        strides = [ctypes.c_size_t(heads * head_dim), ctypes.c_size_t(heads * slots * head_dim)]
        given = (places["fresh"], strides[0], places["rings"], strides[1], places["bin"], places["lags"])
        shapes = (shape.layers, heads, shape.window, head_dim, shape.lag_rows, shape.channels)
        return Launch.of(self.kernels["append"].find_function("ed_append"), 1, THREADS, 0, *given, *state, *shapes)

    def add_peers(self, students: list[Student], with_compile: bool) -> None:
        """Adds the ways in which PyTorch runs the same students and the same core."""
        for student in students:
            shape, compile_it = student.shape, with_compile and student.preset == COMPILED
            peers = make_student_peers(shape, draw_weights(shape), compile_it)
            self._add_peers(f"peers/{student.preset}", peers, draw_bins(shape.channels))
            cores = make_core_peers(shape.heads, shape.window, shape.head_dim)
            self._add_peers(f"core peers/{student.preset}", cores, draw_bins(shape.channels))

    def _add_peers(self, name: str, peers: dict[str, Peer], bins: npt.NDArray[np.float32]) -> None:
        for peer, made in peers.items():
            if made.call is None:
                self.reasons[f"{name}, {peer}"] = made.reason or "no reason given"
                continue
            self.turns[f"{name}, {peer}, warm"] = self._make_python_turn(made.call, bins, False)
            if "CUDA graph" in peer:
                self.turns[f"{name}, {peer}, L2 flushed"] = self._make_python_turn(made.call, bins, True)

    def _make_python_turn(self, call: Call, bins: npt.NDArray[np.float32], flushed: bool) -> Turn:
        rows = list(bins)

        def turn(count: int) -> Times:
            times = np.zeros(count, np.uint64)
            with pause_garbage_collection():
                for i in range(count):
                    row = rows[i % len(rows)]
                    if flushed:
                        self.gpu.flush()
                    before = perf_counter_ns()
                    call(row)
                    times[i] = perf_counter_ns() - before
            return times

        return turn


def make_engine_call(decoder: OpenDecoder, student: Student) -> Call:
    """Returns a call of `ed_step` through ctypes with nothing around it, as a peer is called."""
    step, handle = find_step(decoder)
    kinematics = np.zeros(student.shape.outputs, np.float32)
    into = kinematics.ctypes.data

    def call(row: npt.NDArray[Any], kept: object = kinematics) -> None:
        if step(handle, row.ctypes.data, into):
            raise GpuError("ed_step failed")

    return call


# ---------------------------------------------------------------- the roof


def measure_streaming(gpu: Gpu, floors: Module, size: int, clock_khz: int | None) -> dict[str, float | None]:
    """Measures how long one multiprocessor takes to read `size` bytes from the L2, and computes it from its clock.

    The time is the difference between many turns and few, so that the launch cancels out. The fastest of several block
    sizes counts. `us` is None where many turns took no longer than few: then the time is lost in the noise.
    """
    size = size // 16 * 16
    room, clocks, sink = gpu.array(np.ones(size, np.uint8)), gpu.allocate((1,), np.int64), gpu.allocate((1,), np.uint32)
    function = floors.find_function("ed_stream")
    found: list[tuple[float, float]] = []
    for threads in STREAM_THREADS:
        spent = []
        for turns in (8, 40):
            graph = gpu.record_graph(Launch.of(function, 1, threads, 0, room, size // 16, turns, clocks, sink))
            spent.append((float(gpu.time_device([graph], 10)[2:].min()), int(clocks.fetch()[0])))
        (few_ns, few_clocks), (many_ns, many_clocks) = spent
        found.append(((many_ns - few_ns) / 32e3, (many_clocks - few_clocks) / 32))
    us, ticks = min(found)
    return {
        "bytes": size,
        "us": us if us > 0 else None,
        "bytes_a_clock": size / ticks if ticks > 0 else None,
        "clock_mhz": ticks / us if us > 0 else None,
        "computed_us": size / LINK_BYTES_A_CLOCK / (clock_khz / 1e3) if clock_khz else None,
    }
