"""Compares the attention kernels on a device with numerics.attend, byte by byte, at every size and state of the rings.

A `Device` goes in, which is that of the benchmark or PyCUDA in the tests. What was compared comes out. Outputs hold
-128 before a launch, which no kernel may leave or write. Cases cover the promised sizes of windows and heads, and rings
that are empty, half filled, about to wrap, at the wrap and past it.
"""

from __future__ import annotations

import ctypes
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from edgedistill.numerics import attend, quantize

WINDOWS = (1, 31, 129, 200, 2048)
HEAD_DIMS = (16, 20, 32, 64)
HEADS = 3
THREADS = 256  # ED_ATTENTION_THREADS, ED_APPEND_THREADS
POISON = np.int8(-128)
SCORE_SPREAD = 8.0  # the largest score's magnitude: exponentials from 127 to 0

Array = npt.NDArray[Any]


class Arrays(Protocol):
    """Anything that puts arguments on the GPU."""

    def array(self, values: Array) -> Any:
        """Returns a copy of `values` on the device."""


class Device(Arrays, Protocol):
    """What a check needs of the owner of the GPU."""

    def fetch(self, array: Any) -> Array:
        """Returns a copy of the array as it is now."""

    def launch(self, kernel: str, grid: tuple[int, int], block: int, shared: int, *arguments: Any) -> None:
        """Launches a kernel by its name and waits. Integers become int32, floats float32, and ctypes stay."""


@dataclass(frozen=True)
class Finding:
    """The outcome of one comparison."""

    case: str
    compared: int  # values
    differ: int


@dataclass(frozen=True, eq=False)
class Core:
    """The inputs of one layer's attention, for the bin that follows those of the ring."""

    q: Array  # (H, Dh)
    k: Array
    v: Array
    ring_k: Array  # (H, W - 1, Dh) by slot
    ring_v: Array
    bias: Array  # (H, W) by age
    pos: int
    live: int
    scales: tuple[np.float32, np.float32, np.float32]  # score, v, context_inv

    @property
    def window(self) -> int:
        """The number of bins that are attended to."""
        return int(self.bias.shape[1])

    @property
    def order(self) -> Array:
        """The slots from the oldest to the newest."""
        slots = self.window - 1
        return (self.pos + np.arange(slots)) % max(1, slots)

    def compute_context(self) -> Array:
        """Returns the context (H, Dh) int8 by the definition."""
        past = (self.ring_k[:, self.order], self.ring_v[:, self.order])
        new = (self.k[:, None], self.v[:, None])
        keys, values = (np.concatenate(parts, axis=1) for parts in zip(past, new, strict=True))
        score, v, inverse = (np.array([scale], np.float32) for scale in self.scales)
        return quantize(attend(self.q[:, None], keys, values, self.bias, self.live, score, v), inverse)[0]


def draw_core(heads: int, window: int, head_dim: int, state: tuple[int, int], seed: int = 0) -> Core:
    """Returns random inputs of the whole range. Slots that are not live hold some too, and no kernel may read them."""
    rng = np.random.default_rng([seed, window, head_dim, *state])

    def integers(*size: int) -> Array:
        return rng.integers(-127, 128, size).astype(np.int8)

    new = [integers(heads, head_dim) for _ in range(3)]
    rings = [integers(heads, window - 1, head_dim) for _ in range(2)]
    bias = rng.normal(0, 1, (heads, window)).astype(np.float32)
    scales = (np.float32(SCORE_SPREAD / (127 * 127 * head_dim**0.5)), np.float32(0.02), np.float32(127 / 1.5))
    return Core(*new, *rings, bias, *state, scales)


def list_states(window: int) -> list[tuple[int, int]]:
    """Returns (pos, live) of rings that are fresh, half filled, one slot before the wrap, at it, and past it."""
    slots = window - 1
    if not slots:
        return [(0, 0)]
    return sorted({(0, 0), (slots // 2, slots // 2), (slots - 1, slots - 1), (0, slots), (slots // 3, slots)})


# ---------------------------------------------------------------- the kernels


def count_shared_bytes(window: int) -> int:
    """Returns the shared bytes of ed_attention_step, as ed_attention_shared in attention_step.h."""
    return -(-window // 4) * 4 * 5


def make_step_arguments(device: Arrays, core: Core) -> tuple[tuple[Any, ...], Any]:
    """Returns the arguments of ed_attention_step, and the one of them that is its output."""
    q, k, v = (device.array(part) for part in (core.q, core.k, core.v))
    rings = (device.array(pad_empty(core.ring_k)), device.array(pad_empty(core.ring_v)))
    state = (device.array(np.array([number], np.int32)) for number in (core.pos, core.live))
    heads, head_dim = core.q.shape
    context = device.array(np.full((heads, head_dim), POISON))
    return (q, k, v, *rings, device.array(core.bias), *state, *core.scales, core.window, head_dim, context), context


def pad_empty(ring: Array) -> Array:
    """Returns the ring, or some bytes in place of a ring without slots, because an empty array has no address."""
    return ring if ring.size else np.zeros(16, np.int8)


def check_step(device: Device, core: Core, case: str) -> Finding:
    """Checks one launch of ed_attention_step."""
    arguments, context = make_step_arguments(device, core)
    device.launch("ed_attention_step", (core.q.shape[0], 1), THREADS, count_shared_bytes(core.window), *arguments)
    return compare_values(case, device.fetch(context), core.compute_context())


def check_append(device: Device, core: Core, layers: int, lag_rows: int, channels: int, case: str) -> Finding:
    """Checks ed_append over three bins against what a runtime would do by hand."""
    rng = np.random.default_rng([core.window, lag_rows, channels])
    heads, slots, head_dim = core.ring_k.shape
    rings = rng.integers(-127, 128, (layers, 2, heads, slots, head_dim)).astype(np.int8)
    lags = rng.integers(-127, 128, (lag_rows, channels)).astype(np.int8)
    pos, live = core.pos, core.live
    places = [device.array(pad_empty(array)) for array in (rings, lags)]
    state = [device.array(np.array([number], np.int32)) for number in (pos, live)]
    for _ in range(3):
        fresh = rng.integers(-127, 128, (layers, 2, heads, head_dim)).astype(np.int8)
        bin_ = rng.integers(-127, 128, channels).astype(np.int8)
        strides = [ctypes.c_size_t(heads * head_dim), ctypes.c_size_t(heads * slots * head_dim)]
        sizes = (layers, heads, core.window, head_dim, lag_rows, channels)
        given = (device.array(fresh), strides[0], places[0], strides[1], device.array(bin_), places[1])
        device.launch("ed_append", (1, 1), THREADS, 0, *given, *state, *sizes)
        if slots:
            rings[:, :, :, pos] = fresh
            pos, live = (pos + 1) % slots, min(live + 1, slots)
        lags = np.concatenate([bin_[None], lags])[:lag_rows]
    found = [device.fetch(place).ravel() for place in (*places, *state)]
    expected = [pad_empty(rings).ravel(), pad_empty(lags).ravel(), np.array([pos]), np.array([live])]
    return compare_all(case, found, expected)


def compare_all(case: str, found: list[Array], expected: list[Array]) -> Finding:
    """Compares several arrays and returns one finding."""
    findings = [compare_values(case, *pair) for pair in zip(found, expected, strict=True)]
    return Finding(case, sum(f.compared for f in findings), sum(f.differ for f in findings))


def compare_values(case: str, found: Array, expected: Array) -> Finding:
    """Counts the values that are not the same."""
    assert found.shape == expected.shape
    return Finding(case, expected.size, int(np.count_nonzero(found != expected)))


def check_kernels(
    device: Device, windows: tuple[int, ...] = WINDOWS, head_dims: tuple[int, ...] = HEAD_DIMS
) -> Iterator[Finding]:
    """Checks every kernel at every size and state."""
    for window in windows:
        for head_dim in head_dims:
            for state in list_states(window):
                case = f"W {window}, Dh {head_dim}, pos {state[0]}, live {state[1]}"
                core = draw_core(HEADS, window, head_dim, state)
                yield check_step(device, core, f"ed_attention_step, {case}")
                yield check_append(device, core, 2, 3, 5, f"ed_append, {case}")
