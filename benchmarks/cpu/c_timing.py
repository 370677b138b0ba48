"""Runs the timing loops of benchmarks/cpu/c: a decoder and inputs go in, and the nanoseconds of each call come out.

`Roofline` measures what the core can do at most, and compares it with what a step needs.
"""

from __future__ import annotations

import ctypes
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from benchmarks.cpu.c_models import Decoder, find_host_toolchain, list_variants, write_files
from edgedistill.compile.c.library import kernel_sources
from edgedistill.config import StudentShape
from edgedistill.measure.work import count_work

C = Path(__file__).parent / "c"
LINE = 64
PERIOD_NS = 10_000_000  # a bin
FRAMES_A_BIN = 10  # at 1 kHz

Times = npt.NDArray[np.uint64]
Floats = npt.NDArray[np.float32]


def compile_and_load(folder: Path, source: str) -> ctypes.CDLL:
    """Compiles a C file of benchmarks/cpu/c for the widest vectors of this CPU, and loads it."""
    write_files(folder, kernel_sources())
    tools = find_host_toolchain(list_variants()[0])
    output = f"{Path(source).stem}.so"
    options = ("-Iinclude", "-fPIC", "-shared", "-Wno-missing-prototypes")
    tools.run(folder, tools.compiler.command, *tools.flags, *options, str(C / source), "-o", output)
    return ctypes.CDLL(str(folder / output))


class Timer:
    """Loops over a decoder that return the time of every call."""

    def __init__(self, folder: Path) -> None:
        self.c = compile_and_load(folder, "timing.c")

    def time_steps(self, decoder: Decoder | None, bins: Floats, count: int, restart: int = 0) -> Times:
        """Times `ed_step`, or the loop alone without a decoder. The stream starts anew after every `restart` steps."""
        step, reset, handle = self._find_functions(decoder, "ed_step", self.c.no_step)
        return self._run_loop(
            "time_steps",
            count,
            step,
            reset,
            handle,
            _at(bins),
            _n(bins.shape[1]),
            _n(len(bins)),
            _n(count),
            _n(restart),
        )

    def time_pushes(self, decoder: Decoder | None, frames: Floats, count: int) -> Times:
        """Times `ed_push` of frames (rows, n, channels), one row in each call."""
        push, _, handle = self._find_functions(decoder, "ed_push", self.c.no_push)
        rows, n, channels = map(_n, frames.shape)
        return self._run_loop("time_pushes", count, push, handle, _at(frames), channels, n, rows, _n(count))

    def time_paced(self, decoder: Decoder, bins: Floats, count: int, other: npt.NDArray[Any], flushed: bool) -> Times:
        """Times `ed_step` every 10 ms.

        Between two steps `other` is read, and with `flushed` everything of the decoder leaves the caches.
        """
        step, _, handle = self._find_functions(decoder, "ed_step", None)
        walk = (ctypes.c_uint64(PERIOD_NS), _at(other), _n(other.nbytes), ctypes.c_int(flushed))
        memory = (ctypes.c_void_p(decoder.model), _n(len(decoder.memory)))
        shape = (_at(bins), _n(bins.shape[1]), _n(len(bins)), _n(count))
        return self._run_loop(
            "time_paced", count, step, handle, *shape, *walk, *memory, after=(_at(np.zeros(1, np.uint64)),)
        )

    def _find_functions(self, decoder: Decoder | None, name: str, empty: Any) -> tuple[Any, Any, Any]:
        if decoder is None:
            return ctypes.cast(empty, ctypes.c_void_p), None, None
        step, reset = (ctypes.cast(getattr(decoder.call, f), ctypes.c_void_p) for f in (name, "ed_reset"))
        return step, reset, ctypes.c_void_p(decoder.handle)

    def _run_loop(self, loop: str, count: int, *arguments: Any, after: tuple[Any, ...] = ()) -> Times:
        times = np.zeros(count, np.uint64)
        if getattr(self.c, loop)(*arguments, _at(times), *after):
            raise SystemExit(f"{loop}: a call failed")
        return times


def _at(array: npt.NDArray[Any]) -> ctypes.c_void_p:
    return ctypes.c_void_p(array.ctypes.data)


def _n(value: int) -> ctypes.c_size_t:
    return ctypes.c_size_t(value)


# ---------------------------------------------------------------- the roof


class Roofline:
    """The most that one core can do: bandwidth by the size of what is read, and multiply-adds. The best try counts."""

    def __init__(self, folder: Path, l2_bytes: int) -> None:
        self.c, self.l2 = compile_and_load(folder, "roofline.c"), l2_bytes
        self.c.read_ns.restype = self.c.multiply_adds_ns.restype = ctypes.c_uint64
        self.c.multiply_adds_a_turn.restype = ctypes.c_size_t
        room = np.ones(256 * 2**20 + LINE, np.uint8)
        self._buffer = room[-room.ctypes.data % LINE :]
        self.bytes_per_ns: dict[int, float] = {}
        self.multiply_adds_per_ns = 0.0

    def measure(self, sizes: list[int]) -> None:
        """Tries every size once more, for a few milliseconds each."""
        for size in sizes:
            size = size // 512 * 512
            repeats = max(1, 2**25 // size)
            taken = [self.c.read_ns(_at(self._buffer), _n(size), _n(repeats)) for _ in range(3)][1:]
            if best := min(taken):
                self.bytes_per_ns[size] = max(self.bytes_per_ns.get(size, 0.0), size * repeats / best)
        a_turn, turns = self.c.multiply_adds_a_turn(), 200_000
        if a_turn:
            found = a_turn * turns / min(self.c.multiply_adds_ns(_n(turns)) for _ in range(3))
            self.multiply_adds_per_ns = max(self.multiply_adds_per_ns, found)

    def compute_floor_us(self, shape: StudentShape) -> dict[str, float] | None:
        """Returns the least time of a step's bytes and of its multiply-adds, the larger of the two, and their sum.

        Bytes that fit in L2 come at the bandwidth of 1 MB, and others at the bandwidth of as many bytes. Returns None
        where the bandwidth or the rate of multiply-adds was not measured.
        """
        work = count_work(shape)
        size = 2**20 if work.bytes <= 0.75 * self.l2 else work.bytes // 512 * 512
        if not self.multiply_adds_per_ns or size not in self.bytes_per_ns:
            return None
        reading = work.bytes / self.bytes_per_ns[size] / 1e3
        computing = work.multiply_adds / self.multiply_adds_per_ns / 1e3
        return {
            "bytes": work.bytes,
            "multiply_adds": work.multiply_adds,
            "bytes_us": reading,
            "multiply_adds_us": computing,
            "max_us": max(reading, computing),
            "sum_us": reading + computing,
        }
