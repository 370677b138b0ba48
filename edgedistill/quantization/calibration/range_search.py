"""Finds the range of every activation of a student.

The inputs are sessions and a float student. The student runs over windows of the training blocks (`windows`), and an
observer for each activation collects its values (`observers`). The output is `Ranges`, which also records where they
come from.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from edgedistill.errors import RecordingError
from edgedistill.models.files import hash_checkpoint
from edgedistill.models.student import Student
from edgedistill.models.tokenizer import stack_lags
from edgedistill.numerics.tensors import activations, four_bit_parts, part_of, weight_matrices
from edgedistill.quantization.calibration.activations import compute_activations
from edgedistill.quantization.calibration.observers import make_observer
from edgedistill.quantization.calibration.ranges import Ranges, make_table_row, require_recipe_fits, shape_from_size
from edgedistill.quantization.calibration.recipe import Recipe
from edgedistill.quantization.calibration.windows import Draw, Window, draw_windows
from edgedistill.quantization.integers import PER_HEAD
from edgedistill.training.batches import TrainingSession

BATCH = 4  # windows that run at a time
MOST_INPUTS = 4096  # of an embedding whose moments are measured, because they take memory with their square
Progress = Callable[[int, int], None]  # windows that were seen, windows in all
Seen = tuple[Window, dict[str, npt.NDArray[np.float32]]]  # window, activation -> (values, groups)


def calibrate(
    student: Student,
    sessions: Sequence[TrainingSession],
    modality: str,
    recipe: Recipe,
    seed: int,
    progress: Progress | None = None,
) -> Ranges:
    """Returns the range of every activation of `student` (float, on the CPU), found in the training blocks.

    Raises an error where there is no session, a session that the student cannot read, no usable window, a part to keep
    that does not exist, or an activation that is constant or not finite. File hashes of the sessions stay None.
    """
    require_recipe_fits(shape_from_size(student.size), recipe)
    for session in sessions:
        require_channels(student, session, modality)
    draw = draw_windows(sessions, modality, student.size, recipe, seed)
    observers = {
        name: make_observer(recipe.method, name, groups, percentile=recipe.percentile, momentum=recipe.momentum)
        for name, groups in count_groups(student).items()
    }
    for number, (_, values) in enumerate(observe_windows(student, sessions, modality, draw), 1):
        for name, observer in observers.items():
            observer.collect(values[name])
        if progress is not None:
            progress(number, len(draw.windows))
    found = {name: observer.compute() for name, observer in observers.items()}
    return Ranges(
        values={name: values.tolist() for name, values in found.items()},
        recipe=recipe,
        seed=seed,
        checkpoint_sha256=hash_checkpoint(student),
        sessions={session.id: None for session in sessions},
        windows=tuple(window.to_json() for window in draw.windows),
        left_out=tuple(one.to_json() for one in draw.left_out),
        table=tuple(
            make_table_row(n, found[n], o.compute_clipped_share(), o.compute_noise_db()) for n, o in observers.items()
        ),
    )


def count_groups(student: Student) -> dict[str, int]:
    """Returns how many ranges each activation has: one, or one for each head."""
    names = activations(shape_from_size(student.size))
    return {name: student.size.heads if name.split(".")[-1] in PER_HEAD else 1 for name in names}


def require_channels(student: Student, session: TrainingSession, modality: str) -> None:
    """Raises RecordingError where the student cannot read a session."""
    known, found = student.tokenizer.channels.get(session.id), session.inputs(modality).shape[1]
    if known != found:
        raise RecordingError(
            f"session {session.id} does not fit the student",
            got=f"{found} channels",
            expected=f"a session it was trained on: {', '.join(student.tokenizer.channels)}"
            if known is None
            else f"{known} channels",
            next_step="calibrate on the student's own sessions, or adapt it to this one",
        )


def observe_windows(student: Student, sessions: Sequence[TrainingSession], modality: str, draw: Draw) -> Iterator[Seen]:
    """Yields every drawn window with the values of its activations. The run-up is run but not observed."""
    for window, found in run_windows(student, sessions, modality, draw):
        yield window, {name: group_values(x, window.run_up) for name, x in found.items()}


def run_windows(
    student: Student, sessions: Sequence[TrainingSession], modality: str, draw: Draw
) -> Iterator[tuple[Window, dict[str, Tensor]]]:
    """Yields every drawn window with its activations from the run-up on, (n, width) or (heads, n, head_dim).

    Bins of the run-up that are artefacts or NaN are masked to 0, as the front end masks a bad channel, because a range
    need not hold what they leave in the ring.
    """
    for session in sessions:
        bins = session.inputs(modality)
        windows = [window for window in draw.windows if window.session == session.id]
        for start in range(0, len(windows), BATCH):
            batch = windows[start : start + BATCH]
            segments = torch.stack([cut_window(bins, window, draw.limit) for window in batch])
            found = compute_activations(student, session.id, segments)
            for place, window in enumerate(batch):
                yield window, {name: x[place] for name, x in found.items()}


def cut_window(bins: Tensor, window: Window, limit: float) -> Tensor:
    """Returns run-up and window (run_up + bins, channels)."""
    values = bins[window.first_bin - window.run_up : window.first_bin + window.bins]
    loud = ~(values.abs().amax(1, keepdim=True) <= limit)  # also where a value is NaN
    return torch.where(loud, 0.0, values)


def group_values(x: Tensor, run_up: int) -> npt.NDArray[np.float32]:
    """Returns the values after the run-up, (values, 1) from (n, width) or (values, heads) from (heads, n, head_dim)."""
    if x.ndim == 2:
        return np.asarray(x[run_up:].reshape(-1, 1).numpy())
    return np.asarray(x[:, run_up:].flatten(1).T.contiguous().numpy())


def measure_moments(
    student: Student, session: TrainingSession, modality: str, recipe: Recipe, seed: int
) -> dict[str, npt.NDArray[np.float64]]:
    """Returns the second moments (n, n) of what each matrix with four bits may read, before any folding.

    Those of `bin` are of the embedding, which reads several bins. They are left out where these have more than
    MOST_INPUTS values. All are those of windows of the training block of `session`, which are drawn without regard to
    its labels.
    """
    shape = shape_from_size(student.size)
    sources = {source for name, (_, source) in weight_matrices(shape).items() if part_of(name) in four_bit_parts(shape)}
    if len(student.tokenizer.lags) * session.inputs(modality).shape[1] > MOST_INPUTS:
        sources.remove("bin")
    draw = draw_windows([session], modality, student.size, replace(recipe, strata=1), seed)
    sums: dict[str, npt.NDArray[np.float64]] = {}
    for window, found in run_windows(student, [session], modality, draw):
        for name in sources:
            x = found[name] if found[name].ndim == 2 else found[name].transpose(0, 1).flatten(1)
            x = stack_lags(x, student.tokenizer.lags) if name == "bin" else x
            values = x[window.run_up :].double().numpy()
            sums[name] = sums.get(name, 0) + values.T @ values / window.bins
    return {name: total / len(draw.windows) for name, total in sums.items()}


def measure_table(
    student: Student,
    sessions: Sequence[TrainingSession],
    modality: str,
    ranges: Ranges,
) -> tuple[dict[str, object], ...]:
    """Returns the table of ranges that no observer found, such as fine-tuned ones, measured on their own windows."""
    values, draw = ranges.values, draw_windows(sessions, modality, student.size, ranges.recipe, ranges.seed)
    sums: dict[str, npt.NDArray[np.float64]] = {}
    for _, seen in observe_windows(student, sessions, modality, draw):
        for name, x in seen.items():
            sums[name] = sums.get(name, 0) + sum_quantization(x.astype(np.float64), np.array(values[name]))
    return tuple(
        make_table_row(name, np.array(values[name]), beyond / count, 10 * np.log10(signal / np.maximum(noise, 1e-300)))
        for name, (count, beyond, signal, noise) in sums.items()
    )


def sum_quantization(x: npt.NDArray[np.float64], limit: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Returns (4, groups) for x (values, groups): count, count beyond the range, sum of x², sum of (x - q(x))²."""
    scale = limit / 127
    error = x - np.clip(np.rint(x / scale), -127, 127) * scale
    count = np.full(x.shape[1], len(x), np.float64)
    return np.stack([count, (np.abs(x) > limit).sum(0), (x**2).sum(0), (error**2).sum(0)])
