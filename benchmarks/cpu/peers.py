"""Runs the same student in onnxruntime and PyTorch, which a user would take otherwise, as functions of a bin.

All of them compute with one thread. The sessions of onnxruntime get their best conditions: inputs and outputs are bound
once, rings are only read, no runtime stands around the graph, and each graph runs with and without the fusion that
slows an INT8 graph down.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnxruntime
import torch
from onnxruntime.quantization import QuantType, quantize_dynamic

from benchmarks.cpu.c_models import Built, draw_model, draw_weights, make_front_end
from benchmarks.cpu.executorch_steps import ExportedStep, draw_inputs
from edgedistill.config import StudentShape, load_preset
from edgedistill.models.student import Student
from edgedistill.models.teacher import PatchAutoencoder
from edgedistill.quantization.onnx_graph import graph_from_integers, graph_from_student
from edgedistill.runtime.abi_engine import AbiEngine
from edgedistill.runtime.c_abi import load_library
from edgedistill.runtime.c_engine import start_decoder
from edgedistill.runtime.onnx_engine import OnnxEngine

Step = Callable[[npt.NDArray[Any]], object]

ONNXRUNTIME = "onnxruntime"  # the C engine is compared with the subjects whose names begin so
FUSION = {"": [], ", no MatMulAddFusion": ["MatMulAddFusion"]}
TYPES = {"tensor(float)": np.float32, "tensor(int8)": np.int8, "tensor(int32)": np.int32}
WINDOW_BINS = 500  # the published model sees 5 s


def make_onnxruntime_steps(shape: StudentShape, folder: Path) -> dict[str, Step]:
    """Returns the steps of the float32 graph, of its dynamic INT8, of our Q/DQ graph, and of our engine around that."""
    steps: dict[str, Step] = {}
    for name, graph in make_graphs(shape, folder).items():
        for suffix, without in FUSION.items():
            steps[f"{ONNXRUNTIME} {name}{suffix}"] = make_bound_step(graph, shape, without)
    steps["OnnxEngine.step, Q/DQ"] = OnnxEngine(make_graphs(shape, folder)["Q/DQ INT8"], shape).step
    return steps


def make_graphs(shape: StudentShape, folder: Path) -> dict[str, bytes]:
    """Returns the graphs of a student, by the name of their precision."""
    plain, dynamic = folder / "float.onnx", folder / "dynamic.onnx"
    plain.write_bytes(graph_from_student(shape, draw_weights(shape)).SerializeToString())
    logging.disable(logging.WARNING)  # advice on preprocessing, which changes nothing in our graphs
    quantize_dynamic(plain, dynamic, weight_type=QuantType.QInt8)
    logging.disable(logging.NOTSET)
    integers = graph_from_integers(shape, draw_model(shape).tensors)
    return {
        "float32": plain.read_bytes(),
        "dynamic INT8": dynamic.read_bytes(),
        "Q/DQ INT8": integers.SerializeToString(),
    }


def make_bound_step(graph: bytes, shape: StudentShape, without: list[str]) -> Step:
    """Returns one run of a session over full rings, with everything bound."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.log_severity_level = 3
    providers = ["CPUExecutionProvider"]
    session = onnxruntime.InferenceSession(graph, options, providers=providers, disabled_optimizers=without)
    binding, rng = session.io_binding(), np.random.default_rng(0)
    arrays = {i.name: draw_array(rng, TYPES[i.type], i.shape) for i in session.get_inputs()}
    arrays["pos"][:], arrays["live"][:] = 7, shape.window - 1
    for name, array in arrays.items():
        binding.bind_ortvalue_input(name, onnxruntime.OrtValue.ortvalue_from_numpy(array))
    outputs = {o.name: np.zeros(o.shape, TYPES[o.type]) for o in session.get_outputs()}
    for name, array in outputs.items():
        binding.bind_ortvalue_output(name, onnxruntime.OrtValue.ortvalue_from_numpy(array))
    input_, run = arrays["bin"], session.run_with_iobinding

    def step(bin_: npt.NDArray[Any], kept: object = (arrays, outputs)) -> None:
        input_[:] = bin_
        run(binding)

    return step


def draw_array(rng: np.random.Generator, dtype: Any, size: list[int]) -> npt.NDArray[Any]:
    if dtype == np.float32:
        return rng.standard_normal(size).astype(np.float32)
    return rng.integers(-100, 101, size).astype(dtype)


def make_python_step(built: Built, shape: StudentShape) -> Step:
    """Returns a step of the C engine through ctypes, as `Decoder` calls it."""
    library = load_library(built.library.name, built.library.read_bytes())
    return AbiEngine(start_decoder(library, built.name), shape, make_front_end(shape.channels)).step


def make_eager_step(preset: str, shape: StudentShape) -> Step:
    """Returns a step of eager PyTorch: `Student.step`, then the read-out of the latent."""
    torch.set_num_threads(1)
    student = Student(load_preset(preset).student, {"s": shape.channels}, {"s": "array"}, 8, shape.outputs).eval()
    state = student.make_fresh_state("s")

    def step(bin_: npt.NDArray[Any]) -> None:
        with torch.inference_mode():
            student.to_behavior(student.step("s", torch.from_numpy(bin_), state))

    return step


def make_compiled_step(_preset: str, shape: StudentShape) -> Step:
    """Returns the step of `executorch_steps` after torch.compile, over rings that are only read.

    `Student.step` is not taken, because torch.compile compiles it anew for each place in the ring, and gives up after
    eight.
    """
    torch.set_num_threads(1)
    inputs = draw_inputs(shape)
    compiled, taps = torch.compile(ExportedStep(shape).eval()), inputs[0]

    def step(bin_: npt.NDArray[Any]) -> None:
        with torch.inference_mode():
            taps[0, : shape.channels] = torch.from_numpy(bin_)
            compiled(*inputs)

    step(np.zeros(shape.channels, np.float32))
    return step


def make_paper_step(channels: int, outputs: int) -> Step:
    """Returns a step of the bidirectional model of preset `paper`, which computes its whole window for each new bin."""
    torch.set_num_threads(1)
    size = load_preset("paper").patch_student
    model = PatchAutoencoder(size, {"s": channels}, counts=False).eval()
    readout = torch.nn.Linear(size.d, outputs)
    bins = torch.randn(1, WINDOW_BINS, channels)

    def step(bin_: npt.NDArray[Any]) -> None:
        with torch.inference_mode():
            bins[0, :-1] = bins[0, 1:].clone()
            bins[0, -1] = torch.from_numpy(bin_)
            readout(model.latents("s", bins)[0, -1])

    return step
