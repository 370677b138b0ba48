"""Turns sessions into tensors, and draws from them the segments of a training step.

The input is `SessionBins`. The outputs are a `TrainingSession`, normalized on its training block alone, and batches of
contiguous segments. Segments depend only on (seed, step), so that a resumed run draws what an uninterrupted one would.
"""

from __future__ import annotations

import hashlib
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from edgedistill import ranks
from edgedistill.config import StudentSize, TrainingConfig
from edgedistill.data.bins import SessionBins, Split, split_bins
from edgedistill.data.session import sum_rows
from edgedistill.data.spatial_fit import fit_standardization
from edgedistill.errors import RecordingError
from edgedistill.frontend import Standardization, settling_bins, zscore
from edgedistill.scratch import allocate, keep, release_pages, split_rows
from edgedistill.training.fill_in import LfpSource

MIN_LABELLED_BINS = 100  # in each block
EDGE_HZ = 10
UNKNOWN_SETTLING = 1432  # bins; settling time that is assumed for sessions without LFP, which have no front end


@dataclass(frozen=True, eq=False)
class TrainingSession:
    """Holds one session ready for training, with T bins. Parts that the recording lacks are None."""

    id: str
    array: str  # name of the array; sessions with the same channels and bands share it
    lfp: Tensor | None  # (T, I) the models' input, with lost channels filled in
    source: LfpSource | None  # what `lfp` was made from
    spikes: Tensor | None  # (T, U) z-scored counts
    counts: Tensor | None  # (T, U) spikes a bin; NaN where a unit was not observed
    behavior: Tensor | None  # (T, K) z-scored; NaN where unknown
    scale: tuple[np.ndarray, np.ndarray]  # mean and deviation of the behavior, in its own units
    spike_normalization: tuple[np.ndarray, np.ndarray]  # mean and deviation of the counts in a bin
    split: Split
    settled: int  # first bin of the training block after the front end has settled
    valid: Tensor  # (T,) bool, bins that may be used; the others are 0 in the inputs and NaN in what models predict

    @property
    def standardization(self) -> Standardization:
        """Returns what turned the channels into the models' input. Raises RecordingError without LFP."""
        if self.source is None:
            raise RecordingError(f"session {self.id} holds no lfp")
        return self.source.standardization

    def without_bands(self) -> TrainingSession:
        """Returns the session for a model that sees the slow LFP alone."""
        if self.lfp is None or self.source is None:
            return self
        return replace(self, lfp=self.lfp[:, : self.source.there.shape[1]], source=self.source.slow())

    def inputs(self, modality: str) -> Tensor:
        """Returns the bins (T, channels) of `lfp` or `spikes`. Raises RecordingError when the session has none."""
        part = self.lfp if modality == "lfp" else self.spikes
        if part is None:
            raise RecordingError(f"session {self.id} holds no {modality}")
        return part

    def targets(self, modality: str) -> Tensor:
        """Returns what a model that fills in hidden bins should find (T, channels): the inputs, NaN if not valid."""
        return self._lfp_targets if modality == "lfp" else self._spike_targets

    @cached_property
    def _lfp_targets(self) -> Tensor:
        return mask_invalid(self.inputs("lfp"), self.valid)

    @cached_property
    def _spike_targets(self) -> Tensor:
        return mask_invalid(self.inputs("spikes"), self.valid)


def mask_invalid(part: Tensor, valid: Tensor) -> Tensor:
    """Returns (T, …) with NaN in the bins that are not valid (T,)."""
    if bool(valid.all()):
        return part
    masked = torch.from_numpy(allocate(tuple(part.shape), np.float32))
    for rows in split_rows(slice(0, len(part)), part.shape[1]):
        masked[rows] = part[rows].masked_fill(~valid[rows, None], torch.nan)
    return masked


def training_session_from_bins(bins: SessionBins, gap_bins: int) -> TrainingSession:
    """Builds a TrainingSession, normalized on the training block of `split_bins(…, gap_bins)`."""
    split = split_bins(bins.bins, gap_bins, name=bins.path)
    valid = np.ones(bins.bins, np.bool_) if bins.valid is None else bins.valid
    require_usable_blocks(bins, valid, split)
    return training_session_from_blocks(bins, split)


def training_session_from_blocks(
    bins: SessionBins, split: Split, standardization: Standardization | None = None
) -> TrainingSession:
    """Builds a TrainingSession with these blocks.

    Without `standardization` the LFP is standardized by its training block. Behavior and counts always are.
    """
    settled = split.train.start
    lfp = source = None
    if bins.lfp is not None and bins.bad is not None and bins.frontend is not None:
        standardization = standardization or fit_standardization(bins, split.train)
        source = make_source(standardization, bins.lfp, find_masked(bins, bins.bad, split))
        lfp = make_inputs(source)
        # at most a fifth of the block is given to settling, because a short session needs its bins more
        settled = max(split.train.start, min(settling_bins(bins.frontend), split.train.stop // 5))
    counts, spikes, spike_normalization = None, None, (np.zeros(0), np.zeros(0))
    if bins.counts is not None:
        counts = make_counts(bins)
        spike_normalization = fit_count_statistics(counts.numpy()[split.train])
        spikes = make_spikes(counts, spike_normalization)
    behavior, scale = None, (np.zeros(0), np.ones(0))
    if bins.behavior is not None:
        known = bins.behavior[split.train].astype(np.float64)
        with warnings.catch_warnings():  # a training block without labels gives NaN, see `find_unlabelled_block`
            warnings.simplefilter("ignore", RuntimeWarning)
            mean, std = np.nanmean(known, 0), np.nanstd(known, 0)
        scale = (mean, np.where(std > 0, std, 1.0))
        behavior = torch.from_numpy(keep(((bins.behavior - mean) / scale[1]).astype(np.float32)))
    valid = keep(np.ones(bins.bins, np.bool_) if bins.valid is None else bins.valid)
    release_pages()
    return TrainingSession(
        id=bins.session_id,
        array=name_array(bins),
        lfp=lfp,
        source=source,
        spikes=spikes,
        counts=counts,
        behavior=behavior,
        scale=scale,
        spike_normalization=spike_normalization,
        split=split,
        settled=settled,
        valid=torch.from_numpy(valid),
    )


def name_array(bins: SessionBins) -> str:
    """Returns the name of an array, which depends on the animal, the channels and the bands that are read of them.

    Where a band is cut may differ a little between sessions, because it depends on the measured sampling rate. Bands
    that end at the same multiple of EDGE_HZ, rounded, count as one.
    """
    parts = list(bins.channel_ids)
    if bins.subject_id:
        parts.append(f"subject {bins.subject_id.strip().casefold()}")
    if bins.frontend is not None:
        parts += [f"power from {low:g} to {EDGE_HZ * round(high / EDGE_HZ)} Hz" for low, high in bins.frontend.bands]
    return "array_" + hashlib.sha256("\n".join(parts).encode()).hexdigest()[:8]


def make_source(
    standardization: Standardization, values: npt.NDArray[np.float64], bad: npt.NDArray[np.bool_]
) -> LfpSource:
    """Returns the standardized numbers of values (T, I), of which the `bad` channels (T, C) are not there."""
    present, there = allocate(values.shape, np.float32), allocate(bad.shape, np.bool_)
    for part in split_rows(slice(0, len(values)), values.shape[1]):
        present[part], there[part] = standardization.standardize(values[part], bad[part])
    return LfpSource(standardization, torch.from_numpy(present), torch.from_numpy(there))


def make_inputs(source: LfpSource) -> Tensor:
    """Returns the models' input (T, I), with the bits that a stream gives."""
    spatial, present, there = source.standardization.spatial, source.present.numpy(), source.there.numpy()
    inputs = allocate(present.shape, np.float32)
    for part in split_rows(slice(0, len(present)), present.shape[1]):
        inputs[part] = spatial.complete(present[part], there[part])
    return torch.from_numpy(inputs)


def find_masked(bins: SessionBins, bad: npt.NDArray[np.bool_], split: Split) -> npt.NDArray[np.bool_]:
    """Returns which bins (T, C) of the LFP are not used.

    Disturbed bins are masked in the training block alone. The other blocks are seen as a stream would see them, so that
    no score is better than what is decoded.
    """
    if bins.disturbed is None:
        return bad
    masked = keep(bad)
    for part in split_rows(split.train, bad.shape[1]):
        masked[part] |= bins.disturbed[part]
    return masked


def require_usable_blocks(bins: SessionBins, valid: npt.NDArray[np.bool_], split: Split) -> None:
    """Raises RecordingError where less than a second of the training or the validation block can be used."""
    for name, block in (("training", split.train), ("validation", split.validation)):
        if int(valid[block].sum()) < MIN_LABELLED_BINS:
            raise RecordingError(
                f"{bins.path}: almost nothing of the {name} block can be used",
                got=f"{valid[block].sum() / 100:g} of {len(valid[block]) / 100:g} s from {block.start / 100:g} s on; "
                + bins.coverage.to_text(),
                expected=f"at least {MIN_LABELLED_BINS / 100:g} s",
                next_step="leave this session out",
            )


def make_counts(bins: SessionBins) -> Tensor:
    """Returns the counts (T, U), NaN where one is not known: the unit was not observed, or the bin is not valid."""
    assert bins.counts is not None
    counts = allocate(bins.counts.shape, np.float32)
    for part in split_rows(slice(0, bins.bins), counts.shape[1]):
        counts[part] = bins.counts[part]
        if bins.observed is not None:
            counts[part][~bins.observed[part]] = np.nan
        if bins.valid is not None:
            counts[part][~bins.valid[part]] = np.nan
    return torch.from_numpy(counts)


def make_spikes(counts: Tensor, normalization: tuple[np.ndarray, np.ndarray]) -> Tensor:
    """Returns the z-scored counts (T, U), 0 where one is not known."""
    values, spikes = counts.numpy(), allocate(tuple(counts.shape), np.float32)
    for part in split_rows(slice(0, len(values)), values.shape[1]):
        unknown = np.isnan(values[part])
        spikes[part] = zscore(np.nan_to_num(values[part]).astype(np.float64), unknown, *normalization)
    return torch.from_numpy(spikes)


def fit_count_statistics(counts: npt.NDArray[np.float32]) -> tuple[np.ndarray, np.ndarray]:
    """Returns the mean and deviation (U,) of counts (T, U) that are NaN where unknown; 0 for a unit never observed."""
    rows, width = slice(0, len(counts)), counts.shape[1]
    count = sum((np.isfinite(counts[part]).sum(0) for part in split_rows(rows, width)), np.zeros(width, np.int64))
    known = np.maximum(count, 1)
    mean = sum_rows(lambda part: np.nan_to_num(counts[part].astype(np.float64)), rows, width) / known
    squares = sum_rows(lambda part: np.nan_to_num(counts[part] - mean) ** 2, rows, width)
    return mean, np.sqrt(squares / known)


def find_unlabelled_block(session: TrainingSession) -> str | None:
    """Returns the name of the first block with less than a second of known behavior, or None if all blocks have it.

    No read-out can be fitted, chosen or scored on such a block.
    """
    split = session.split
    train = slice(session.settled, split.train.stop)
    for name, block in (("training", train), ("validation", split.validation), ("test", split.test)):
        known = 0 if session.behavior is None else int(torch.isfinite(session.behavior[block]).all(1).sum())
        release_pages()  # hundreds of sessions are looked at one after another
        if known < MIN_LABELLED_BINS:
            return name
    return None


def compute_gap(sessions: Sequence[SessionBins], size: StudentSize) -> int:
    """Returns the bins between blocks: the receptive field of a student of `size` plus the settling time."""
    settling = [settling_bins(s.frontend) for s in sessions if s.frontend is not None]
    taps = (size.taps - 1) * size.dilation
    return max(settling, default=UNKNOWN_SETTLING) + size.layers * (size.window - 1) + 1 + taps


def make_generator(seed: int, step: int) -> torch.Generator:
    """Returns the generator of one step. It depends on seed and step alone."""
    mixed = hashlib.sha256(f"{seed}:{step}".encode()).digest()[:8]
    return torch.Generator().manual_seed(int.from_bytes(mixed, "little") >> 1)


def find_training_device() -> torch.device:
    """Returns the GPU where torch finds one. Segments and models go there, sessions stay in memory."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def describe_training_device() -> dict[str, object]:
    """Returns the name of what trains here, and whether the same training ends with the same bits again.

    On a GPU it does not, because torch adds gradients in no fixed order there.
    """
    gpu = find_training_device().type == "cuda"
    return {"device": torch.cuda.get_device_name() if gpu else "cpu", "repeatable": not gpu}


def draw_segments(
    session: TrainingSession, parts: Sequence[Tensor], config: TrainingConfig, random: torch.Generator
) -> list[Tensor]:
    """Draws the same random segments (batch, segment_bins, …) of each part's training block, on the training device.

    Where several processes share a batch, each of them gets its own rows.
    """
    batch = count_segments(session, config)
    length = find_segment_length(session, config)
    starts = draw_starts(session, length, batch, random)[ranks.share(batch)]
    at = starts[:, None] + torch.arange(length)
    drawn = [part[at].to(find_training_device()) for part in parts]
    release_pages()
    return drawn


def find_segment_length(session: TrainingSession, config: TrainingConfig) -> int:
    """Returns the bins of one segment."""
    usable: int = session.split.train.stop - session.settled
    return min(config.segment_bins, usable)


def count_segments(session: TrainingSession, config: TrainingConfig) -> int:
    """Returns the segments of one batch, over all processes."""
    return max(1, config.bins_per_step // find_segment_length(session, config))


def draw_starts(session: TrainingSession, length: int, count: int, random: torch.Generator) -> Tensor:
    """Draws the first bins (count,) of segments of `length` bins, of which at least half can be used.

    Where there is no such segment, one of those with the most usable bins is drawn, and only these count in the loss.
    """
    first, last = session.settled, session.split.train.stop - length
    usable = torch.nn.functional.pad(session.valid.long().cumsum(0), (1, 0))
    usable = usable[first + length : last + length + 1] - usable[first : last + 1]
    allowed = torch.nonzero(2 * usable >= min(length, 2 * int(usable.max())))[:, 0]
    if len(allowed) == len(usable):
        return torch.randint(first, last + 1, (count,), generator=random)
    return first + allowed[torch.randint(len(allowed), (count,), generator=random)]


def pick_session(sessions: Sequence[TrainingSession], random: torch.Generator) -> TrainingSession:
    """Draws the session of one step. All segments of a batch come from one session and share its tokenizer."""
    return sessions[int(torch.randint(len(sessions), (1,), generator=random))]
