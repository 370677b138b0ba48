"""Can TensorRT import a graph as it stands, strongly typed? The rules every form obeys, quantized or not.

A model goes in; an EngineError names the first node that breaks one, and the rule. Strong typing converts nothing by
itself, and shapes are static, because dynamic ones keep transformers from being fused on TensorRT 10.3. Which
operators are imported for which types is what onnx-tensorrt's list of operators says for TensorRT 10; only those
that our graphs use are listed here, so a new one has to be looked up first.
"""

from __future__ import annotations

import onnx
from onnx import NodeProto, TensorProto

from edgedistill.errors import EngineError
from edgedistill.quantization.graph_rules.attention_rules import OPERATOR, is_attention
from edgedistill.quantization.graph_rules.model_reading import ModelByName, broken, named, type_name

FIRST_OPSET = 19  # before, a scale could not have the type of a float16 tensor
FLOATING = (TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.BFLOAT16, TensorProto.DOUBLE)

FLOATS = (TensorProto.FLOAT, TensorProto.FLOAT16)
NUMBERS = (*FLOATS, TensorProto.INT32, TensorProto.INT64)
ANY = (*NUMBERS, TensorProto.BOOL)
IMPORTED = {  # of the tensors that an operator computes with or moves
    **dict.fromkeys(("Clip", "Exp", "Gemm", "MatMul", "Pow", "Sigmoid", "Softmax", "Sqrt", "QuantizeLinear"), FLOATS),
    **dict.fromkeys(("Add", "Div", "LessOrEqual", "Max", "Mod", "Mul", "Sub"), NUMBERS),
    **dict.fromkeys(("ReduceMax", "ReduceMean", "ReduceSum"), NUMBERS),
    **dict.fromkeys(("Cast", "Concat", "Constant", "Gather", "Identity", "Reshape", "Slice", "Split"), ANY),
    **dict.fromkeys(("Squeeze", "Transpose", "Unsqueeze", "Where"), ANY),
    "DequantizeLinear": (TensorProto.INT8,),
}
SETTINGS = ("Reshape", "ReduceMax", "ReduceMean", "ReduceSum", "Slice", "Split", "Squeeze", "Unsqueeze")  # after x


def require_strong_typing(model: onnx.ModelProto) -> None:
    """EngineError, naming the node, unless TensorRT can import `model` without converting anything."""
    require_opset(model)
    graph = ModelByName.of(model)
    for node in graph.nodes:
        require_typed_node(graph, node)
    require_typed_model(model, graph)


def require_typed_node(graph: ModelByName, node: NodeProto) -> None:
    """The rules of single nodes."""
    _require_one_float_type(graph, node)
    _require_imported(graph, node)
    _require_constant_settings(graph, node)


def require_typed_model(model: onnx.ModelProto, graph: ModelByName) -> None:
    """The rules of a whole graph, and onnx's own."""
    _require_no_definition(model)
    _require_static_shapes(graph)
    try:
        onnx.checker.check_model(model, full_check=True)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as error:
        raise EngineError("onnx itself refuses the graph", got=error) from error


def require_opset(model: onnx.ModelProto) -> None:
    """EngineError where scales could not have the type of their tensors."""
    opset = next((entry.version for entry in model.opset_import if entry.domain in ("", "ai.onnx")), 0)
    if opset < FIRST_OPSET:
        raise EngineError(
            "the graph's opset is too old for explicit quantization",
            got=f"opset {opset}",
            expected=f"{FIRST_OPSET} or later: scales of the tensor's own type",
        )


def _require_one_float_type(graph: ModelByName, node: NodeProto) -> None:
    types = {graph.type(name) for name in node.input} & set(FLOATING)
    if len(types) > 1:
        raise broken(node, "its inputs are of several float types", sorted(map(type_name, types)), "one, by a Cast")


def _require_imported(graph: ModelByName, node: NodeProto) -> None:
    if is_attention(node):
        return
    allowed = IMPORTED.get(node.op_type) if node.domain in ("", "ai.onnx") else None
    if allowed is None:
        operator = f"{node.domain}.{node.op_type}" if node.domain else node.op_type
        raise broken(node, "TensorRT is not known to import it", operator, f"{OPERATOR} or a listed operator of ONNX")
    computed = [*node.input[:1], *node.output[:1]] if node.op_type == "Cast" else node.input[:1]
    for name in node.input[1:] if node.op_type == "Where" else computed:
        if graph.type(name) not in (*allowed, None):
            raise broken(node, "TensorRT imports it for other types", type_name(graph.type(name)), _listed(allowed))


def _require_constant_settings(graph: ModelByName, node: NodeProto) -> None:
    """Shapes, axes and sizes that a step would compute are shapes that are not static."""
    for name in node.input[1:] if node.op_type in SETTINGS else ():
        if name and name not in graph.constants:
            raise broken(node, "its shape or axes are computed", name, "an initializer")


def _require_no_definition(model: onnx.ModelProto) -> None:
    """A function of a plugin's name is imported in its place, integers and all."""
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
            where = named(node) if node is not None else f"input '{name}'"
            raise EngineError(f"{where}: '{name}' has no static shape", expected="a number for every dimension")


def _listed(types: tuple[int, ...]) -> str:
    return ", ".join(map(type_name, types))
