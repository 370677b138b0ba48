"""Measures how much R² a step loses when one of its parts alone is in INT8 and the rest stays in float32.

The inputs are a float student with its read-out, the ranges of its activations, and a session with behavior. The output
is the R² lost on the validation block, streamed, because the test block must not decide what a recipe keeps. The sum
over parts is not what they lose together, because errors add up and cancel.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import replace

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
from edgedistill.quantization.training.straight_through import fake_quantize_rows, fake_quantize_tensor
from edgedistill.training.batches import TrainingSession
from edgedistill.training.evaluate import Readout, compute_mean_r2, r2_score, read_out, unscale_behavior
from edgedistill.training.lagged_features import LaggedFeatures

CHUNK = 512  # bins streamed at once, so that scores stay in the cache of one core
Ranges = Mapping[str, npt.ArrayLike]


def rank_parts(
    student: Student,
    ranges: Ranges,
    session: TrainingSession,
    modality: str,
    readout: Readout,
    four: Collection[str] = (),
) -> list[tuple[str, float]]:
    """Returns every part of `numerics.part_names` with the R² lost where it alone is quantized, the largest loss first.

    `readout` is that of the float student. The weights of parts in `four` get four bits, rounded to nearest. Raises
    RecordingError where no behavior moves in the validation block.
    """
    parts = part_names(student.size.shape(1, 1))
    float_r2 = compute_validation_r2(student, ranges, session, modality, readout, (), four)
    lost = {
        part: float_r2 - compute_validation_r2(student, ranges, session, modality, readout, (part,), four)
        for part in parts
    }
    return sorted(lost.items(), key=lambda item: -item[1])


@torch.no_grad()
def compute_validation_r2(
    student: Student,
    ranges: Ranges,
    session: TrainingSession,
    modality: str,
    readout: Readout,
    parts: Collection[str],
    four: Collection[str] = (),
) -> float:
    """Returns R² on the validation block with only `parts` quantized. Raises RecordingError where it is undefined."""
    emulated = FakeQuantStudent(student, ranges, quantized=parts, four=four).eval()
    start, block = find_stream_start(student.size, session.split), session.split.validation
    bins = session.inputs(modality)[start : block.stop]
    latents = torch.cat(list(emulated.stream(session.id, bins, CHUNK)))
    seen, weight = bins, torch.from_numpy(readout.weight).float()
    if "readout" in parts:
        seen = fake_quantize_tensor(bins, torch.tensor(emulated.ranges["bin"][0] / LEVELS).float())
        weight = round_readout(weight, student)
    features = LaggedFeatures(latents.numpy(), seen.numpy(), student.size.lags)
    rounded = replace(readout, weight=weight.double().numpy())
    guess = read_out([rounded], features, slice(block.start - start, len(features)))[0]
    r2 = compute_mean_r2(r2_score(guess, unscale_behavior(session)[block]))
    if not np.isfinite(r2):
        raise RecordingError(f"session {session.id}: no behavior moves in its validation block, so R² is not defined")
    return r2


def find_stream_start(size: StudentSize, split: Split) -> int:
    """Returns the first bin on which the validation block depends. A stream from there gives the same latents."""
    reach = size.layers * (size.window - 1) + max(size.lags, (size.taps - 1) * size.dilation)
    return max(0, int(split.validation.start) - reach)


def round_readout(weight: Tensor, student: Student) -> Tensor:
    """Returns the read-out (K, d + (lags + 1) * C), rounded by rows, with the gain inside the matrix of the latents."""
    gain, d = student.norm_out.detach(), student.size.d
    of_latents = fake_quantize_rows(weight[:, :d] * gain) / torch.where(gain == 0, 1.0, gain)
    return torch.cat([of_latents, fake_quantize_rows(weight[:, d:])], 1)
