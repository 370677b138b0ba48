"""The custom node stands where TensorRT needs it, and its definition is the oracle's attention core."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import onnx
import onnxruntime
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper

from edgedistill.config import StudentShape
from edgedistill.numerics import Oracle, quantize
from edgedistill.numerics.attention import attend
from edgedistill.numerics.near import nearness, why_not_near
from edgedistill.quantization.graph_rules.attention_rules import ATTRIBUTES, DOMAIN, INPUTS, OPERATOR
from edgedistill.quantization.onnx_graph import add_definition, graph_for_plugin, graph_from_integers
from edgedistill.quantization.onnx_graph.attention_plugin import write_attention_definition
from edgedistill.runtime.onnx_engine import OnnxEngine

from ...numerics.students import ODD, SMALL, random_bins, random_model

NANO = StudentShape(32, 2, d=64, layers=2, heads=4, window=200, ff=256, taps=5, dilation=2, lags=10)
EDGE = StudentShape(32, 2, d=128, layers=4, heads=4, window=200, ff=512, taps=5, dilation=2, lags=10)
SHAPES = {
    "small": SMALL,
    "odd": ODD,
    "shortest window": replace(SMALL, window=2, lags=0),
    "nano": NANO,
    "edge": EDGE,
}
Arrays = dict[str, np.ndarray]


# ---------------------------------------------------------------- the definition alone


def node_model(heads: int, window: int, head_dim: int, scales: dict[str, float]) -> onnx.ModelProto:
    """Returns a model of one EdAttention node with its definition. The scales are the attributes."""
    sizes = {"age_bias": (heads, window), "pos": (1,), "live": (1,)}
    sizes |= dict.fromkeys(("ring_k", "ring_v"), (heads, window - 1, head_dim))
    inputs = [helper.make_tensor_value_info(n, t, sizes.get(n, (heads, head_dim))) for n, t in INPUTS.items()]
    output = helper.make_tensor_value_info("context", TensorProto.INT8, (heads, head_dim))
    node = helper.make_node(OPERATOR, list(INPUTS), ["context"], domain=DOMAIN, **scales)
    graph = helper.make_graph([node], "core", inputs, [output])
    opsets = [helper.make_opsetid("", 19), helper.make_opsetid(DOMAIN, 1)]
    functions = [write_attention_definition(heads, window, head_dim)]
    model = helper.make_model(graph, opset_imports=opsets, functions=functions)
    model.ir_version = 9
    return model


def core_of(heads: int, window: int, head_dim: int, scales: dict[str, float]) -> Callable[[Arrays], np.ndarray]:
    model = node_model(heads, window, head_dim, scales).SerializeToString()
    session = onnxruntime.InferenceSession(model, providers=["CPUExecutionProvider"])
    return lambda values: session.run(["context"], values)[0]


def oracle_core(values: Arrays, scales: dict[str, float]) -> np.ndarray:
    """Computes the core of docs/numerics.md ("Attention core"). Dead slots are left out and not masked."""
    slots, live = values["ring_k"].shape[1], int(values["live"][0])
    oldest_first = (int(values["pos"][0]) - slots + np.arange(slots)) % slots
    rings = [np.concatenate([values[f"ring_{kind}"][:, oldest_first], values[kind][:, None]], 1) for kind in "kv"]
    score_scale, v_scale, context_inv = (np.array([scales[name]], np.float32) for name in ATTRIBUTES)
    context = attend(values["q"][:, None], *rings, values["age_bias"], live, score_scale, v_scale)
    return quantize(context[0], context_inv)


def random_core(heads: int, window: int, head_dim: int, pos: int, live: int, seed: int) -> Arrays:
    """Returns a random core whose dead slots hold integers too, so that reading one shows."""
    rng = np.random.default_rng(seed)
    new, ring = (heads, head_dim), (heads, window - 1, head_dim)
    sizes = {"q": new, "k": new, "v": new, "ring_k": ring, "ring_v": ring}
    values = {name: rng.integers(-127, 128, size, np.int8) for name, size in sizes.items()}
    values["age_bias"] = rng.standard_normal((heads, window)).astype(np.float32)
    return values | {"pos": np.array([pos], np.int32), "live": np.array([live], np.int32)}


def scales_for(head_dim: int, seed: int) -> dict[str, float]:
    rng = np.random.default_rng(seed)
    return {
        "score_scale": float(rng.uniform(0.5, 3) / (127 * 40 * head_dim**0.5)),
        "v_scale": float(rng.uniform(0.5, 2) / 127),
        "context_inv": float(rng.uniform(100, 600)),
    }


@settings(max_examples=60, deadline=None, derandomize=True)
@given(
    heads=st.integers(1, 4),
    window=st.one_of(st.integers(2, 12), st.sampled_from([31, 129, 200, 400, 1600, 2048])),
    head_dim=st.sampled_from([1, 7, 16, 31, 32, 64]),
    place=st.floats(0, 1, exclude_max=True),
    filled=st.one_of(st.floats(0, 1), st.sampled_from([0.0, 1.0])),
    seed=st.integers(0, 2**16),
)
def test_the_definition_computes_the_oracles_attention_core(
    heads: int, window: int, head_dim: int, place: float, filled: float, seed: int
) -> None:
    scales = scales_for(head_dim, seed)
    values = random_core(heads, window, head_dim, int(place * (window - 1)), round(filled * (window - 1)), seed)
    found = core_of(heads, window, head_dim, scales)(values)
    expected = oracle_core(values, scales)
    assert found.dtype == np.int8
    apart = np.abs(found.astype(int) - expected)
    assert apart.max() <= 1
    assert np.count_nonzero(apart) <= 1 + apart.size // 50  # where Exp rounds a weight the other way


@pytest.mark.parametrize("shape", [(2, 9, 16), (3, 4, 7), (1, 2, 5), (4, 200, 32)])
def test_the_definition_is_the_core_before_at_and_after_the_wrap(shape: tuple[int, int, int]) -> None:
    """Over more than a turn of the ring from empty, hardly an integer differs, and none by more than 1."""
    slots, scales, apart = shape[1] - 1, scales_for(shape[2], 1), []
    core = core_of(*shape, scales)
    for t in range(2 * slots + 3):
        values = random_core(*shape, t % slots, min(t, slots), seed=t)
        apart.append(np.abs(core(values).astype(int) - oracle_core(values, scales)).ravel())
    assert np.concatenate(apart).max() <= 1
    assert np.mean(np.concatenate(apart) != 0) <= 0.001


def test_sums_beyond_24_bits_are_exact() -> None:
    """With equal scores over 2048 bins the sum of one column is 2048 * 127 * 127, which a float32 cannot count."""
    shape, scales = (1, 2048, 16), {"score_scale": 1e-6, "v_scale": 1 / 64, "context_inv": 64.0}
    values = random_core(*shape, pos=0, live=2047, seed=3)
    values["q"][:], values["age_bias"][:] = 0, 0
    values["ring_v"][:, :, 0], values["v"][:, 0] = 127, 127
    values["ring_v"][:, ::2, 1], values["ring_v"][:, 1::2, 1], values["v"][:, 1] = 127, -127, 0
    found = core_of(*shape, scales)(values)
    assert np.array_equal(found, oracle_core(values, scales))
    assert found[0, 0] == 127


def test_dead_slots_are_never_read() -> None:
    shape, scales = (2, 9, 16), scales_for(16, 0)
    core, values = core_of(*shape, scales), random_core(2, 9, 16, pos=3, live=3, seed=0)
    before = core(values)
    for name in ("ring_k", "ring_v"):
        values[name][:, 3:] = np.random.default_rng(1).integers(-128, 128, values[name][:, 3:].shape, np.int8)
    assert np.array_equal(core(values), before)


def test_saturating_contexts_stay_symmetric() -> None:
    shape, scales = (2, 9, 16), scales_for(16, 0) | {"context_inv": 1e6}
    found = core_of(*shape, scales)(random_core(*shape, pos=0, live=8, seed=0))
    assert (found.min(), found.max()) == (-127, 127)


# ---------------------------------------------------------------- the graph around it


@pytest.mark.exact_int8_products
@pytest.mark.parametrize("name", SHAPES)
def test_with_its_definition_onnxruntime_is_near_the_oracle_before_at_and_after_the_wrap(name: str) -> None:
    shape = SHAPES[name]
    model = random_model(shape)
    bins = random_bins(shape, 2 * shape.window + 256)
    graph = add_definition(graph_for_plugin(shape, model.tensors)).SerializeToString()
    oracle = Oracle(model)
    spread = oracle.run(bins).std(0)
    for start in (0, 2 * shape.window):  # from empty until it wraps, and later on
        oracle.reset()
        oracle.run(bins[:start])
        engine = OnnxEngine(graph, shape)
        found = nearness(model, engine, oracle.export_state(), bins[start : start + 256], spread)
        assert why_not_near(found.largest_output, None) is None
        assert found.share_off <= 0.002


@pytest.mark.exact_int8_products
def test_both_int8_graphs_agree_except_for_single_integers() -> None:
    model, bins = random_model(SMALL), random_bins(SMALL, 500)
    forms = (graph_from_integers(SMALL, model.tensors), add_definition(graph_for_plugin(SMALL, model.tensors)))
    plain, plugin = (OnnxEngine(form.SerializeToString(), SMALL) for form in forms)
    found = np.array([(plain.step(bin_), plugin.step(bin_)) for bin_ in bins])
    assert np.mean(np.abs(found[:, 0] - found[:, 1]) > 0.01 * found[:, 0].std(0)) <= 0.01


def test_the_plugin_graph_has_the_node_between_q_and_dq_and_no_other_core() -> None:
    graph = graph_for_plugin(SMALL, random_model(SMALL).tensors).graph
    makers = {name: node.op_type for node in graph.node for name in node.output}
    nodes = [node for node in graph.node if node.op_type == OPERATOR]
    assert [node.name.split("/")[0] for node in nodes] == ["layers.0.attention", "layers.1.attention"]
    for i, node in enumerate(nodes):
        assert [makers[name] for name in node.input[:3]] == ["QuantizeLinear"] * 3
        assert list(node.input[1:5]) == [f"{name}_{i}" for name in ("k_new", "v_new", "ring_k", "ring_v")]
        assert list(node.input[6:]) == ["pos", "live"]
        assert [reader.op_type for reader in graph.node if node.output[0] in reader.input] == ["DequantizeLinear"]
    assert not {"Exp", "Softmax", "Mod", "Where", "Max"} & set(makers.values())


def test_the_attributes_are_the_scales_of_the_student_to_the_bit() -> None:
    model = random_model(SMALL)
    nodes = [node for node in graph_for_plugin(SMALL, model.tensors).graph.node if node.op_type == OPERATOR]
    for i, node in enumerate(nodes):
        found = {entry.name: np.float32(entry.f) for entry in node.attribute}
        names = ("score_scale", "v.scale", "context.inv_scale")
        assert found == {a: model.tensors[f"layers.{i}.{n}"][0] for a, n in zip(ATTRIBUTES, names, strict=True)}


def test_add_definition_changes_nothing_else_in_the_graph() -> None:
    graph = graph_for_plugin(SMALL, random_model(SMALL).tensors)
    before = graph.SerializeToString()
    defined = add_definition(graph)
    assert graph.SerializeToString() == before
    assert not graph.functions
    assert defined.SerializeToString() == add_definition(graph).SerializeToString()
    [function] = defined.functions
    assert (function.name, function.domain) == (OPERATOR, DOMAIN)
    del defined.functions[:]
    assert defined.SerializeToString() == before


def test_a_layer_with_a_float32_output_projection_keeps_the_standard_core() -> None:
    """The node gives integers, and that product reads floats."""
    kept = graph_for_plugin(SMALL, random_model(SMALL, keep=("layers.0.out",)).tensors)
    nodes = [node.name for node in kept.graph.node if node.op_type == OPERATOR]
    assert len(nodes) == 1
    assert nodes[0].startswith("layers.1.")
    every = random_model(SMALL, keep=("layers.0.out", "layers.1.out"))
    plain = graph_from_integers(SMALL, every.tensors).SerializeToString()
    assert add_definition(graph_for_plugin(SMALL, every.tensors)).SerializeToString() == plain


# ---------------------------------------------------------------- what others infer of it


@pytest.mark.parametrize("name", ["small", "odd", "edge"])
def test_shapes_are_inferred_through_the_node_and_its_definition(name: str) -> None:
    shape = SHAPES[name]
    graph = graph_for_plugin(shape, random_model(shape).tensors)
    for model in (graph, add_definition(graph)):
        onnx.checker.check_model(model, full_check=True)
        inferred = onnx.shape_inference.infer_shapes(model, check_type=True, strict_mode=True, data_prop=True).graph
        sizes = {value.name: value.type.tensor_type.shape.dim for value in inferred.value_info}
        made = {output for node in inferred.node for output in node.output}
        assert made <= sizes.keys() | {value.name for value in inferred.output}
        assert all(dim.HasField("dim_value") for dims in sizes.values() for dim in dims)


@pytest.mark.parametrize("name", ["small", "odd", "edge"])
def test_onnxruntimes_strict_inference_comes_to_the_stated_types_and_shapes(name: str) -> None:
    shape = SHAPES[name]
    tensors, options = random_model(shape).tensors, onnxruntime.SessionOptions()
    options.add_session_config_entry("session.strict_shape_type_inference", "1")
    for model in (graph_from_integers(shape, tensors), add_definition(graph_for_plugin(shape, tensors))):
        session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
        found = {value.name: value.shape for value in (*session.get_inputs(), *session.get_outputs())}
        listed = (*model.graph.input, *model.graph.output)
        assert found == {v.name: [dim.dim_value for dim in v.type.tensor_type.shape.dim] for v in listed}
