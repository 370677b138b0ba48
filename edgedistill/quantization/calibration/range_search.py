"""Sessions and a float student in, the ranges of its activations out.

The student is run over windows of the training blocks (`windows`), an observer for every activation sees what
each window holds (`observers`), and what they find becomes `Ranges`, with its provenance.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from edgedistill.errors import RecordingError
from edgedistill.models.files import checkpoint_sha256
from edgedistill.models.student import Student
from edgedistill.numerics.tensors import activations
from edgedistill.quantization.calibration.activations import activations_of
from edgedistill.quantization.calibration.observers import observer_for
from edgedistill.quantization.calibration.ranges import Ranges, plain_shape, table_row
from edgedistill.quantization.calibration.recipe import Recipe
from edgedistill.quantization.calibration.windows import Draw, Window, draw_windows
from edgedistill.quantization.integers import PER_HEAD, require_parts
from edgedistill.training.batches import TrainingSession

BATCH = 4  # windows run at a time
Progress = Callable[[int, int], None]  # windows seen, windows
Seen = tuple[Window, dict[str, npt.NDArray[np.float32]]]  # activation -> (values, groups)


def calibrate(
    student: Student,
    sessions: Sequence[TrainingSession],
    modality: str,
    recipe: Recipe,
    seed: int,
    progress: Progress | None = None,
) -> Ranges:
    """The range of every activation of `student` (float, on the CPU) by `recipe`, from the training blocks.

    Errors: no session, a session the student does not know or with other channels, no usable window, a part to keep
    that does not exist, an activation that is constant or not finite. File hashes of the sessions stay None.
    """
    shape = plain_shape(student.size)
    require_parts(shape, recipe.keep)
    for session in sessions:
        require_channels(student, session, modality)
    draw = draw_windows(sessions, modality, student.size, recipe, seed)
    observers = {
        name: observer_for(recipe.method, name, groups, percentile=recipe.percentile, momentum=recipe.momentum)
        for name, groups in groups_of(student).items()
    }
    for number, (_, values) in enumerate(observed(student, sessions, modality, draw), 1):
        for name, observer in observers.items():
            observer.collect(values[name])
        if progress is not None:
            progress(number, len(draw.windows))
    found = {name: observer.compute() for name, observer in observers.items()}
    return Ranges(
        values={name: values.tolist() for name, values in found.items()},
        recipe=recipe,
        seed=seed,
        checkpoint_sha256=checkpoint_sha256(student),
        sessions={session.id: None for session in sessions},
        windows=tuple(window.to_json() for window in draw.windows),
        left_out=tuple(one.to_json() for one in draw.left_out),
        table=tuple(table_row(n, found[n], o.clipped(), o.noise_db()) for n, o in observers.items()),
    )


def groups_of(student: Student) -> dict[str, int]:
    """How many ranges each activation has: one, or one a head."""
    names = activations(plain_shape(student.size))
    return {name: student.size.heads if name.split(".")[-1] in PER_HEAD else 1 for name in names}


def require_channels(student: Student, session: TrainingSession, modality: str) -> None:
    """RecordingError where the student cannot read a session."""
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


def observed(student: Student, sessions: Sequence[TrainingSession], modality: str, draw: Draw) -> Iterator[Seen]:
    """Every drawn window with its activations; the run-up is run and not seen.

    Bins of the run-up that are artefacts or NaN are masked to 0, as the front end masks a bad channel: what they
    leave in the ring is not what a range must hold.
    """
    for session in sessions:
        bins = session.inputs(modality)
        windows = [window for window in draw.windows if window.session == session.id]
        for start in range(0, len(windows), BATCH):
            batch = windows[start : start + BATCH]
            stretches = torch.stack([stretch(bins, window, draw.limit) for window in batch])
            found = activations_of(student, session.id, stretches)
            for place, window in enumerate(batch):
                yield window, {name: by_group(x[place], window.run_up) for name, x in found.items()}


def stretch(bins: Tensor, window: Window, limit: float) -> Tensor:
    """Run-up and window (run_up + bins, channels)."""
    values = bins[window.first_bin - window.run_up : window.first_bin + window.bins]
    loud = ~(values.abs().amax(1, keepdim=True) <= limit)  # NaN is
    return torch.where(loud, 0.0, values)


def by_group(x: Tensor, run_up: int) -> npt.NDArray[np.float32]:
    """(n, width) or (heads, n, head_dim) -> the values after the run-up: (values, 1) or (values, heads)."""
    if x.ndim == 2:
        return np.asarray(x[run_up:].reshape(-1, 1).numpy())
    return np.asarray(x[:, run_up:].flatten(1).T.contiguous().numpy())


def measured_table(
    student: Student,
    sessions: Sequence[TrainingSession],
    modality: str,
    ranges: Ranges,
) -> tuple[dict[str, object], ...]:
    """The table of ranges that no observer found, such as fine-tuned ones, on the windows of their calibration."""
    values, draw = ranges.values, draw_windows(sessions, modality, student.size, ranges.recipe, ranges.seed)
    sums: dict[str, npt.NDArray[np.float64]] = {}
    for _, seen in observed(student, sessions, modality, draw):
        for name, x in seen.items():
            sums[name] = sums.get(name, 0) + quantization_sums(x.astype(np.float64), np.array(values[name]))
    return tuple(
        table_row(name, np.array(values[name]), beyond / count, 10 * np.log10(signal / np.maximum(noise, 1e-300)))
        for name, (count, beyond, signal, noise) in sums.items()
    )


def quantization_sums(x: npt.NDArray[np.float64], limit: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """(4, groups): values, values beyond the range, sum of x², sum of (x - q(x))²; x (values, groups)."""
    scale = limit / 127
    error = x - np.clip(np.rint(x / scale), -127, 127) * scale
    count = np.full(x.shape[1], len(x), np.float64)
    return np.stack([count, (np.abs(x) > limit).sum(0), (x**2).sum(0), (error**2).sum(0)])
