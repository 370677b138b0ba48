"""The step graph computes what docs/numerics.md ("The step") says, from any state and in every shape."""

from __future__ import annotations

import numpy as np
import onnx
import onnxruntime
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgedistill.config import StudentShape
from edgedistill.errors import EngineError
from edgedistill.quantization.onnx_graph import graph_from_student, list_weight_shapes

SHAPES = {
    "smallest": StudentShape(1, 1, 4, 1, 1, 2, 4, 1, 1, 0),
    "window 2": StudentShape(3, 2, 8, 2, 2, 2, 8, 2, 1, 1),
    "window 31": StudentShape(5, 3, 16, 3, 4, 31, 24, 5, 2, 10),
    "window 200": StudentShape(8, 2, 32, 2, 8, 200, 64, 5, 2, 10),
    "no lags": StudentShape(4, 2, 8, 2, 2, 31, 16, 3, 2, 0),
    "more lags than taps": StudentShape(4, 2, 8, 2, 2, 31, 16, 2, 1, 12),
    "more taps than lags": StudentShape(4, 2, 8, 2, 2, 31, 16, 4, 3, 5),
    "deep": StudentShape(4, 2, 8, 6, 1, 5, 16, 2, 1, 2),
}


def random_weights(shape: StudentShape, seed: int = 0) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    sizes = list_weight_shapes(shape)
    return {n: (rng.normal(size=s) / np.sqrt(s[-1]) + ("norm" in n)).astype(np.float32) for n, s in sizes.items()}


def random_state(shape: StudentShape, pos: int, live: int, seed: int = 0) -> dict[str, np.ndarray]:
    """Fills every slot, also those that are not live, with large numbers, so that reading a dead slot shows."""
    rng = np.random.default_rng(seed)
    slots = shape.window - 1
    dead = (pos - 1 - np.arange(slots)) % slots + 1 > live
    state: dict[str, np.ndarray] = {"pos": np.array([pos], np.int32), "live": np.array([live], np.int32)}
    for i in range(shape.layers):
        for kind in "kv":
            ring = rng.normal(size=(shape.heads, slots, shape.head_dim))
            ring[:, dead] *= 100
            state[f"ring_{kind}_{i}"] = ring.astype(np.float32)
    if shape.lag_rows:
        state["lags"] = rng.normal(size=(shape.lag_rows, shape.channels)).astype(np.float32)
    return state


def rms(x: np.ndarray) -> np.ndarray:
    return x / np.sqrt(np.mean(x**2) + 1e-6)


def step_reference(shape: StudentShape, w: dict, state: dict, bin: np.ndarray) -> dict[str, np.ndarray]:
    """Computes the definition of a step, slot by slot, in float64."""
    lags = state.get("lags", np.zeros((0, shape.channels)))
    history = np.concatenate([bin[None], lags]).astype(np.float64)
    pos, live, slots = int(state["pos"][0]), int(state["live"][0]), shape.window - 1
    out: dict[str, np.ndarray] = {}
    x = w["embed.weight"] @ history[: shape.taps * shape.dilation : shape.dilation].ravel() + w["embed.bias"]
    for i in range(shape.layers):
        layer = {name.split(".")[-1]: v.astype(np.float64) for name, v in w.items() if name.startswith(f"layers.{i}.")}
        n = rms(x) * layer["norm_attn"]
        q, k, v = ((layer[m] @ n).reshape(shape.heads, -1) for m in ("wq", "wk", "wv"))
        context = np.zeros_like(q)
        for h in range(shape.heads):
            scores, values = [q[h] @ k[h] / np.sqrt(shape.head_dim) + layer["age_bias"][h, 0]], [v[h]]
            for slot in range(slots):
                age = (pos - 1 - slot) % slots + 1
                if age <= live:
                    score = q[h] @ state[f"ring_k_{i}"][h, slot] / np.sqrt(shape.head_dim)
                    scores.append(score + layer["age_bias"][h, age])
                    values.append(state[f"ring_v_{i}"][h, slot])
            p = np.exp(np.array(scores) - max(scores))
            context[h] = p @ np.array(values) / p.sum()
        x = x + layer["wo"] @ context.ravel()
        n = rms(x) * layer["norm_mlp"]
        gate = layer["wgate"] @ n
        x = x + layer["wdown"] @ (gate / (1 + np.exp(-gate)) * (layer["wup"] @ n))
        out |= {f"k_new_{i}": k, f"v_new_{i}": v}
    out["latent"] = rms(x) * w["norm_out"]
    lagged = w["readout.lags"] @ history[: shape.lags + 1].ravel()
    out["kinematics"] = w["readout.latent"] @ out["latent"] + lagged + w["readout.bias"]
    return out


def run_graph(model: onnx.ModelProto, state: dict, bin: np.ndarray) -> dict[str, np.ndarray]:
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    return dict(zip([o.name for o in session.get_outputs()], session.run(None, {"bin": bin, **state}), strict=True))


def assert_same(found: dict[str, np.ndarray], expected: dict[str, np.ndarray]) -> None:
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        np.testing.assert_allclose(found[name], value, rtol=2e-4, atol=2e-5, err_msg=name)


@pytest.mark.parametrize("name", SHAPES)
def test_the_graph_equals_the_definition_from_an_empty_to_a_wrapped_ring(name: str) -> None:
    shape = SHAPES[name]
    weights, slots = random_weights(shape), shape.window - 1
    model = graph_from_student(shape, weights)
    bin = np.random.default_rng(9).normal(size=shape.channels).astype(np.float32)
    for pos, live in {(0, 0), (slots // 2, slots // 2), (0, slots), (slots - 1, slots), (slots // 3, slots)}:
        state = random_state(shape, pos, live)
        assert_same(run_graph(model, state, bin), step_reference(shape, weights, state, bin))


@settings(max_examples=25, deadline=None)
@given(
    channels=st.integers(1, 6),
    outputs=st.integers(1, 4),
    head_dim=st.sampled_from([1, 3, 8]),
    layers=st.integers(1, 3),
    heads=st.integers(1, 4),
    window=st.integers(2, 40),
    taps=st.integers(1, 4),
    dilation=st.integers(1, 3),
    lags=st.integers(0, 12),
    place=st.floats(0, 1, exclude_max=True),
    filled=st.floats(0, 1),
    seed=st.integers(0, 2**16),
)
def test_the_graph_equals_the_definition_for_any_shape_and_state(
    channels: int, outputs: int, head_dim: int, layers: int, heads: int, window: int, taps: int,
    dilation: int, lags: int, place: float, filled: float, seed: int,
) -> None:  # fmt: skip
    shape = StudentShape(channels, outputs, heads * head_dim, layers, heads, window, 7, taps, dilation, lags)
    weights = random_weights(shape, seed)
    state = random_state(shape, int(place * (window - 1)), round(filled * (window - 1)), seed)
    bin = np.random.default_rng(seed).normal(size=channels).astype(np.float32)
    model = graph_from_student(shape, weights)
    assert_same(run_graph(model, state, bin), step_reference(shape, weights, state, bin))


def test_inputs_and_outputs_keep_the_contract() -> None:
    shape = SHAPES["window 31"]
    model = graph_from_student(shape, random_weights(shape))
    onnx.checker.check_model(model, full_check=True)
    assert [o.version for o in model.opset_import] == [19]
    assert model.ir_version == 9
    sizes = {v.name: tuple(d.dim_value for d in v.type.tensor_type.shape.dim) for v in model.graph.input}
    rings = {f"ring_{kind}_{i}": (4, 30, 4) for i in range(3) for kind in "kv"}
    assert sizes == {"bin": (5,), **rings, "pos": (1,), "live": (1,), "lags": (10, 5)}
    sizes = {v.name: tuple(d.dim_value for d in v.type.tensor_type.shape.dim) for v in model.graph.output}
    news = {f"{kind}_new_{i}": (4, 4) for i in range(3) for kind in "kv"}
    assert sizes == {"kinematics": (3,), "latent": (16,), **news}


def test_every_shape_in_the_graph_is_static() -> None:
    shape = SHAPES["window 31"]
    model = onnx.shape_inference.infer_shapes(graph_from_student(shape, random_weights(shape)), strict_mode=True)
    for value in model.graph.value_info:
        assert all(d.HasField("dim_value") for d in value.type.tensor_type.shape.dim), value.name


def test_the_same_weights_give_the_same_bytes() -> None:
    shape = SHAPES["window 2"]
    first, second = (graph_from_student(shape, random_weights(shape)).SerializeToString() for _ in range(2))
    assert first == second


def test_wrong_tensors_are_named() -> None:
    shape = SHAPES["window 2"]
    good = random_weights(shape)
    cases = {
        "layers.1.wq": {**good, "layers.1.wq": good["layers.1.wq"][:1]},
        "embed.bias": {**good, "embed.bias": good["embed.bias"].astype(np.float64)},
        "norm_out": {**good, "norm_out": np.full_like(good["norm_out"], np.nan)},
        "readout.bias": {name: value for name, value in good.items() if name != "readout.bias"},
        "rotary": {**good, "rotary": good["norm_out"]},
    }
    for name, weights in cases.items():
        with pytest.raises(EngineError, match=name):
            graph_from_student(shape, weights)


# ---------------------------------------------------------------- float16


def half_state(state: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    return {name: array.astype(np.float16) if name.startswith("ring") else array for name, array in state.items()}


@pytest.mark.parametrize("name", SHAPES)
def test_the_float16_graph_is_close_to_the_definition(name: str) -> None:
    """The bound is a hundredth of an output's size (0.3 % at most was measured), from any state, dead slots unread."""
    shape = SHAPES[name]
    weights, slots = random_weights(shape), shape.window - 1
    model = graph_from_student(shape, weights, "float16")
    bin = np.random.default_rng(9).normal(size=shape.channels).astype(np.float32)
    for pos, live in {(0, 0), (slots // 2, slots // 2), (0, slots), (slots // 3, slots)}:
        state = half_state(random_state(shape, pos, live))
        found, expected = run_graph(model, state, bin), step_reference(shape, weights, state, bin)
        assert found.keys() == expected.keys()
        for tensor, value in expected.items():
            np.testing.assert_allclose(found[tensor], value, rtol=0.01, atol=0.01 * np.abs(value).max(), err_msg=tensor)


def test_a_float16_graph_multiplies_in_float16_and_keeps_the_rest() -> None:
    shape = SHAPES["window 31"]
    model = graph_from_student(shape, random_weights(shape), "float16")
    onnx.checker.check_model(model, full_check=True)
    inferred = onnx.shape_inference.infer_shapes(model, strict_mode=True).graph
    types = {v.name: v.type.tensor_type.elem_type for v in [*inferred.value_info, *inferred.input, *inferred.output]}
    types |= {t.name: t.data_type for t in inferred.initializer}
    single, half = onnx.TensorProto.FLOAT, onnx.TensorProto.FLOAT16
    for node in model.graph.node:
        kinds = {types[name] for name in node.input if types[name] in (single, half)}
        if node.op_type == "MatMul":
            assert kinds == {half}
        elif node.op_type in ("Add", "Mul", "Div", "Sub", "Pow", "ReduceMean", "Sqrt", "Softmax", "Sigmoid"):
            assert kinds <= {single}, node.name
    names = {v.name: types[v.name] for v in [*model.graph.input, *model.graph.output]}
    assert {name for name, kind in names.items() if kind == half} == {
        f"{kind}{i}" for i in range(3) for kind in ("ring_k_", "ring_v_", "k_new_", "v_new_")
    }
    assert model.ir_version == 9
    single_bytes = graph_from_student(shape, random_weights(shape)).ByteSize()
    assert model.ByteSize() < 0.85 * single_bytes


def test_a_weight_beyond_float16_is_named() -> None:
    shape = SHAPES["window 2"]
    weights = random_weights(shape)
    weights["embed.bias"] += 1e5  # added in float32: no matter
    graph_from_student(shape, weights, "float16")
    weights["layers.0.wup"][0, 0] = 7e4
    with pytest.raises(EngineError, match=r"layers\.0\.wup"):
        graph_from_student(shape, weights, "float16")
