"""Both INT8 graphs compute what the oracle computes, up to the order of sums (docs/numerics.md, "The near class").

The order of sums turns a few values in a million over a rounding edge. Such an integer differs by 1, and the integers
that depend on it may differ too. The bounds are therefore shares over many bins and hold for no single one.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgedistill.config import StudentShape
from edgedistill.errors import BundleError
from edgedistill.numerics import Int8Model, Oracle, part_names
from edgedistill.quantization.graph_rules.quantization_rules import require_explicit_quantization
from edgedistill.quantization.onnx_graph import (
    add_definition,
    graph_for_plugin,
    graph_from_integers,
    graph_from_student,
)
from edgedistill.runtime.onnx_engine import OnnxEngine

from ...numerics.students import ODD, SMALL, random_bins, random_model, random_weights, without_lags

SHAPES = {
    "small": SMALL,
    "odd, one tap, no lags": ODD,
    "shortest window": replace(SMALL, window=2, lags=0),
    "window 200": replace(SMALL, window=200, layers=1),
    "taps reach further than lags": replace(SMALL, taps=4, dilation=3, lags=1),
    "more lags than taps": replace(SMALL, taps=1, dilation=1, lags=7),
}
FORMS = {"plain": graph_from_integers, "plugin": graph_for_plugin}
KEEPABLE = [part for part in part_names(SMALL) if not part.endswith("attention")]


@pytest.fixture(params=FORMS)
def form(request: pytest.FixtureRequest) -> str:
    """Names the form: the core in standard operators, or as the custom node with its definition."""
    return request.param


def opened(model: Int8Model, form: str) -> OnnxEngine:
    return OnnxEngine(add_definition(FORMS[form](model.shape, model.tensors)).SerializeToString(), model.shape)


def appended(state: dict, new: dict) -> None:
    """Takes one step of the runtime on a state of the oracle."""
    pos, slots = int(state["pos"][0]), len(next(iter(state.values()))[0])
    for name, values in new.items():
        if name.startswith("ring"):
            state[name][:, pos] = values
    state["pos"][0], state["live"][0] = (pos + 1) % slots, min(int(state["live"][0]) + 1, slots)
    if "lags" in state:
        state["lags"][1:] = state["lags"][:-1].copy()
        state["lags"][0] = new["lags"]


def differences(model: Int8Model, form: str, steps: int) -> tuple[np.ndarray, np.ndarray]:
    """Returns how integers and outputs differ, in standard deviations, with the oracle's state at each step."""
    engine, oracle, bins = opened(model, form), Oracle(model), random_bins(model.shape, steps)
    state, traced = oracle.export_state(), oracle.trace(bins)
    integers, outputs = [], []
    for t, bin_ in enumerate(bins):
        engine.import_state(state)
        outputs.append(engine.step(bin_) - traced["kinematics"][t])
        layers = range(model.shape.layers)
        new = {f"ring_{kind}_{i}": traced[f"layers.{i}.{kind}"][t] for i in layers for kind in "kv"}
        new["lags"] = traced["bin"][t]
        pos, found = int(state["pos"][0]), engine.export_state()
        appended(state, new)
        rings = [found[name][:, pos].astype(int) - state[name][:, pos] for name in found if name.startswith("ring")]
        if "lags" in state:
            rings.append(found["lags"][0].astype(int) - state["lags"][0])
        integers.append(np.concatenate([ring.ravel() for ring in rings]))
    return np.array(integers), np.array(outputs) / traced["kinematics"].std(0)


@pytest.mark.exact_int8_products
@pytest.mark.parametrize("name", [pytest.param(n, marks=pytest.mark.variant if "taps" in n else []) for n in SHAPES])
def test_with_the_oracles_state_integers_and_outputs_equal_the_oracles(name: str, form: str) -> None:
    integers, outputs = differences(random_model(SHAPES[name]), form, 2000)
    assert np.mean(integers != 0) <= 0.001
    assert np.mean(np.abs(integers) > 1) <= 0.0001
    assert np.mean(np.abs(outputs) > 0.01) <= 0.003
    assert np.median(np.abs(outputs)) <= 1e-5


@pytest.mark.exact_int8_products
def test_a_readout_of_the_latents_alone_gives_the_oracles_outputs(form: str) -> None:
    _, outputs = differences(without_lags(random_model()), form, 300)
    assert np.mean(np.abs(outputs) > 0.01) <= 0.003
    assert np.median(np.abs(outputs)) <= 1e-5


@pytest.mark.exact_int8_products
@pytest.mark.parametrize("part", KEEPABLE)
def test_with_a_part_in_float32_the_graph_stays_near_the_oracle(part: str, form: str) -> None:
    integers, outputs = differences(random_model(SMALL, keep=(part,)), form, 300)
    assert np.mean(integers != 0) <= 0.005
    assert np.mean(np.abs(outputs) > 0.01) <= 0.02


@pytest.mark.exact_int8_products
@pytest.mark.parametrize("name", ["small", "window 200"])
def test_with_its_own_state_the_graph_stays_near_the_oracle(name: str, form: str) -> None:
    model = random_model(SHAPES[name])
    engine, bins = opened(model, form), random_bins(model.shape, 3000)
    expected = Oracle(model).run(bins)
    found = np.stack([engine.step(bin_) for bin_ in bins])
    assert 1 - np.mean((found - expected) ** 2) / np.var(expected) > 0.999
    assert engine.latent.shape == (model.shape.d,)


@pytest.mark.exact_int8_products
@settings(max_examples=30, deadline=None, derandomize=True)
@given(
    form=st.sampled_from(sorted(FORMS)),
    channels=st.integers(1, 6),
    outputs=st.integers(1, 3),
    head_dim=st.sampled_from([1, 3, 8]),
    layers=st.integers(1, 3),
    heads=st.integers(1, 4),
    window=st.integers(2, 40),
    taps=st.integers(1, 4),
    dilation=st.integers(1, 3),
    lags=st.integers(0, 8),
    place=st.floats(0, 1, exclude_max=True),
    filled=st.floats(0, 1),
    seed=st.integers(0, 2**16),
)
def test_a_graph_of_any_shape_is_near_the_oracle_from_any_state(
    form: str, channels: int, outputs: int, head_dim: int, layers: int, heads: int, window: int, taps: int,
    dilation: int, lags: int, place: float, filled: float, seed: int,
) -> None:  # fmt: skip
    """Every slot holds integers, also those that are not live, so that reading a dead slot shows."""
    shape = StudentShape(channels, outputs, heads * head_dim, layers, heads, window, 7, taps, dilation, lags)
    model, rng = random_model(shape, seed), np.random.default_rng(seed)
    engine, oracle = opened(model, form), Oracle(model)
    state = {name: array.copy() for name, array in oracle.export_state().items()}
    for name in state.keys() - {"pos", "live"}:
        state[name] = rng.integers(-127, 128, state[name].shape, np.int8)
    state["pos"][0], state["live"][0] = int(place * (window - 1)), round(filled * (window - 1))
    engine.import_state(state)
    oracle.import_state(state)
    for bin_ in random_bins(shape, 3, seed):
        np.testing.assert_allclose(engine.step(bin_), oracle.step(bin_), atol=0.1, rtol=0.02)
        np.testing.assert_allclose(engine.latent, oracle.latent, atol=0.1)
    found, expected = engine.export_state(), oracle.export_state()
    for name in found:
        assert np.abs(found[name].astype(int) - expected[name]).max(initial=0) <= 3, name


def test_saturated_integers_stay_within_minus_127_and_127(form: str) -> None:
    model = random_model(SMALL)
    tight = {n: v * np.float32(1e-3) if n in ("layers.0.k.scale", "layers.0.v.scale") else v
             for n, v in model.tensors.items()}  # fmt: skip
    tight["layers.0.score_scale"] = tight["layers.0.score_scale"] * np.float32(1e-3)
    engine = opened(Int8Model(SMALL, tight), form)
    for bin_ in 100 * random_bins(SMALL, 20):
        engine.step(bin_)
    state = engine.export_state()
    assert state["lags"].min() == state["ring_k_0"].min() == state["ring_v_0"].min() == -127
    Oracle(model).import_state(state)


def test_inputs_and_outputs_keep_the_contract(form: str) -> None:
    model = random_model(SMALL)
    graph = FORMS[form](SMALL, model.tensors)
    onnx.checker.check_model(graph, full_check=True)
    assert [entry.version for entry in graph.opset_import if not entry.domain] == [19]
    assert graph.ir_version == 9

    def signature(values: object) -> dict[str, tuple[int, tuple[int, ...]]]:
        tensors = {value.name: value.type.tensor_type for value in values}
        return {name: (t.elem_type, tuple(d.dim_value for d in t.shape.dim)) for name, t in tensors.items()}

    float32, int8, int32 = onnx.TensorProto.FLOAT, onnx.TensorProto.INT8, onnx.TensorProto.INT32
    rings = {f"ring_{kind}_{i}": (int8, (2, 8, 16)) for i in range(2) for kind in "kv"}
    counters = {"pos": (int32, (1,)), "live": (int32, (1,))}
    assert signature(graph.graph.input) == {"bin": (float32, (5,)), **rings, **counters, "lags": (int8, (4, 5))}
    new = {f"{kind}_new_{i}": (int8, (2, 16)) for i in range(2) for kind in "kv"}
    floats = {"kinematics": (float32, (2,)), "latent": (float32, (32,))}
    assert signature(graph.graph.output) == {**floats, **new, "bin_new": (int8, (5,))}
    order = ["bin", "ring_k_0", "ring_v_0", "ring_k_1", "ring_v_1", "pos", "live", "lags"]
    assert [value.name for value in graph.graph.input] == order
    order = ["kinematics", "latent", "k_new_0", "v_new_0", "k_new_1", "v_new_1", "bin_new"]
    assert [value.name for value in graph.graph.output] == order


def test_weights_are_stored_as_the_integers_of_the_student(form: str) -> None:
    model = random_model(SMALL)
    graph = FORMS[form](SMALL, model.tensors)
    stored = {tuple(t.dims): onnx.numpy_helper.to_array(t) for t in graph.graph.initializer}
    assert np.array_equal(stored[48, 32], model.tensors["layers.1.wdown"].T)
    assert stored[48, 32].dtype == np.int8
    large = replace(SMALL, d=128, ff=512)
    whole = graph_from_student(large, random_weights(large)).ByteSize()
    assert FORMS[form](large, random_model(large).tensors).ByteSize() < 0.35 * whole


def test_the_same_tensors_give_the_same_bytes_and_pass_the_rules(form: str) -> None:
    for keep in ([], KEEPABLE[:3], KEEPABLE):
        model = random_model(SMALL, keep=tuple(keep))
        first, second = (FORMS[form](SMALL, model.tensors) for _ in range(2))
        assert first.SerializeToString() == second.SerializeToString()
        require_explicit_quantization(first, keep)


def test_a_tensor_that_does_not_fit_is_named(form: str) -> None:
    tensors = dict(random_model(SMALL).tensors)
    with pytest.raises(BundleError, match=r"layers\.1\.wq"):
        FORMS[form](SMALL, {**tensors, "layers.1.wq": tensors["layers.1.wq"][:1]})
    with pytest.raises(BundleError, match=r"bin\.scale"):
        FORMS[form](SMALL, {name: value for name, value in tensors.items() if name != "bin.scale"})
