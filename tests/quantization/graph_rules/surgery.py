"""Copies a good graph, spoils it, and says which rule is then broken by which node."""

from __future__ import annotations

import copy
import re
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
import onnx
import pytest
from onnx import NodeProto, helper, numpy_helper

from edgedistill.errors import EngineError


class Surgery:
    """Holds a copy of a good graph, with methods that spoil it."""

    def __init__(self, good: onnx.ModelProto) -> None:
        self.model = copy.deepcopy(good)
        self.graph = self.model.graph

    def node(self, operator: str, part: str = "", nth: int = 0) -> NodeProto:
        inside = f"{part}/" if part else ""
        return [n for n in self.graph.node if n.op_type == operator and n.name.startswith(inside)][nth]

    def maker(self, name: str) -> NodeProto:
        return next(n for n in self.graph.node if name in n.output)

    def reader(self, name: str) -> NodeProto:
        return next(n for n in self.graph.node if name in n.input)

    def array(self, name: str) -> np.ndarray:
        return numpy_helper.to_array(next(t for t in self.graph.initializer if t.name == name))

    def constant(self, values: np.ndarray) -> str:
        name = f"new_{len(self.graph.initializer)}"
        self.graph.initializer.append(numpy_helper.from_array(np.asarray(values), name))
        return name

    def before(self, node: NodeProto, operator: str, *inputs: str, **attributes: object) -> str:
        """Adds a new node just before `node`, and returns its output."""
        name = f"new_{operator.lower()}_{len(self.graph.node)}"
        at = next(i for i, n in enumerate(self.graph.node) if n.name == node.name)
        self.graph.node.insert(at, helper.make_node(operator, inputs, [name], name=name, **attributes))
        return name

    def weights(self, part: str) -> NodeProto:
        """Returns the DequantizeLinear of a part's weights."""
        return self.maker(self.node("MatMul", part).input[1])


Spoil = Callable[[Surgery], str]  # returns the name of the node to be blamed


@dataclass
class Cases:
    """Collects ways to break single rules of a good graph."""

    good: onnx.ModelProto
    check: Callable[[onnx.ModelProto], None]
    all: dict[str, tuple[str, Spoil]] = field(default_factory=dict)

    def case(self, rule: str) -> Callable[[Spoil], Spoil]:
        """Registers a way to break the rule whose message contains `rule`."""

        def add(spoil: Spoil) -> Spoil:
            self.all[spoil.__name__] = (rule, spoil)
            return spoil

        return add

    def require_caught(self, name: str) -> None:
        rule, spoil = self.all[name]
        surgery = Surgery(self.good)
        blamed = spoil(surgery)
        with pytest.raises(EngineError) as raised:
            self.check(surgery.model)
        assert f"'{blamed}'" in str(raised.value)
        assert re.search(rule, str(raised.value))
