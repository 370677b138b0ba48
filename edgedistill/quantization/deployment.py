"""One session's student as it is deployed in INT8: integers with a read-out of their own, and how well they decode.

Comes in: a float student with its read-out, the session it decodes, the ranges of its activations. Goes out: the
checked INT8 model and its R², streamed by the oracle from the session's first bin.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from edgedistill.config import StudentShape
from edgedistill.models.student import Student
from edgedistill.numerics import Int8Model, Oracle
from edgedistill.quantization.calibration.ranges import Ranges
from edgedistill.quantization.integers import quantize_student
from edgedistill.training.batches import TrainingSession
from edgedistill.training.evaluate import (
    Array,
    Readout,
    Score,
    behavior_of,
    calm_bins,
    fit_readout,
    lagged_features,
    mean_of_moving,
    r2_score,
)

Weights = dict[str, npt.NDArray[np.float32]]


@dataclass(frozen=True, eq=False)
class QuantizedStudent:
    """A student of one session in INT8 and its R²."""

    model: Int8Model
    score: Score

    @property
    def state_bytes(self) -> int:
        """Of rings, lagged bins and counters."""
        return sum(array.nbytes for array in Oracle(self.model).export_state().values())


def deployed_weights(student: Student, session: str, readout: Readout) -> tuple[Weights, StudentShape]:
    """The tensors of `student.safetensors` for one session, and their shape."""
    shape = student.size.shape(student.tokenizer.channels[session], len(readout.bias))
    weights = {name: tensor.numpy() for name, tensor in student.fold(session).items()}
    weights["readout.latent"] = readout.weight[:, : shape.d].astype(np.float32)
    weights["readout.lags"] = readout.weight[:, shape.d :].astype(np.float32)
    weights["readout.bias"] = readout.bias.astype(np.float32)
    return {name: np.ascontiguousarray(array) for name, array in weights.items()}, shape


def quantize_for_session(
    student: Student, session: TrainingSession, modality: str, readout: Readout, ranges: Ranges
) -> QuantizedStudent:
    """`student` in INT8 for `session`; the recipe in `ranges` says what stays float32.

    Where the recipe says so, the read-out is fitted again on the training block, as seen through the quantized
    student: what rounding does to the latents is then known to it, and it costs nothing on the device.
    """
    recipe = ranges.recipe
    weights, shape = deployed_weights(student, session.id, readout)
    bins = session.inputs(modality).numpy()
    model = Int8Model(shape, quantize_student(shape, weights, ranges.values, recipe.keep))
    if recipe.refit_readout:
        calm = calm_bins(session, modality, shape.lags)
        features, behavior = seen_features(model, bins), behavior_of(session)
        refitted = fit_readout(features, behavior, session.split, session.settled, calm)
        weights["readout.latent"] = refitted.weight[:, : shape.d].astype(np.float32)
        weights["norm_out"] = np.ones_like(weights["norm_out"])  # it was fitted on latents without the gain
        weights["readout.lags"] = np.ascontiguousarray(refitted.weight[:, shape.d :], np.float32)
        weights["readout.bias"] = refitted.bias.astype(np.float32)
        model = Int8Model(shape, quantize_student(shape, weights, ranges.values, recipe.keep))
    return QuantizedStudent(model, streamed_score(model, session, modality))


def better(plain: QuantizedStudent, tuned: QuantizedStudent) -> QuantizedStudent:
    """The fine-tuned student, unless it decodes the validation block worse: its own loss does not tell."""
    return tuned if tuned.score.validation_r2 >= plain.score.validation_r2 else plain


def seen_features(model: Int8Model, bins: npt.NDArray[np.float32]) -> Array:
    """(T, d + (lags + 1) * C): what the read-out of the INT8 student sees of a whole session, as numbers."""
    kept = "readout" in model.keep
    trace = Oracle(model).trace(bins, ("bin",) if kept else ("bin", "latent"))
    latents = trace["latents"] if kept else trace["latent"] * model.tensors["latent.scale"]
    seen = trace["bin"] * model.tensors["bin.scale"].astype(np.float64)
    return np.hstack([latents, lagged_features(seen, model.shape.lags)])


def streamed_score(model: Int8Model, session: TrainingSession, modality: str) -> Score:
    """R² on the test block, streamed by the oracle from the session's first bin."""
    guess = Oracle(model).run(session.inputs(modality).numpy()).astype(np.float64)
    truth, split = behavior_of(session), session.split
    per_output = r2_score(guess[split.test], truth[split.test])
    validation = mean_of_moving(r2_score(guess[split.validation], truth[split.validation]))
    return Score(float(np.mean(per_output)), per_output, validation)
