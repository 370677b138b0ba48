"""Opens the GPU for benchmarks and checks: copies arrays, launches kernels and graphs of them, and times both.

This is the Python side of cuda/device.cpp, which is compiled here. Numpy arrays and compiled kernels go in, and arrays
and nanoseconds come out. PyCUDA has no graphs, so timing does not go through it.
"""

from __future__ import annotations

import ctypes as c
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from benchmarks.cpu.c_models import write_files
from edgedistill.compile.bundle_sources import kernel_files
from edgedistill.compile.c.toolchain import Toolchain
from edgedistill.compile.cuda.nvcc import Nvcc

CUDA = Path(__file__).parent / "cuda"
INCLUDES = ("-Iinclude", "-Ic", "-Igpu", "-Icuda", "-Imodel")
ATTRIBUTES = {  # CUdevice_attribute
    "clock_khz": 13,
    "multiprocessors": 16,
    "memory_clock_khz": 36,
    "l2_bytes": 38,
    "shared_a_block": 97,
}
FUNCTION_ATTRIBUTES = {"shared": 1, "local": 3, "registers": 4}  # CUfunction_attribute
FLUSH_THREADS, FLUSH_BLOCKS = 256, 4  # blocks a multiprocessor

Times = npt.NDArray[np.uint64]


class GpuError(RuntimeError):
    """A call of the driver failed. The message says what it answered and where to look."""


@dataclass(frozen=True, eq=False)
class Buffer:
    """An array in the memory of the device."""

    gpu: Gpu
    address: int
    shape: tuple[int, ...]
    dtype: np.dtype[Any]

    @property
    def nbytes(self) -> int:
        """The size in bytes."""
        return int(np.prod(self.shape)) * self.dtype.itemsize

    def write(self, values: npt.NDArray[Any]) -> None:
        """Copies an array from the host to the device."""
        array = np.ascontiguousarray(values, self.dtype)
        assert array.shape == self.shape
        self.gpu.call("bench_write", c.c_uint64(self.address), c.c_void_p(array.ctypes.data), c.c_size_t(array.nbytes))

    def fetch(self) -> npt.NDArray[Any]:
        """Copies the array from the device to the host."""
        array = np.empty(self.shape, self.dtype)
        self.gpu.call("bench_read", c.c_void_p(array.ctypes.data), c.c_uint64(self.address), c.c_size_t(array.nbytes))
        return array


class Launch(c.Structure):
    """A kernel with its grid and arguments, which is bench_launch of device.cpp. It keeps its arguments alive."""

    _fields_ = (
        ("function", c.c_void_p),
        *((name, c.c_uint32) for name in ("grid_x", "grid_y", "block", "shared")),
        ("arguments", c.POINTER(c.c_void_p)),
    )

    @classmethod
    def of(cls, function: int, grid: int | tuple[int, int], block: int, shared: int, *arguments: Any) -> Launch:
        """Makes a launch. Buffers become addresses, integers int32 and floats float32, and ctypes stay as they are."""
        values = [_convert_argument(value) for value in arguments]
        pointers = (c.c_void_p * max(1, len(values)))(*(c.addressof(value) for value in values))
        grid_x, grid_y = grid if isinstance(grid, tuple) else (grid, 1)
        launch = cls(function, grid_x, grid_y, block, shared, pointers)
        launch.kept = (values, pointers, arguments)
        return launch


def _convert_argument(value: Any) -> Any:
    if isinstance(value, Buffer):
        return c.c_uint64(value.address)
    if isinstance(value, c._SimpleCData):
        return value
    return c.c_int32(int(value)) if isinstance(value, int | np.integer) else c.c_float(float(value))


@dataclass(frozen=True, eq=False)
class Graph:
    """Launches that were recorded one after the other and can be replayed."""

    handle: int
    launches: tuple[Launch, ...]


class Gpu:
    """The first GPU, open until the process ends. `nvcc` compiles for its chip, and `tools` for the CPU beside it."""

    def __init__(self, folder: Path, nvcc: Nvcc, tools: Toolchain) -> None:
        self.folder, self.nvcc, self.tools = folder, nvcc, tools
        write_files(folder, kernel_files("include", "c", "gpu", "cuda"))
        self.c = c.CDLL(str(compile_for_host(folder, "device.cpp", tools, nvcc.includes)))
        self.c.bench_error.restype = c.c_char_p
        self.call("bench_open")
        self._kept: list[Any] = []

    def call(self, function: str, *arguments: Any) -> None:
        """Calls a function of device.cpp. Raises GpuError where it fails."""
        if getattr(self.c, function)(*arguments):
            raise GpuError(f"{function}: {self.c.bench_error().decode()}; see nvidia-smi, or dmesg on a Jetson")

    def read_attributes(self) -> dict[str, int | None]:
        """Returns what the driver says of the chip, with None for what it does not know."""
        return {name: self._attribute(number) for name, number in ATTRIBUTES.items()}

    def _attribute(self, number: int) -> int | None:
        value = c.c_int()
        return None if self.c.bench_attribute(number, c.byref(value)) else value.value

    # ---------------------------------------------------------------- memory

    def allocate(self, shape: tuple[int, ...], dtype: Any) -> Buffer:
        """Allocates room for an array, whose values are not defined."""
        buffer = Buffer(self, 0, shape, np.dtype(dtype))
        address = c.c_uint64()
        self.call("bench_alloc", c.c_size_t(max(1, buffer.nbytes)), c.byref(address))
        return Buffer(self, address.value, shape, buffer.dtype)

    def array(self, values: npt.NDArray[Any]) -> Buffer:
        """Returns a copy of `values` on the device."""
        buffer = self.allocate(values.shape, values.dtype)
        buffer.write(values)
        return buffer

    # ---------------------------------------------------------------- kernels

    def compile_kernels(self, source: Path, options: Sequence[str] = ()) -> Module:
        """Compiles a .cu file for this chip, once, and loads it. It may include what lies beside the kernels."""
        output = f"bench/{source.stem}.cubin"
        if not (self.folder / output).exists():
            write_files(self.folder / "bench", {source.name: source.read_bytes()})
            self.nvcc.compile_cubin(self.folder, f"bench/{source.name}", output, (*INCLUDES, *options))
        return self.load_module(self.folder / output)

    def load_module(self, path: Path) -> Module:
        """Loads a compiled file."""
        handle = c.c_void_p()
        self.call("bench_module", str(path).encode(), c.byref(handle))
        return Module(self, handle.value or 0)

    def run(self, *launches: Launch) -> None:
        """Launches one after the other, and waits for the end."""
        self.call("bench_launch_all", _array(Launch, launches), c.c_size_t(len(launches)))

    def record_graph(self, *launches: Launch) -> Graph:
        """Records launches one after the other."""
        handle = c.c_void_p()
        self.call("bench_graph", _array(Launch, launches), c.c_size_t(len(launches)), c.byref(handle))
        return Graph(handle.value or 0, launches)

    def make_empty_graph(self) -> Graph:
        """Makes a graph of one node that does nothing."""
        handle = c.c_void_p()
        self.call("bench_empty_graph", c.byref(handle))
        return Graph(handle.value or 0, ())

    def replay(self, graph: Graph) -> None:
        """Runs a graph and waits for its end."""
        self.call("bench_replay", c.c_void_p(graph.handle))

    # ---------------------------------------------------------------- timing

    def flush_with(self, floors: Module) -> None:
        """Sets what a flush reads by `ed_read_all`: four times what the L2 holds, and at least 16 MB."""
        facts = self.read_attributes()
        size = max(4 * (facts["l2_bytes"] or 0), 2**24) if facts["multiprocessors"] else 2**12
        room, sink = self.allocate((size // 16, 4), np.uint32), self.allocate((1,), np.uint32)
        blocks = FLUSH_BLOCKS * (facts["multiprocessors"] or 1)
        launch = Launch.of(floors.find_function("ed_read_all"), blocks, FLUSH_THREADS, 0, room, size // 16, sink)
        self._kept.append(launch)
        self.c.bench_flush_with(c.byref(launch))

    def flush(self) -> None:
        """Replaces everything in the L2."""
        self.call("bench_flush")

    def time_graphs(self, graphs: Sequence[Graph], count: int, flushed: bool = False) -> Times:
        """Times graphs in turn, from launch to synchronize, in ns."""
        return self._run_loop("bench_time_graphs", *_handles(graphs), count, flushed)

    def time_device(self, graphs: Sequence[Graph], count: int, flushed: bool = False) -> Times:
        """Times graphs in turn, between two events on the device, in ns."""
        return self._run_loop("bench_time_device", *_handles(graphs), count, flushed)

    def time_launches(self, launches: Sequence[Launch], count: int, flushed: bool = False) -> Times:
        """Times plain launches in turn, from launch to synchronize, in ns."""
        return self._run_loop(
            "bench_time_launches", _array(Launch, launches), c.c_size_t(len(launches)), count, flushed
        )

    def time_steps(
        self, decoder: tuple[Any, int], bins: npt.NDArray[np.float32], count: int, flushed: bool = False
    ) -> Times:
        """Times `ed_step` of a decoder (function, handle) over bins (rows, channels), used again from the top."""
        step, handle = decoder
        rows, channels = bins.shape
        shape = (c.c_void_p(bins.ctypes.data), c.c_size_t(channels), c.c_size_t(rows))
        return self._run_loop("bench_time_steps", c.cast(step, c.c_void_p), c.c_void_p(handle), *shape, count, flushed)

    def _run_loop(self, loop: str, *arguments: Any) -> Times:
        *subject, count, flushed = arguments
        times = np.zeros(count, np.uint64)
        self.call(loop, *subject, c.c_size_t(count), c.c_int(flushed), c.c_void_p(times.ctypes.data))
        return times


@dataclass(frozen=True, eq=False)
class Module:
    """Kernels that the driver has loaded."""

    gpu: Gpu
    handle: int

    def find_function(self, name: str, shared: int = 0) -> int:
        """Returns a kernel by name, with `shared` bytes of dynamic shared memory allowed."""
        found = c.c_void_p()
        self.gpu.call("bench_function", c.c_void_p(self.handle), name.encode(), c.c_uint32(shared), c.byref(found))
        return found.value or 0

    def read_facts(self, name: str) -> dict[str, int]:
        """Returns the registers of a thread, and the bytes of shared and of local memory (spills) of a kernel."""
        found, value = {}, c.c_int()
        for what, number in FUNCTION_ATTRIBUTES.items():
            self.gpu.call("bench_function_attribute", c.c_void_p(self.find_function(name)), number, c.byref(value))
            found[what] = value.value
        return found


def compile_for_host(folder: Path, source: str, tools: Toolchain, options: Sequence[str] = ()) -> Path:
    """Compiles a C++ file of benchmarks/gpu/cuda once, as a library in `folder`, where the kernels' headers lie."""
    name = Path(source).stem
    output = folder / "bench" / f"lib{name}.so"
    if output.exists():
        return output
    write_files(folder / "bench", {source: (CUDA / source).read_bytes()})
    tools.compile(folder, f"bench/{source}", f"bench/{name}.o", (*INCLUDES, *options))
    tools.link(folder, [f"bench/{name}.o"], f"bench/lib{name}.so", ("-lstdc++", "-ldl"))
    return output


def _array(kind: Any, items: Sequence[Any]) -> Any:
    return (kind * max(1, len(items)))(*items)


def _handles(graphs: Sequence[Graph]) -> tuple[Any, c.c_size_t]:
    return (c.c_void_p * len(graphs))(*(graph.handle for graph in graphs)), c.c_size_t(len(graphs))
