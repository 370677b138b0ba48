"""Quantizes the student of one session, gives it a read-out of its own, and measures how well it decodes.

The inputs are a float student with its read-out, the session it decodes, and the ranges of its activations. The outputs
are the checked INT8 model and its R², streamed from the first bin of the session by torch, with the oracle's bits.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from edgedistill.config import StudentShape
from edgedistill.models.student import Student
from edgedistill.numerics import Int8Model, Oracle
from edgedistill.quantization.calibration.range_search import measure_moments
from edgedistill.quantization.calibration.ranges import Ranges, choose_four_bit_parts
from edgedistill.quantization.exact_torch import ExactStream
from edgedistill.quantization.integers import quantize_student, replace_readout
from edgedistill.training.batches import TrainingSession, find_training_device
from edgedistill.training.evaluate import (
    Readout,
    Score,
    find_calm_bins,
    fit_readout,
    score_decoded,
    unscale_behavior,
)
from edgedistill.training.lagged_features import LaggedFeatures

Weights = dict[str, npt.NDArray[np.float32]]


@dataclass(frozen=True, eq=False)
class QuantizedStudent:
    """Holds the student of one session in INT8, and its R²."""

    model: Int8Model
    score: Score

    @property
    def state_bytes(self) -> int:
        """Returns the bytes of the state: rings, lagged bins and counters."""
        return sum(array.nbytes for array in Oracle(self.model).export_state().values())


def weights_from_student(student: Student, session: str, readout: Readout) -> tuple[Weights, StudentShape]:
    """Returns the tensors of `student.safetensors` for one session, and their shape."""
    shape = student.size.shape(student.tokenizer.channels[session], len(readout.bias))
    weights = {name: tensor.numpy() for name, tensor in student.fold(session).items()}
    weights["readout.latent"] = readout.weight[:, : shape.d].astype(np.float32)
    weights["readout.lags"] = readout.weight[:, shape.d :].astype(np.float32)
    weights["readout.bias"] = readout.bias.astype(np.float32)
    return {name: np.ascontiguousarray(array) for name, array in weights.items()}, shape


def quantize_for_session(
    student: Student, session: TrainingSession, modality: str, readout: Readout, ranges: Ranges
) -> QuantizedStudent:
    """Quantizes `student` for `session`. The recipe in `ranges` says what stays float32, and what gets four bits.

    Where the recipe says so, the read-out is fitted again on the training block to features of the quantized student.
    It then accounts for what rounding does to the latents, at no cost on the device.
    """
    recipe = ranges.recipe
    weights, shape = weights_from_student(student, session.id, readout)
    four, moments = choose_four_bit_parts(shape, recipe), None
    if four and recipe.rounding == "gptq":
        moments = measure_moments(student, session, modality, recipe, ranges.seed)
    model = Int8Model(shape, quantize_student(shape, weights, ranges.values, recipe.keep, four, moments))
    if recipe.refit_readout:
        model = refit_readout(model, session, modality)
    return QuantizedStudent(model, score_stream(model, session, modality))


def refit_readout(model: Int8Model, session: TrainingSession, modality: str) -> Int8Model:
    """Returns the same student with a read-out that is fitted on the training block of `session`."""
    calm = find_calm_bins(session, modality, model.shape.lags)
    features, behavior = compute_int8_features(model, session.inputs(modality).numpy()), unscale_behavior(session)
    d = model.shape.d
    readout = fit_readout(features, behavior, session.split, session.settled, calm, latents=d)
    weight = readout.weight.astype(np.float32)
    return replace_readout(model, weight[:, :d], weight[:, d:], readout.bias.astype(np.float32))


def choose_better(plain: QuantizedStudent, tuned: QuantizedStudent) -> QuantizedStudent:
    """Returns the fine-tuned student, unless it decodes the validation block worse, which its loss does not show."""
    return tuned if tuned.score.validation_r2 >= plain.score.validation_r2 else plain


def compute_int8_features(model: Int8Model, bins: npt.NDArray[np.float32]) -> LaggedFeatures:
    """Returns what the read-out of the INT8 student sees of a whole session, as floats (T, d + (lags + 1) * C)."""
    kept = "readout" in model.keep
    trace = trace_exactly(model, bins, ("bin",) if kept else ("bin", "latent"))
    latents = trace["latents"] if kept else trace["latent"] * model.tensors["latent.scale"]
    bin_scale = model.tensors["bin.scale"].astype(np.float64)
    return LaggedFeatures(latents, trace["bin"], model.shape.lags, bin_scale)


def trace_exactly(
    model: Int8Model, bins: npt.NDArray[np.float32], wanted: tuple[str, ...]
) -> dict[str, npt.NDArray[Any]]:
    """Returns what `Oracle(model).trace(bins, wanted)` does, with the same bits, by torch on the device that trains."""
    device = find_training_device()
    found = ExactStream(model.shape, model.tensors, device).trace(torch.from_numpy(bins).to(device), wanted)
    return {name: tensor.cpu().numpy() for name, tensor in found.items()}


def score_stream(model: Int8Model, session: TrainingSession, modality: str) -> Score:
    """Returns the R² on the test block, streamed with the oracle's bits from the first bin of the session."""
    guess = trace_exactly(model, session.inputs(modality).numpy(), ())["kinematics"].astype(np.float64)
    return score_decoded(guess, unscale_behavior(session), session.split)
