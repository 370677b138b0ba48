"""Streaming through the engine equals one banded forward pass over all bins since the stream began."""

from __future__ import annotations

import builtins
import subprocess
import sys

import numpy as np
import pytest

from edgedistill.config import StudentShape
from edgedistill.errors import EngineError
from edgedistill.quantization.onnx_graph import graph_from_integers, graph_from_student, list_weight_shapes
from edgedistill.runtime.onnx_engine import OnnxEngine

from ..numerics.students import random_model

SHAPES = {
    "window 2": StudentShape(3, 2, 8, 2, 2, 2, 8, 2, 1, 1),
    "window 7": StudentShape(5, 3, 16, 3, 4, 7, 24, 3, 2, 9),
    "window 31": StudentShape(4, 2, 8, 2, 1, 31, 16, 4, 3, 0),
    "window 200": StudentShape(8, 2, 16, 2, 8, 200, 32, 5, 2, 10),
    "no memory of bins": StudentShape(4, 1, 8, 1, 2, 5, 8, 1, 1, 0),
}


def random_weights(shape: StudentShape, seed: int = 0) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    sizes = list_weight_shapes(shape)
    return {n: (rng.normal(size=s) / np.sqrt(s[-1]) + ("norm" in n)).astype(np.float32) for n, s in sizes.items()}


def opened(shape: StudentShape, seed: int = 0) -> OnnxEngine:
    return OnnxEngine(graph_from_student(shape, random_weights(shape, seed)).SerializeToString(), shape)


def opened_as(precision: str, shape: StudentShape) -> OnnxEngine:
    """Returns an engine for a student's graph in one of the three precisions. The INT8 graph has other weights."""
    if precision == "int8":
        graph = graph_from_integers(shape, random_model(shape).tensors)
    else:
        graph = graph_from_student(shape, random_weights(shape), precision)  # type: ignore[arg-type]
    return OnnxEngine(graph.SerializeToString(), shape)


def random_bins(shape: StudentShape, n: int, seed: int = 1) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(n, shape.channels)).astype(np.float32)


def rms(x: np.ndarray) -> np.ndarray:
    return x / np.sqrt(np.mean(x**2, axis=-1, keepdims=True) + 1e-6)


def lagged(bins: np.ndarray, lags: range) -> np.ndarray:
    """Returns the bins that lie `lags` bins back, as (T, len(lags) * C), with zeros before the first bin."""
    padded = np.concatenate([np.zeros((max(lags), bins.shape[1])), bins])
    return np.concatenate([padded[max(lags) - lag : len(padded) - lag] for lag in lags], axis=1)


def banded_forward(shape: StudentShape, w: dict[str, np.ndarray], bins: np.ndarray) -> np.ndarray:
    """Returns kinematics (T, K) of the whole prefix at once, in float64, with attention where 0 <= age < W."""
    T, H, Dh = len(bins), shape.heads, shape.head_dim
    age = np.arange(T)[:, None] - np.arange(T)[None, :]
    band = (age >= 0) & (age < shape.window)
    x = lagged(bins, range(0, shape.taps * shape.dilation, shape.dilation)) @ w["embed.weight"].T + w["embed.bias"]
    for i in range(shape.layers):
        layer = {n.split(".")[-1]: v.astype(np.float64) for n, v in w.items() if n.startswith(f"layers.{i}.")}
        n = rms(x) * layer["norm_attn"]
        q, k, v = ((n @ layer[m].T).reshape(T, H, Dh).transpose(1, 0, 2) for m in ("wq", "wk", "wv"))
        scores = q @ k.transpose(0, 2, 1) / np.sqrt(Dh) + layer["age_bias"][:, np.where(band, age, 0)]
        p = np.exp(np.where(band, scores, -np.inf) - np.where(band, scores, -np.inf).max(-1, keepdims=True))
        context = (p / p.sum(-1, keepdims=True)) @ v
        x = x + context.transpose(1, 0, 2).reshape(T, -1) @ layer["wo"].T
        n = rms(x) * layer["norm_mlp"]
        gate = n @ layer["wgate"].T
        x = x + (gate / (1 + np.exp(-gate)) * (n @ layer["wup"].T)) @ layer["wdown"].T
    latent = rms(x) * w["norm_out"]
    direct = lagged(bins, range(shape.lags + 1)) @ w["readout.lags"].T
    return latent @ w["readout.latent"].T + direct + w["readout.bias"]


@pytest.mark.parametrize("name", SHAPES)
def test_steps_equal_the_banded_forward_over_the_whole_prefix(name: str) -> None:
    shape = SHAPES[name]
    bins = random_bins(shape, 3 * shape.window + 20)  # so many that the ring wraps and the receptive field moves
    engine = opened(shape)
    found = np.stack([engine.step(bin) for bin in bins])
    np.testing.assert_allclose(found, banded_forward(shape, random_weights(shape), bins), rtol=5e-4, atol=1e-4)


def test_a_step_appends_to_the_ring_and_shifts_the_lagged_bins() -> None:
    shape = SHAPES["window 7"]
    engine, bins = opened(shape), random_bins(shape, 20)
    for t, bin in enumerate(bins):
        before = engine.export_state()
        engine.step(bin)
        after = engine.export_state()
        slot = t % 6
        assert after["pos"] == [(t + 1) % 6]
        assert after["live"] == [min(t + 1, 6)]
        others = np.arange(6) != slot
        for ring in (name for name in before if name.startswith("ring")):
            assert np.array_equal(before[ring][:, others], after[ring][:, others])
            assert not np.array_equal(before[ring][:, slot], after[ring][:, slot])
        kept = bins[max(0, t - 8) : t + 1][::-1]
        assert np.array_equal(after["lags"][: len(kept)], kept)
        assert not after["lags"][len(kept) :].any()


@pytest.mark.parametrize("precision", ["float32", "float16", "int8"])
@pytest.mark.parametrize("at", [0, 3, 6, 7, 25])
def test_another_engine_goes_on_from_an_exported_state(at: int, precision: str) -> None:
    shape = SHAPES["window 7"]
    first, second = opened_as(precision, shape), opened_as(precision, shape)
    bins = random_bins(shape, 40)
    for bin in bins[:at]:
        first.step(bin)
    for bin in random_bins(shape, 11, seed=5):
        second.step(bin)
    second.import_state(first.export_state())
    for bin in bins[at:]:
        assert np.array_equal(first.step(bin), second.step(bin))


def test_reset_is_a_fresh_engine() -> None:
    shape = SHAPES["window 7"]
    used, fresh, bins = opened(shape), opened(shape), random_bins(shape, 15)
    for bin in bins:
        used.step(bin)
    used.reset()
    assert not any(array.any() for array in used.export_state().values())
    assert not used.latent.any()
    for bin in bins:
        assert np.array_equal(used.step(bin), fresh.step(bin))


@pytest.mark.parametrize("shape", [SHAPES["window 7"], SHAPES["no memory of bins"]], ids=["lags", "no lags"])
@pytest.mark.parametrize("precision", ["float32", "float16", "int8"])
def test_the_graph_says_what_the_state_is_made_of(precision: str, shape: StudentShape) -> None:
    engine = opened_as(precision, shape)
    assert engine.precision == precision
    for name, array in engine.export_state().items():
        expected = "int32" if name in ("pos", "live") else precision if name.startswith("ring") else "float32"
        assert array.dtype == ("int8" if name == "lags" and precision == "int8" else expected), name
    assert engine.step(random_bins(shape, 1)[0]).dtype == np.float32
    assert engine.latent.dtype == np.float32


def test_an_int8_engine_remembers_bins_as_the_integers_its_graph_made() -> None:
    shape = SHAPES["window 7"]
    engine, bins = opened_as("int8", shape), random_bins(shape, 20)
    scale = float(random_model(shape).tensors["bin.scale"][0])
    for bin in bins:
        engine.step(bin)
    expected = np.clip(np.rint(bins[::-1][: shape.lag_rows] / scale), -127, 127)
    assert np.array_equal(engine.export_state()["lags"], expected)


def test_a_float16_engine_streams_like_the_float32_one() -> None:
    """The difference stays within a hundredth of an output's standard deviation. It was measured as 0.3 %."""
    shape = SHAPES["window 31"]
    half, single, bins = opened_as("float16", shape), opened_as("float32", shape), random_bins(shape, 300)
    found, expected = (np.stack([engine.step(bin) for bin in bins]) for engine in (half, single))
    assert np.abs(found - expected).max() < 0.01 * expected.std(0).min()


@pytest.mark.parametrize("precision", ["float32", "float16", "int8"])
def test_a_state_of_another_precision_is_refused_by_name(precision: str) -> None:
    shape = SHAPES["window 7"]
    engine = opened_as(precision, shape)
    for other in {"float32", "float16", "int8"} - {precision}:
        with pytest.raises(EngineError, match=rf"'ring_k_0'(?s:.*){other}(?s:.*){precision}"):
            engine.import_state(opened_as(other, shape).export_state())
    state = engine.export_state()
    with pytest.raises(EngineError, match="'lags'"):
        engine.import_state({**state, "lags": state["lags"].astype(np.float64)})


def test_an_int8_state_must_be_symmetric() -> None:
    engine = opened_as("int8", SHAPES["window 7"])
    state = engine.export_state()
    state["ring_v_1"][0, 0, 0] = -128
    with pytest.raises(EngineError, match="ring_v_1"):
        engine.import_state(state)


def test_results_and_states_are_the_callers_to_keep() -> None:
    shape = SHAPES["window 7"]
    engine, bins = opened(shape), random_bins(shape, 2)
    first, latent, state = engine.step(bins[0]), engine.latent, engine.export_state()
    kept = first.copy(), latent.copy(), {name: array.copy() for name, array in state.items()}
    engine.step(bins[1])
    assert np.array_equal(first, kept[0])
    assert np.array_equal(latent, kept[1])
    assert all(np.array_equal(state[name], kept[2][name]) for name in state)
    assert first.dtype == np.float32


def test_wrong_shapes_are_refused_and_change_nothing() -> None:
    shape = SHAPES["window 7"]
    engine = opened(shape)
    engine.step(random_bins(shape, 1)[0])
    before = engine.export_state()
    with pytest.raises(EngineError, match="one per channel"):
        engine.step(np.zeros(shape.channels + 1, np.float32))
    for wrong in (
        {name: array for name, array in before.items() if name != "lags"},
        {**before, "ring_k_1": before["ring_k_1"][:, 1:]},
        {**before, "pos": np.array([6], np.int32)},
        {**before, "live": np.array([-1], np.int32)},
    ):
        with pytest.raises(EngineError):
            engine.import_state(wrong)
    assert all(np.array_equal(before[name], array) for name, array in engine.export_state().items())


def test_a_graph_of_another_shape_is_refused() -> None:
    model = graph_from_student(SHAPES["window 7"], random_weights(SHAPES["window 7"])).SerializeToString()
    with pytest.raises(EngineError, match="ring_k_0"):
        OnnxEngine(model, SHAPES["window 31"])
    with pytest.raises(EngineError, match=r"not opened(.|\n)*no protocol buffer"):
        OnnxEngine(model[: len(model) // 2], SHAPES["window 7"])


def test_without_onnxruntime_the_error_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    real = builtins.__import__

    def without(name: str, *rest: object) -> object:
        if name == "onnxruntime":
            raise ModuleNotFoundError("No module named 'onnxruntime'")
        return real(name, *rest)  # type: ignore[arg-type]

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(EngineError, match="pip install onnxruntime"):
        OnnxEngine(b"", SHAPES["window 7"])


def test_the_runtime_imports_nothing_heavy() -> None:
    heavy = ("torch", "onnx", "onnxruntime", "onnxsim", "pynwb", "h5py", "sklearn")
    code = f"import sys, edgedistill.runtime; print(*(m for m in {heavy} if m in sys.modules))"
    found = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert found.stdout.strip() == ""
