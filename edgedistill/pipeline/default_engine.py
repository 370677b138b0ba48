"""Chooses the engine that decodes a bundle by default, when graphs of the bundle may have been left out of use.

The wanted engine and a verdict on each graph come in. The engine to use goes out, and a gate that is missed where it is
another one than was wanted.
"""

from __future__ import annotations

from collections.abc import Mapping

from edgedistill.bundle import GraphVerdict, reasons_left_out
from edgedistill.pipeline.graph_checks import FLOAT_GRAPH, HALF_GRAPH, PLAIN_GRAPH, PLUGIN_GRAPH
from edgedistill.target import Gate

ENGINE_GRAPHS = {  # an engine needs one of these
    "onnxruntime": (FLOAT_GRAPH,),
    "onnxruntime-int8": (PLAIN_GRAPH,),
    "tensorrt": (PLUGIN_GRAPH, PLAIN_GRAPH, HALF_GRAPH),
}
SUBSTITUTES, ORACLE = ("onnxruntime-int8", "onnxruntime"), "oracle"  # in place of an engine that may not be used
DEFAULT_USABLE = "default_engine_usable"  # a gate: 1 where the wanted engine may be used


def choose_default_engine(wanted: str, graphs: Mapping[str, GraphVerdict]) -> str:
    """Returns the wanted engine, or the first substitute with a usable graph.

    The oracle is always left, because it reads integers and no graph.
    """
    usable = (name for name in (wanted, *SUBSTITUTES) if not why_engine_is_off(name, graphs))
    return next(usable, ORACLE)


def why_engine_is_off(engine: str, graphs: Mapping[str, GraphVerdict]) -> str | None:
    """Returns why no graph of an engine may be used; None where one may, and for an engine that runs no graph."""
    off, needs = reasons_left_out(graphs), ENGINE_GRAPHS.get(engine, ())
    return "; ".join(f"{name}: {off[name]}" for name in needs) if needs and off.keys() >= set(needs) else None


def default_engine_gates(wanted: str, graphs: Mapping[str, GraphVerdict]) -> tuple[Gate, ...]:
    """Returns a gate that is missed where the wanted engine has no usable graph, and no gate where it has one."""
    reason = why_engine_is_off(wanted, graphs)
    if reason is None:
        return ()
    used = choose_default_engine(wanted, graphs)
    return (Gate(DEFAULT_USABLE, 0.0, 1.0, False, f"'{used}' decodes by default in place of '{wanted}': {reason}"),)
