"""Lists name and shape of every float32 tensor in `student.safetensors`, from the shape of the student alone.

This module does without onnx and torch, so that a device can make a student of random weights to measure itself with.
"""

from __future__ import annotations

from edgedistill.config import StudentShape


def list_weight_shapes(shape: StudentShape) -> dict[str, tuple[int, ...]]:
    """Returns name and shape of every tensor of a student, in the order of the file."""
    d, ff = shape.d, shape.ff
    layer = dict.fromkeys(("wq", "wk", "wv", "wo"), (d, d))
    layer |= {"wgate": (ff, d), "wup": (ff, d), "wdown": (d, ff)}
    shapes: dict[str, tuple[int, ...]] = {
        "embed.weight": (d, shape.taps * shape.channels),
        "embed.bias": (d,),
        "norm_out": (d,),
        "readout.latent": (shape.outputs, d),
        "readout.lags": (shape.outputs, (shape.lags + 1) * shape.channels),
        "readout.bias": (shape.outputs,),
    }
    for i in range(shape.layers):
        shapes |= {f"layers.{i}.{name}": size for name, size in layer.items()}
        shapes |= {f"layers.{i}.norm_attn": (d,), f"layers.{i}.norm_mlp": (d,)}
        shapes[f"layers.{i}.age_bias"] = (shape.heads, shape.window)
    return shapes
