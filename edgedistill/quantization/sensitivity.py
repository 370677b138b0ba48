"""Which part of a step loses how much R² in INT8: each part quantized alone, the rest in float32.

Comes in: a float student with its read-out, the ranges of its activations, a session with behavior. Goes out: the
R² lost on the validation block (the test block has no say in what a recipe keeps), streamed. The sum over parts is
not what all of them lose together: errors add up and cancel.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from edgedistill.config import StudentSize
from edgedistill.data.bins import Split
from edgedistill.errors import RecordingError
from edgedistill.models.student import Student
from edgedistill.numerics import part_names
from edgedistill.numerics.arithmetic import LEVELS
from edgedistill.quantization.training.fake_quant import FakeQuantStudent
from edgedistill.quantization.training.straight_through import fake_rows, fake_tensor
from edgedistill.training.batches import TrainingSession
from edgedistill.training.evaluate import Array, Readout, behavior_of, lagged_features, mean_of_moving, r2_score

CHUNK = 512  # bins streamed at once: scores stay in the cache of one core
Ranges = Mapping[str, npt.ArrayLike]


def rank_parts(
    student: Student, ranges: Ranges, session: TrainingSession, modality: str, readout: Readout
) -> list[tuple[str, float]]:
    """Every part of `numerics.part_names` and the R² lost where it alone is quantized, the largest loss first.

    `readout` is the float one. RecordingError where the validation block has no behavior that moves.
    """
    parts = part_names(student.size.shape(1, 1))
    float_r2 = validation_r2(student, ranges, session, modality, readout, ())
    lost = {part: float_r2 - validation_r2(student, ranges, session, modality, readout, (part,)) for part in parts}
    return sorted(lost.items(), key=lambda item: -item[1])


@torch.no_grad()
def validation_r2(
    student: Student,
    ranges: Ranges,
    session: TrainingSession,
    modality: str,
    readout: Readout,
    parts: Collection[str],
) -> float:
    """R² on the validation block with only `parts` quantized; RecordingError where it is not defined."""
    emulated = FakeQuantStudent(student, ranges, quantized=parts).eval()
    start, block = run_up(student.size, session.split), session.split.validation
    bins = session.inputs(modality)[start : block.stop]
    latents = torch.cat(list(emulated.stream(session.id, bins, CHUNK)))
    seen, weight = bins, torch.from_numpy(readout.weight).float()
    if "readout" in parts:
        seen = fake_tensor(bins, torch.tensor(emulated.ranges["bin"][0] / LEVELS).float())
        weight = rounded_readout(weight, student)
    features = np.hstack([latents.double().numpy(), lagged_features(seen.double().numpy(), student.size.lags)])
    inside = slice(block.start - start, None)
    guess: Array = features[inside] @ weight.double().numpy().T + readout.bias
    r2 = mean_of_moving(r2_score(guess, behavior_of(session)[block]))
    if not np.isfinite(r2):
        raise RecordingError(f"session {session.id}: no behavior moves in its validation block, so R² is not defined")
    return r2


def run_up(size: StudentSize, split: Split) -> int:
    """The first bin that the validation block's first one depends on: a stream from there gives the same latents."""
    reach = size.layers * (size.window - 1) + max(size.lags, (size.taps - 1) * size.dilation)
    return max(0, int(split.validation.start) - reach)


def rounded_readout(weight: Tensor, student: Student) -> Tensor:
    """(K, d + (lags + 1) * C): both matrices by rows, that of the latents with the gain in it."""
    gain, d = student.norm_out.detach(), student.size.d
    of_latents = fake_rows(weight[:, :d] * gain) / torch.where(gain == 0, 1.0, gain)
    return torch.cat([of_latents, fake_rows(weight[:, d:])], 1)
