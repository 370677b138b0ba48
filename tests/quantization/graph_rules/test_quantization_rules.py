"""Each rule of explicit quantization, broken alone in a good graph, gives an error that names the node."""

from __future__ import annotations

import copy

import numpy as np
import onnx
import onnxsim
import pytest
from onnx import TensorProto

from edgedistill.errors import EngineError
from edgedistill.quantization.graph_rules.quantization_rules import require_explicit_quantization
from edgedistill.quantization.onnx_graph import graph_from_integers

from ...numerics.students import SMALL, random_model
from .surgery import Cases, Surgery

GOOD = graph_from_integers(SMALL, random_model(SMALL).tensors)


CASES = Cases(GOOD, require_explicit_quantization)
case = CASES.case


@case("not dequantized")
def float_weights(s: Surgery) -> str:
    """Folds dequantized weights, as a simplifier does."""
    node = s.node("MatMul", "layers.1.down")
    source = s.maker(node.input[1])
    folded = s.array(source.input[0]) * s.array(source.input[1])
    node.input[1] = s.constant(folded)
    s.graph.node.remove(source)
    return node.name


@case("not dequantized")
def a_float_activation(s: Surgery) -> str:
    node = s.node("MatMul", "layers.0.out")
    quantizer = s.maker(s.maker(node.input[0]).input[0])
    node.input[0] = quantizer.input[0]
    return node.name


@case("not dequantized")
def a_float_activation_behind_moves(s: Surgery) -> str:
    node = s.node("MatMul", "layers.0.out")
    context = s.maker(s.maker(node.input[0]).input[0]).input[0]
    node.input[0] = s.before(node, "Reshape", context, s.constant(np.array([1, 32])))
    return node.name


@case("not a constant")
def a_computed_scale(s: Surgery) -> str:
    node = s.node("QuantizeLinear", "layers.0.down")
    node.input[1] = s.before(node, "ReduceMax", s.node("Mul", "layers.0.gate_up", 1).output[0], keepdims=0)
    return node.name


@case("not positive and finite")
def a_scale_of_zero(s: Surgery) -> str:
    node = s.node("DequantizeLinear", "layers.0.down")
    node.input[1] = s.constant(np.float32(0))
    return node.name


@case("not positive and finite")
def an_infinite_scale(s: Surgery) -> str:
    node = s.weights("layers.0.down")
    node.input[1] = s.constant(np.full(32, np.inf, np.float32))
    return node.name


@case("another type than its tensor")
def a_half_scale_for_a_single_tensor(s: Surgery) -> str:
    node = s.node("QuantizeLinear", "layers.0.down")
    node.input[1] = s.constant(s.array(node.input[1]).astype(np.float16))
    return node.name


@case("several float types")
def a_half_scale_of_the_ring(s: Surgery) -> str:
    """Makes an INT8 tensor with a float16 scale into float32, which is known not to build on Orin."""
    node = s.reader("ring_k_0")
    node.input[1] = s.constant(s.array(node.input[1]).astype(np.float16))
    return s.reader(node.output[0]).name


@case("several scales")
def an_activation_by_channel(s: Surgery) -> str:
    node = s.node("QuantizeLinear", "layers.0.down")
    node.input[1] = s.constant(np.full(48, 0.01, np.float32))
    node.input[2] = s.constant(np.zeros(48, np.int8))
    return node.name


@case("not int8 0")
def a_shifted_zero_point(s: Surgery) -> str:
    node = s.node("QuantizeLinear", "layers.0.down")
    node.input[2] = s.constant(np.array(3, np.int8))
    return node.name


@case("8-bit tensor goes into it|not int8 0")
def an_unsigned_tensor(s: Surgery) -> str:
    node = s.node("QuantizeLinear", "layers.0.down")
    node.input[2] = s.constant(np.array(0, np.uint8))
    s.reader(node.output[0]).input[2] = node.input[2]
    return node.name


@case("zero point is not a constant")
def no_zero_point(s: Surgery) -> str:
    """Removes the zero point. The integers are unsigned then."""
    node = s.node("QuantizeLinear", "layers.0.down")
    del node.input[2]
    return node.name


@case("differ in size")
def one_zero_point_for_many_scales(s: Surgery) -> str:
    node = s.weights("layers.0.down")
    node.input[2] = s.constant(np.array(0, np.int8))
    return node.name


@case("not scaled per output channel")
def weights_by_tensor(s: Surgery) -> str:
    node = s.weights("layers.0.down")
    node.input[1], node.input[2] = s.constant(np.float32(0.01)), s.constant(np.int8(0))
    return node.name


@case("not scaled per output channel")
def weights_by_input(s: Surgery) -> str:
    node = s.weights("layers.0.down")  # (48, 32)
    node.input[1], node.input[2] = s.constant(np.full(48, 0.01, np.float32)), s.constant(np.zeros(48, np.int8))
    node.attribute[0].i = 0
    return node.name


@case("moved after they are dequantized")
def weights_reshaped(s: Surgery) -> str:
    node = s.node("MatMul", "layers.0.down")
    node.input[1] = s.before(node, "Reshape", node.input[1], s.constant(np.array([48, 32])))
    return node.name


@case("normalized probabilities")
def a_softmax(s: Surgery) -> str:
    exponential = s.node("Exp", "layers.0.attention")
    exponential.op_type = "Softmax"
    return s.reader(exponential.output[0]).name


@case("normalized probabilities")
def a_softmax_spelled_out(s: Surgery) -> str:
    exponential = s.node("Exp", "layers.0.attention")
    quantizer = s.reader(exponential.output[0])
    total = s.before(quantizer, "ReduceSum", exponential.output[0], s.constant(np.array([2])))
    total = s.before(quantizer, "Add", total, s.constant(np.float32(1)))
    quantizer.input[0] = s.before(quantizer, "Div", exponential.output[0], total)
    return quantizer.name


@case("no static shape")
def a_dynamic_ring(s: Surgery) -> str:
    ring = next(value for value in s.graph.input if value.name == "ring_v_1")
    ring.type.tensor_type.shape.dim[1].dim_param = "window"
    return "ring_v_1"


@case("only DequantizeLinear takes 8-bit tensors")
def integers_moved(s: Surgery) -> str:
    node = s.reader("ring_k_0")
    node.input[0] = s.before(node, "Transpose", "ring_k_0", perm=[0, 1, 2])
    return node.input[0]


@case("8-bit tensor goes into it")
def quantized_twice(s: Surgery) -> str:
    node = s.node("DequantizeLinear", "layers.0.down")
    node.input[0] = s.before(node, "QuantizeLinear", node.input[0], node.input[1], node.input[2])
    return node.input[0]


@case("a second time")
def rounded_twice(s: Surgery) -> str:
    node = s.node("QuantizeLinear", "embed", 1)
    node.input[1] = s.constant(1.5 * s.array(node.input[1]))
    return node.name


@case("can hold -128")
def an_output_without_its_clip(s: Surgery) -> str:
    node = s.maker("v_new_1")
    node.input[0] = s.maker(node.input[0]).input[0]
    return node.name


@case("can hold -128")
def an_output_with_a_wide_clip(s: Surgery) -> str:
    node = s.maker("k_new_0")
    s.maker(node.input[0]).input[1] = s.constant(-128 * s.array(node.input[1]))
    return node.name


@pytest.mark.parametrize("name", CASES.all)
def test_a_broken_rule_names_the_node(name: str) -> None:
    CASES.require_caught(name)


def test_a_good_graph_passes_the_rules() -> None:
    require_explicit_quantization(GOOD)


def test_an_old_opset_is_refused() -> None:
    model = copy.deepcopy(GOOD)
    model.opset_import[0].version = 17
    with pytest.raises(EngineError, match="opset 17"):
        require_explicit_quantization(model)


def test_parts_in_higher_precision_must_be_named() -> None:
    kept = graph_from_integers(SMALL, random_model(SMALL, keep=("layers.0.out", "readout")).tensors)
    require_explicit_quantization(kept, ("layers.0.out", "readout"))
    with pytest.raises(EngineError, match=r"layers\.0\.out"):
        require_explicit_quantization(kept, ("readout",))
    with pytest.raises(EngineError, match=r"'layers\.7\.out'"):
        require_explicit_quantization(GOOD, ("layers.7.out",))


def test_transposed_weights_pass_when_their_scales_follow() -> None:
    surgery = Surgery(GOOD)
    node, source = surgery.node("MatMul", "layers.0.down"), surgery.weights("layers.0.down")
    source.input[0] = surgery.constant(np.ascontiguousarray(surgery.array(source.input[0]).T))
    source.attribute[0].i = 0
    node.input[1] = surgery.before(node, "Transpose", source.output[0], perm=[1, 0])
    require_explicit_quantization(surgery.model)


def test_weights_may_be_quantized_in_the_graph() -> None:
    surgery = Surgery(GOOD)
    source = surgery.weights("layers.0.down")
    weights = surgery.constant(surgery.array(source.input[0]) * surgery.array(source.input[1]))
    source.input[0] = surgery.before(source, "QuantizeLinear", weights, source.input[1], source.input[2], axis=1)
    require_explicit_quantization(surgery.model)


def test_a_simplified_graph_passes_or_is_refused() -> None:
    """Whether onnxsim folds dequantized weights depends on its version. A graph that lost them must not pass."""
    simple, same = onnxsim.simplify(GOOD)
    assert same
    int8 = {t.name for t in simple.graph.initializer if t.data_type == TensorProto.INT8 and len(t.dims) == 2}
    products = [n for n in simple.graph.node if n.op_type in ("MatMul", "Gemm")]
    attention = 3 * SMALL.layers  # query by ring, query by new key, exponentials by ring: no weights
    if len(int8) == len(products) - attention:
        require_explicit_quantization(simple)
    else:
        with pytest.raises(EngineError, match="not dequantized"):
            require_explicit_quantization(simple)


def test_a_graph_whose_types_contradict_each_other_is_refused_as_such() -> None:
    model = copy.deepcopy(GOOD)
    output = next(value for value in model.graph.output if value.name == "bin_new")
    output.type.tensor_type.elem_type = onnx.TensorProto.FLOAT
    with pytest.raises(EngineError):
        require_explicit_quantization(model)
