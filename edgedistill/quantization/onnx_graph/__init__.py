"""Writes the step of a student as static ONNX graphs.

One z-scored bin and the state go in, and kinematics and the new keys and values come out. The nodes are written here
and not exported from a traced step, for two reasons. Exporters decompose what onnxruntime and TensorRT know how to
fuse. And the contract (docs/numerics.md, "State") wants rings that a step only reads, because the runtime appends to
them. `writing` collects nodes and declares inputs and outputs, `float_step` writes float32 and float16, and `int8_step`
writes the two INT8 graphs with `int8_writing`. The two differ only in the attention core, which is `attention_core` in
one and `attention_plugin` in the other.

    file                       written by            what for
    student.onnx               graph_from_student    onnxruntime; float32
    student.fp16.onnx          graph_from_student    TensorRT; float16 products
    student.int8.onnx          graph_from_integers   onnxruntime, TensorRT; standard operators
    student.int8.plugin.onnx   graph_for_plugin      TensorRT with libed_plugin.so; `add_definition`: onnxruntime

Every step has these tensors by these names, row-major, without a dynamic dimension. There are H heads of width Dh (H Dh
= d), a window W, C channels, K outputs, layers i = 0 … L-1, and R = shape.lag_rows. Three types in a row are those of
`student.onnx`, `student.fp16.onnx` and the INT8 graphs.

    input       shape          type                         what
    bin         (C,)           float32                      z-scored, finite, 0 where masked
    ring_k_i    (H, W-1, Dh)   float32 · float16 · int8     keys by slot; never -128; anything finite where not live
    ring_v_i    (H, W-1, Dh)   float32 · float16 · int8     values by slot
    pos         (1,)           int32                        the slot the runtime writes next, 0 … W-2
    live        (1,)           int32                        slots filled, 0 … W-1: those before pos, back round
    lags        (R, C)         float32 · float32 · int8     bins before this one, newest first; absent where R = 0

    output      shape          type                         what
    kinematics  (K,)           float32                      in physical units
    latent      (d,)           float32                      INT8: without the gain of its norm
    k_new_i     (H, Dh)        float32 · float16 · int8     to be written to slot pos of ring_k_i after the step
    v_new_i     (H, Dh)        float32 · float16 · int8     the same of ring_v_i
    bin_new     (C,)           int8, INT8 graphs only       to become the first row of lags; elsewhere that is `bin`

Inputs stand in the order bin, ring_k_0, ring_v_0, ring_k_1, …, pos, live, lags; outputs in the order kinematics,
latent, k_new_0, v_new_0, k_new_1, …, bin_new. A ring of one layer is contiguous, so (L, 2, H, W-1, Dh) in one piece
holds them all, as (L, 2, H, Dh) does the new ones. The custom node's tensors and attributes are listed in
`attention_plugin`."""

from edgedistill.quantization.float_tensors import list_weight_shapes
from edgedistill.quantization.onnx_graph.attention_plugin import add_definition
from edgedistill.quantization.onnx_graph.float_step import graph_from_student
from edgedistill.quantization.onnx_graph.int8_step import graph_for_plugin, graph_from_integers

__all__ = ["add_definition", "graph_for_plugin", "graph_from_integers", "graph_from_student", "list_weight_shapes"]
