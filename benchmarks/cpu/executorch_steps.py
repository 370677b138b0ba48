"""Runs a step of the student in ExecuTorch with its XNNPACK backend, as functions of a bin.

The step is exported with random weights. Its best conditions are those of the graphs in `peers`: rings are only read,
age biases come in the order of the slots, and nobody stands around the program. So its times are a bound from below for
a decoder built on it. It is lowered in float32, with eight-bit weights and activations that are quantized on the fly,
and with weights of four bits in groups of 32 inputs. What ExecuTorch cannot lower is named, and not left out silently.

ExecuTorch is no dependency of the project: `pip install executorch` into an environment of your own.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from edgedistill.config import StudentShape

EXECUTORCH = "ExecuTorch XNNPACK"
GROUP = 32  # inputs that share a scale, as in our four-bit weights
EPSILON = 1e-6
Step = Callable[[Any], object]


class ExportedLayer(nn.Module):
    """Computes one layer for one bin over rings that it only reads. Gains of norms are part of the weights."""

    def __init__(self, shape: StudentShape) -> None:
        super().__init__()
        d, ff, self.heads, self.width = shape.d, shape.ff, shape.heads, shape.head_dim
        sizes = {"qkv": (d, 3 * d), "out": (d, d), "gate": (d, ff), "up": (d, ff), "down": (ff, d)}
        for name, (inputs, outputs) in sizes.items():
            self.add_module(name, nn.Linear(inputs, outputs, bias=False))

    def forward(self, x: Tensor, keys: Tensor, values: Tensor, bias: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Takes x (1, d), rings (heads, slots, width) and biases (heads, 1, slots). Returns x, and new keys and values.

        The ring holds the new bin's place too, so that its sums have the size of ours.
        """
        q, k, v = self.qkv(rms(x)).view(3, self.heads, 1, self.width).unbind(0)
        scores = q @ keys.transpose(1, 2) / math.sqrt(self.width) + bias
        context = scores.softmax(-1) @ values
        x = x + self.out(context.reshape(1, -1))
        normed = rms(x)
        return x + self.down(F.silu(self.gate(normed)) * self.up(normed)), k, v


class ExportedStep(nn.Module):
    """Computes the student for one bin. Kinematics and the new keys and values of all layers come out."""

    def __init__(self, shape: StudentShape) -> None:
        super().__init__()
        self.embed = nn.Linear(shape.taps * shape.channels, shape.d)
        self.layers = nn.ModuleList(ExportedLayer(shape) for _ in range(shape.layers))
        self.latent = nn.Linear(shape.d, shape.outputs)
        self.lags = nn.Linear((shape.lags + 1) * shape.channels, shape.outputs)

    def forward(
        self, taps: Tensor, lags: Tensor, keys: list[Tensor], values: list[Tensor], biases: list[Tensor]
    ) -> list[Tensor]:
        """Takes bins (1, taps * C) and (1, (lags + 1) * C), and rings and biases of each layer."""
        x, new = self.embed(taps), []
        for layer, key, value, bias in zip(self.layers, keys, values, biases, strict=True):
            x, k, v = layer(x, key, value, bias)
            new += [k, v]
        return [self.latent(rms(x)) + self.lags(lags), *new]


def rms(x: Tensor) -> Tensor:
    """Returns x / sqrt(mean(x^2) + eps) over the last axis."""
    return x * torch.rsqrt((x * x).mean(-1, keepdim=True) + EPSILON)


def make_executorch_steps(shape: StudentShape) -> tuple[dict[str, Step], dict[str, str]]:
    """Returns the steps that ExecuTorch runs, and why it does not run the others, both by name."""
    ways = {"float32": lower_floats, "dynamic INT8": lower_eight_bits, "four bits": lower_four_bits}
    made = {f"{EXECUTORCH} {name}": try_step(lower, shape) for name, lower in ways.items()}
    steps = {name: step for name, step in made.items() if not isinstance(step, str)}
    return steps, {name: reason for name, reason in made.items() if isinstance(reason, str)}


def try_step(lower: Callable[[nn.Module, tuple[Any, ...]], Any], shape: StudentShape) -> Step | str:
    """Returns what `make_step` does, or why that is not possible."""
    try:
        return make_step(lower, shape)
    except Exception as error:  # whatever the tools of another project raise is what the table says
        return f"{type(error).__name__}: {error}"[:400]


def make_step(lower: Callable[[nn.Module, tuple[Any, ...]], Any], shape: StudentShape) -> Step:
    """Returns one call of the lowered step over full rings."""
    from executorch.extension.pybindings import portable_lib
    from executorch.runtime import Runtime

    torch.manual_seed(0)
    inputs = draw_inputs(shape)
    program = lower(ExportedStep(shape).eval(), inputs).to_executorch()
    portable_lib._unsafe_reset_threadpool(1)
    loaded = Runtime.get().load_program(program.buffer)
    method = loaded.load_method("forward")
    flat = [inputs[0], inputs[1], *inputs[2], *inputs[3], *inputs[4]]
    width = shape.channels

    def step(bin_: Any, kept: object = (program, loaded)) -> object:
        flat[0][0, :width] = torch.from_numpy(bin_)
        return method.execute(flat)

    step(np.zeros(width, np.float32))
    return step


def draw_inputs(shape: StudentShape) -> tuple[Any, ...]:
    """Returns bins, full rings and biases."""
    ring = (shape.heads, shape.window, shape.head_dim)
    keys, values = ([torch.randn(ring) for _ in range(shape.layers)] for _ in range(2))
    biases = [torch.randn(shape.heads, 1, shape.window) for _ in range(shape.layers)]
    bins = torch.randn(1, (shape.lags + 1) * shape.channels)
    return torch.randn(1, shape.taps * shape.channels), bins, keys, values, biases


def lower_floats(step: nn.Module, inputs: tuple[Any, ...]) -> Any:
    """Lowers a step in float32."""
    return lower_for_xnnpack(step, inputs)


def lower_eight_bits(step: nn.Module, inputs: tuple[Any, ...]) -> Any:
    """Lowers a step whose linear layers have int8 weights, and whose activations are quantized as they come."""
    from executorch.backends.xnnpack.quantizer.xnnpack_quantizer import (
        XNNPACKQuantizer,
        get_symmetric_quantization_config,
    )
    from torchao.quantization.pt2e.quantize_pt2e import convert_pt2e, prepare_pt2e

    quantizer = XNNPACKQuantizer().set_global(get_symmetric_quantization_config(is_per_channel=True, is_dynamic=True))
    prepared = prepare_pt2e(torch.export.export(step, inputs, strict=True).module(), quantizer)
    prepared(*inputs)
    return lower_for_xnnpack(convert_pt2e(prepared), inputs)


def lower_four_bits(step: nn.Module, inputs: tuple[Any, ...]) -> Any:
    """Lowers a step whose linear layers have four-bit weights with a scale for 32 inputs."""
    from torchao.quantization import Int8DynamicActivationIntxWeightConfig, PerGroup, quantize_

    config = Int8DynamicActivationIntxWeightConfig(weight_dtype=torch.int4, weight_granularity=PerGroup(GROUP))
    quantize_(step, config, lambda module, _: isinstance(module, nn.Linear) and module.in_features % GROUP == 0)
    return lower_for_xnnpack(step, inputs)


def lower_for_xnnpack(step: nn.Module, inputs: tuple[Any, ...]) -> Any:
    """Exports a step and gives XNNPACK all that it takes. The rest is for ExecuTorch's portable operators."""
    from executorch.backends.xnnpack.partition.xnnpack_partitioner import XnnpackPartitioner
    from executorch.exir import to_edge_transform_and_lower

    return to_edge_transform_and_lower(
        torch.export.export(step, inputs, strict=True), partitioner=[XnnpackPartitioner()]
    )
