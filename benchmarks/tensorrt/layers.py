"""Lists the layers that NVIDIA's builder makes of each form of a student: what is fused, what stands by the plugin.

The presets `nano` and `edge` with random weights go in. `layers.json` comes out, with every layer of every plan, and
the tables of docs/jetson.md are printed. The builder is that of TensorRT for RTX 1.7.1, which needs no GPU. It was
built three days before TensorRT 11.4, but compiles for another chip than a Jetson's, so what it fuses is a hint and not
a proof. No time is measured.

    python -m benchmarks.tensorrt.layers [--presets nano edge] [--out benchmarks/results/tensorrt-rtx-1.7.1]
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from benchmarks.cpu.c_models import draw_model, draw_weights
from benchmarks.harness import RESULTS, describe_conditions, option_parser, write_result
from benchmarks.tensorrt.layer_list import count_kinds
from benchmarks.tensorrt.libraries import compile_plugin
from benchmarks.tensorrt.process import TensorRTProcess
from edgedistill.config import load_preset
from edgedistill.quantization.onnx_graph import graph_for_plugin, graph_from_integers, graph_from_student

CHANNELS, OUTPUTS = 96, 2
LISTED = "layers.0."  # the part of the student whose layers are printed
ONLY_ROUNDING = {"quantizelinear", "dequantizelinear", "clip"}

Layers = Sequence[dict[str, Any]]


def main() -> None:
    """Builds all forms, writes the result and prints the tables."""
    parser = option_parser(__doc__, RESULTS / "tensorrt-rtx-1.7.1")
    parser.add_argument("--presets", nargs="+", default=["nano", "edge"])
    options = parser.parse_args()
    students = {}
    with TemporaryDirectory() as temporary:
        folder = Path(temporary)
        (folder / "process").mkdir()
        process = TensorRTProcess(folder / "process")
        process.ask("load", plugin=str(compile_plugin(folder / "libed_plugin.so")))
        for preset in options.presets:
            students[preset] = {form: _build(process, folder, graph) for form, graph in _write_forms(preset)}
        process.close()
    what = "layers that TensorRT for RTX 1.7.1 made of each form; nothing was executed"
    result = {"what": what, **describe_conditions("benchmarks.tensorrt.layers"), "students": students}
    options.out.mkdir(parents=True, exist_ok=True)
    write_result(options.out, "layers", result)
    print(format_counts(students))
    for form in ("int8-plugin", "int8"):
        print(f"\n{form}\n\n{format_layers(students[options.presets[0]][form]['layers'])}")


def _write_forms(preset: str) -> Iterator[tuple[str, bytes]]:
    found = load_preset(preset)
    shape = found.student.shape(CHANNELS * (1 + len(found.band_power.bands)), OUTPUTS)
    integers = draw_model(shape).tensors
    yield "int8-plugin", graph_for_plugin(shape, integers).SerializeToString()
    yield "int8", graph_from_integers(shape, integers).SerializeToString()
    yield "fp16", graph_from_student(shape, draw_weights(shape), "float16").SerializeToString()


def _build(process: TensorRTProcess, folder: Path, graph: bytes) -> dict[str, Any]:
    (folder / "graph.onnx").write_bytes(graph)
    answer = process.ask("build", graph=str(folder / "graph.onnx"))
    if "layers" not in answer:
        raise SystemExit(answer.get("parser") or answer.get("builder"))
    return {"imported": answer["imported"], "layers": answer["layers"]}


def format_counts(students: dict[str, dict[str, Any]]) -> str:
    """Returns a table with a row for each student and form."""
    lines = [
        "| student | form | layers read | layers of the plan | products of integers | other products | plugins"
        " | generated kernels | of these, only rounding |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for preset, forms in students.items():
        for form, made in forms.items():
            layers = made["layers"]
            kinds = count_kinds(layers)
            integer = sum(layer["kind"] == "gemm" and set(layer["inputs"]) == {"Int8"} for layer in layers)
            other = kinds.get("gemm", 0) + kinds.get("runtime_fusion", 0) - integer
            cells = (preset, form, made["imported"], len(layers), integer, other, kinds.get("custom_layer", 0))
            cells += (kinds.get("kgen", 0), sum(map(_only_rounds, layers)))
            lines.append(f"| {' | '.join(map(str, cells))} |")
    return "\n".join(lines)


def _only_rounds(layer: dict[str, Any]) -> bool:
    return bool(layer["nodes"]) and {_operator(node) for node in layer["nodes"]} <= ONLY_ROUNDING


def format_layers(layers: Layers) -> str:
    """Returns a table of the layers that compute something of the student's first layer."""
    lines = ["| kind | takes | gives | computes |", "|---|---|---|---|"]
    for layer in layers:
        if any(node.startswith(LISTED) for node in layer["nodes"]):
            cells = (layer["kind"], _count(layer["inputs"]), _count(layer["outputs"]), _describe(layer["nodes"]))
            lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def _describe(nodes: Sequence[str]) -> str:
    """Returns the operators of each part of the student, as in "layers.0.out: matmul, 2 dequantizelinear"."""
    parts: dict[str, list[str]] = {}
    for node in nodes:
        parts.setdefault(node.rpartition("/")[0], []).append(_operator(node))
    return "; ".join(f"{part}: {_count(operators)}" for part, operators in parts.items())


def _operator(node: str) -> str:
    return re.sub(r"_\d+$", "", node.rpartition("/")[2])


def _count(words: Sequence[str]) -> str:
    return ", ".join(word if n == 1 else f"{n} {word}" for word, n in Counter(words).items())


if __name__ == "__main__":
    main()
