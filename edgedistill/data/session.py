"""Holds a session on the 10 ms bin clock, splits it into blocks, and normalizes it.

The input is what `bins` made of a recording. The outputs are a `Split` (contiguous blocks with gaps), and the mean and
deviation of each channel over the training block. Long arrays are read in blocks, because they may lie in a file.
`session_store` keeps a session between runs.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import TypeVar

import numpy as np
import numpy.typing as npt

from edgedistill.data.candidates import NO_NAMES, SeriesNames
from edgedistill.data.coverage import Coverage
from edgedistill.data.lfp.electrodes import Electrode
from edgedistill.errors import RecordingError
from edgedistill.frontend import FrontEndConfig, settling_bins
from edgedistill.scratch import allocate, split_rows

Mask = npt.NDArray[np.bool_]
Floats = npt.NDArray[np.float64]
Number = TypeVar("Number", np.float32, np.float64)

BINS_PER_S = 100
MIN_BINS = 120 * BINS_PER_S
MIN_BLOCK_BINS = 5 * BINS_PER_S  # for each of train, validation and test
ARTEFACT_SIGMAS = 30  # distance from the median; the largest in a day of ordinary data is about 25
ARTEFACT_SHARE = 0.02  # of a channel's bins; values that are more frequent belong to the channel
COLUMN_BYTES = 1 << 26  # of whole columns that are in memory at a time


@dataclass(frozen=True, eq=False)
class SessionBins:
    """Holds one session: T bins of 10 ms. Its arrays may lie in a file. Parts that were not asked for are None."""

    session_id: str
    path: str
    sha256: str
    subject_id: str | None
    session_start: str  # ISO 8601, UTC
    start_s: float  # start of bin 0 on the clock of the file
    bins: int  # T
    frontend: FrontEndConfig | None
    channel_ids: tuple[str, ...]
    output_names: tuple[str, ...]
    output_units: tuple[str, ...]
    lfp: npt.NDArray[np.float64] | None  # (T, I) slow LFP in uV, then the log power of each band
    bad: Mask | None  # (T, C) masked in every stream: bad by the rules, or left out
    counts: npt.NDArray[np.uint8] | None  # (T, U), clipped at 255
    behavior: npt.NDArray[np.float32] | None  # (T, K); bins with NaN in a row are not used
    valid: Mask | None = None  # (T,) bins that may be used at all; None: every bin
    disturbed: Mask | None = None  # (T, C) not to be learned from: not valid, or the filters ring; a stream sees it
    observed: Mask | None = None  # (T, U) where each unit was observed; None: in every bin
    session_s: float = 0.0  # length of the session, of which these bins cover a part
    left_out_s: Mapping[str, float] = field(default_factory=dict)  # reason -> seconds, see `coverage`
    electrodes: tuple[Electrode, ...] = ()  # one a channel of `lfp`
    series: Mapping[str, str] = field(default_factory=dict)  # "lfp", "units", "behavior" -> path inside the file
    names: SeriesNames = NO_NAMES  # the series that the user named
    notes: tuple[str, ...] = ()  # what a person should know about how the session was read
    identifier: str = ""  # of the file, meant to be unique

    @property
    def coverage(self) -> Coverage:
        """Returns how many seconds of the session are kept, and why the others are left out."""
        kept = self.session_s - sum(self.left_out_s.values())
        return Coverage(self.session_s, kept, self.left_out_s)

    def describe_reading(self) -> dict[str, object]:
        """Returns how the session was read, as it stands in the JSON answers of the commands under `read`."""
        return {
            "session": self.session_id,
            "file": self.path,
            "series": dict(self.series),
            "session_s": self.session_s,
            "kept_s": self.coverage.kept_s,
            "left_out_s": dict(self.left_out_s),
            "notes": list(self.notes),
        }


@dataclass(frozen=True)
class Split:
    """Holds contiguous blocks of bins with gaps between them."""

    train: slice
    validation: slice
    test: slice


def split_bins(
    n_bins: int,
    gap_bins: int,
    fractions: tuple[float, float, float] = (0.7, 0.1, 0.2),
    name: str = "the session",
) -> Split:
    """Splits a session into train, validation and test, in the order of time, with `gap_bins` bins between them.

    The gap is the receptive field of the model plus the settling time of the front end, so that no test bin depends on
    a sample that training saw. Raises RecordingError, which names the session `name`, below two minutes or when a block
    would be shorter than five seconds.
    """
    usable = n_bins - 2 * gap_bins
    train, validation = int(fractions[0] * usable + 1e-9), int(fractions[1] * usable + 1e-9)
    shortest = min(train, validation, usable - train - validation)
    if n_bins < MIN_BINS or shortest < MIN_BLOCK_BINS:
        enough = max(MIN_BINS, round(MIN_BLOCK_BINS / min(fractions)) + 2 * gap_bins + 2)
        raise RecordingError(
            f"{name} is too short to split into train, validation and test",
            got=f"{n_bins / BINS_PER_S:g} s, of which two gaps of {gap_bins / BINS_PER_S:g} s are left out",
            expected=f"at least {enough / BINS_PER_S:.0f} s",
            causes=("a short session", "a model with a long receptive field, so that gaps are long"),
            next_step="leave this session out, or choose a preset with fewer layers or a smaller window",
        )
    test = train + gap_bins + validation + gap_bins
    return Split(slice(0, train), slice(train + gap_bins, test - gap_bins), slice(test, n_bins))


def fit_normalization(bins: SessionBins, block: slice) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """Returns mean and standard deviation of what the front end gives, both (I,), over the bins in `block` that count.

    A number without such bins gets 0 and 0. Raises RecordingError without LFP.
    """
    return compute_moments(*find_counted(bins, block))


def find_counted(bins: SessionBins, block: slice) -> tuple[Floats, Mask]:
    """Returns bins (T, I) of `block`, and which of them count in statistics (T, I). Raises RecordingError.

    Bins before the front end has settled are left out where later ones exist, because its filters start from rest. Bad
    and disturbed bins, artefacts and the bins after them that ring do not count.
    """
    if bins.lfp is None or bins.bad is None or bins.frontend is None:
        raise RecordingError(f"{bins.path}: no LFP was loaded", expected="a session loaded with its LFP")
    first, stop, _ = block.indices(bins.bins)
    settled = max(first, settling_bins(bins.frontend))
    first = settled if stop - settled >= MIN_BLOCK_BINS else first
    bad = bins.bad[first:stop] if bins.disturbed is None else bins.bad[first:stop] | bins.disturbed[first:stop]
    values = bins.lfp[first:stop]
    return values, leave_out_artefacts(values, ~bad, settling_bins(bins.frontend))


def compute_moments(values: Floats, counted: Mask) -> tuple[Floats, Floats]:
    """Returns mean and deviation, both (C,), of the bins in values (T, C) that count (T, C).

    Some rows are taken at a time, because each step makes a copy of them. The sums have the same bits as at once.
    """
    rows, width = slice(0, len(values)), values.shape[1]
    count = np.maximum(sum((counted[part].sum(axis=0) for part in split_rows(rows, width)), np.zeros(width, int)), 1)
    mean = sum_rows(lambda part: np.where(counted[part], values[part], 0.0), rows, width) / count
    squares = sum_rows(lambda part: np.where(counted[part], values[part] - mean, 0.0) ** 2, rows, width)
    return mean, np.sqrt(squares / count)


def sum_rows(read: Callable[[slice], Floats], rows: slice, width: int) -> Floats:
    """Returns the sum (C,) over the rows of an array (T, C) that `read` gives in blocks.

    Rows are added one after another, as numpy adds those of a whole array, so the sum has the same bits.
    """
    total: Floats = np.zeros((0, width))
    for part in split_rows(rows, width):
        total = np.concatenate([total, read(part)]).sum(axis=0, keepdims=True)
    return np.asarray(total.sum(axis=0))


def split_columns(values: npt.NDArray[np.generic]) -> Iterator[slice]:
    """Yields some columns of values (T, C) at a time, of COLUMN_BYTES in float64."""
    step = max(1, COLUMN_BYTES // (8 * max(1, len(values))))
    for start in range(0, values.shape[1], step):
        yield slice(start, min(start + step, values.shape[1]))


def copy_columns(values: npt.NDArray[Number], columns: slice) -> npt.NDArray[Number]:
    """Returns some columns of values (T, C) as rows (n, T). The rows of the values are read in blocks."""
    found = np.empty((columns.stop - columns.start, len(values)), values.dtype)
    for part in split_rows(slice(0, len(values)), values.strides[0] // values.itemsize):
        found[:, part] = values[part, columns].T
    return found


def leave_out_artefacts(values: Floats, good: Mask, settling: int) -> Mask:
    """Returns the good bins (T, I) of values (T, I) without artefacts and the `settling` bins after each.

    `good` is (T, C), and holds for each of the I / C features of a channel.
    """
    counted, channels = allocate(values.shape, np.bool_), good.shape[1]
    for columns in split_columns(values):
        some = copy_columns(values, columns)
        kept = np.stack(
            [
                _leave_out_artefacts(x, good[:, column % channels], settling)
                for column, x in enumerate(some, columns.start)
            ]
        )
        for part in split_rows(slice(0, len(values)), values.shape[1]):
            counted[part, columns] = kept[:, part].T
    return counted


def _leave_out_artefacts(x: npt.NDArray[np.float64], good: npt.NDArray[np.bool_], settling: int) -> Mask:
    """Returns `good` (T,) without the bins of rare values far outside of x (T,) and the `settling` bins after each.

    One artefact of a thousand deviations would multiply the deviation by twenty. Where artefacts are so frequent that
    less than half of the bins would be left, only the far values go. Far values that are no longer rare stay.
    """
    if not good.any():
        return good
    median = np.median(x[good])
    sigma = 1.4826 * np.median(np.abs(x[good] - median))  # the deviation, for a normal distribution
    far = good & (np.abs(x - median) > ARTEFACT_SIGMAS * sigma)
    if sigma == 0 or not far.any():
        return good
    at = np.arange(len(x))
    latest = np.maximum.accumulate(np.where(far, at, -settling - 1))
    calm: Mask = good & (at - latest > settling)
    if 2 * calm.sum() >= good.sum():
        return calm
    return good & ~far if far.sum() <= ARTEFACT_SHARE * good.sum() else good
