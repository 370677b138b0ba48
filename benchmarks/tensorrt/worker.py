"""Answers questions to NVIDIA's parser and builder, in a process of its own (`process` starts it).

Each line of standard input is one question in JSON, `{"do": NAME, ...}`, and each line of standard output its answer.
TensorRT may end this process, which then ends no test. Standard error takes what plugins write.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import tensorrt as trt

from benchmarks.tensorrt.layer_list import read_layers
from edgedistill.compile.tensorrt import builder
from edgedistill.errors import EngineError

LISTED = "Layers:\n"


class Everything(builder.Log):
    """Keeps the list of layers too, which TensorRT prints for a plan when it is verbose."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = ""

    def log(self, severity: object, msg: str) -> None:
        """Keeps one message."""
        super().log(severity, msg)
        if msg.startswith(LISTED):
            self.layers = msg


LOG = Everything()
BUILDER = trt.Builder(LOG)  # one for the whole process: it holds the log of the plugin registry
LOADED: list[Any] = []


def load(plugin: str) -> dict[str, Any]:
    """Replaces the plugin in the registry. Tells whether the new one was taken, and what the registry knows of it."""
    registry = trt.get_plugin_registry()
    while LOADED:
        registry.deregister_library(LOADED.pop())
    gone = registry.get_creator("EdAttention", "1", "") is None
    LOG.errors.clear()
    handle = registry.load_library(plugin)
    if handle is not None:
        LOADED.append(handle)
    creator = registry.get_creator("EdAttention", "1", "")
    fields = [field.name for field in creator.field_names] if creator else None
    return {"gone": gone, "fields": fields, "errors": LOG.errors}


def build(graph: str) -> dict[str, Any]:
    """Parses a graph and builds it. The answer is what parser or builder say against it, or the layers and the plan."""
    LOG.errors.clear()
    network = BUILDER.create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
    parser = trt.OnnxParser(network, LOG)
    if not parser.parse(Path(graph).read_bytes()):
        return {"parser": builder._describe_error(parser.get_error(0))}
    config = BUILDER.create_builder_config()
    config.profiling_verbosity = trt.ProfilingVerbosity.DETAILED
    plan = BUILDER.build_serialized_network(network, config)
    if plan is None:
        return {"builder": LOG.last_error()}
    path = Path(graph).with_suffix(".plan")
    path.write_bytes(bytes(plan))
    return {"imported": network.num_layers, "layers": read_layers(LOG.layers), "plan": str(path)}


def build_plan(graph: str, name: str, plugin: str, workspace_mb: int = 512) -> dict[str, Any]:
    """Builds a plan as `edgedistill compile` does, up to what this machine lacks. RTX has no formats of its own."""
    builder._set_row_major = lambda network: None  # type: ignore[assignment]
    phases: list[str] = []
    report: Callable[[str, int, int], None] = lambda phase, step, steps: phases.append(phase)  # noqa: E731
    options = builder.BuilderOptions("jetson", workspace_mb, Path(plugin), report)
    try:
        builder.build_plan(Path(graph).read_bytes(), name, options)
    except EngineError as error:
        return {"what": error.what, "got": str(error.got), "phases": sorted(set(phases))}
    return {"phases": sorted(set(phases))}


def open_plan(plan: str) -> dict[str, Any]:
    """Opens a plan as `edgedistill compile` does after it has built one."""
    try:
        builder._inspect(builder.Log(), Path(plan).read_bytes(), Path(plan).name)
    except EngineError as error:
        return {"what": error.what, "got": str(error.got)}
    return {}


QUESTIONS = {function.__name__: function for function in (load, build, build_plan, open_plan)}


def main() -> None:
    """Answers until standard input ends."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # whatever else prints must not stand among the answers
    for line in sys.stdin:
        question = json.loads(line)
        print(json.dumps(QUESTIONS[question.pop("do")](**question)), file=answers, flush=True)


if __name__ == "__main__":
    main()
