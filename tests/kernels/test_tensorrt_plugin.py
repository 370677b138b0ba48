"""Tests the TensorRT plugin against headers of several versions: compiled strictly, loaded and called without TensorRT.

TensorRT does not execute it here. Everything it would call is called through its own interfaces, and `enqueue` runs
the kernel on the emulated GPU.
"""

from __future__ import annotations

import ctypes
import math
import subprocess
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from edgedistill.numerics import attend, quantize

from .cuda_emulation import emulated_object
from .tensorrt_builds import KERNELS, TESTS, VERSIONS, compile_cpp, compilers, headers

FLOAT, HALF, INT8, INT32 = range(4)  # nvinfer1::DataType; 2 and 3 are int8 and int32
FLOAT32_FIELD, FLOAT64_FIELD, INT32_FIELD = 1, 2, 5  # nvinfer1::PluginFieldType
LINEAR, CHW4 = 0, 3  # nvinfer1::TensorFormat
TYPES = (INT8,) * 5 + (FLOAT, INT32, INT32)
FIELDS = ("score_scale", "v_scale", "context_inv")
SCALES = (0.011, 0.013, 47.0)

Harness = ctypes.CDLL
Handle = ctypes.c_void_p


@dataclass(frozen=True)
class Described:
    """Describes inputs as TensorRT does to a plugin."""

    shapes: tuple[tuple[int, ...], ...]
    types: tuple[int, ...] = TYPES
    formats: tuple[int, ...] = (LINEAR,) * 8

    def arguments(self) -> tuple[Any, ...]:
        sizes = [size for shape in self.shapes for size in shape]
        return (
            len(self.shapes),
            ints(map(len, self.shapes)),
            (ctypes.c_int64 * len(sizes))(*sizes),
            ints(self.types),
            ints(self.formats),
        )


def inputs_of(heads: int, window: int, head_dim: int) -> Described:
    new, ring = (heads, head_dim), (heads, window - 1, head_dim)
    return Described((new, new, new, ring, ring, (heads, window), (1,), (1,)))


def ints(values: Any) -> Any:
    values = list(values)
    return (ctypes.c_int * len(values))(*values)


@pytest.fixture(scope="module")
def kernel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Compiles attention_step.cu for the emulated GPU, as an object."""
    folder = tmp_path_factory.mktemp("kernel")
    return emulated_object(folder / "attention_step.o", KERNELS / "cuda/attention_step.cu")


@pytest.fixture(scope="module", params=VERSIONS)
def harness(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, kernel: Path) -> Harness:
    """Returns the plugin of one version of the headers, loaded by a harness of the same version."""
    include, folder = headers(request.param), tmp_path_factory.mktemp("plugin")
    plugin = compile_cpp(folder / "libed_plugin.so", [KERNELS / "tensorrt/plugin.cpp", kernel], ("-O1", *include))
    drive = compile_cpp(
        folder / "harness.so", [TESTS / "plugin_harness.cpp"], ("-O1", "-fvisibility=default", *include)
    )
    found = load_harness(drive)
    assert found.open_plugin(str(plugin).encode()) == 0, found.complaint()
    return found


def load_harness(path: Path) -> Harness:
    found = ctypes.CDLL(str(path))
    for name in ("complaint", "creator_facts", "plugin_facts"):
        getattr(found, name).restype = ctypes.c_char_p
    for name in ("create", "through_a_plan", "clone_of", "attached"):
        getattr(found, name).restype = ctypes.c_void_p
    found.workspace.restype = ctypes.c_size_t
    return found


@pytest.fixture
def plugin(harness: Harness) -> Iterator[Handle]:
    made = create(harness)
    assert made
    yield made
    harness.destroy(made)


def create(harness: Harness, at_runtime: bool = False, **changed: Any) -> Handle:
    """Makes a plugin of the right fields, without those that are None, and with (type, array) in place of others."""
    fields: dict[str, Any] = dict(zip(FIELDS, SCALES, strict=True)) | changed
    given = {name: value for name, value in fields.items() if value is not None}
    arrays = [np.atleast_1d(v[1] if isinstance(v, tuple) else np.float32(v)) for v in given.values()]
    types = [v[0] if isinstance(v, tuple) else FLOAT32_FIELD for v in given.values()]
    names = (ctypes.c_char_p * len(given))(*(name.encode() for name in given))
    data = (ctypes.c_void_p * len(given))(*(array.ctypes.data if array.size else None for array in arrays))
    harness.forget()
    made = harness.create(len(given), names, data, ints(types), ints(a.size for a in arrays), int(at_runtime))
    return Handle(made)


# ---------------------------------------------------------------- compiling and loading


@pytest.mark.parametrize("compiler", compilers())
@pytest.mark.parametrize("version", VERSIONS)
def test_compiles_without_a_warning(tmp_path: Path, version: str, compiler: str) -> None:
    options = ("-O2", *headers(version))
    compile_cpp(tmp_path / "plugin.o", [KERNELS / "tensorrt/plugin.cpp"], options, compiler, shared=False)


@pytest.mark.parametrize("version", VERSIONS)
def test_needs_no_symbol_of_tensorrt(tmp_path: Path, version: str) -> None:
    include = headers(version)
    found = compile_cpp(tmp_path / "plugin.o", [KERNELS / "tensorrt/plugin.cpp"], ("-O1", *include), shared=False)
    listed = subprocess.run(["nm", "-C", "--undefined-only", found], capture_output=True, text=True, check=True).stdout
    ours = [line.split(maxsplit=1)[-1] for line in listed.splitlines()]
    assert [name for name in ours if "nvinfer" in name.lower() or name in ("getPluginRegistry", "getLogger")] == []
    assert [name for name in ours if name.startswith("ed_")] == ["ed_launch_attention_step"]


def test_the_creator_has_the_name_that_the_parser_looks_for(harness: Harness) -> None:
    name, version, namespace, *fields = harness.creator_facts().decode().split("|")
    assert (name, version, namespace) == ("EdAttention", "1", "")
    assert fields == [f"{field}:{FLOAT32_FIELD}:1" for field in FIELDS]


# ---------------------------------------------------------------- making one


def test_has_three_capabilities_and_one_output(harness: Harness, plugin: Handle) -> None:
    facts = harness.plugin_facts(plugin).decode().split("|")
    assert facts == ["EdAttention", "1", "", "PLUGIN_V3ONE_CORE", "PLUGIN_V3ONE_BUILD", "PLUGIN_V3ONE_RUNTIME", "1"]
    assert harness.workspace(plugin) == 0


@pytest.mark.parametrize("at_runtime", [False, True])
@pytest.mark.parametrize(
    ("changed", "says"),
    [
        ({"v_scale": None}, "v_scale is missing"),
        ({"score_scale": None, "v_scale": None, "context_inv": None}, "score_scale is missing"),
        ({"context_inv": math.nan}, "context_inv must be above 0, got nan"),
        ({"context_inv": math.inf}, "context_inv must be above 0, got inf"),
        ({"v_scale": 0.0}, "v_scale must be above 0, got 0"),
        ({"score_scale": -0.5}, "score_scale must be above 0, got -0.5"),
        ({"v_scale": (FLOAT64_FIELD, np.float64(0.5))}, "'v_scale' is none of its three"),
        ({"v_scale": (INT32_FIELD, np.int32(1))}, "'v_scale' is none of its three"),
        ({"v_scale": (FLOAT32_FIELD, np.ones(2, np.float32))}, "'v_scale' is none of its three"),
        ({"v_scale": (FLOAT32_FIELD, np.ones(0, np.float32))}, "'v_scale' is none of its three"),
        ({"heads": 3.0}, "'heads' is none of its three"),
    ],
)
def test_refuses_fields_that_are_missing_or_odd(
    harness: Harness, changed: dict[str, Any], says: str, at_runtime: bool
) -> None:
    assert not create(harness, at_runtime, **changed)
    assert says in harness.complaint().decode()


# ---------------------------------------------------------------- inputs and formats


def test_the_output_is_int8_and_other_types_are_refused(harness: Harness, plugin: Handle) -> None:
    assert harness.output_type(plugin, 8, ints(TYPES)) == INT8
    assert harness.output_type(plugin, 7, ints(TYPES[:7])) == -1
    for i in range(8):
        other = (*TYPES[:i], HALF, *TYPES[i + 1 :])
        assert harness.output_type(plugin, 8, ints(other)) == -1, i
        assert f"input {i} is not" in harness.complaint().decode()


@pytest.mark.parametrize("size", [(4, 200, 32), (3, 4, 7), (1, 2, 64)])
def test_the_output_has_the_shape_of_q(harness: Harness, plugin: Handle, size: tuple[int, int, int]) -> None:
    out = (ctypes.c_int64 * 8)()
    assert harness.output_shape(plugin, *inputs_of(*size).arguments()[:3], out) == 2
    assert (out[0], out[1]) == (size[0], size[2])


def test_only_linear_formats_and_its_types_are_supported(harness: Harness, plugin: Handle) -> None:
    inputs = inputs_of(4, 200, 32)
    all_ = Described((*inputs.shapes, (4, 32)), (*TYPES, INT8), (LINEAR,) * 9)
    for position in range(9):
        assert harness.supports(plugin, position, *all_.arguments())
        for types, formats in (
            (put(all_.types, position, HALF), all_.formats),
            (all_.types, put(all_.formats, position, CHW4)),
        ):
            assert not harness.supports(plugin, position, *replace(all_, types=types, formats=formats).arguments())
    assert not harness.supports(plugin, 9, *all_.arguments())
    assert not harness.supports(plugin, -1, *all_.arguments())


def put(values: Sequence[Any], at: int, value: Any) -> tuple[Any, ...]:
    return (*values[:at], value, *values[at + 1 :])


@pytest.mark.parametrize("asked", ["configure", "shape_change"])
def test_shapes_must_agree(harness: Harness, plugin: Handle, asked: str) -> None:
    good = inputs_of(4, 200, 32)
    ask = getattr(harness, asked)
    assert ask(plugin, *good.arguments()) == 0
    for i, shape in enumerate(good.shapes):
        for wrong in ((*shape, 1), (*shape[:-1], shape[-1] + 1), (*shape[:-1], -1), ()):
            harness.forget()
            assert ask(plugin, *replace(good, shapes=put(good.shapes, i, wrong)).arguments()) != 0, (i, wrong)
            assert "EdAttention" in harness.complaint().decode()
    too_long = inputs_of(1, 2049, 16)
    assert ask(plugin, *too_long.arguments()) != 0
    assert ask(plugin, *Described(good.shapes[:7], TYPES[:7], (LINEAR,) * 7).arguments()) != 0


# ---------------------------------------------------------------- results


@dataclass(frozen=True)
class Case:
    """Holds the inputs of one step in the plugin's order, except for pos and live."""

    arrays: tuple[npt.NDArray[Any], ...]
    pos: int
    live: int

    def wanted(self) -> npt.NDArray[np.int8]:
        """Returns the result of numerics.attend, with the ring in the order of time."""
        q, k, v, ring_k, ring_v, bias = self.arrays
        slots = ring_k.shape[1]
        order = (self.pos + np.arange(slots)) % slots
        keys, values = (np.concatenate([a[:, order], new[:, None]], axis=1) for a, new in ((ring_k, k), (ring_v, v)))
        scale = [np.float32([value]) for value in SCALES]
        context = attend(q[:, None], keys, values, bias, self.live, scale[0], scale[1])[0]
        return quantize(context, scale[2])


def random_case(heads: int, window: int, head_dim: int, seed: int = 0) -> Case:
    rng = np.random.default_rng(seed)
    new = [rng.integers(-127, 128, (heads, head_dim), np.int8) for _ in range(3)]
    rings = [rng.integers(-127, 128, (heads, window - 1, head_dim), np.int8) for _ in range(2)]
    bias = rng.standard_normal((heads, window)).astype(np.float32)
    return Case((*new, *rings, bias), int(rng.integers(window - 1)), int(rng.integers(window)))


def enqueued(harness: Harness, plugin: Handle, case: Case) -> npt.NDArray[np.int8]:
    heads, head_dim = case.arrays[0].shape
    described = inputs_of(heads, case.arrays[5].shape[1], head_dim)
    assert harness.shape_change(plugin, *described.arguments()) == 0
    arrays = [*case.arrays, np.int32([case.pos]), np.int32([case.live])]
    context = np.full((heads, head_dim), -128, np.int8)
    inputs = (ctypes.c_void_p * 8)(*(array.ctypes.data for array in arrays))
    assert harness.enqueue(plugin, inputs, (ctypes.c_void_p * 1)(context.ctypes.data)) == 0
    return context


CASES = [(4, 200, 32), (3, 4, 7), (1, 2, 64), (2, 33, 16)]


@pytest.mark.parametrize("size", CASES)
def test_enqueue_has_the_bits_of_the_oracle(harness: Harness, plugin: Handle, size: tuple[int, int, int]) -> None:
    for seed in range(5):
        case = random_case(*size, seed)
        assert (enqueued(harness, plugin, case) == case.wanted()).all(), (case.pos, case.live)


@pytest.mark.parametrize("way", ["clone_of", "attached", "through_a_plan"])
def test_a_copy_computes_the_same(harness: Harness, way: str) -> None:
    made = create(harness)
    copy = Handle(getattr(harness, way)(made))
    if way != "through_a_plan":  # which deletes the first before it makes the second
        harness.destroy(made)
    case = random_case(2, 33, 16)
    assert (enqueued(harness, copy, case) == case.wanted()).all()
    harness.destroy(copy)
