"""Tests the TensorRT engine over a fake libnvinfer and a fake libcuda: the whole C ABI of a `tensorrt` build.

The fake's plan computes what the C engine computes, so every output and state has the oracle's bits. The tests cover
everything around a plan: where its tensors lie, the graph, rings that wrap, states, and each fault by its code.
"""

from __future__ import annotations

import ctypes
import subprocess
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from edgedistill.config import StudentShape
from edgedistill.numerics import Int8Model, Oracle

from ..numerics.students import ODD, SMALL, random_bins, random_model
from . import c_builds
from .cuda_engines import Fake, emulated_driver
from .tensorrt_builds import KERNELS, VERSIONS, compile_cpp, compilers, headers
from .tensorrt_fakes import (
    HALF,
    MODEL,
    Device,
    append_kernel,
    engine_library,
    fake_tensorrt,
    load,
    looks_for,
    plan,
    plugin_library,
    student_kernel,
    tensors_of,
)

FIRST = VERSIONS[0]
SHAPES = {
    "small": SMALL,
    "odd": ODD,
    "window-2": StudentShape(4, 2, d=32, layers=1, heads=1, window=2, ff=16, taps=1, dilation=1, lags=0),
    "wide": StudentShape(33, 3, d=144, layers=1, heads=3, window=37, ff=80, taps=2, dilation=5, lags=2),
}
UNSUPPORTED, DRIVER, CHIP, MEMORY, FILE, DEVICE, TENSORRT = range(-10, -17, -1)


@dataclass(frozen=True)
class Build:
    """Names a build directory, and the library beside it."""

    version: str
    model: Int8Model
    library: Path
    folder: Path
    kernel: Path  # the kernel that its plan launches

    def opened(self) -> Device:
        return Device(self.library, self.model, self.folder)

    def write_plan(self, folder: Path, name: str = "fake_student", **changed: Any) -> None:
        """Writes student.plan of this model, or a plan that differs."""
        tensors = changed.pop("tensors", tensors_of(self.model.shape))
        text = plan(changed.pop("version", self.version), self.kernel, name, tensors, **changed)
        (folder / "student.plan").write_text(text)


Builder = Callable[..., Build]


@dataclass(frozen=True)
class Tools:
    """Holds what builds of one version share."""

    append: Path
    plugin: Path
    fake: Path
    driver: Path

    def tensorrt(self) -> ctypes.CDLL:
        return ctypes.CDLL(str(self.fake))


@pytest.fixture(scope="module")
def driver(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return emulated_driver(tmp_path_factory.mktemp("driver"))


@pytest.fixture(scope="module")
def tools(tmp_path_factory: pytest.TempPathFactory, driver: Path) -> Callable[[str], Tools]:
    found: dict[str, Tools] = {}

    def get(version: str = FIRST) -> Tools:
        if version not in found:
            folder = tmp_path_factory.mktemp("tools")
            fake, plugin = fake_tensorrt(folder, version, driver), plugin_library(folder, version)
            found[version] = Tools(append_kernel(folder), plugin, fake, driver)
        return found[version]

    return get


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory, tools: Callable[[str], Tools]) -> Builder:
    """Compiles a complete `tensorrt` build of a shape and version once."""
    found: dict[tuple[str, StudentShape], Build] = {}

    def get(shape: StudentShape = SMALL, version: str = FIRST) -> Build:
        if (version, shape) not in found:
            shared, folder, model = tools(version), tmp_path_factory.mktemp("trt"), random_model(shape)
            (directory := folder / "build").mkdir()
            c_builds.write_sources(folder, model, "scalar")
            library = engine_library(folder, version, looks_for(shared.driver, shared.fake))
            build = Build(version, model, library, directory, student_kernel(folder))
            (directory / "append.cubin").write_bytes(shared.append.read_bytes())
            (directory / "libed_plugin.so").write_bytes(shared.plugin.read_bytes())
            build.write_plan(directory)
            found[version, shape] = build
        return found[version, shape]

    return get


@pytest.fixture
def small(built: Builder, tmp_path: Path) -> Build:
    """Copies a build of SMALL to a directory of its own, which a test may damage."""
    original = built()
    for file in original.folder.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    return replace(original, folder=tmp_path)


def same(got: npt.NDArray[Any], wanted: npt.NDArray[Any]) -> bool:
    """Tells whether all bits are equal, so that the sign of a zero counts."""
    return got.dtype == wanted.dtype and got.tobytes() == np.ascontiguousarray(wanted).tobytes()


def require_same_bits(device: Device, oracle: Oracle, bins: npt.NDArray[np.float32]) -> None:
    got = device.run(bins, states=True)
    for i in range(len(bins)):
        traced = oracle.trace(bins[i : i + 1])
        assert same(got["kinematics"][i], traced["kinematics"][0]), f"kinematics of bin {i}"
        assert same(got["latents"][i], traced["latents"][0]), f"latent of bin {i}"
        state = device.unpacked(got["states"][i])
        assert all(same(state[name], value) for name, value in oracle.export_state().items()), f"state {i}"


# ---------------------------------------------------------------- compiling, and machines that lack something


@pytest.mark.parametrize("compiler", compilers())
@pytest.mark.parametrize("version", VERSIONS)
def test_compiles_without_a_warning(tmp_path: Path, version: str, compiler: str) -> None:
    for name, shape in (("lags", SMALL), ("no-lags", ODD)):
        c_builds.write_sources(tmp_path, random_model(shape), "scalar")
        options = ("-O2", MODEL, "-I", str(tmp_path), *headers(version))
        source = KERNELS / "tensorrt/engine.cpp"
        compile_cpp(tmp_path / f"{name}.o", [source], options, compiler, shared=False)


@pytest.mark.parametrize("version", VERSIONS)
def test_neither_library_is_linked_and_the_version_is_looked_up(tmp_path: Path, version: str) -> None:
    c_builds.write_sources(tmp_path, random_model(SMALL), "scalar")
    library = engine_library(tmp_path, version)
    needed = subprocess.run(["readelf", "-d", library], capture_output=True, text=True, check=True).stdout
    assert "nvinfer" not in needed
    assert "cuda" not in needed
    names = [f"libnvinfer.so.{major}\0".encode() in library.read_bytes() for major in (10, 11)]
    assert names == [version.startswith("10."), version.startswith("11.")]
    ctypes.CDLL(str(library))


@pytest.mark.parametrize(
    ("missing", "code", "says"), [("driver", DRIVER, b"CUDA driver"), ("tensorrt", TENSORRT, b"no TensorRT")]
)
def test_a_machine_that_lacks_a_library(
    built: Builder, tools: Any, tmp_path: Path, missing: str, code: int, says: bytes
) -> None:
    names = {"driver": tools().driver, "tensorrt": tools().fake} | {missing: "libno_such_library.so"}
    c_builds.write_sources(tmp_path, built().model, "scalar")
    library = load(engine_library(tmp_path, FIRST, looks_for(**names)))
    decoder = ctypes.c_void_p()
    assert library.ed_open(str(built().folder).encode(), ctypes.byref(decoder)) == code
    assert says in library.ed_strerror(code)
    assert not decoder
    assert Fake(tools().driver).left == (0, 0)


# ---------------------------------------------------------------- the stream


@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
def test_every_output_and_state_past_the_wrap(built: Builder, shape: StudentShape) -> None:
    build = built(shape)
    device = build.opened()
    assert device.info.variant == b"tensorrt"
    bins = random_bins(shape, 3 * shape.window + 5)
    bins[7:9] *= 1e4  # saturates
    require_same_bits(device, Oracle(build.model), bins)
    device.reset()
    require_same_bits(device, Oracle(build.model), bins[: shape.window])
    device.close()


@pytest.mark.parametrize("version", VERSIONS[1:])
def test_other_versions_have_the_bits_of_the_oracle(built: Builder, version: str) -> None:
    build = built(SMALL, version)
    device = build.opened()
    require_same_bits(device, Oracle(build.model), random_bins(SMALL, 30))
    device.close()


def test_tensorrt_runs_twice_and_then_only_the_graph(built: Builder, tools: Any) -> None:
    fake = tools().tensorrt()
    before = fake.fake_enqueued()
    device = built().opened()
    assert fake.fake_enqueued() - before == 2  # the first run and the captured one
    device.run(random_bins(SMALL, 9))
    assert fake.fake_enqueued() - before == 2
    device.close()
    assert fake.fake_alive() == 0


def test_goes_on_from_a_state_of_any_age(built: Builder) -> None:
    build, rng = built(), np.random.default_rng(3)
    device, oracle = build.opened(), Oracle(build.model)
    for live in (0, 1, 5, 8):
        state = {k: rng.integers(-127, 128, v.shape, np.int8) for k, v in oracle.export_state().items()}
        state |= {"pos": np.array([rng.integers(8)], np.int32), "live": np.array([live], np.int32)}
        oracle.import_state(state)
        assert device.import_(device.packed(state)) == 0
        assert all(same(device.unpacked(device.export())[name], value) for name, value in state.items())
        require_same_bits(device, oracle, random_bins(SMALL, 20, live))
    device.close()


def test_a_wrapped_state_of_the_c_engine_goes_on_here_and_back(built: Builder, tmp_path: Path) -> None:
    build, oracle = built(), Oracle(built().model)
    engine, device = c_builds.build(tmp_path, build.model), build.opened()
    bins = random_bins(SMALL, 60)
    got = [engine.run(bins[:23])["kinematics"]]
    assert device.import_(engine.export()) == 0
    got.append(device.run(bins[23:41])["kinematics"])
    assert engine.import_(device.export()) == 0
    got.append(engine.run(bins[41:])["kinematics"])
    assert same(np.concatenate(got), oracle.run(bins))
    device.close()


def test_two_decoders_are_two_streams(built: Builder) -> None:
    build, bins = built(), random_bins(SMALL, 40)
    first, second = build.opened(), build.opened()
    first.run(bins[:11])
    assert same(second.run(bins)["kinematics"], Oracle(build.model).run(bins))
    second.close()
    oracle = Oracle(build.model)
    oracle.run(bins[:11])
    assert same(first.run(bins[11:])["kinematics"], oracle.run(bins[11:]))
    first.close()


def test_a_plan_in_float16_does_not_exchange_its_state(small: Build, tmp_path_factory: pytest.TempPathFactory) -> None:
    shape = SMALL
    small.write_plan(small.folder, "fake_half", tensors=tensors_of(shape, HALF), plugin=False)
    device = small.opened()
    slots, new = shape.window - 1, np.arange(shape.d).reshape(shape.heads, shape.head_dim)
    rings = np.zeros((2 * shape.layers, shape.heads, slots, shape.head_dim), np.uint16)
    lags = np.zeros((shape.lag_rows, shape.channels), np.float32)
    weights = (np.arange(rings[0].size) + np.arange(len(rings))[:, None]) % 11
    for t in range(3 * slots + 2):
        bin_ = np.full(shape.channels, t, np.float32) + np.arange(shape.channels, dtype=np.float32)
        got = device.run(bin_[None])
        assert got["kinematics"][0, 0] == (rings.reshape(len(rings), -1) * weights).sum() % 65521, t
        assert got["kinematics"][0, 1] == (lags.ravel() * (np.arange(lags.size) % 7)).sum(), t
        assert got["latents"][0, :2].tolist() == [t % slots, min(t, slots)]
        for r, ring in enumerate(rings):
            ring[:, t % slots] = 1000 * r + new + t
        lags = np.concatenate([bin_[None], lags[:-1]])
    state = c_builds.build(tmp_path_factory.mktemp("c"), small.model).export()
    before = state.copy()
    assert device.c.ed_state_export(device.decoder, c_builds.pointer(state), ctypes.c_size_t(len(state))) == UNSUPPORTED
    assert device.import_(state) == UNSUPPORTED
    assert (state == before).all()
    assert device.run(bin_[None])["latents"][0, 1] == slots  # the stream goes on
    device.close()


# ---------------------------------------------------------------- faults


@pytest.fixture
def environment(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[str, str], None]]:
    """Returns a function that sets a variable that fakes and engine read."""
    yield monkeypatch.setenv
    monkeypatch.undo()


def code_of(build: Build, tools: Any) -> int:
    """Returns the code of ed_open on an error, and checks that nothing is left."""
    decoder = ctypes.c_void_p(77)
    code = int(load(build.library).ed_open(str(build.folder).encode(), ctypes.byref(decoder)))
    assert decoder.value == 77
    assert tools(build.version).tensorrt().fake_alive() == 0
    assert Fake(tools(build.version).driver).left == (0, 0)
    return code


@pytest.mark.parametrize("name", ["student.plan", "append.cubin", "libed_plugin.so"])
def test_files_that_are_missing_or_damaged(small: Build, tools: Any, name: str) -> None:
    path = small.folder / name
    content = path.read_bytes()
    path.unlink()
    assert code_of(small, tools) == FILE
    path.write_bytes(b"")
    assert code_of(small, tools) == FILE
    path.write_bytes(content[: len(content) // 2])
    assert code_of(small, tools) in (FILE, CHIP)
    path.write_bytes(content)
    small.opened().close()


def test_a_plan_without_the_node_needs_no_plugin(small: Build) -> None:
    (small.folder / "libed_plugin.so").unlink()
    small.write_plan(small.folder, plugin=False)
    small.opened().close()


def test_all_decoders_have_one_logger(built: Builder, tools: Any) -> None:
    """TensorRT keeps using the first logger, though the decoder that brought it is closed."""
    first, count = built().opened(), tools().tensorrt().fake_loggers
    before = count()
    others = [built().opened(), built().opened()]
    first.close()
    others.append(built().opened())
    assert count() == before
    for device in others:
        device.close()


def test_a_plan_of_another_version_is_refused(small: Build, tools: Any, environment: Any, tmp_path: Path) -> None:
    small.write_plan(small.folder, version="10.7")
    environment("EDGEDISTILL_TENSORRT_LOG", str(tmp_path / "log"))
    assert code_of(small, tools) == CHIP
    assert (tmp_path / "log").read_text() == "the plan is of another version\n"


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("tensor bin in 0 5", "tensor bin in 0 6"),
        ("tensor bin in 0 5", "tensor bin in 1 5"),
        ("tensor kinematics out 0 2", "tensor kinematics out 0 3"),
        ("tensor ring_k_1 in 2 2 8 16", "tensor ring_k_1 in 2 2 7 16"),
        ("tensor ring_v_1 in 2 2 8 16", "tensor ring_v_1 in 1 2 8 16"),
        ("tensor v_new_0 out 2 2 16", "tensor v_new_0 out 2 32"),
        ("tensor v_new_0 out 2 2 16", "tensor v_neu_0 out 2 2 16"),
        ("tensor ring_v_0 in 2 2 8 16", "tensor ring_v_0 chw32 2 2 8 16"),
        ("tensor pos in 3 1", "tensor pos out 3 1"),
        ("tensor live in 3 1", "tensor live in 3 1\ntensor more in 3 1"),
        ("tensor ring_k_0 in 2 2 8 16", "tensor ring_k_0 in 3 2 8 16"),
    ],
)
def test_a_plan_of_another_student_is_refused(small: Build, tools: Any, old: str, new: str) -> None:
    tensors = tensors_of(SMALL)
    assert old in tensors
    small.write_plan(small.folder, tensors=[new if line == old else line for line in tensors])
    assert code_of(small, tools) == FILE


@pytest.mark.parametrize(
    ("fault", "code"),
    [("runtime", DRIVER), ("memory", MEMORY), ("context", MEMORY), ("enqueue", DEVICE), ("capture", DEVICE)],
)
def test_failures_of_tensorrt_have_their_code(
    small: Build, tools: Any, environment: Any, fault: str, code: int
) -> None:
    environment("FAKE_TENSORRT", fault)
    assert code_of(small, tools) == code
    environment("FAKE_TENSORRT", "")
    small.opened().close()


@pytest.mark.parametrize(
    ("function", "call", "error", "code"),
    [
        ("cuInit", 1, 100, DRIVER),
        ("cuStreamCreate", 1, 2, MEMORY),
        ("cuModuleLoadData", 1, 209, CHIP),
        ("cuMemAlloc_v2", 1, 2, MEMORY),
        ("cuMemHostAlloc", 1, 2, MEMORY),
        ("cuMemcpyHtoDAsync_v2", 1, 719, DEVICE),
        ("cuLaunchKernel", 2, 719, DEVICE),  # of the append kernel, outside the graph
        ("cuLaunchKernel", 4, 719, DEVICE),  # of the append kernel, inside the graph
        ("cuStreamSynchronize", 2, 719, DEVICE),
        ("cuStreamBeginCapture_v2", 1, 719, DEVICE),
        ("cuStreamEndCapture", 1, 719, DEVICE),
        ("cuGraphInstantiateWithFlags", 1, 2, MEMORY),
        ("cuGraphLaunch", 1, 719, DEVICE),
    ],
)
def test_failures_of_the_driver_have_their_code(
    small: Build, tools: Any, function: str, call: int, error: int, code: int
) -> None:
    fake = Fake(tools().driver)
    fake.fail(function, call, error)
    assert code_of(small, tools) == code
    fake.heal()
    small.opened().close()


def test_a_step_that_fails_ends_the_decoder(small: Build, tools: Any) -> None:
    fake, device, bins = Fake(tools().driver), small.opened(), random_bins(SMALL, 1)
    kinematics = np.full(SMALL.outputs, 7, np.float32)
    arguments = device.decoder, c_builds.pointer(bins), c_builds.pointer(kinematics)
    assert device.c.ed_step(*arguments) == 0
    kinematics[:] = 7
    fake.fail("cuStreamSynchronize")
    assert device.c.ed_step(*arguments) == DEVICE
    fake.heal()
    assert device.c.ed_step(*arguments) == DEVICE  # although the device would work again
    assert (kinematics == 7).all()
    device.close()
    assert fake.left == (0, 0)
    assert tools().tensorrt().fake_alive() == 0
