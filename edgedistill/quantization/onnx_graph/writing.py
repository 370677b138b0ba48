"""Writes step graphs: collects nodes, and adds the inputs and outputs, the norm, and the ages of slots."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
from onnx import TensorProto, helper, numpy_helper

from edgedistill.config import StudentShape

OPSET = 19
IR_VERSION = 9  # the IR of opset 19: onnxruntime and TensorRT of JetPack 6 refuse newer ones
RMS_EPSILON = 1e-6  # docs/numerics.md, "Norm"
MASKED = -3e4  # its exp underflows to 0 in float32, and it still fits float16

Floats = npt.NDArray[np.float32]


class NodeCollector:
    """Collects nodes and constants. A call adds a node and returns the name of its output."""

    def __init__(self) -> None:
        self.nodes: list[onnx.NodeProto] = []
        self.constants: list[TensorProto] = []
        self._declared: list[onnx.ValueInfoProto] = []
        self._part = ""

    @contextmanager
    def part(self, name: str) -> Iterator[None]:
        """Names the nodes that are written inside `name/…`, so that profilers and errors name the part of the step."""
        before, self._part = self._part, f"{name}/"
        yield
        self._part = before

    def __call__(
        self, operator: str, *inputs: str, to: str | None = None, domain: str | None = None, **attributes: Any
    ) -> str:
        """Adds a node (without `domain`, of the default one). Its only output has the name of the node, or `to`."""
        name = f"{self._part}{operator.lower()}_{len(self.nodes)}"
        self.nodes.append(helper.make_node(operator, inputs, [to or name], name=name, domain=domain, **attributes))
        return to or name

    def declare(self, name: str, element: int, size: Sequence[int]) -> None:
        """Declares type and shape of a tensor that onnx cannot infer, such as the output of a custom node."""
        self._declared.append(helper.make_tensor_value_info(name, element, size))

    def split(self, x: str, parts: int, axis: int, sizes: tuple[int, ...] = ()) -> list[str]:
        """Adds `parts` pieces of x along `axis`, which are equal unless `sizes` are given."""
        name = f"{self._part}split_{len(self.nodes)}"
        outputs = [f"{name}_{part}" for part in range(parts)]
        inputs = [x, self.ints(*sizes)] if sizes else [x]
        attributes: dict[str, Any] = {"axis": axis} if sizes else {"axis": axis, "num_outputs": parts}
        self.nodes.append(helper.make_node("Split", inputs, outputs, name=name, **attributes))
        return outputs

    def cast(self, x: str, element: int, to: str | None = None) -> str:
        """Adds x as another TensorProto type. This is a method because Cast's attribute is also called `to`."""
        name = f"{self._part}cast_{len(self.nodes)}"
        self.nodes.append(helper.make_node("Cast", [x], [to or name], name=name, to=element))
        return to or name

    def constant(self, values: npt.NDArray[Any]) -> str:
        """Adds an array as an initializer, in its own type."""
        name = f"constant_{len(self.constants)}"
        self.constants.append(numpy_helper.from_array(np.require(values, requirements="C"), name))
        return name

    def ints(self, *values: int) -> str:
        """Adds a shape, axes or indices."""
        return self.constant(np.array(values, np.int64))

    def number(self, value: float | np.floating[Any]) -> str:
        """Adds a float32 scalar."""
        return self.constant(np.array(value, np.float32))

    def model(self, inputs: Sequence[onnx.ValueInfoProto], outputs: Sequence[onnx.ValueInfoProto]) -> onnx.ModelProto:
        """Returns the checked model of everything collected."""
        graph = helper.make_graph(
            self.nodes, "student_step", inputs, outputs, self.constants, value_info=self._declared
        )
        custom = sorted({node.domain for node in self.nodes} - {""})
        opsets = [helper.make_opsetid("", OPSET), *(helper.make_opsetid(domain, 1) for domain in custom)]
        model = helper.make_model(graph, opset_imports=opsets, producer_name="edgedistill")
        model.ir_version = IR_VERSION
        onnx.checker.check_model(model, full_check=True)
        return model


def finish_step_model(w: NodeCollector, shape: StudentShape, ring: int, lags: int) -> onnx.ModelProto:
    """Returns the model with inputs and outputs of a step. `ring` and `lags` are TensorProto types of keys and bins."""
    float32, int32 = TensorProto.FLOAT, TensorProto.INT32
    value = helper.make_tensor_value_info
    slots = (shape.heads, shape.window - 1, shape.head_dim)
    layers = [(kind, i) for i in range(shape.layers) for kind in "kv"]
    inputs = [value("bin", float32, (shape.channels,))]
    inputs += [value(f"ring_{kind}_{i}", ring, slots) for kind, i in layers]
    inputs += [value(name, int32, (1,)) for name in ("pos", "live")]
    if shape.lag_rows:
        inputs.append(value("lags", lags, (shape.lag_rows, shape.channels)))
    outputs = [value("kinematics", float32, (shape.outputs,)), value("latent", float32, (shape.d,))]
    outputs += [value(f"{kind}_new_{i}", ring, (shape.heads, shape.head_dim)) for kind, i in layers]
    if lags != float32:
        outputs.append(value("bin_new", lags, (shape.channels,)))
    return w.model(inputs, outputs)


def add_rms_norm(w: NodeCollector, x: str, gain: Floats) -> str:
    """Adds the RMS norm in exactly the nodes that onnxruntime fuses into one SimplifiedLayerNormalization."""
    mean = w("ReduceMean", w("Pow", x, w.number(2)), w.ints(-1), keepdims=1)
    rms = w("Sqrt", w("Add", mean, w.number(RMS_EPSILON)))
    return w("Mul", w("Div", x, rms), w.constant(gain))


def add_age_biases(w: NodeCollector, shape: StudentShape, tables: Sequence[Floats]) -> list[str]:
    """Adds for each table the bias (H, 1, W-1) of every ring slot by its age, MASKED where the slot is not live.

    `tables` (H, W) hold the biases of one layer each, by age. A shift does not change the softmax, so each bias is
    taken relative to that of the new bin, which then needs none. Rows are gathered first and turned afterwards, which
    copies rows and not single floats and saves 8 to 15 us.
    """
    slots = shape.window - 1
    table = np.concatenate(tables)  # (L*H, W)
    masked = np.full((len(table), 1), MASKED, np.float32)
    table = np.concatenate([table[:, 1:] - table[:, :1], masked], axis=1)  # ages 1 .. W-1, masked
    back = w("Sub", "pos", w.constant(np.arange(1, slots + 1, dtype=np.int32)))
    age = w("Mod", back, w.constant(np.array([slots], np.int32)))  # age - 1
    row = w("Where", w("LessOrEqual", "live", age), w.constant(np.array([slots], np.int32)), age)
    gathered = w("Gather", w.constant(table.T[:, :, None]), row, axis=0)  # (W-1, L*H, 1)
    biases = w("Transpose", gathered, perm=[1, 2, 0])
    return w.split(biases, len(tables), axis=0) if len(tables) > 1 else [biases]
