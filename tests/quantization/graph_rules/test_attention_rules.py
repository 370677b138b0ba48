"""Each rule of the custom node, broken alone in a good graph, gives an error that names the node."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import AttributeProto, NodeProto, TensorProto, helper

from edgedistill.errors import EngineError
from edgedistill.quantization.graph_rules.quantization_rules import require_explicit_quantization
from edgedistill.quantization.onnx_graph import add_definition, graph_for_plugin

from ...numerics.students import SMALL, random_model
from .surgery import Cases, Surgery

GOOD = graph_for_plugin(SMALL, random_model(SMALL).tensors)
CASES = Cases(GOOD, require_explicit_quantization)
case = CASES.case

H, D, W = SMALL.heads, SMALL.head_dim, SMALL.window


def core(s: Surgery) -> NodeProto:
    return s.node("EdAttention", "layers.1.attention")


def changed(s: Surgery, name: str, **value: object) -> str:
    """Replaces one attribute of the node by another."""
    node = core(s)
    kept = [entry for entry in node.attribute if entry.name != name]
    del node.attribute[:]
    node.attribute.extend(kept + [helper.make_attribute(key, new) for key, new in value.items()])
    return node.name


def dequantized(s: Surgery, role: int) -> str:
    """Adds Q -> DQ before the node. TensorRT fuses the pair into other layers, but fails on it before a plugin."""
    node = core(s)
    quantizer = s.maker(node.input[role])
    node.input[role] = s.before(node, "DequantizeLinear", node.input[role], *quantizer.input[1:])
    return node.name


def graph_input(s: Surgery, name: str, element: int, size: tuple[int, ...]) -> str:
    s.graph.input.append(helper.make_tensor_value_info(name, element, size))
    return name


# ---------------------------------------------------------------- types, shapes, where its tensors come from


@case("has not the tensors")
def a_missing_input(s: Surgery) -> str:
    del core(s).input[-1]
    return core(s).name


@case("input q is of another type")
def a_dequantized_query(s: Surgery) -> str:
    return dequantized(s, 0)


@case("input v is of another type")
def a_dequantized_value(s: Surgery) -> str:
    return dequantized(s, 2)


@case("input ring_k is of another type")
def a_dequantized_ring(s: Surgery) -> str:
    node = core(s)
    scale = s.maker(node.input[1]).input[1:]
    node.input[3] = s.before(node, "DequantizeLinear", "ring_k_1", *scale)
    return node.name


@case("input pos is of another type")
def a_wide_position(s: Surgery) -> str:
    core(s).input[6] = graph_input(s, "wide", TensorProto.INT64, (1,))
    return core(s).name


@case("age_bias is of another type")
def biases_in_half(s: Surgery) -> str:
    core(s).input[5] = s.constant(s.array(core(s).input[5]).astype(np.float16))
    return core(s).name


@case("output is of another type")
def a_float_output(s: Surgery) -> str:
    declared = next(value for value in s.graph.value_info if value.name == core(s).output[0])
    declared.type.tensor_type.elem_type = TensorProto.FLOAT
    return core(s).name


@case("age_bias is of another shape")
def biases_by_age_first(s: Surgery) -> str:
    core(s).input[5] = s.constant(s.array(core(s).input[5]).T.copy())
    return core(s).name


@case("q is of another shape")
def a_flat_query(s: Surgery) -> str:
    reshape = s.maker(s.maker(s.maker(core(s).input[0]).input[0]).input[0])
    reshape.input[1] = s.constant(np.array([1, H * D]))
    return core(s).name


@case("ring_k is of another shape")
def a_ring_with_a_slot_for_the_new_bin(s: Surgery) -> str:
    core(s).input[3] = graph_input(s, "longer", TensorProto.INT8, (H, W, D))
    return core(s).name


@case("context is of another shape")
def a_flat_output(s: Surgery) -> str:
    declared = next(value for value in s.graph.value_info if value.name == core(s).output[0])
    declared.CopyFrom(helper.make_tensor_value_info(core(s).output[0], TensorProto.INT8, (1, H * D)))
    return core(s).name


@case("input k is not quantized right before it")
def a_key_from_outside(s: Surgery) -> str:
    core(s).input[1] = graph_input(s, "given", TensorProto.INT8, (H, D))
    return core(s).name


@case("a pair of DQ and Q precedes its input q")
def a_query_rounded_before(s: Surgery) -> str:
    quantizer = s.maker(core(s).input[0])
    settings = quantizer.input[1:]
    eight = s.before(quantizer, "QuantizeLinear", quantizer.input[0], *settings)
    quantizer.input[0] = s.before(quantizer, "DequantizeLinear", eight, *settings)
    return core(s).name


@case("age_bias is not a constant")
def biases_from_outside(s: Surgery) -> str:
    core(s).input[5] = graph_input(s, "biases", TensorProto.FLOAT, (H, W))
    return core(s).name


@case("ring_v is not an input of the graph")
def a_ring_that_is_computed(s: Surgery) -> str:
    node = core(s)
    scale = s.maker(node.input[2]).input[1:]
    floats = s.before(node, "DequantizeLinear", "ring_v_1", *scale)
    node.input[4] = s.before(node, "QuantizeLinear", floats, *scale)
    return node.name


@case("live is not an input of the graph")
def a_fixed_fill(s: Surgery) -> str:
    core(s).input[7] = s.constant(np.array([3], np.int32))
    return core(s).name


# ---------------------------------------------------------------- where its output goes


@case("elsewhere than into a DequantizeLinear")
def a_context_that_leaves_the_graph(s: Surgery) -> str:
    s.graph.output.append(helper.make_tensor_value_info(core(s).output[0], TensorProto.INT8, (H, D)))
    return core(s).name


@case("elsewhere than into a DequantizeLinear")
def a_context_nobody_reads(s: Surgery) -> str:
    node = core(s)
    reader = s.reader(node.output[0])
    reader.input[0] = "k_new_1"
    return node.name


@case("elsewhere than into a DequantizeLinear.*\n.*Reshape")
def integers_moved_behind_it(s: Surgery) -> str:
    node, reader = core(s), s.reader(core(s).output[0])
    reader.input[0] = s.before(reader, "Reshape", node.output[0], s.constant(np.array([H, D])))
    return node.name


@case("a pair of DQ and Q follows it")
def a_context_rounded_again(s: Surgery) -> str:
    """Adds the second half of Q -> DQ -> plugin -> Q -> DQ."""
    node, reader = core(s), s.reader(core(s).output[0])
    after = s.reader(reader.output[0])
    eight = s.before(after, "QuantizeLinear", reader.output[0], *reader.input[1:])
    after.input[0] = s.before(after, "DequantizeLinear", eight, *reader.input[1:])
    return node.name


# ---------------------------------------------------------------- attributes and scales


@case("other attributes than its plugin reads")
def an_attribute_left_out(s: Surgery) -> str:
    return changed(s, "v_scale")


@case("other attributes than its plugin reads")
def an_attribute_the_plugin_would_not_see(s: Surgery) -> str:
    return changed(s, "", window=W)


@case("other attributes than its plugin reads")
def another_version_of_the_plugin(s: Surgery) -> str:
    return changed(s, "", plugin_version="2")


@case("v_scale is not a single float.*\n.*: +int")
def an_integer_for_a_float(s: Surgery) -> str:
    return changed(s, "v_scale", v_scale=1)


@case("v_scale is not a single float.*\n.*: +tensor")
def a_tensor_for_a_float(s: Surgery) -> str:
    return changed(s, "v_scale", v_scale=helper.make_tensor("v", TensorProto.INT64, [1], [1]))


@case("v_scale is not a single float.*\n.*: +floats")
def a_list_for_a_float(s: Surgery) -> str:
    return changed(s, "v_scale", v_scale=[0.1])


@case("context_inv is not positive and finite")
def a_negative_scale(s: Surgery) -> str:
    return changed(s, "context_inv", context_inv=-1.0)


@case("score_scale is not what Q and DQ say")
def a_score_scale_without_the_root(s: Surgery) -> str:
    value = next(entry.f for entry in core(s).attribute if entry.name == "score_scale")
    return changed(s, "score_scale", score_scale=value * D**0.5)


@case("v_scale is not what Q and DQ say")
def a_value_scale_of_another_layer(s: Surgery) -> str:
    other = s.node("EdAttention", "layers.0.attention")
    return changed(s, "v_scale", v_scale=next(entry.f for entry in other.attribute if entry.name == "v_scale"))


@case("context_inv is not what Q and DQ say")
def a_scale_for_its_reciprocal(s: Surgery) -> str:
    value = next(entry.f for entry in core(s).attribute if entry.name == "context_inv")
    return changed(s, "context_inv", context_inv=1 / value)


@case("context_inv is not what Q and DQ say")
def a_second_reader_with_another_scale(s: Surgery) -> str:
    """Adds a reader whose values go nowhere, so that only the rules can notice it."""
    node, reader = core(s), s.reader(core(s).output[0])
    scale = s.constant(s.array(reader.input[1]) * np.float32(1.5))
    s.before(reader, "DequantizeLinear", node.output[0], scale, reader.input[2])
    return node.name


@case("its scale is not one positive constant")
def a_context_scale_that_is_computed(s: Surgery) -> str:
    reader = s.reader(core(s).output[0])
    reader.input[1] = s.before(reader, "Identity", reader.input[1])
    return reader.name


@case("its scale is not one positive constant")
def a_context_scale_of_zero(s: Surgery) -> str:
    reader = s.reader(core(s).output[0])
    reader.input[1] = s.constant(np.float32(0))
    return reader.name


@case("8-bit tensor goes into it")
def the_node_of_somebody_else(s: Surgery) -> str:
    """Moves the node to another domain, where the rules take it for any other operator."""
    core(s).domain = "elsewhere"
    s.model.opset_import.append(helper.make_opsetid("elsewhere", 1))
    return core(s).name


@pytest.mark.parametrize("name", CASES.all)
def test_a_broken_rule_names_the_node(name: str) -> None:
    CASES.require_caught(name)


def test_a_good_graph_passes_the_rules() -> None:
    require_explicit_quantization(GOOD)
    assert [node.op_type for node in GOOD.graph.node].count("EdAttention") == SMALL.layers


def test_a_graph_that_defines_the_node_is_not_for_tensorrt() -> None:
    """TensorRT would import the function in place of the plugin."""
    with pytest.raises(EngineError, match="'EdAttention' as a function"):
        require_explicit_quantization(add_definition(GOOD))


def test_the_rules_use_the_declared_type_of_the_nodes_output() -> None:
    """onnx infers nothing for an unknown node, so without the declaration no later shape is static."""
    surgery = Surgery(GOOD)
    del surgery.graph.value_info[:]
    with pytest.raises(EngineError, match="output is of another type"):
        require_explicit_quantization(surgery.model)


def test_attributes_have_the_types_that_the_parser_reads() -> None:
    kinds = {entry.type for node in GOOD.graph.node if node.domain for entry in node.attribute}
    assert kinds == {AttributeProto.FLOAT}
    assert not any(
        entry.name in ("plugin_version", "plugin_namespace") for n in GOOD.graph.node for entry in n.attribute
    )
    assert onnx.defs.has("EdAttention") is False
