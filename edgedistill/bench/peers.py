"""Holds the decoders that a user would run otherwise, so that a bench can measure them beside ours.

They are the same student in PyTorch and in onnxruntime's own INT8, the spike teacher, and a lagged ridge. Each has the
methods of an engine: `step` takes a z-scored bin, `reset` starts a fresh stream, and `export_state` returns what is
remembered. All of them compute with one thread. Where a machine cannot run one, an EngineError says why.
"""

from __future__ import annotations

import logging
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from edgedistill.bundle.contents import Ridge
from edgedistill.config import StudentShape
from edgedistill.errors import EngineError
from edgedistill.runtime.onnx_content import OF_TEACHERS
from edgedistill.runtime.onnx_session import open_session, run_first, running_error

MOST_COUNTS = 1 << 24  # numbers in the window of a teacher

Floats = npt.NDArray[np.float32]


class TorchEager:
    """Runs a student in PyTorch without any preparation, from the tensors of `student.safetensors`."""

    precision = "float32"

    def __init__(self, shape: StudentShape, weights: Mapping[str, Floats]) -> None:
        """Builds the student. Raises EngineError where torch is not installed."""
        try:
            import torch

            from edgedistill.models.student import student_from_tensors
        except ImportError as error:
            raise EngineError("PyTorch is not installed", got=error, next_step="pip install '.[train]'") from error
        self._torch, self.shape = torch, shape
        torch.set_num_threads(1)
        tensors = {name: torch.from_numpy(np.array(array)) for name, array in weights.items()}
        self._student = student_from_tensors(shape, tensors, "s")
        self._latent, self._lags, self._bias = (tensors[f"readout.{part}"] for part in ("latent", "lags", "bias"))
        self.reset()

    def reset(self) -> None:
        """Starts a fresh stream."""
        self._state = self._student.make_fresh_state("s")
        self._recent = self._torch.zeros(self.shape.lags + 1, self.shape.channels)

    def step(self, bin: npt.NDArray[np.floating[Any]]) -> Floats:
        """Returns the kinematics (K,) of one z-scored bin (C,)."""
        torch = self._torch
        with torch.inference_mode():
            newest = torch.from_numpy(np.asarray(bin, np.float32))
            self._recent = torch.cat([newest[None], self._recent[:-1]])
            latent = self._student.step("s", newest, self._state)
            found: Floats = (self._latent @ latent + self._lags @ self._recent.flatten() + self._bias).numpy()
        return found

    def export_state(self) -> dict[str, npt.NDArray[Any]]:
        """Returns the rings and the lagged bins, whose size is reported."""
        rings = {f"ring_k_{i}": ring.numpy() for i, ring in enumerate(self._state.ring_k)}
        rings |= {f"ring_v_{i}": ring.numpy() for i, ring in enumerate(self._state.ring_v)}
        return rings | {"lags": self._recent.numpy()}


def dynamic_int8_graph(graph: bytes) -> bytes:
    """Returns a float32 step graph in onnxruntime's own dynamic INT8.

    Weights are quantized ahead and activations at each step, and the state stays in float32. Raises EngineError where
    the quantizer is not installed.
    """
    try:
        from onnxruntime.quantization import QuantType, quantize_dynamic
    except ImportError as error:
        raise EngineError(
            "onnxruntime's quantizer is not installed", got=error, next_step="pip install onnx"
        ) from error
    with tempfile.TemporaryDirectory() as folder:
        plain, dynamic = Path(folder) / "float.onnx", Path(folder) / "int8.onnx"
        plain.write_bytes(graph)
        logging.disable(logging.WARNING)  # advice on preprocessing, which changes nothing in our graphs
        try:
            quantize_dynamic(plain, dynamic, weight_type=QuantType.QInt8)
        finally:
            logging.disable(logging.NOTSET)
        return dynamic.read_bytes()


class WindowTeacher:
    """Runs the spike teacher on onnxruntime in the only way it can stream: over its whole window again for each bin."""

    precision = "float32"

    def __init__(self, graph: bytes) -> None:
        """Opens a graph of `graph_from_teacher`.

        Raises EngineError where onnxruntime is missing, and for a graph that it refuses or that cannot be a teacher.
        """
        self._session = open_session(graph, also=OF_TEACHERS)
        inputs = [(one.name, one.type, one.shape) for one in self._session.get_inputs()]
        sizes = inputs[0][2] if len(inputs) == 1 else []
        if [one[:2] for one in inputs] != [("counts", "tensor(float)")] or not _is_table(sizes):
            expected = "counts: float (window, units)"
            raise EngineError("the teacher's graph has other inputs", got=inputs, expected=expected)
        self.window, self.units = sizes
        self.reset()
        run_first(lambda options: self._session.run(None, {"counts": self._counts}, options))

    def reset(self) -> None:
        """Starts a fresh stream. The window holds zeros, which are the mean of z-scored counts."""
        self._counts = np.zeros((self.window, self.units), np.float32)

    def step(self, bin: npt.NDArray[np.floating[Any]]) -> Floats:
        """Takes one bin of z-scored counts (U,) and returns its kinematics (K,), from the last `window` bins."""
        self._counts[:-1] = self._counts[1:]
        self._counts[-1] = bin
        try:
            found: Floats = self._session.run(None, {"counts": self._counts})[0]
        except Exception as error:  # onnxruntime's errors share no base class of their own
            raise running_error(error) from error
        return found

    def export_state(self) -> dict[str, npt.NDArray[Any]]:
        """Returns the window, whose size is reported."""
        return {"counts": self._counts}


def _is_table(sizes: Sequence[Any]) -> bool:
    """Tells whether these are the two sizes of an array of a teacher's input."""
    return (
        len(sizes) == 2
        and all(type(size) is int and size >= 1 for size in sizes)
        and sizes[0] * sizes[1] <= MOST_COUNTS
    )


class LaggedRidge:
    """Runs a lagged ridge in numpy, with zeros before the first bin."""

    precision = "float32"

    def __init__(self, ridge: Ridge) -> None:
        """Takes the weights of `subjects/ridge.safetensors`."""
        self._weight, self._bias = ridge.weight.reshape(len(ridge.bias), -1), ridge.bias
        self._recent = np.zeros(ridge.weight.shape[1:], np.float32)  # (lags + 1, C), the newest bin first

    def reset(self) -> None:
        """Starts a fresh stream."""
        self._recent[:] = 0

    def step(self, bin: npt.NDArray[np.floating[Any]]) -> Floats:
        """Returns the kinematics (K,) of one bin (C,) of the models' input."""
        self._recent[1:] = self._recent[:-1]
        self._recent[0] = bin
        return np.asarray(self._weight @ self._recent.reshape(-1) + self._bias, np.float32)

    def export_state(self) -> dict[str, npt.NDArray[Any]]:
        """Returns the last bins, whose size is reported."""
        return {"recent": self._recent}
