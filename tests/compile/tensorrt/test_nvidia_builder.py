"""NVIDIA's own parser and builder take every graph that a build writes, and say what is wrong with a faulty one.

They are those of TensorRT for RTX 1.7.1, built three days before TensorRT 11.4. They need no GPU and run in a process
of their own. A plan that they build is never executed.
"""

from __future__ import annotations

import json
import mmap
import struct
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto

from benchmarks.cpu.c_models import draw_model, draw_weights
from benchmarks.tensorrt.layer_list import find_layers
from benchmarks.tensorrt.layers import format_counts
from benchmarks.tensorrt.libraries import compile_plugin, rtx_library
from benchmarks.tensorrt.process import TensorRTProcess
from benchmarks.tensorrt.wheels import BINDINGS, CUDA_HEADERS, HEADERS, RTX
from edgedistill.compile.tensorrt.forms import FORMS
from edgedistill.config import StudentShape, load_preset
from edgedistill.models.teacher import PatchAutoencoder
from edgedistill.quantization.onnx_graph import graph_for_plugin, graph_from_integers, graph_from_student
from edgedistill.quantization.onnx_graph.teacher_window import graph_from_teacher

from ...numerics.students import ODD, SMALL
from ...nvidia_wheels import require_wheels
from ...quantization.graph_rules import test_attention_rules, test_quantization_rules, test_typing_rules
from ...quantization.graph_rules.surgery import Cases, Surgery

ROOT = Path(__file__).parents[3]
VERSION = "11.4.0.106"
CHANNELS, OUTPUTS = 96, 2
SHAPES = {
    "odd": ODD,
    "window of 2": StudentShape(4, 2, d=32, layers=1, heads=1, window=2, ff=16, taps=1, dilation=1, lags=0),
    "wide": StudentShape(33, 3, d=144, layers=1, heads=3, window=37, ff=80, taps=2, dilation=5, lags=2),
}
ATTENTION, SIZES, FIELDS = (
    "getOutputDataTypes reported a non-zero",
    "configurePluginV3 reported",
    "not create the plugin",
)
REFUSED = {  # what breaks a rule of ours -> what NVIDIA's parser or builder says of it
    "a_missing_input": ATTENTION,
    "a_dequantized_query": ATTENTION,
    "a_dequantized_value": ATTENTION,
    "a_dequantized_ring": ATTENTION,
    "a_wide_position": ATTENTION,
    "biases_in_half": ATTENTION,
    "biases_by_age_first": SIZES,
    "a_flat_query": SIZES,
    "a_ring_with_a_slot_for_the_new_bin": SIZES,
    "an_attribute_left_out": FIELDS,
    "an_integer_for_a_float": FIELDS,
    "a_tensor_for_a_float": FIELDS,
    "a_negative_scale": FIELDS,
    "another_version_of_the_plugin": "Plugin not found",
    "an_operator_of_another_owner": "Plugin not found",
    "a_context_scale_of_zero": "Scale coefficients must all be positive",
    "a_scale_of_zero": "Scale coefficients must all be positive",
    "a_shifted_zero_point": "Non-zero zero point is not supported",
    "one_zero_point_for_many_scales": "must have the same volume",
    "a_half_scale_of_the_ring": "must have same input types",
    "a_product_without_its_cast": "must have same input types",
    "quantized_twice": "input has type Int8 but must have type Float",
    "a_cast_to_what_is_no_type_of_tensorrt": "does not support UINT8",
    "a_dynamic_ring": "dynamic or shape inputs",
    "a_dynamic_bin": "dynamic or shape inputs",
}
COMPLAINTS = {  # what the plugin itself says of some of them
    "a_dequantized_query": "input 0 is not",
    "biases_in_half": "input 5 is not",
    "biases_by_age_first": "the shape of input 3",
    "an_attribute_left_out": "field v_scale is missing",
    "a_negative_scale": "context_inv must be above 0, got -1",
}
CASES: dict[str, Cases] = {
    name: module.CASES
    for module in (test_attention_rules, test_quantization_rules, test_typing_rules)
    for name in module.CASES.all
}

Forms = dict[str, onnx.ModelProto]


@pytest.fixture(scope="module")
def plugin(tmp_path_factory: pytest.TempPathFactory) -> Path:
    require_wheels(HEADERS, *CUDA_HEADERS)
    return compile_plugin(tmp_path_factory.mktemp("plugin") / "libed_plugin.so")


@pytest.fixture(scope="module")
def nvidia(tmp_path_factory: pytest.TempPathFactory, plugin: Path) -> Iterator[TensorRTProcess]:
    require_wheels(RTX, BINDINGS[VERSION])
    process = TensorRTProcess(tmp_path_factory.mktemp("nvidia"))
    assert process.ask("load", plugin=str(plugin))["fields"] == ["score_scale", "v_scale", "context_inv"]
    yield process
    process.close()


def write_forms(shape: StudentShape) -> Forms:
    """Returns the graphs of a student with random weights, by the names of the files of a bundle."""
    weights, integers = draw_weights(shape), draw_model(shape).tensors
    return {
        "student.onnx": graph_from_student(shape, weights),
        "student.fp16.onnx": graph_from_student(shape, weights, "float16"),
        "student.int8.onnx": graph_from_integers(shape, integers),
        "student.int8.plugin.onnx": graph_for_plugin(shape, integers),
    }


def shape_of(preset: str, channels: int = CHANNELS) -> StudentShape:
    found = load_preset(preset)
    return found.student.shape(channels * (1 + len(found.band_power.bands)), OUTPUTS)


def build(nvidia: TensorRTProcess, graph: onnx.ModelProto, folder: Path, name: str = "graph.onnx") -> dict[str, Any]:
    (folder / name).write_bytes(graph.SerializeToString())
    return nvidia.ask("build", graph=str(folder / name))


# ---------------------------------------------------------------- what a build writes


@pytest.mark.parametrize("preset", ["nano", "edge", "paper"])
def test_every_graph_of_a_preset_is_parsed_and_built(nvidia: TensorRTProcess, tmp_path: Path, preset: str) -> None:
    for name, graph in write_forms(shape_of(preset)).items():
        assert build(nvidia, graph, tmp_path, name).get("layers"), name


@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
def test_every_graph_of_an_odd_shape_is_parsed_and_built(
    nvidia: TensorRTProcess, tmp_path: Path, shape: StudentShape
) -> None:
    for name, graph in write_forms(shape).items():
        assert build(nvidia, graph, tmp_path, name).get("layers"), name


def test_the_spike_student_and_the_teacher_are_parsed_and_built(nvidia: TensorRTProcess, tmp_path: Path) -> None:
    spikes, size = load_preset("nano").student.shape(57, OUTPUTS), load_preset("nano").teacher
    torch.manual_seed(0)
    weight, bias = np.zeros((OUTPUTS, size.d), np.float32), np.zeros(OUTPUTS, np.float32)
    teacher = graph_from_teacher(PatchAutoencoder(size, {"monday": 57}), "monday", 200, weight, bias)
    for name, graph in {**write_forms(spikes), "spike-teacher.onnx": teacher}.items():
        assert build(nvidia, graph, tmp_path, name).get("layers"), name


@pytest.fixture(scope="module")
def built(nvidia: TensorRTProcess, tmp_path_factory: pytest.TempPathFactory) -> Mapping[str, dict[str, Any]]:
    """Returns each form of SMALL with what NVIDIA's builder made of it."""
    folder = tmp_path_factory.mktemp("built")
    graphs = write_forms(SMALL)
    return {name: build(nvidia, graph, folder, name) | {"graph": graph} for name, graph in graphs.items()}


@pytest.mark.parametrize("name", ["student.int8.onnx", "student.int8.plugin.onnx"])
def test_every_product_of_an_int8_form_became_a_product_of_integers(
    built: Mapping[str, dict[str, Any]], name: str
) -> None:
    products = [node.name for node in built[name]["graph"].graph.node if node.op_type == "MatMul"]
    gemms = [find_layers(built[name]["layers"], product, "gemm") for product in products]
    assert all(len(found) == 1 for found in gemms)
    assert {kind for (gemm,) in gemms for kind in gemm["inputs"]} == {"Int8"}


def test_no_form_is_left_with_a_layer_that_only_quantizes_weights(built: Mapping[str, dict[str, Any]]) -> None:
    """The weights of an INT8 product are constants of it: nothing computes them when the plan runs."""
    graph, layers = built["student.int8.onnx"]["graph"], built["student.int8.onnx"]["layers"]
    constants = {tensor.name for tensor in graph.graph.initializer if tensor.data_type == TensorProto.INT8}
    weights = [n.output[0] for n in graph.graph.node if n.op_type == "DequantizeLinear" and n.input[0] in constants]
    readers = [node.name for node in graph.graph.node if node.op_type == "MatMul" and node.input[1] in weights]
    assert len(readers) == 4 * SMALL.layers + 3
    assert all("Int8" in find_layers(layers, reader, "gemm")[0]["constants"] for reader in readers)


def test_the_plugin_has_integers_on_both_sides_and_its_neighbors_are_still_fused(
    built: Mapping[str, dict[str, Any]],
) -> None:
    graph, layers = built["student.int8.plugin.onnx"]["graph"].graph, built["student.int8.plugin.onnx"]["layers"]
    plugins = [node for node in graph.node if node.op_type == "EdAttention"]
    for node in plugins:
        (layer,) = find_layers(layers, node.name)
        assert (layer["kind"], layer["nodes"]) == ("custom_layer", [node.name])
        assert layer["inputs"] == ["Int8"] * 5 + ["Int32"] * 2  # the biases are a constant
        assert (layer["constants"], layer["outputs"]) == (["Float"], ["Int8"])
        quantizer = next(other for other in graph.node if node.input[0] in other.output)
        (before,) = find_layers(layers, quantizer.name)
        assert before["kind"] == "kgen"
        assert len(before["nodes"]) > 3  # scaling, splitting into heads and quantizing is one kernel
        dequantizer = next(other for other in graph.node if node.output[0] in other.input)
        (after,) = find_layers(layers, dequantizer.name, "gemm")
        assert after["inputs"] == ["Int8"]  # the product of the output matrix
    assert len(plugins) == SMALL.layers
    assert len(layers) < len(built["student.int8.onnx"]["layers"])


def test_the_plan_holds_the_fields_that_the_plugin_serialized(built: Mapping[str, dict[str, Any]]) -> None:
    found = built["student.int8.plugin.onnx"]
    plan = Path(found["plan"]).read_bytes()
    for node in found["graph"].graph.node:
        for entry in node.attribute if node.op_type == "EdAttention" else ():
            assert entry.name.encode() in plan
            assert struct.pack("<f", entry.f) in plan, entry.name
    assert b"EdAttention" in plan


def test_the_table_of_layers_in_the_documentation_is_that_of_the_result() -> None:
    result = json.loads((ROOT / "benchmarks/results/tensorrt-rtx-1.7.1/layers.json").read_text())
    assert format_counts(result["students"]) in (ROOT / "docs/jetson.md").read_text().replace("`", "")


# ---------------------------------------------------------------- build_plan, and what it says


@pytest.mark.parametrize("form", FORMS, ids=lambda form: str(form.name))
def test_build_plan_runs_through_to_opening_the_plan(
    nvidia: TensorRTProcess, plugin: Path, built: Mapping[str, dict[str, Any]], form: Any
) -> None:
    """The timing cache, the progress monitor and the log are TensorRT's own. Only opening the plan needs a driver."""
    graph = str(Path(built[form.graph]["plan"]).with_suffix(".onnx"))
    answer = nvidia.ask("build_plan", graph=graph, name=form.graph, plugin=str(plugin))
    assert "Building engine" in answer["phases"]
    if "what" in answer:
        assert answer["what"] == f"TensorRT {VERSION} cannot open the plan that it built from {form.graph}"
        assert "deserializeCudaEngine" in answer["got"]


@pytest.mark.parametrize(
    ("case", "what", "got"),
    [
        ("a_shifted_zero_point", "cannot read", r"node 'layers.0.down/quantizelinear_\d+' (QuantizeLinear): Assertion"),
        ("a_dynamic_bin", "cannot build", "no optimization profile has been defined"),
        ("another_version_of_the_plugin", "cannot read", '(EdAttention): creator && "Plugin not found'),
        ("a_dequantized_query", "cannot read", "; INetworkDefinition::addPluginV3: Error Code 4"),
    ],
)
def test_an_error_of_build_plan_is_what_tensorrt_says(
    nvidia: TensorRTProcess, plugin: Path, tmp_path: Path, case: str, what: str, got: str
) -> None:
    graph = spoil(case)
    (tmp_path / "bad.onnx").write_bytes(graph.SerializeToString())
    answer = nvidia.ask("build_plan", graph=str(tmp_path / "bad.onnx"), name="student.onnx", plugin=str(plugin))
    assert answer["what"] == f"TensorRT {VERSION} {what} student.onnx"
    for part in got.split(r"\d+"):
        assert part in answer["got"]
    assert "catchCudaError" not in answer["got"]


def truncated(plan: bytes) -> bytes:
    return plan[: len(plan) // 2]


@pytest.mark.parametrize(
    ("damage", "says"),
    [
        (lambda plan: b"not a plan at all" * 100, "magicTag == kEXPECTED_MAGIC_TAG"),
        (truncated, "plan.header.size == blobSize"),
        (lambda plan: plan[:16], "bufferSize >= minBufferSize"),
        (lambda plan: b"", "empty memory buffer"),
    ],
    ids=["garbage", "truncated", "only its start", "empty"],
)
def test_a_damaged_plan_is_reported_with_the_words_of_the_runtime(
    nvidia: TensorRTProcess,
    built: Mapping[str, dict[str, Any]],
    tmp_path: Path,
    damage: Callable[[bytes], bytes],
    says: str,
) -> None:
    (tmp_path / "student.plan").write_bytes(damage(Path(built["student.int8.onnx"]["plan"]).read_bytes()))
    answer = nvidia.ask("open_plan", plan=str(tmp_path / "student.plan"))
    assert "cannot open the plan" in answer["what"]
    assert says in answer["got"]


def test_the_words_by_which_errors_are_told_apart_are_tensorrts_own(nvidia: TensorRTProcess) -> None:
    """`builder.py` compares in lower case."""
    said = (b"Could not find any implementation for node", b"OutOfMemory", b"out of memory", b"FAILED_ALLOCATION")
    with rtx_library().open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as library:
        assert [words for words in said if library.find(words) < 0] == []


# ---------------------------------------------------------------- what the validator forbids


def spoil(name: str) -> onnx.ModelProto:
    """Returns a graph that breaks one rule."""
    surgery = Surgery(CASES[name].good)
    CASES[name].all[name][1](surgery)
    return surgery.model


@pytest.mark.parametrize("name", REFUSED)
def test_tensorrt_refuses_what_the_validator_forbids(nvidia: TensorRTProcess, tmp_path: Path, name: str) -> None:
    answer = build(nvidia, spoil(name), tmp_path)
    assert REFUSED[name] in answer.get("parser", "") + answer.get("builder", "")
    assert COMPLAINTS.get(name, "") in answer["stderr"]


@pytest.mark.parametrize("name", sorted(CASES.keys() - REFUSED.keys()))
def test_tensorrt_takes_what_the_validator_forbids_for_another_reason(
    nvidia: TensorRTProcess, tmp_path: Path, name: str
) -> None:
    """These rules are for speed, for accuracy or for older versions, as docs/jetson.md says."""
    assert build(nvidia, spoil(name), tmp_path).get("layers")


def test_a_product_without_q_and_dq_becomes_one_of_floats(nvidia: TensorRTProcess, tmp_path: Path) -> None:
    layers = build(nvidia, spoil("a_float_activation"), tmp_path)["layers"]
    node = next(n.name for n in CASES["a_float_activation"].good.graph.node if n.name.startswith("layers.0.out/matmul"))
    assert not find_layers(layers, node, "gemm")
    assert "Float" in find_layers(layers, node)[0]["inputs"]


# ---------------------------------------------------------------- faults of the plugin


@pytest.mark.parametrize(
    ("old", "new", "says", "complaint"),
    [
        # a field that the creator calls by another name
        ('"v_scale", "context_inv"}', '"v_scala", "context_inv"}', FIELDS, "field v_scala is missing"),
        # the type table: an input, and the output
        ("DataType::kINT32, DataType::kINT32,", "DataType::kINT64, DataType::kINT32,", ATTENTION, "input 6 is not"),
        ("DataType::kINT32, DataType::kINT8}", "DataType::kINT32, DataType::kFLOAT}", "Float", ""),
        # the format: no layer before or after offers it
        ("format == TensorFormat::kLINEAR", "format == TensorFormat::kCHW32", "find any supported plugin", ""),
    ],
    ids=["field's name", "type of an input", "type of the output", "format"],
)
def test_a_fault_of_the_plugin_is_caught(
    nvidia: TensorRTProcess, plugin: Path, tmp_path: Path, old: str, new: str, says: str, complaint: str
) -> None:
    faulty = compile_plugin(tmp_path / "libed_plugin.so", {old: new})
    try:
        assert nvidia.ask("load", plugin=str(faulty))["gone"]
        answer = build(nvidia, test_attention_rules.GOOD, tmp_path)
    finally:
        nvidia.ask("load", plugin=str(plugin))
    assert says in answer.get("parser", "") + answer.get("builder", ""), answer
    assert complaint in answer["stderr"]
