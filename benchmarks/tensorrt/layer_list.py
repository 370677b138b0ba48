"""Reads the list of layers that TensorRT prints for a plan when it is verbose.

The text goes in, and a dict for each layer comes out: its name, its kind, the types of its inputs, constants and
outputs, and the nodes of the ONNX graph that it computes.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from typing import Any

SECTIONS = "Inputs|Constants|Outputs|TacticName|StreamId|Metadata"


def read_layers(text: str) -> list[dict[str, Any]]:
    """Returns the layers in the order in which they run."""
    lines = text.split("\n\n")[0].splitlines()
    return [_read_layer(line) for line in lines if line.startswith("Name: ")]


def _read_layer(line: str) -> dict[str, Any]:
    kind = re.search(r", LayerType: (\w+)", line)
    return {
        "name": line.removeprefix("Name: ").split(", LayerType:")[0],
        "kind": kind[1] if kind else "",
        "inputs": _types(line, "Inputs"),
        "constants": _types(line, "Constants"),
        "outputs": _types(line, "Outputs"),
        "nodes": re.findall(r"\[ONNX Layer: ([^\]]*)\]", line),
    }


def _types(line: str, section: str) -> list[str]:
    found = re.search(rf", {section}: \[(.*?)\](?=, (?:{SECTIONS}): |$)", line)
    return re.findall(r"Datatype: (\w+)", found[1]) if found else []


def find_layers(layers: Sequence[dict[str, Any]], node: str, kind: str = "") -> list[dict[str, Any]]:
    """Returns the layers, all or those of one kind, that compute a node of the graph. Several may share a node."""
    return [layer for layer in layers if node in layer["nodes"] and kind in ("", layer["kind"])]


def count_kinds(layers: Sequence[dict[str, Any]]) -> dict[str, int]:
    """Returns how many layers there are of each kind."""
    return dict(sorted(Counter(layer["kind"] for layer in layers).items()))
