"""Runs a step graph on onnxruntime. Bins of the models' input go in, kinematics come out, and the state is kept.

The types of the graph's inputs tell its precision. Rings are float32, float16 or int8. Lagged bins are either floats or
the integers (`bin_new`) that the graph returns. The rings, the lagged bins and all inputs and outputs are numpy arrays
that are bound once, and whose memory onnxruntime reads and writes directly. A step therefore copies one bin in, runs
the graph and appends in place. It runs on one thread, because with one bin a call a second thread costs more time than
it saves.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from edgedistill.config import StudentShape
from edgedistill.errors import EngineError
from edgedistill.numerics.state import require_state
from edgedistill.runtime.onnx_session import import_onnxruntime, open_session, run_first, running_error

Floats = npt.NDArray[np.float32]

# This fusion joins a product of integers with the sum after it and turns it into a product of floats, whose weights are
# dequantized at every step. The INT8 graph of the preset `edge` takes 1.06 ms with it and 0.31 ms without (AVX-VNNI).
# Constants that are computed from constants are left to the first run, because only that can be stopped. Our own graphs
# have none, so it makes no difference to a step.
WITHOUT = ("MatMulAddFusion", "ConstantFolding")
TYPES = {"tensor(float)": "float32", "tensor(float16)": "float16", "tensor(int8)": "int8", "tensor(int32)": "int32"}


class OnnxEngine:
    """Runs a student and keeps the state of its stream. Two threads must not use it at once."""

    def __init__(self, model: bytes, shape: StudentShape) -> None:
        """Opens `model`, a step graph (`student.onnx`, `student.fp16.onnx`, `student.int8.onnx`) of that shape.

        Raises EngineError if onnxruntime is missing, cannot read or run the graph, or finds other tensors in it.
        """
        self.shape = shape
        slots, channels = shape.window - 1, shape.channels
        session = open_session(model, WITHOUT)
        types = {tensor.name: TYPES.get(tensor.type, "float32") for tensor in session.get_inputs()}
        self._precision = types.get("ring_k_0", "float32")
        bins = np.dtype(types.get("lags", "int8" if self._precision == "int8" else "float32"))
        self._bin: Floats = np.zeros(channels, np.float32)
        self._bin_new = self._bin if bins == np.float32 else np.zeros(channels, bins)  # a row of lags
        self._lags: npt.NDArray[Any] = np.zeros((shape.lag_rows, channels), bins)
        rings = (2 * shape.layers, shape.heads, slots, shape.head_dim)
        self._rings: npt.NDArray[Any] = np.zeros(rings, self._precision)
        self._new: npt.NDArray[Any] = np.zeros((2 * shape.layers, shape.heads, shape.head_dim), self._precision)
        self._pos = np.zeros(1, np.int32)
        self._live = np.zeros(1, np.int32)
        self._kinematics: Floats = np.zeros(shape.outputs, np.float32)
        self._latent: Floats = np.zeros(shape.d, np.float32)
        self._kept_lags = np.empty_like(self._lags[1:])  # scratch memory: rows move down without overlap
        self._binding = self._bind(session)
        self._run = session.run_with_iobinding
        run_first(lambda options: self._run(self._binding, options))  # allocates, which must not happen in a stream
        self.reset()

    @property
    def precision(self) -> str:
        """Returns the type of keys and values: "float32", "float16" or "int8"."""
        return self._precision

    @property
    def latent(self) -> Floats:
        """Returns the latent (d,) of the last step, in INT8 without the norm's gain.

        It is zero before the first step.
        """
        return self._latent.copy()

    def step(self, bin: npt.NDArray[np.floating[Any]]) -> Floats:
        """Returns kinematics (K,) in physical units for one bin (C,) of the models' input, which is finite."""
        if bin.shape != self._bin.shape:
            raise EngineError("a step takes one bin", got=bin.shape, expected=f"{self._bin.shape}: one per channel")
        self._bin[:] = bin
        try:
            self._run(self._binding)
        except Exception as error:  # onnxruntime's errors share no base class of their own
            raise running_error(error) from error
        self._append()
        return self._kinematics.copy()

    def reset(self) -> None:
        """Goes back to a fresh stream, with empty rings and lagged bins of zero."""
        for array in (*self._state().values(), self._kinematics, self._latent):
            array[...] = 0

    def export_state(self) -> dict[str, npt.NDArray[Any]]:
        """Returns copies of the graph's state inputs under their own names (docs/numerics.md, "State")."""
        return {name: array.copy() for name, array in self._state().items()}

    def import_state(self, state: Mapping[str, npt.NDArray[Any]]) -> None:
        """Continues from a state that any engine exported.

        Raises EngineError, with nothing changed, if the state does not fit.
        """
        own = self._state()
        require_state(own, state)
        for name, array in own.items():
            array[...] = state[name]

    def _append(self) -> None:
        """Appends keys and values to the rings, and the bin to the lagged bins. The graph itself only reads them."""
        slots = self.shape.window - 1
        pos = int(self._pos[0])
        self._rings[:, :, pos] = self._new
        self._pos[0] = (pos + 1) % slots
        self._live[0] = min(int(self._live[0]) + 1, slots)
        if len(self._lags):
            self._kept_lags[...] = self._lags[:-1]
            self._lags[1:] = self._kept_lags
            self._lags[0] = self._bin_new

    def _state(self) -> dict[str, npt.NDArray[Any]]:
        state: dict[str, npt.NDArray[Any]] = dict(self._named("ring_{}_{}", self._rings))
        state |= {"pos": self._pos, "live": self._live}
        return state | ({"lags": self._lags} if len(self._lags) else {})

    def _named(self, pattern: str, pairs: npt.NDArray[Any]) -> dict[str, npt.NDArray[Any]]:
        """Returns views of k and v of each layer i, which are rows 2i and 2i + 1."""
        names = [pattern.format(kind, i) for i in range(self.shape.layers) for kind in "kv"]
        return dict(zip(names, pairs, strict=True))

    def _bind(self, session: Any) -> Any:
        inputs = {"bin": self._bin, **self._state()}
        outputs: dict[str, npt.NDArray[Any]] = {"kinematics": self._kinematics, "latent": self._latent}
        outputs |= self._named("{}_new_{}", self._new)
        if self._bin_new is not self._bin:
            outputs["bin_new"] = self._bin_new
        _check_tensors("inputs", session.get_inputs(), inputs)
        _check_tensors("outputs", session.get_outputs(), outputs)
        binding = session.io_binding()
        share = import_onnxruntime().OrtValue.ortvalue_from_numpy  # on the CPU: the array's own memory, no copy
        for name, array in inputs.items():
            binding.bind_ortvalue_input(name, share(array))
        for name, array in outputs.items():
            binding.bind_ortvalue_output(name, share(array))
        return binding


def _check_tensors(kind: str, found: Any, expected: Mapping[str, npt.NDArray[Any]]) -> None:
    types = {name: kind for kind, name in TYPES.items()}
    got = {tensor.name: (tensor.type, tuple(tensor.shape)) for tensor in found}
    wanted = {name: (types[array.dtype.name], array.shape) for name, array in expected.items()}
    if got != wanted:
        names = sorted(name for name in got.keys() | wanted.keys() if got.get(name) != wanted.get(name))
        raise EngineError(
            f"the step graph has other {kind} than the student's shape: {', '.join(names)}",
            got=[got.get(name) for name in names],
            expected=[wanted.get(name) for name in names],
        )
