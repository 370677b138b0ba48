"""Chooses the engine that decodes a bundle by default, where some graphs of the bundle may be unusable.

The engine of the target goes in, with a verdict on each graph and the error of an engine that could not be compiled.
The engine to use comes out. A trained student is never thrown away because its engine does not work. The bundle is
written with the next best engine, and a missed gate says so.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from edgedistill.bundle import GraphVerdict, reasons_left_out
from edgedistill.errors import EngineError
from edgedistill.pipeline.graph_checks import FLOAT_GRAPH, HALF_GRAPH, PLAIN_GRAPH, PLUGIN_GRAPH
from edgedistill.target import Gate

ENGINE_GRAPHS = {  # an engine needs at least one of these graphs
    "onnxruntime": (FLOAT_GRAPH,),
    "onnxruntime-int8": (PLAIN_GRAPH,),
    "tensorrt": (PLUGIN_GRAPH, PLAIN_GRAPH, HALF_GRAPH),
}
SUBSTITUTES, ORACLE = ("onnxruntime-int8", "onnxruntime"), "oracle"  # tried in this order, the oracle last
DEFAULT_USABLE = "default_engine_usable"  # name of a gate with the value 1 where the wanted engine may be used, else 0


@dataclass(frozen=True)
class DefaultEngine:
    """Describes the engine that decodes a bundle by default."""

    name: str
    wanted: str  # the engine of the target
    reason: str | None = None  # why another engine was chosen, None where `name` is the wanted one

    def gates(self) -> tuple[Gate, ...]:
        """Returns one missed gate if another engine replaces the wanted one, and no gate otherwise."""
        if self.reason is None:
            return ()
        explanation = f"'{self.name}' decodes by default in place of '{self.wanted}': {self.reason}"
        return (Gate(DEFAULT_USABLE, 0.0, 1.0, False, explanation),)


def choose_default_engine(
    wanted: str, graphs: Mapping[str, GraphVerdict], failed: EngineError | None = None
) -> DefaultEngine:
    """Returns the wanted engine, or the first substitute with a usable graph.

    `failed` is the error of a wanted engine that could not be compiled. The oracle can always be chosen, because it
    computes from the integers and needs no graph.
    """
    reason = describe_error(failed) if failed is not None else why_engine_is_off(wanted, graphs)
    if reason is None:
        return DefaultEngine(wanted, wanted)
    usable = (name for name in SUBSTITUTES if name != wanted and not why_engine_is_off(name, graphs))
    return DefaultEngine(next(usable, ORACLE), wanted, reason)


def why_engine_is_off(engine: str, graphs: Mapping[str, GraphVerdict]) -> str | None:
    """Returns why no graph of an engine may be used, or None if one may be used or the engine needs no graph."""
    off, needs = reasons_left_out(graphs), ENGINE_GRAPHS.get(engine, ())
    return "; ".join(f"{name}: {off[name]}" for name in needs) if needs and off.keys() >= set(needs) else None


def describe_error(error: EngineError) -> str:
    """Returns an error in one line."""
    return f"{error.what} ({error.got})" if error.got is not None else error.what
