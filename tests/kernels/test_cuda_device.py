"""Tests the kernels on a real GPU, launched through PyCUDA: every byte equals the definition, at every size and ring.

They are skipped where there is no GPU, no PyCUDA or no nvcc, with the command that helps. The checks are those of
the benchmarks' kernel_checks.py, which the kernel benchmark runs without PyCUDA.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgedistill.compile.cuda.model_source import cuda_sources
from edgedistill.compile.cuda.nvcc import Nvcc, find_nvcc
from edgedistill.compile.cuda.packing import StepForm, float_tables, packed_weights
from edgedistill.config import StudentShape
from edgedistill.errors import DeviceError
from edgedistill.machine.gpu import find_gpu
from edgedistill.numerics import Oracle
from edgedistill.numerics.tensors import four_bit_parts
from edgedistill.target import load_target

ROOT = Path(__file__).parents[2]
sys.path.append(str(ROOT))

from benchmarks.cpu.c_models import draw_model, make_front_end, make_model_facts  # noqa: E402
from benchmarks.gpu.kernel_checks import (  # noqa: E402
    HEAD_DIMS,
    HEADS,
    WINDOWS,
    check_append,
    check_step,
    draw_core,
    list_states,
)

pytestmark = pytest.mark.gpu

SOURCES = {
    "ed_attention_step": "attention_step",
    "ed_append": "append",
}
CUDA = ROOT / "kernels" / "cuda"
# channels, outputs, d, layers, heads, window, ff, taps, dilation, lags
STUDENTS = {
    "small": StudentShape(3, 2, 8, 2, 2, 7, 16, 3, 2, 5),
    "odd": StudentShape(5, 1, 21, 1, 3, 20, 31, 1, 1, 0),
    "nano": StudentShape(96, 2, 64, 2, 4, 200, 256, 5, 2, 10),
}


class PyCudaDevice:
    """Implements the device that kernel_checks asks for."""

    def __init__(self, folder: Path, nvcc: Nvcc, driver: Any) -> None:
        self.folder, self.nvcc, self.driver = folder, nvcc, driver
        self._kernels: dict[str, Any] = {}

    def array(self, values: np.ndarray) -> Any:
        kept = np.ascontiguousarray(values)
        place = self.driver.mem_alloc(max(1, kept.nbytes))
        self.driver.memcpy_htod(place, kept)
        return place, kept

    def fetch(self, array: Any) -> np.ndarray:
        place, like = array
        found = np.empty_like(like)
        self.driver.memcpy_dtoh(found, place)
        return found

    def module(self, source: str, *options: str) -> Any:
        include = (f"-I{CUDA.parent / 'include'}", f"-I{CUDA.parent / 'c'}", f"-I{CUDA}")
        self.nvcc.compile_cubin(self.folder, str(CUDA / f"{source}.cu"), f"{source}.cubin", (*include, *options))
        return self.driver.module_from_file(str(self.folder / f"{source}.cubin"))

    def launch(self, kernel: str, grid: tuple[int, int], block: int, shared: int, *arguments: Any) -> None:
        if kernel not in self._kernels:
            module = self.module(SOURCES[kernel])
            self._kernels |= {name: module.get_function(name) for name, of in SOURCES.items() if of == SOURCES[kernel]}
        self.call(self._kernels[kernel], grid, block, shared, *arguments)

    def call(self, function: Any, grid: tuple[int, int], block: int, shared: int, *arguments: Any) -> None:
        values = [number(argument) for argument in arguments]
        function(*values, grid=grid, block=(block, 1, 1), shared=shared)
        self.driver.Context.synchronize()


def number(argument: Any) -> Any:
    """Converts an argument for PyCUDA: addresses, and numbers whose width numpy tells."""
    if isinstance(argument, tuple):
        return argument[0]
    if isinstance(argument, int | np.integer):
        return np.int32(argument)
    return np.float32(argument) if isinstance(argument, float | np.floating) else np.uint64(argument.value)


@pytest.fixture(scope="module")
def device(tmp_path_factory: pytest.TempPathFactory) -> Iterator[PyCudaDevice]:
    driver = pytest.importorskip("pycuda.driver", reason="PyCUDA is not installed: pip install pycuda")
    try:
        target = load_target("cuda")
        nvcc = find_nvcc(target, find_gpu().chip)
    except DeviceError as error:
        pytest.skip(str(error))
    driver.init()
    context = driver.Device(0).retain_primary_context()
    context.push()
    yield PyCudaDevice(tmp_path_factory.mktemp("kernels"), nvcc, driver)
    context.pop()
    context.detach()  # while PyCUDA still knows that it is the primary one


@pytest.mark.parametrize("head_dim", HEAD_DIMS)
@pytest.mark.parametrize("window", WINDOWS)
def test_the_attention_kernels_have_every_byte(device: PyCudaDevice, window: int, head_dim: int) -> None:
    for state in list_states(window):
        core = draw_core(HEADS, window, head_dim, state)
        findings = [check_step(device, core, f"step {state}"), check_append(device, core, 2, 3, 5, f"append {state}")]
        assert not [finding for finding in findings if finding.differ]


@pytest.mark.parametrize("four", [False, True], ids=["eight", "four"])
@pytest.mark.parametrize("name", STUDENTS)
def test_the_whole_step_has_every_bit_of_the_oracle_around_the_wrap(
    device: PyCudaDevice, name: str, four: bool, tmp_path: Path
) -> None:
    shape = STUDENTS[name]
    model, config = draw_model(shape, four=four_bit_parts(shape) if four else ()), make_front_end(shape.channels)
    form = StepForm.of(model, pack=four)
    for file, text in cuda_sources(model, config, make_model_facts(shape, config, "test"), pack=four).items():
        (tmp_path / file).write_text(text)
    include = (f"-I{tmp_path}", '-DED_MODEL_HEADER="model_test.h"')
    kernel = device.module("student_step", *include).get_function("ed_student_step")
    weights = device.array(np.frombuffer(packed_weights(model, form), np.uint8))
    tables = device.array(float_tables(model, form))
    state = device.array(np.zeros(4 * 2**20, np.uint8))  # larger than the state of any of these
    out = device.array(np.full(shape.outputs + shape.d, np.nan, np.float32))
    bins = np.random.default_rng(3).normal(0, 1.5, (shape.window + 64, shape.channels)).astype(np.float32)
    found = []
    for bin_ in bins:
        device.call(kernel, (1, 1), form.threads, 0, weights, tables, state, device.array(bin_), out)
        found.append(device.fetch(out))
    expected = Oracle(model).trace(bins, ())
    assert np.stack(found)[:, : shape.outputs].tobytes() == expected["kinematics"].tobytes()
    assert np.stack(found)[:, shape.outputs :].tobytes() == expected["latents"].tobytes()
