"""Defines in numpy what every INT8 engine computes. It is docs/numerics.md as a program, called the oracle.

`arithmetic` holds the operations whose order of rounding is pinned, and `attention` the core of a layer. `tensors` says
what `student.int8.safetensors` holds. `oracle` runs the step, one bin or a whole stretch at a time, and `state` checks
the state that engines exchange. `near` measures how far an engine is from the oracle. Engines of the exact class equal
the oracle bit for bit (docs/numerics.md, "Two classes of engine").
"""

from edgedistill.numerics.arithmetic import exp32, lane_sum, quantize, rms32, silu32
from edgedistill.numerics.attention import attend
from edgedistill.numerics.oracle import Oracle
from edgedistill.numerics.tensors import Int8Model, int8_tensors, part_names, part_of

__all__ = [
    "Int8Model",
    "Oracle",
    "attend",
    "exp32",
    "int8_tensors",
    "lane_sum",
    "part_names",
    "part_of",
    "quantize",
    "rms32",
    "silu32",
]
