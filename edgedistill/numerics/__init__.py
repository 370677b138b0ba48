"""The oracle: what every engine computes, in numpy, nothing else.

`arithmetic` holds the operations whose order of rounding is pinned, `attention` the core of a layer, `tensors` what
`student.int8.safetensors` holds, `oracle` the step, its state, and whole stretches of it. Engines of the exact class
equal it bit for bit.
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
