"""Tests of attention_step.cu and append.cu on the emulated GPU: every bit is that of numerics, for rings of any age."""

from __future__ import annotations

import ctypes
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from edgedistill.config import StudentShape
from edgedistill.numerics import Oracle

from ..numerics.students import ODD, SMALL, random_bins, random_model
from .cuda_attention import (
    POISON,
    SOURCES,
    Case,
    Kernels,
    check,
    extreme_case,
    random_case,
    ring_states,
    stream,
)
from .cuda_emulation import KERNELS, compile_emulated, compilers, load, pointer, reversed_order, sanitized

WINDOWS = (1, 31, 129, 200, 2048)
HEAD_DIMS = (16, 17, 20, 32, 33, 48, 62, 63, 64)
NARROW = StudentShape(channels=3, outputs=1, d=8, layers=2, heads=2, window=5, ff=3, taps=1, dilation=1, lags=11)
NO_LAGS = StudentShape(channels=4, outputs=2, d=32, layers=1, heads=1, window=2, ff=16, taps=1, dilation=1, lags=0)


@pytest.fixture(scope="module")
def kernels(tmp_path_factory: pytest.TempPathFactory) -> Kernels:
    return Kernels(load(compile_emulated(tmp_path_factory.mktemp("attention") / "attention.so", SOURCES)))


# ---------------------------------------------------------------- one bin


@pytest.mark.parametrize("window", WINDOWS)
def test_a_step_equals_numerics_to_the_last_bit(kernels: Kernels, window: int) -> None:
    for head_dim in HEAD_DIMS:
        for pos, live in ring_states(window):
            case = random_case(2, window, head_dim, pos, live)
            assert (kernels.both_orders(case) == case.wanted()[0]).all(), (head_dim, pos, live)


@pytest.mark.parametrize("window", WINDOWS)
def test_the_largest_possible_sums_do_not_overflow(kernels: Kernels, window: int) -> None:
    for head_dim in (16, 63, 128):
        case = extreme_case(2, window, head_dim)
        assert (kernels.both_orders(case) == case.wanted()[0]).all(), head_dim


@pytest.mark.parametrize("offset", [1, 2, 4, 8])
def test_rows_may_start_at_any_address(kernels: Kernels, offset: int) -> None:
    case = random_case(2, 37, 32, 5, 36)
    moved = [np.frombuffer(bytes(offset) + a.tobytes(), np.int8)[offset:].reshape(a.shape) for a in rows(case)]
    there = Case(*moved, case.bias, case.pos, case.live, case.scales)
    assert (kernels.both_orders(there) == case.wanted()[0]).all()


def rows(case: Case) -> tuple[np.ndarray, ...]:
    return case.q, case.k, case.v, case.ring_k, case.ring_v


def test_slots_that_are_not_filled_do_not_change_the_result(kernels: Kernels) -> None:
    for pos, live in ring_states(31):
        case = random_case(2, 31, 16, pos, live)
        ages = (pos - np.arange(30) - 1) % 30 + 1
        case.ring_k[:, ages > live] = POISON
        case.ring_v[:, ages > live] = POISON
        other = random_case(2, 31, 16, pos, live)
        assert (kernels.step(case) == kernels.step(other)).all(), (pos, live)


def test_shapes_that_a_kernel_does_not_take_are_refused(kernels: Kernels) -> None:
    pointers = [None] * 8
    for heads, window, head_dim in ((0, 9, 16), (1, 0, 16), (1, 2049, 16), (1, 9, 0), (1, 9, 129)):
        scales = [0, 0, 0]
        assert kernels.c.ed_launch_attention_step(*pointers, *scales, heads, window, head_dim, None, None) == 1


# ---------------------------------------------------------------- several bins


@pytest.mark.parametrize(("window", "head_dim"), [(1, 16), (2, 17), (5, 32), (31, 20), (200, 32)])
def test_steps_and_appends_are_attention_over_all_bins(kernels: Kernels, window: int, head_dim: int) -> None:
    for pos, live in ring_states(window):
        stream(kernels, random_case(2, window, head_dim, pos, live, steps=2 * min(window, 18) + 3))


# ---------------------------------------------------------------- a student's rings


@pytest.mark.parametrize("backwards", [False, True])
@pytest.mark.parametrize("shape", [SMALL, ODD, NARROW, NO_LAGS], ids=["small", "odd", "narrow", "no-lags"])
def test_steps_and_appends_follow_the_oracle(kernels: Kernels, shape: StudentShape, backwards: bool) -> None:
    """Compares each layer's context, and the rings, lags, pos and live after each bin, until past the wrap."""
    model = random_model(shape)
    oracle, t = Oracle(model), model.tensors
    rings = np.zeros((shape.layers, 2, shape.heads, shape.window - 1, shape.head_dim), np.int8)
    lags, state = np.zeros((shape.lag_rows, shape.channels), np.int8), np.zeros(2, np.int32)
    with reversed_order(kernels.c, backwards):
        for n, bin_ in enumerate(random_bins(shape, 3 * shape.window + 5)):
            seen = oracle.trace(bin_[None])
            fresh = np.stack(
                [[seen[f"layers.{i}.{part}"][0] for part in "kv"] for i in range(shape.layers)]
            )  # (L, 2, H, Dh)
            for i in range(shape.layers):
                name = f"layers.{i}."
                new = [np.ascontiguousarray(seen[name + part].swapaxes(0, 1)) for part in "qkv"]
                scales = tuple(float(t[name + s][0]) for s in ("score_scale", "v.scale", "context.inv_scale"))
                pos, live = int(state[0]), int(state[1])
                case = Case(*new, *rings[i], t[name + "age_bias"], pos, live, scales)
                assert (kernels.step(case).ravel() == seen[name + "context"][0]).all(), (n, i)
            kernels.append(fresh, rings, seen["bin"][0], lags, state)
            require_state(oracle, rings, lags, state)


def require_state(oracle: Oracle, rings: np.ndarray, lags: np.ndarray, state: np.ndarray) -> None:
    wanted = oracle.export_state()
    for i, (k, v) in enumerate(rings):
        assert (k == wanted[f"ring_k_{i}"]).all()
        assert (v == wanted[f"ring_v_{i}"]).all()
    assert (lags == wanted.get("lags", lags)).all()
    assert (state == [wanted["pos"][0], wanted["live"][0]]).all()


@pytest.mark.parametrize("kind", [np.int8, np.float16, np.float32])
@pytest.mark.parametrize("gap", [0, 1, 16, 1000])
def test_append_moves_bytes_of_any_type_between_strides(kernels: Kernels, kind: type, gap: int) -> None:
    """A TensorRT plan has each array at an address of its own, with values of 1, 2 or 4 bytes."""
    rng = np.random.default_rng(gap)
    layers, heads, slots, head_dim, channels = 2, 3, 7, 16, 12
    sizes = [heads * head_dim * np.dtype(kind).itemsize, heads * slots * head_dim * np.dtype(kind).itemsize]
    fresh, rings = (rng.integers(-127, 128, (2 * layers, size + gap), np.int8) for size in sizes)
    lags, bin_new = rng.standard_normal((19, channels)).astype(kind), rng.standard_normal(channels).astype(kind)
    before, old_lags, state = rings.copy(), lags.copy(), np.int32([slots - 1, 4])
    strides = [ctypes.c_size_t(a.strides[0]) for a in (fresh, rings)]
    moved = [pointer(a) for a in (fresh, rings, bin_new, lags, state[:1], state[1:])]
    counts = (layers, heads, slots + 1, head_dim * np.dtype(kind).itemsize, len(lags), bin_new.nbytes)
    ways = (moved[0], strides[0], moved[1], strides[1], *moved[2:])
    assert kernels.c.ed_launch_append(*ways, *counts, None) == 0
    wanted = before[:, : sizes[1]].view(kind).reshape(2 * layers, heads, slots, head_dim).copy()
    wanted[:, :, slots - 1] = fresh[:, : sizes[0]].view(kind).reshape(2 * layers, heads, head_dim)
    assert rings[:, : sizes[1]].tobytes() == wanted.tobytes()
    assert (rings[:, sizes[1] :] == before[:, sizes[1] :]).all()
    assert (lags == np.concatenate([bin_new[None], old_lags[:-1]])).all()
    assert (state == [0, 5]).all()


# ---------------------------------------------------------------- other compilers, sanitizers


@pytest.mark.skipif("clang++" not in compilers(), reason="clang is not installed")
def test_clang_gives_the_same_bits(tmp_path: Path) -> None:
    check(Kernels(load(compile_emulated(tmp_path / "attention.so", SOURCES, compiler="clang++"))))


@pytest.mark.variant
def test_sanitizers_find_nothing(tmp_path: Path) -> None:
    environment = sanitized()
    if environment is None:
        pytest.skip("the compiler has no AddressSanitizer")
    library = compile_emulated(tmp_path / "attention.so", SOURCES, ("-O1",), sanitize=True)
    command = [sys.executable, "-m", "tests.kernels.cuda_attention", str(library)]
    root = KERNELS.parent
    done = subprocess.run(command, cwd=root, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
