"""Builds the CUDA engine of students with random weights, as `edgedistill compile --target cuda` builds a bundle's.

A preset goes in. The engine's library, opened as a decoder, and its kernel alone with weights and state of its own come
out, with the bytes that a step must read. The C engine of the same student is built beside them, because the GPU must
give its bits. Weights are those of c_models, and speed does not depend on their values.
"""

from __future__ import annotations

import ctypes
import os
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from safetensors.numpy import save

from benchmarks.cpu.c_models import (
    Built,
    Decoder,
    build,
    draw_model,
    list_variants,
    make_front_end,
    make_model_facts,
    write_files,
)
from benchmarks.gpu.device import INCLUDES, Buffer, Gpu, Launch, compile_for_host
from benchmarks.gpu.tables import FOUR_BITS
from edgedistill.bundle import Bundle, open_bundle, write_bundle
from edgedistill.bundle.contents import INT8_WEIGHTS
from edgedistill.compile.bundle_sources import kernel_files
from edgedistill.compile.c.toolchain import find_toolchain
from edgedistill.compile.cuda.model_source import cuda_sources
from edgedistill.compile.cuda.module import CUBIN
from edgedistill.compile.cuda.packing import StepForm, float_tables, packed_weights
from edgedistill.compile.engines import compile_bundle
from edgedistill.config import StudentShape, load_preset
from edgedistill.numerics import Int8Model
from edgedistill.numerics.tensors import four_bit_parts
from edgedistill.pipeline.channel_files import write_channel_files
from edgedistill.runtime.c_abi import load_library
from edgedistill.target import Target

CHANNELS, OUTPUTS, BINS = 96, 2, 512
NAME = "subject"
DEFINE = f'-DED_MODEL_HEADER="model_{NAME}.h"'


@dataclass(frozen=True, eq=False)
class Student:
    """One student, compiled for the GPU and for the CPU."""

    preset: str
    model: Int8Model
    folder: Path  # of the build for the GPU
    library: Path  # in that folder
    sizes: dict[str, int]  # bytes of weights, tables, rings and state; threads; floats of the result
    on_cpu: Built
    packed: bool = False  # whether its four-bit weights stay packed

    @property
    def shape(self) -> StudentShape:
        """The shape of the student."""
        return self.model.shape

    @property
    def kernel(self) -> Path:
        """The file of ed_student_step as machine code."""
        return self.folder / CUBIN

    @property
    def read_bytes(self) -> int:
        """The bytes that a step reads: weights, tables and rings."""
        return self.sizes["weight"] + self.sizes["table"] + self.sizes["ring"]


def build_students(folder: Path, presets: list[str], target: Target, channels: int) -> list[Student]:
    """Builds each preset's student with int8 weights and with packed four-bit weights.

    As many are built at once as there are cores, because nvcc takes most of the time.
    """
    forms = [(preset, packed) for preset in presets for packed in (False, True)]
    with ThreadPoolExecutor(os.cpu_count() or 1) as pool:
        jobs = [pool.submit(build_student, folder, preset, target, channels, packed) for preset, packed in forms]
        return [job.result() for job in jobs]


def build_student(folder: Path, preset: str, target: Target, channels: int, packed: bool = False) -> Student:
    """Builds the student of a preset for `channels` channels. What lies in `folder` already is not compiled again.

    With `packed`, all parts that can have them have four-bit weights, which stay packed on the GPU. Raises EngineError,
    with the compiler's complaint, where building fails.
    """
    assert target.cuda is not None
    name = Path(preset).stem + (FOUR_BITS if packed else "")
    shape = load_preset(preset).student.shape(channels, OUTPUTS)
    model = draw_model(shape, four=four_bit_parts(shape) if packed else ())
    target = replace(target, cuda=replace(target.cuda, pack_four_bits=packed))
    compiled = compile_bundle(write_or_open_bundle(folder / f"{name}.edge", model), target)
    assert compiled.library is not None
    beside = folder / f"c-{name}"
    on_cpu = Built(beside / f"lib{NAME}.so", NAME, {})
    if not on_cpu.library.exists():
        build(beside, model, list_variants()[0], NAME, make_front_end(channels))
    sizes = _read_sizes(compiled.folder, target)
    return Student(name, model, compiled.folder, compiled.library, sizes, on_cpu, packed)


def with_threads(gpu: Gpu, student: Student, target: Target, threads: int) -> Student:
    """Returns a student whose kernel alone is compiled for a block of so many threads. It has no engine of its own."""
    name, config = f"{student.preset}, {threads} threads", make_front_end(student.shape.channels)
    folder = gpu.folder / f"{student.preset}-{threads}"
    texts = cuda_sources(student.model, config, make_model_facts(student.shape, config, NAME), threads, student.packed)
    model = {f"model/{file}": text.encode() for file, text in texts.items()}
    write_files(folder, kernel_files("include", "c", "gpu", "cuda") | model)
    gpu.nvcc.compile_cubin(folder, "cuda/student_step.cu", CUBIN, (*INCLUDES, DEFINE))
    return replace(student, preset=name, folder=folder, sizes=_read_sizes(folder, target))


def write_or_open_bundle(path: Path, model: Int8Model) -> Bundle:
    """Writes as much of a bundle as compiling takes, unless it is there, and opens it."""
    if path.exists():
        return open_bundle(path)
    config = make_front_end(model.shape.channels)
    facts = make_model_facts(model.shape, config, NAME)
    manifest = {
        "name": facts.name,
        "model": model.shape.to_json(),
        "frontend": config.to_json(),
        "normalization": {"mean": list(facts.mean), "std": list(facts.std)},
        "channel_ids": list(facts.channel_ids),
        "outputs": [
            {"name": output, "unit": unit} for output, unit in zip(facts.output_names, facts.output_units, strict=True)
        ],
    }
    channels = write_channel_files(facts.spatial, facts.deviation)
    return write_bundle(path, manifest, {INT8_WEIGHTS: save(model.to_file()), **channels})


def _read_sizes(folder: Path, target: Target) -> dict[str, int]:
    library = ctypes.CDLL(str(compile_for_host(folder, "student_facts.cpp", find_toolchain(target), (DEFINE,))))
    found = {}
    for what in ("weight_bytes", "table_bytes", "ring_bytes", "state_bytes", "out_floats", "threads"):
        function = getattr(library, f"student_{what}")
        function.restype = ctypes.c_size_t
        found[what.removesuffix("_bytes")] = int(function())
    return found


# ---------------------------------------------------------------- the engine


class OpenDecoder(Decoder):
    """A decoder of the CUDA engine. `call` has the functions of the C interface, as that of the C engine."""

    def __init__(self, student: Student) -> None:
        self.call = load_library(student.library.name, student.library.read_bytes())
        decoder = ctypes.c_void_p()
        self.check(self.call.ed_open(os.fsencode(student.folder), ctypes.byref(decoder)))
        self.handle = decoder.value
        self.info = self.call.ed_info_get(self.handle).contents

    def check(self, code: int) -> None:
        """Ends the program if a call returned an error."""
        if code:
            raise SystemExit(f"the CUDA engine: {self.call.ed_strerror(code).decode()} ({code})")


def find_step(decoder: Decoder) -> tuple[Any, int]:
    """Returns `ed_step` and the handle of its decoder, as `Gpu.time_steps` takes them."""
    assert decoder.handle is not None
    return decoder.call.ed_step, decoder.handle


def draw_bins(channels: int, rows: int = BINS, seed: int = 0) -> npt.NDArray[np.float32]:
    """Returns z-scored bins (rows, channels). A few are far out, so that quantization clips."""
    rng = np.random.default_rng(seed)
    bins = rng.standard_normal((rows, channels)) * rng.choice([0.2, 1.0, 1.0, 4.0], (rows, 1))
    return bins.astype(np.float32)


# ---------------------------------------------------------------- the kernel alone


def make_launches(gpu: Gpu, student: Student, bins: npt.NDArray[np.float32]) -> list[Launch]:
    """Returns a launch of `ed_student_step` for each row of `bins`. They share one state, so the stream moves on."""
    threads = student.sizes["threads"]
    form = StepForm.of(student.model, threads, student.packed)
    integers = np.frombuffer(packed_weights(student.model, form), np.uint8)
    assert len(integers) >= student.sizes["weight"]
    weights, tables = gpu.array(integers), gpu.array(float_tables(student.model, form))
    state = gpu.array(np.zeros(student.sizes["state"], np.uint8))
    out = gpu.allocate((student.sizes["out_floats"],), np.float32)
    function = gpu.load_module(student.kernel).find_function("ed_student_step")
    rows: list[Buffer] = [gpu.array(row) for row in bins]
    return [Launch.of(function, 1, threads, 0, weights, tables, state, row, out) for row in rows]
