"""Checks that a model, quantized or not, obeys TensorRT's rules of strong typing.

The input is a model. An EngineError names the first node that breaks a rule, and the rule. Strong typing converts
nothing by itself. Shapes must be static, because dynamic ones keep TensorRT 10.3 from fusing transformers. The types
for which an operator is imported are those in onnx-tensorrt's list of operators for TensorRT 10. Only operators that
our graphs use are listed here, so a new one has to be looked up first.
"""

from __future__ import annotations

import onnx
from onnx import NodeProto, TensorProto

from edgedistill.errors import EngineError
from edgedistill.quantization.graph_rules.attention_rules import OPERATOR, is_attention
from edgedistill.quantization.graph_rules.model_reading import ModelByName, name_node, name_type, rule_error

FIRST_OPSET = 19  # before it, a scale could not have the type of a float16 tensor
FLOATING = (TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.BFLOAT16, TensorProto.DOUBLE)

FLOATS = (TensorProto.FLOAT, TensorProto.FLOAT16)
NUMBERS = (*FLOATS, TensorProto.INT32, TensorProto.INT64)
ANY = (*NUMBERS, TensorProto.BOOL)
IMPORTED = {  # types of the tensors that an operator computes with or moves
    **dict.fromkeys(("Clip", "Exp", "Gemm", "MatMul", "Pow", "Sigmoid", "Softmax", "Sqrt", "QuantizeLinear"), FLOATS),
    **dict.fromkeys(("Add", "Div", "LessOrEqual", "Max", "Mod", "Mul", "Sub"), NUMBERS),
    **dict.fromkeys(("ReduceMax", "ReduceMean", "ReduceSum"), NUMBERS),
    **dict.fromkeys(("Cast", "Concat", "Constant", "Gather", "Identity", "Reshape", "Slice", "Split"), ANY),
    **dict.fromkeys(("Squeeze", "Transpose", "Unsqueeze", "Where"), ANY),
    "DequantizeLinear": (TensorProto.INT8,),
}
SETTINGS = (
    "Reshape",
    "ReduceMax",
    "ReduceMean",
    "ReduceSum",
    "Slice",
    "Split",
    "Squeeze",
    "Unsqueeze",
)  # inputs after x


def require_strong_typing(model: onnx.ModelProto) -> None:
    """Raises EngineError that names a node, unless TensorRT can import `model` without converting anything."""
    require_opset(model)
    graph = ModelByName.from_model(model)
    for node in graph.nodes:
        require_typed_node(graph, node)
    require_typed_model(model, graph)


def require_typed_node(graph: ModelByName, node: NodeProto) -> None:
    """Checks the rules of a single node."""
    _require_one_float_type(graph, node)
    _require_imported(graph, node)
    _require_constant_settings(graph, node)


def require_typed_model(model: onnx.ModelProto, graph: ModelByName) -> None:
    """Checks the rules of a whole graph, and onnx's own."""
    _require_no_definition(model)
    _require_static_shapes(graph)
    try:
        onnx.checker.check_model(model, full_check=True)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as error:
        raise EngineError("onnx itself refuses the graph", got=error) from error


def require_opset(model: onnx.ModelProto) -> None:
    """Raises EngineError where scales could not have the type of their tensors."""
    opset = next((entry.version for entry in model.opset_import if entry.domain in ("", "ai.onnx")), 0)
    if opset < FIRST_OPSET:
        raise EngineError(
            "the graph's opset is too old for explicit quantization",
            got=f"opset {opset}",
            expected=f"{FIRST_OPSET} or later: scales of the tensor's own type",
        )


def _require_one_float_type(graph: ModelByName, node: NodeProto) -> None:
    types = {graph.find_type(name) for name in node.input} & set(FLOATING)
    if len(types) > 1:
        raise rule_error(node, "its inputs are of several float types", sorted(map(name_type, types)), "one, by a Cast")


def _require_imported(graph: ModelByName, node: NodeProto) -> None:
    if is_attention(node):
        return
    allowed = IMPORTED.get(node.op_type) if node.domain in ("", "ai.onnx") else None
    if allowed is None:
        operator = f"{node.domain}.{node.op_type}" if node.domain else node.op_type
        raise rule_error(
            node, "TensorRT is not known to import it", operator, f"{OPERATOR} or a listed operator of ONNX"
        )
    computed = [*node.input[:1], *node.output[:1]] if node.op_type == "Cast" else node.input[:1]
    for name in node.input[1:] if node.op_type == "Where" else computed:
        if graph.find_type(name) not in (*allowed, None):
            raise rule_error(
                node, "TensorRT imports it for other types", name_type(graph.find_type(name)), _list_types(allowed)
            )


def _require_constant_settings(graph: ModelByName, node: NodeProto) -> None:
    """Refuses computed shapes, axes and sizes, because then a shape is not static."""
    for name in node.input[1:] if node.op_type in SETTINGS else ():
        if name and name not in graph.constants:
            raise rule_error(node, "its shape or axes are computed", name, "an initializer")


def _require_no_definition(model: onnx.ModelProto) -> None:
    """Refuses functions, because TensorRT imports one in place of the plugin of that name."""
    for function in model.functions:
        raise EngineError(
            f"the graph defines '{function.name}' as a function",
            got="operators of its own in place of a plugin",
            expected="no function: the form for TensorRT",
        )


def _require_static_shapes(graph: ModelByName) -> None:
    for name, value in graph.values.items():
        tensor = value.type.tensor_type
        if not tensor.HasField("shape") or any(not dim.HasField("dim_value") for dim in tensor.shape.dim):
            node = graph.producers.get(name)
            where = name_node(node) if node is not None else f"input '{name}'"
            raise EngineError(f"{where}: '{name}' has no static shape", expected="a number for every dimension")


def _list_types(types: tuple[int, ...]) -> str:
    return ", ".join(map(name_type, types))
