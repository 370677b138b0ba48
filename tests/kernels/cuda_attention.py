"""Random inputs of the attention and append kernels, their expected results, and their launches in emulation.

`numerics` computes the expected results. As a program, `python -m tests.kernels.cuda_attention LIBRARY`, this module
checks a compiled library of attention_step.cu and append.cu, which tests run under AddressSanitizer.
"""

from __future__ import annotations

import ctypes
import sys
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from edgedistill.numerics import attend, quantize

from .cuda_emulation import KERNELS, failure, load, pointer, reversed_order

SOURCES = [KERNELS / f"cuda/{name}.cu" for name in ("attention_step", "append")]
GUARD = 64  # bytes behind every output that must keep their value
POISON = -128  # a value that no kernel writes

Int8 = npt.NDArray[np.int8]


@dataclass(frozen=True)
class Case:
    """Holds one layer's attention over T bins that follow the bins of the rings."""

    q: Int8  # (H, T, Dh) in the order of time
    k: Int8
    v: Int8
    ring_k: Int8  # (H, W - 1, Dh) by slot
    ring_v: Int8
    bias: npt.NDArray[np.float32]  # (H, W)
    pos: int
    live: int
    scales: tuple[float, float, float]  # score_scale, v_scale, context_inv

    def wanted(self) -> Int8:
        """Returns the context (T, H, Dh) that numerics computes."""
        slots = self.ring_k.shape[1]
        order = (self.pos + np.arange(slots)) % max(slots, 1)
        both = ((self.ring_k, self.k), (self.ring_v, self.v))
        keys, values = (np.concatenate([ring[:, order], new], axis=1) for ring, new in both)
        scales = [np.float32([scale]) for scale in self.scales]
        return quantize(attend(self.q, keys, values, self.bias, self.live, *scales[:2]), scales[2])

    def bin(self, t: int) -> Case:
        """Returns the case of bin t alone, with the rings unchanged."""
        new = [np.ascontiguousarray(a[:, t : t + 1]) for a in (self.q, self.k, self.v)]
        return Case(*new, self.ring_k, self.ring_v, self.bias, self.pos, self.live, self.scales)


def random_case(
    heads: int, window: int, head_dim: int, pos: int = 0, live: int = 0, steps: int = 1, seed: int = 0
) -> Case:
    """Makes a case of random integers. Slots that are not filled yet hold random values too, -128 among them."""
    rng = np.random.default_rng([seed, heads, window, head_dim, pos, live])
    new = [rng.integers(-127, 128, (heads, steps, head_dim), np.int8) for _ in range(3)]
    rings = [rng.integers(-128, 128, (heads, window - 1, head_dim), np.int8) for _ in range(2)]
    bias = rng.standard_normal((heads, window)).astype(np.float32)
    return Case(*new, *rings, bias, pos, live, (0.0003 * 8 / head_dim**0.5, 0.011, 130.0))


def extreme_case(heads: int, window: int, head_dim: int) -> Case:
    """Makes the case with the largest possible sums, on full rings."""
    ones = np.full((heads, window - 1, head_dim), 127, np.int8)
    new = np.full((heads, 1, head_dim), 127, np.int8)
    bias = np.full((heads, window), 3, np.float32)
    bias[:, 1::2] = -1000
    bias[-1] = 0
    return Case(new, new, new, ones, ones, bias, 0, window - 1, (0.01, 1.0, 1.0))


class Kernels:
    """Launches the kernels of one compiled library."""

    def __init__(self, library: ctypes.CDLL) -> None:
        self.c = library

    def step(self, case: Case) -> Int8:
        """Returns the context (H, Dh) of a case of one bin."""
        heads, _, head_dim = case.q.shape
        out = np.full(heads * head_dim + GUARD, POISON, np.int8)
        state = np.int32([case.pos, case.live])
        arrays = (case.q, case.k, case.v, case.ring_k, case.ring_v, case.bias, state[:1], state[1:])
        scales = map(ctypes.c_float, case.scales)
        sizes = (heads, case.bias.shape[1], head_dim)
        error = self.c.ed_launch_attention_step(*map(pointer, arrays), *scales, *sizes, pointer(out), None)
        assert error == 0, failure(self.c)
        assert (out[-GUARD:] == POISON).all(), "written beyond the end"
        return out[:-GUARD].reshape(heads, head_dim)

    def append(self, fresh: npt.NDArray[Any], rings: npt.NDArray[Any], bin_new: Any, lags: Any, state: Any) -> None:
        """Writes a bin into the state: fresh (L, 2, H, Dh) into rings (L, 2, H, W - 1, Dh), bin_new (C,) into lags
        (R, C), and the next pos and live into state (2,)."""
        layers, _, heads, slots, head_dim = rings.shape
        strides = [ctypes.c_size_t(a[0, 0].nbytes) for a in (fresh, rings)]
        sizes = (layers, heads, slots + 1, head_dim * rings.itemsize, len(lags), bin_new.nbytes)
        moved = (pointer(bin_new), pointer(lags), pointer(state[:1]), pointer(state[1:]))
        error = self.c.ed_launch_append(pointer(fresh), strides[0], pointer(rings), strides[1], *moved, *sizes, None)
        assert error == 0, failure(self.c)

    def both_orders(self, case: Case) -> Int8:
        """Returns the context (H, Dh) of a case of one bin, after checking that reversing the threads keeps it."""
        first = self.step(case)
        with reversed_order(self.c):
            assert (self.step(case) == first).all(), "the order of threads changes the result"
        return first


def ring_states(window: int) -> list[tuple[int, int]]:
    """Returns (pos, live) of a fresh ring, of filling ones, and of full ones before, at and after the wrap."""
    slots = window - 1
    if slots == 0:
        return [(0, 0)]
    filling = [(n, n) for n in (0, 1, slots // 2, slots - 1) if n < slots]
    return sorted({*filling, (0, slots), (1 % slots, slots), (slots // 3, slots), (slots - 1, slots)})


def check(kernels: Kernels) -> None:
    """Checks cases that use every width of load and every remainder at the end of a row."""
    for heads, window, head_dim in ((2, 31, 16), (1, 37, 20), (3, 6, 33), (2, 1, 48), (1, 5, 128), (1, 260, 16)):
        for pos, live in (ring_states(window)[0], ring_states(window)[-1]):
            case = random_case(heads, window, head_dim, pos, live, steps=5)
            assert (kernels.both_orders(case.bin(0)) == case.wanted()[0]).all(), (heads, window, head_dim, pos, live)
            stream(kernels, case)


def stream(kernels: Kernels, case: Case) -> None:
    """Checks that steps with an append after each are the attention over all T bins, and leave the right state."""
    steps, slots = case.q.shape[1], case.ring_k.shape[1]
    rings, state = np.stack([case.ring_k, case.ring_v])[None], np.int32([case.pos, case.live])
    kept = rings.copy()  # filled by hand
    no_lags = np.zeros((0, 1), np.int8)
    for t, wanted in enumerate(case.wanted()):
        new = case.bin(t)
        now = replace(new, ring_k=rings[0, 0], ring_v=rings[0, 1], pos=int(state[0]), live=int(state[1]))
        assert (kernels.step(now) == wanted).all(), f"bin {t} of {steps}"
        kernels.append(np.stack([new.k[:, 0], new.v[:, 0]])[None], rings, no_lags[:, 0], no_lags, state)
        if slots:
            kept[0, :, :, (case.pos + t) % slots] = np.stack([new.k[:, 0], new.v[:, 0]])
    moved = [(case.pos + steps) % slots, min(case.live + steps, slots)] if slots else [0, 0]
    assert (kept == rings).all(), "the rings differ"
    assert (state == moved).all(), "pos or live differs"


if __name__ == "__main__":
    check(Kernels(load(Path(sys.argv[1]))))
