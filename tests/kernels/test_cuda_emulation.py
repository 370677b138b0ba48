"""Tests the emulated GPU: what threads see of each other, what it reports, and the pinned arithmetic of kernels."""

from __future__ import annotations

import ctypes
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from edgedistill.numerics.arithmetic import exp32, lane_sum, quantize, silu32

from . import cuda_emulation
from .cuda_emulation import EMULATED, FOLDERS, compile_emulated, failure, launch, load, reversed_order, sanitized

PROBE = Path(__file__).with_name("emulation_probe.cu")
FAILED = 719  # cudaErrorLaunchFailure
UCONTEXT = "-DED_FIBRES_UCONTEXT"

Library = ctypes.CDLL


@pytest.fixture(scope="module", params=["g++", "clang++", "ucontext"])
def probe(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Library:
    compiler, extra = ("g++", (UCONTEXT,)) if request.param == "ucontext" else (request.param, ())
    if not shutil.which(compiler):
        pytest.skip(f"{compiler} is not installed")
    folder = tmp_path_factory.mktemp("probe")
    return load(compile_emulated(folder / "probe.so", [PROBE], ("-O2", *extra), compiler=compiler))


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str, dict[str, str]], Any]:
    """Runs a statement about `library` and `out` in a process of its own."""
    library = compile_emulated(tmp_path_factory.mktemp("probe") / "probe.so", [PROBE], ("-O1",))
    return lambda statement, environment: python(library, statement, environment)


def python(library: Path, statement: str, environment: dict[str, str]) -> subprocess.CompletedProcess[str]:
    script = f"""
import ctypes, numpy as np
from pathlib import Path
from tests.kernels.cuda_emulation import launch, load
library, out = load(Path({str(library)!r})), np.zeros(2048, np.int32)
{statement}
"""
    command, root = [sys.executable, "-c", script], Path(__file__).parents[2]
    env = {**os.environ, **environment}
    return subprocess.run(command, cwd=root, env=env, capture_output=True, text=True, check=False)


# ---------------------------------------------------------------- threads


@pytest.mark.parametrize("backwards", [False, True])
@pytest.mark.parametrize(("grid", "block"), [((1, 1, 1), (1, 1, 1)), ((3, 2, 2), (5, 3, 2)), ((2, 1, 1), (1024, 1, 1))])
def test_a_barrier_separates_writes_from_reads(
    probe: Library, grid: tuple[int, ...], block: tuple[int, ...], backwards: bool
) -> None:
    n, blocks = int(np.prod(block)), int(np.prod(grid))
    out = np.full((blocks, n), -1, np.int32)
    with reversed_order(probe, backwards):
        assert launch(probe, "rotate", grid, block, 4 * n, out, 7) == 0
    assert (out == 1000 * np.arange(blocks)[:, None] + (np.arange(n) + 7) % n).all()


def test_a_launch_converts_arguments_as_a_call_does(probe: Library) -> None:
    out = np.zeros((2, 33), np.int32)
    assert probe.launch_rotate(cuda_emulation.pointer(out), 2, 33) == 0
    assert (out[1, :3] == [1001, 1002, 1003]).all()


@pytest.mark.parametrize("backwards", [False, True])
@pytest.mark.parametrize("width", [32, 8])
@pytest.mark.parametrize("n", [64, 256])
def test_lanes_of_a_warp_exchange_values(probe: Library, n: int, width: int, backwards: bool) -> None:
    out = np.zeros((10, n), np.int64)
    with reversed_order(probe, backwards):
        assert launch(probe, "warp_words", 1, n, 0, out, width) == 0
    own = np.arange(n)
    place, start = own % width, own // width * width
    warp = own // 32 * 32

    def clamped(source: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
        return 1000000007 * (start + np.where((source >= 0) & (source < width), source, place))

    assert (out[0] == 1000000007 * (start + 3)).all()
    assert (out[1] == clamped(place ^ 5)).all()
    assert (out[2] == clamped(place - 2)).all()
    assert (out[3] == clamped(place + 2)).all()
    thirds = (warp[:, None] + np.arange(32)) % 3 == 0
    assert (out[4] == (thirds << np.arange(32)).sum(1)).all()
    assert (out[5] == (own < 32) * 3).all()
    assert (out[6] == (32 * warp + 496) * 1000 - warp).all()
    assert (out[7] == np.where(own % 2, own ^ 2, own ^ 4)).all()
    assert (out[8] == (n + 4) // 5 + 1000).all()
    small = (own - 100).astype(np.int32)
    parts = [(small >> shift).astype(np.int8).astype(int) for shift in (0, 8, 16, 24)]
    products = sum(part * weight for part, weight in zip(parts, (-128, 127, -1, 1), strict=True))
    assert (out[9] == products + 5 + 0x77225500).all()


@pytest.mark.parametrize("backwards", [False, True])
def test_thousands_of_meetings_of_a_warp(probe: Library, backwards: bool) -> None:
    out = np.zeros(1024, np.int32)
    with reversed_order(probe, backwards):
        assert launch(probe, "meet_often", 1, 1024, 0, out, 100) == 0
    assert (out == np.arange(1024)).all()  # 100 times five bits


# ---------------------------------------------------------------- reports


def test_a_race_shows_in_the_other_order(probe: Library) -> None:
    out = np.zeros(1, np.int32)
    assert launch(probe, "race", 1, 100, 0, out) == 0
    assert out[0] == 99
    with reversed_order(probe):
        assert launch(probe, "race", 1, 100, 0, out) == 0
    assert out[0] == 0


def test_shared_memory_that_nobody_wrote_is_not_zero_and_depends_on_the_order(probe: Library) -> None:
    out = np.zeros(2, np.int32)
    assert launch(probe, "unwritten", 2, 1, 16, out) == 0
    assert (out == -1).all()
    with reversed_order(probe):
        assert launch(probe, "unwritten", 1, 1, 16, out) == 0
    assert (out.view(np.uint32) == 0xA5A5A5A5).all()


@pytest.mark.parametrize(
    ("kernel", "argument", "says"),
    [
        ("leave_early", 63, "63 of 64 threads wait in __syncthreads (thread 0), others do not (thread 63 has left"),
        ("leave_early", 1, "1 of 64 threads wait in __syncthreads (thread 0), others do not (thread 1 has left"),
        ("part_ways", None, "threads wait in __syncthreads (thread 0), others do not (thread 8 __shfl_xor_sync)"),
        ("disagree", None, "meet in __shfl_sync and in __shfl_xor_sync (thread 1)"),
        ("lack_itself", None, "__shfl_xor_sync with a mask that lacks its own lane (thread 1)"),
        ("trap_at", 5, "__trap (thread 5)"),
    ],
)
def test_threads_that_wait_forever_are_reported(
    probe: Library, capfd: pytest.CaptureFixture[str], kernel: str, argument: int | None, says: str
) -> None:
    out = np.zeros(1024, np.int32)
    assert launch(probe, kernel, 1, 64, 0, out if argument is None else argument) == FAILED
    assert says in failure(probe)
    assert f"emulated CUDA: block (0, 0, 0): {failure(probe)}" in capfd.readouterr().err
    assert launch(probe, "rotate", 1, 4, 16, out, 1) == 0  # the next launch starts afresh
    assert failure(probe) == ""


def test_refuses_launches_that_a_device_refuses(probe: Library) -> None:
    out = np.zeros(4096, np.int32)
    for grid, block, shared in ((1, 1025, 0), (1, (32, 33), 0), (1, 0, 0), (0, 32, 0), (1, 32, (163 << 10) + 1)):
        assert launch(probe, "rotate", grid, block, shared, out, 1) == 1


def test_the_environment_can_set_the_order(alone: Callable[..., Any]) -> None:
    for order, last in (("reversed", "0"), ("forward", "99")):
        done = alone('launch(library, "race", 1, 100, 0, out); print(out[0])', {"ED_EMULATED_ORDER": order})
        assert (done.returncode, done.stdout.strip()) == (0, last), done.stderr


def test_a_stack_that_overflows_is_reported(probe: Library) -> None:
    assert launch(probe, "overflow", 1, 8, 0, np.zeros(1, np.int32), 5) == FAILED
    assert "the stack of thread 5 overflowed" in failure(probe)


def test_shared_objects_are_independent(tmp_path: Path) -> None:
    """They are independent even when both are open to each other, as an emulated driver and its kernels are."""
    out = [np.zeros(1, np.int32), np.zeros(1, np.int32)]
    one = compile_emulated(tmp_path / "one.so", [PROBE], ("-O0",))
    libraries = [ctypes.CDLL(str(p), ctypes.RTLD_GLOBAL) for p in (one, shutil.copy(one, tmp_path / "two.so"))]
    libraries[1].ed_emulated_reverse(1)
    for library, last in zip(libraries, out, strict=True):
        assert launch(library, "race", 1, 100, 0, last) == 0
    assert (out[0][0], out[1][0]) == (99, 0)


# ---------------------------------------------------------------- sanitizers


@pytest.fixture(scope="module")
def sanitized_python(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Any]:
    environment = sanitized()
    if environment is None:
        pytest.skip("the compiler has no AddressSanitizer")
    library = compile_emulated(tmp_path_factory.mktemp("probe") / "probe.so", [PROBE], ("-O1",), sanitize=True)
    return lambda statement: python(library, statement, environment)


def test_sanitizers_find_nothing_in_right_kernels(sanitized_python: Callable[[str], Any]) -> None:
    done = sanitized_python("""
for _ in range(3):
    assert launch(library, "rotate", 2, 512, 2048, out, 7) == 0
    assert launch(library, "meet_often", 1, 512, 0, out, 5) == 0
    assert launch(library, "leave_early", 1, 64, 0, 5) == 719
print("through")
""")
    assert done.stdout.strip() == "through", done.stderr[-3000:]


@pytest.mark.parametrize(
    ("kernel", "arguments", "says"),
    [
        ("write_shared", "4, 1, 62, 15", "AddressSanitizer"),
        ("rotate", "2, 1024, 4096, out[:1025].copy(), 1", "heap-buffer-overflow"),
        ("race", "1, 1, 0, ctypes.c_void_p(out.ctypes.data + 2)", "misaligned address"),
    ],
)
def test_sanitizers_see_a_kernel_touch_other_memory(
    sanitized_python: Callable[[str], Any], kernel: str, arguments: str, says: str
) -> None:
    done = sanitized_python(f'launch(library, "{kernel}", {arguments})')
    assert done.returncode != 0
    assert says in done.stderr


# ---------------------------------------------------------------- another processor


@pytest.mark.skipif(not shutil.which("aarch64-linux-gnu-g++"), reason="aarch64-linux-gnu-g++ is not installed")
@pytest.mark.skipif(not shutil.which("qemu-aarch64"), reason="qemu-user is not installed")
def test_fibres_work_on_64_bit_arm(tmp_path: Path) -> None:
    options = (*EMULATED, "-O1", "-DED_PROBE_MAIN", *(f"-I{folder}" for folder in FOLDERS))
    said = []
    for compiler, run in (("g++", ()), ("aarch64-linux-gnu-g++", ("qemu-aarch64",))):
        program = str(tmp_path / compiler)
        command = [compiler, *options, "-static", "-x", "c++", str(PROBE), "-o", program]
        subprocess.run(command, check=True, capture_output=True)
        said.append(subprocess.run([*run, program], check=True, capture_output=True, text=True).stdout)
    assert "63 of 64 threads wait" in said[0]
    assert said[0] == said[1]


# ---------------------------------------------------------------- exact.cuh


def test_values_have_the_bits_of_numerics(probe: Library) -> None:
    rng = np.random.default_rng(0)
    some = [rng.standard_normal(20_000) * scale for scale in (1e-40, 1e-3, 1.0, 30.0, 1e4)]
    edges = np.array([0.0, -0.0, 0.5, 1.5, 2.5, -0.5, 126.5, 127.5, -87, 88, -87.5, 88.5, 1e30, -1e30, 3e38])
    x = np.concatenate([*some, edges, edges / 4]).astype(np.float32)
    out = np.full((3, len(x)), np.nan, np.float32)
    assert launch(probe, "exact_values", 2, 128, 0, x, out, len(x), 4.0) == 0
    with np.errstate(over="ignore"):
        wanted = np.stack([exp32(x), silu32(x), quantize(x, np.float32(4)).astype(np.float32)])
    assert out.tobytes() == wanted.tobytes()


@pytest.mark.parametrize("n", [1, 15, 16, 17, 31, 33, 64, 129, 200, 513])
def test_sums_have_the_bits_of_numerics(probe: Library, n: int) -> None:
    rng = np.random.default_rng(n)
    x, y = (rng.standard_normal(n).astype(np.float32) for _ in range(2))
    out = np.full((3, 32), np.nan, np.float32)
    assert launch(probe, "exact_sums", 1, 32, 0, x, y, out, n) == 0
    wanted = lane_sum(x * y)
    with np.errstate(invalid="ignore"):
        root = np.float32(1) / np.sqrt(wanted + np.float32(1e-6))
    assert out[0].tobytes() == np.full(32, wanted).tobytes()
    assert (out[1] == x[:32].max()).all()
    assert np.array_equal(out[2], np.full(32, root), equal_nan=True)
