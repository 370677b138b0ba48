"""Each rule of strong typing, broken alone in a good graph, gives an error that names the node."""

from __future__ import annotations

import copy
from dataclasses import replace

import numpy as np
import pytest
from onnx import TensorProto, helper

from edgedistill.config import StudentShape
from edgedistill.errors import EngineError
from edgedistill.quantization.graph_rules.quantization_rules import require_explicit_quantization
from edgedistill.quantization.graph_rules.typing_rules import require_strong_typing
from edgedistill.quantization.onnx_graph import graph_for_plugin, graph_from_integers, graph_from_student

from ...numerics.students import ODD, SMALL, random_model, random_weights
from .surgery import Cases, Surgery

GOOD = graph_from_student(SMALL, random_weights(SMALL), "float16")
CASES = Cases(GOOD, require_strong_typing)
case = CASES.case
SHAPES = (SMALL, ODD, replace(SMALL, window=2), replace(SMALL, window=200, taps=1, dilation=1, lags=0))


@case("several float types")
def a_product_without_its_cast(s: Surgery) -> str:
    node = s.node("MatMul")
    node.input[0] = s.maker(node.input[0]).input[0]
    return node.name


@case("not known to import it.*\n.*Round")
def an_operator_nobody_looked_up(s: Surgery) -> str:
    node = s.node("Sqrt")
    node.op_type = "Round"
    return node.name


@case(r"not known to import it.*\n.*com\.microsoft")
def an_operator_of_another_owner(s: Surgery) -> str:
    node = s.node("Sigmoid")
    node.op_type, node.domain = "QuickGelu", "com.microsoft"
    s.model.opset_import.append(helper.make_opsetid("com.microsoft", 1))
    s.graph.value_info.append(helper.make_tensor_value_info(node.output[0], TensorProto.FLOAT, (1, SMALL.ff)))
    return node.name


@case("imports it for other types.*\n.*uint8")
def a_cast_to_what_is_no_type_of_tensorrt(s: Surgery) -> str:
    node = s.maker("k_new_0")
    cast = s.before(node, "Cast", node.input[0], to=TensorProto.UINT8)
    node.input[0] = s.before(node, "Cast", cast, to=TensorProto.FLOAT16)
    return cast


@case("imports it for other types.*\n.*int32")
def a_power_of_integers(s: Surgery) -> str:
    node = s.node("Mod")
    power = s.before(node, "Pow", node.input[0], s.constant(np.array([2], np.int32)))
    node.input[0] = power
    return power


@case("imports it for other types.*\n.*double")
def a_choice_of_doubles(s: Surgery) -> str:
    node = s.node("Where")
    values = s.constant(np.zeros(1))
    name = s.before(s.node("Gather", nth=1), "Where", node.input[0], values, values)
    return name


@case("its shape or axes are computed")
def axes_that_are_computed(s: Surgery) -> str:
    node = s.node("ReduceMean")
    node.input[1] = s.before(node, "Identity", node.input[1])
    return node.name


@case("has no static shape")
def a_dynamic_bin(s: Surgery) -> str:
    s.graph.input[0].type.tensor_type.shape.dim[0].dim_param = "channels"
    return "bin"


@pytest.mark.parametrize("name", CASES.all)
def test_a_broken_rule_names_the_node(name: str) -> None:
    CASES.require_caught(name)


@pytest.mark.parametrize("shape", SHAPES, ids=lambda shape: f"window {shape.window}")
def test_all_graphs_for_tensorrt_pass_the_rules(shape: StudentShape) -> None:
    tensors = random_model(shape).tensors
    require_strong_typing(graph_from_student(shape, random_weights(shape), "float16"))
    for write in (graph_from_integers, graph_for_plugin):
        require_strong_typing(write(shape, tensors))
        require_explicit_quantization(write(shape, tensors))


def test_a_graph_that_onnx_refuses_is_refused() -> None:
    model = copy.deepcopy(GOOD)
    next(value for value in model.graph.output if value.name == "latent").type.tensor_type.shape.dim[0].dim_value = 7
    with pytest.raises(EngineError, match="onnx itself refuses"):
        require_strong_typing(model)


def test_an_old_opset_is_refused() -> None:
    model = copy.deepcopy(GOOD)
    model.opset_import[0].version = 18
    with pytest.raises(EngineError, match="opset 18"):
        require_strong_typing(model)
