"""Tests the CUDA engine over an emulated driver: the whole C ABI of a `cuda` build, with the bits of the oracle.

Everything but a GPU is tested: kernel, state, graph, every failure, and what is left behind. The emulated driver runs
nothing before it is waited for, and refuses what a real one would refuse (emulation/cuda/driver.cpp).
"""

from __future__ import annotations

import ctypes
import os
import re
import subprocess
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from edgedistill.config import StudentShape
from edgedistill.numerics import Oracle
from edgedistill.numerics.tensors import four_bit_parts
from edgedistill.runtime.c_abi import OUTPUT
from edgedistill.runtime.c_state import state_dtype

from ..numerics.students import ODD, SMALL, random_bins, random_model
from . import c_builds
from .c_builds import Engine, Output, pointer
from .cuda_emulation import EMULATION, KERNELS
from .cuda_engines import Build, Fake, build_cuda, emulated_driver, headers, write_sources
from .tensorrt_builds import compile_cpp, compilers
from .tensorrt_fakes import Device

SHAPES = {
    "small": SMALL,
    "odd": ODD,
    "window-2": StudentShape(4, 2, d=32, layers=1, heads=1, window=2, ff=16, taps=1, dilation=1, lags=0),
    "narrow": StudentShape(1, 16, d=8, layers=1, heads=2, window=5, ff=3, taps=1, dilation=1, lags=4),
    "wide": StudentShape(33, 3, d=144, layers=1, heads=3, window=37, ff=80, taps=2, dilation=5, lags=2),
}
UNSUPPORTED, DRIVER, CHIP, MEMORY, FILE, DEVICE = -10, -11, -12, -13, -14, -15
size_t = ctypes.c_size_t

Builder = Callable[..., Build]


@pytest.fixture(scope="module")
def driver(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return emulated_driver(tmp_path_factory.mktemp("driver"))


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory, driver: Path) -> Builder:
    """Compiles a build of a shape once."""
    found: dict[Any, Build] = {}

    def get(shape: StudentShape = SMALL, seed: int = 0, **changed: Any) -> Build:
        key = (shape, seed, *changed.items())
        if key not in found:
            found[key] = build_cuda(tmp_path_factory.mktemp("cuda"), random_model(shape, seed), driver, **changed)
        return found[key]

    return get


@pytest.fixture
def fake(driver: Path) -> Iterator[Fake]:
    """Returns the driver, and checks that nothing is left before and after a test that closes what it opens."""
    found = Fake(driver)
    assert found.left == (0, 0)
    yield found
    found.heal()
    assert found.left == (0, 0)


@pytest.fixture
def small(built: Builder, fake: Fake) -> Iterator[Device]:
    """Opens a decoder of SMALL."""
    device = built().opened()
    fake.calls()
    yield device
    device.close()


@pytest.fixture(scope="module")
def c_engine(tmp_path_factory: pytest.TempPathFactory) -> Engine:
    """Returns the C engine of the same student."""
    return c_builds.build(tmp_path_factory.mktemp("c"), random_model(SMALL))


def same(got: npt.NDArray[Any], wanted: npt.NDArray[Any]) -> bool:
    """Tells whether all bits are equal, so that the sign of a zero counts."""
    return got.dtype == wanted.dtype and got.tobytes() == np.ascontiguousarray(wanted).tobytes()


def require_same_bits(device: Engine, oracle: Oracle, bins: npt.NDArray[np.float32]) -> None:
    got = device.run(bins, states=True)
    for i in range(len(bins)):
        traced = oracle.trace(bins[i : i + 1])
        assert same(got["kinematics"][i], traced["kinematics"][0]), f"kinematics of bin {i}"
        assert same(got["latents"][i], traced["latents"][0]), f"latent of bin {i}"
        state = device.unpacked(got["states"][i])
        assert all(same(state[name], value) for name, value in oracle.export_state().items()), f"state {i}"


def cuda_headers_of(version: str) -> str:
    """Returns headers of the toolkit here, or of an older one if the tests are given it."""
    if version == "here":
        return headers()[1]
    given = os.environ.get("EDGEDISTILL_CUDA_HEADERS")
    if not given or not (Path(given) / version / "cuda.h").exists():
        pytest.skip(f"EDGEDISTILL_CUDA_HEADERS names no folder with {version}/cuda.h")
    return str(Path(given) / version)


@pytest.mark.parametrize("version", ["here", "11.7", "12.2", "12.6"])
@pytest.mark.parametrize("compiler", compilers())
def test_compiles_without_a_warning(tmp_path: Path, compiler: str, version: str) -> None:
    options = ("-O2", '-DED_MODEL_HEADER="model_test.h"', "-I", str(tmp_path), "-isystem", cuda_headers_of(version))
    write_sources(tmp_path, random_model(ODD))
    for source in (KERNELS / "cuda/engine.cpp", EMULATION / "driver.cpp"):
        compile_cpp(tmp_path / "made.o", [source], options, compiler, shared=False)


# ---------------------------------------------------------------- the student


@pytest.mark.parametrize(
    "shape",
    # Others are further variants, as test_cuda_step.py has the same shapes.
    [pytest.param(one, marks=[] if name in ("small", "wide") else pytest.mark.variant) for name, one in SHAPES.items()],
    ids=SHAPES,
)
def test_every_output_and_state_from_a_fresh_start_past_the_wrap(built: Builder, shape: StudentShape) -> None:
    build = built(shape)
    device = build.opened()
    bins = random_bins(shape, 3 * shape.window + 5)
    bins[7:9] *= 1e4  # saturates
    bins[10] = 0
    require_same_bits(device, Oracle(build.model), bins)
    device.close()


def test_packed_four_bit_weights_have_the_bits_of_the_oracle(driver: Path, fake: Fake, tmp_path: Path) -> None:
    model = random_model(SMALL, four=four_bit_parts(SMALL))
    device = build_cuda(tmp_path, model, driver, pack=True).opened()
    require_same_bits(device, Oracle(model), random_bins(SMALL, 3 * SMALL.window + 5))
    device.close()


def test_goes_on_from_a_state_of_any_age(small: Device, built: Builder) -> None:
    oracle, rng = Oracle(built().model), np.random.default_rng(3)
    for live in (0, 1, 5, 8):
        state = {k: rng.integers(-127, 128, v.shape, np.int8) for k, v in oracle.export_state().items()}
        state |= {"pos": np.array([rng.integers(8)], np.int32), "live": np.array([live], np.int32)}
        oracle.import_state(state)
        assert small.import_(small.packed(state)) == 0
        assert all(same(small.unpacked(small.export())[name], value) for name, value in state.items())
        require_same_bits(small, oracle, random_bins(SMALL, 20, live))


@pytest.mark.parametrize("steps", [0, 1, 7, 8, 9, 23])
def test_a_stream_moves_to_the_c_engine_and_back(small: Device, c_engine: Engine, steps: int) -> None:
    small.reset()
    c_engine.reset()
    assert push(small, frames_like(10 * steps + 3)) == push(c_engine, frames_like(10 * steps + 3))
    state = small.export()
    assert same(state, c_engine.export())
    wanted = push(small, frames_like(130, 1))
    c_engine.reset()
    assert c_engine.import_(state) == 0
    assert push(c_engine, frames_like(130, 1)) == wanted
    assert small.import_(state) == 0
    assert push(small, frames_like(130, 1)) == wanted


def test_a_reset_is_a_fresh_start(small: Device) -> None:
    fresh = small.export()
    first = small.run(random_bins(SMALL, 12))
    assert first["latents"].any()
    small.reset()
    assert same(small.export(), fresh)
    latent = np.ones(SMALL.d, np.float32)
    assert small.c.ed_latent(small.decoder, pointer(latent), size_t(SMALL.d)) == 0
    assert not latent.any()
    assert same(small.run(random_bins(SMALL, 12))["kinematics"], first["kinematics"])


def test_a_damaged_state_is_refused_and_changes_nothing(small: Device) -> None:
    small.run(random_bins(SMALL, 12))
    state, at = small.export(), c_builds.HEADER.itemsize
    for offset, value in ((0, 1), (60, 0xFF), (at + 5, 0x80), (len(state) - 1, 0xFF)):  # the last is a float's sign
        damaged = state.copy()
        damaged[offset] = value
        assert small.import_(damaged) == -7
        assert same(small.export(), state)


# ---------------------------------------------------------------- frames


def frames_like(n: int, seed: int = 0) -> npt.NDArray[np.float32]:
    return (30 * np.random.default_rng(seed).standard_normal((n, SMALL.channels))).astype(np.float32)


def push(engine: Engine, frames: npt.NDArray[Any] | int) -> tuple[int, bytes]:
    """Pushes frames (n, C) as float32 or int16, or a number of lost ones; returns the code and the outputs."""
    c, n = engine.c, frames if isinstance(frames, int) else len(frames)
    due = c.ed_outputs_for(engine.decoder, size_t(n))
    outputs, made = (Output * max(due, 1))(), size_t(77)
    rest = (size_t(n), outputs, size_t(due), ctypes.byref(made))
    if isinstance(frames, int):
        error = c.ed_gap_outputs(engine.decoder, *rest)
    else:
        call = c.ed_push if frames.dtype == np.float32 else c.ed_push_i16
        error = call(engine.decoder, pointer(np.ascontiguousarray(frames)), *rest)
    return error, bytes(outputs)[: made.value * ctypes.sizeof(Output)]


def test_frames_of_every_kind_decode_as_in_the_c_engine(small: Device, c_engine: Engine) -> None:
    assert c_engine.init(c_engine.memory) == 0
    whole = np.round(frames_like(200, 5) * 4).astype(np.int16)
    broken = frames_like(120, 6)
    broken[40:, 2] = np.nan
    gain, offset = np.full(SMALL.channels, 0.25), np.full(SMALL.channels, 1.5)
    mean, std = np.float32([1, 2, 3, 4, 5]), np.float32([9, 0, 7, 6, 5])
    engines = (small, c_engine)
    results = [[push(engine, part) for part in (frames_like(37), 13, frames_like(95, 1))] for engine in engines]
    results = [[*results[i], push(engine, whole)] for i, engine in enumerate(engines)]
    assert results[0] == results[1]
    assert results[0][-1][0] == -8  # before a gain is set
    for engine in engines:
        assert engine.c.ed_set_gain(engine.decoder, pointer(gain), pointer(offset)) == 0
        assert engine.c.ed_set_normalization(engine.decoder, pointer(mean), pointer(std)) == 0
        assert engine.c.ed_gap(engine.decoder, size_t(33)) == 0
    for part in (whole, 21, broken, whole[:7]):
        assert push(small, part) == push(c_engine, part)
    assert same(small.export(), c_engine.export())


def test_frames_with_bands_have_the_bits_of_the_c_engine(built: Builder, fake: Fake, tmp_path: Path) -> None:
    device, engine = built(c_builds.BANDED).opened(), c_builds.build(tmp_path, random_model(c_builds.BANDED))
    assert (device.info.channels, device.info.inputs) == (engine.info.channels, engine.info.inputs) == (5, 15)
    broken = frames_like(400, 2)
    broken[50:70, 1], broken[200:203] = np.nan, np.inf
    for part in (frames_like(305), 33, broken, 2100, broken):
        assert push(device, part) == push(engine, part)
        assert same(device.export(), engine.export())
    device.close()


def test_a_shifted_amplitude_is_flagged_as_in_the_c_engine(small: Device, c_engine: Engine) -> None:
    assert c_engine.init(c_engine.memory) == 0
    state = c_engine.export()
    config = c_builds.front_end_of(random_model(SMALL))
    record = state.view(state_dtype(SMALL, config))
    record["seen"], record["shift_bins"], record["shift_power"] = 10**6, 998, 17
    record["clean"], record["lost_bins"] = config.settled_bins, 0
    assert small.import_(state) == c_engine.import_(state) == 0
    for part in (frames_like(25), 33, frames_like(300, 1)):
        found = push(small, part)
        assert found == push(c_engine, part)
        assert same(small.export(), c_engine.export())
        assert any(flags & 16 for flags in np.frombuffer(found[1], OUTPUT)["flags"])
    ones = np.ones(SMALL.channels, np.float32)
    for engine in (small, c_engine):
        assert engine.c.ed_set_normalization(engine.decoder, pointer(ones), pointer(ones)) == 0
    assert same(small.export(), c_engine.export())


# ---------------------------------------------------------------- the library


def test_the_info_names_engine_and_sizes(small: Device, c_engine: Engine) -> None:
    assert small.info.variant == b"cuda"
    for name in ("abi_version", "channels", "outputs", "latent", "warmup_bins", "export_bytes", "name"):
        assert getattr(small.info, name) == getattr(c_engine.info, name)


def test_ed_init_and_others_are_refused_on_a_device(small: Device) -> None:
    c, out = small.c, ctypes.c_void_p()
    memory = c_builds.aligned(small.info.state_bytes)
    model = ctypes.byref(ctypes.c_char.in_dll(c, "ed_model_test"))
    arguments = (model, pointer(memory), size_t(len(memory)), ctypes.byref(out))
    assert c.ed_init(*arguments) == UNSUPPORTED
    assert c.ed_open(None, ctypes.byref(out)) == c.ed_open(b"folder", None) == -1
    assert c.ed_step(pointer(memory), pointer(memory), pointer(memory)) == -9
    c.ed_close(None)
    c.ed_close(pointer(memory))
    assert out.value is None
    assert (memory == 0xA5).all()


def test_the_library_needs_no_driver_and_shows_the_c_abi_alone(built: Builder) -> None:
    library = str(built(options=("-O2",)).library)  # as deployed: without optimization the C++ library shows through
    told = subprocess.run(["readelf", "-dW", library], capture_output=True, text=True, check=True).stdout
    needed = {line.split("[")[1].split("]")[0] for line in told.splitlines() if "NEEDED" in line}
    assert all(name.startswith(("libc.", "libdl.", "libstdc++.", "libm.", "libgcc_s.", "ld-linux")) for name in needed)
    told = subprocess.run(["nm", "-D", "--defined-only", library], capture_output=True, text=True, check=True).stdout
    shown = {line.split()[-1] for line in told.splitlines()} - {"run", "trace_to", "trace_left", "ed_trace"}
    header = (c_builds.KERNELS / "include/edgedistill.h").read_text()
    assert shown == set(re.findall(r"\b(ed_\w+)\(", header)) | {"ed_model_test"}


def test_a_step_is_one_launch_and_one_wait(small: Device, fake: Fake) -> None:
    before = fake.left[0]
    small.run(random_bins(SMALL, 1))
    assert fake.calls() == ["cuCtxPushCurrent_v2", "cuGraphLaunch", "cuStreamSynchronize", "cuCtxPopCurrent_v2"]
    small.run(random_bins(SMALL, 40), states=True)
    assert fake.left[0] == before  # nothing allocates


def test_nothing_is_first_launched_while_a_graph_is_captured(built: Builder, fake: Fake) -> None:
    """A driver may load a kernel at its first launch, and a capture allows only launches."""
    fake.calls()
    built().opened().close()
    calls = fake.calls()
    begins, ends = calls.index("cuStreamBeginCapture_v2"), calls.index("cuStreamEndCapture")
    assert calls[begins + 1 : ends] == ["cuLaunchKernel"]
    assert calls[:begins].count("cuLaunchKernel") == 2  # these are the identity and the step


def test_several_decoders_of_two_models_at_once(built: Builder, fake: Fake) -> None:
    builds = [built(), built(), built(ODD), built(SMALL, seed=1)]
    devices = [build.opened() for build in builds]
    bins = [random_bins(build.model.shape, 30, i) for i, build in enumerate(builds)]
    wanted = [Oracle(build.model).run(bins[i]) for i, build in enumerate(builds)]
    for at in range(30):  # in turn
        for i, device in enumerate(devices):
            assert same(device.run(bins[i][at : at + 1])["kinematics"], wanted[i][at : at + 1])
    for device in devices:
        device.reset()
    found: list[Any] = [None] * len(devices)

    def decode(i: int) -> None:
        found[i] = devices[i].run(bins[i])["kinematics"]

    threads = [threading.Thread(target=decode, args=(i,)) for i in range(len(devices))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert all(map(same, found, wanted))
    for device in devices[::-1]:
        device.close()


def test_it_spins_while_waiting_unless_the_process_chose_otherwise(built: Builder, fake: Fake) -> None:
    spin, device, context, flags = 1, ctypes.c_int(), ctypes.c_void_p(), fake.c.fake_cuda_flags
    built().opened().close()
    assert flags() == spin
    fake.c.cuDevicePrimaryCtxSetFlags_v2(device, 4)
    fake.c.cuDevicePrimaryCtxRetain(ctypes.byref(context), device)
    fake.c.cuCtxPushCurrent_v2(context)
    opened = built().opened()
    assert flags() == 4
    opened.run(random_bins(SMALL, 1))
    opened.close()
    assert fake.left == (1, 1)  # the context of the other program
    fake.c.cuCtxPopCurrent_v2(ctypes.byref(context))
    fake.c.cuDevicePrimaryCtxRelease_v2(device)
