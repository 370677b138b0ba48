"""The step of a student as static ONNX graphs: one z-scored bin and the state in, kinematics and new keys out.

We write the nodes ourselves, because exporters of a traced step decompose what onnxruntime and TensorRT know how
to fuse, and because the contract (numerics.md, "State") wants rings that a step only reads: the runtime appends.
`writing` collects nodes and states inputs and outputs, `float_step` writes float32 and float16, `int8_step` the
graph with explicit quantization.

    inputs   bin (C,) · ring_k_i, ring_v_i (H, W-1, Dh) · pos, live int32 (1,) · lags (R, C), none where R = 0
    outputs  kinematics (K,) · latent (d,) · k_new_i, v_new_i (H, Dh) · INT8 only: bin_new (C,), a row of lags

H heads of width Dh, W the window, i the layer, R = shape.lag_rows.

    precision   rings, k_new, v_new   lags      bin, kinematics, latent
    float32     float32               float32   float32
    float16     float16               float32   float32
    int8        int8                  int8      float32; latent without the gain of its norm
"""

from edgedistill.quantization.onnx_graph.float_step import graph_from_student, weight_shapes
from edgedistill.quantization.onnx_graph.int8_step import graph_from_integers

__all__ = ["graph_from_integers", "graph_from_student", "weight_shapes"]
