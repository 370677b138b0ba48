"""Sessions as tensors, and the segments a training step draws from them.

Comes in: `SessionBins`. Goes out: `TrainingSession` (normalised on its training block only) and batches of
contiguous segments chosen by (seed, step) alone, so that a resumed run draws what an undisturbed one would.
"""

from __future__ import annotations

import hashlib
import warnings
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from edgedistill.config import StudentSize, TrainingConfig
from edgedistill.data.bins import SessionBins, Split, fit_normalization, split_bins
from edgedistill.errors import RecordingError
from edgedistill.frontend import settling_bins, zscore

MIN_LABELLED_BINS = 100  # a block
UNKNOWN_SETTLING = 1640  # bins; the gap for sessions without LFP, whose clock knows no front end


@dataclass(frozen=True, eq=False)
class TrainingSession:
    """One session ready for training; T bins. Parts the recording lacks are None."""

    id: str
    array: str  # sessions with the same channels share it
    lfp: Tensor | None  # (T, C) z-scored, bad bins 0
    spikes: Tensor | None  # (T, U) z-scored counts
    counts: Tensor | None  # (T, U) spikes a bin
    behavior: Tensor | None  # (T, K) z-scored; NaN where unknown
    scale: tuple[np.ndarray, np.ndarray]  # mean, std of the behavior, in its own units
    normalization: tuple[np.ndarray, np.ndarray]  # mean, std of the LFP in uV
    spike_normalization: tuple[np.ndarray, np.ndarray]  # mean, std of the counts a bin
    split: Split
    settled: int  # first bin of the training block after the front end has settled

    def inputs(self, modality: str) -> Tensor:
        """(T, channels) of `lfp` or `spikes`; RecordingError when the session has none."""
        part = self.lfp if modality == "lfp" else self.spikes
        if part is None:
            raise RecordingError(f"session {self.id} holds no {modality}")
        return part


def training_session(bins: SessionBins, gap_bins: int) -> TrainingSession:
    """Normalises every part on the training block of `split_bins(…, gap_bins)`."""
    split = split_bins(bins.bins, gap_bins, name=bins.path)
    settled = 0
    lfp, normalization = None, (np.zeros(0), np.zeros(0))
    if bins.lfp is not None and bins.bad is not None and bins.frontend is not None:
        normalization = fit_normalization(bins, split.train)
        lfp = torch.from_numpy(zscore(bins.lfp, bins.bad, *normalization))
        # after a fifth of the block at the latest: a short session needs its bins more than a clean start
        settled = min(settling_bins(bins.frontend), split.train.stop // 5)
    counts, spikes, spike_normalization = None, None, (np.zeros(0), np.zeros(0))
    if bins.counts is not None:
        counts = torch.from_numpy(bins.counts.astype(np.float32))
        known_counts = bins.counts[split.train].astype(np.float64)
        spike_normalization = (known_counts.mean(0), known_counts.std(0))
        never_bad = np.zeros(bins.counts.shape, np.bool_)
        spikes = torch.from_numpy(zscore(bins.counts.astype(np.float64), never_bad, *spike_normalization))
    behavior, scale = None, (np.zeros(0), np.ones(0))
    if bins.behavior is not None:
        known = bins.behavior[split.train].astype(np.float64)
        with warnings.catch_warnings():  # no label in the training block: none can be used, see `labelled`
            warnings.simplefilter("ignore", RuntimeWarning)
            mean, std = np.nanmean(known, 0), np.nanstd(known, 0)
        scale = (mean, np.where(std > 0, std, 1.0))
        behavior = torch.from_numpy(((bins.behavior - mean) / scale[1]).astype(np.float32))
    return TrainingSession(
        id=bins.session_id,
        array="array_" + hashlib.sha256("\n".join(bins.channel_ids).encode()).hexdigest()[:8],
        lfp=lfp,
        spikes=spikes,
        counts=counts,
        behavior=behavior,
        scale=scale,
        normalization=normalization,
        spike_normalization=spike_normalization,
        split=split,
        settled=settled,
    )


def unlabelled_block(session: TrainingSession) -> str | None:
    """The first block with less than a second of known behavior: no read-out can be fitted, chosen or scored."""
    split = session.split
    train = slice(session.settled, split.train.stop)
    for name, block in (("training", train), ("validation", split.validation), ("test", split.test)):
        known = 0 if session.behavior is None else int(torch.isfinite(session.behavior[block]).all(1).sum())
        if known < MIN_LABELLED_BINS:
            return name
    return None


def gap_for(sessions: Sequence[SessionBins], size: StudentSize) -> int:
    """Bins to leave between blocks: the receptive field of a student of `size` plus the settling time."""
    settling = [settling_bins(s.frontend) for s in sessions if s.frontend is not None]
    taps = (size.taps - 1) * size.dilation
    return max(settling, default=UNKNOWN_SETTLING) + size.layers * (size.window - 1) + 1 + taps


def random_for(seed: int, step: int) -> torch.Generator:
    """The randomness of one step, a function of seed and step alone."""
    mixed = hashlib.sha256(f"{seed}:{step}".encode()).digest()[:8]
    return torch.Generator().manual_seed(int.from_bytes(mixed, "little") >> 1)


def training_device() -> torch.device:
    """The GPU where torch finds one. Sessions stay in memory, segments and models go there."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def draw_segments(
    session: TrainingSession, parts: Sequence[Tensor], config: TrainingConfig, random: torch.Generator
) -> list[Tensor]:
    """The same random segments (batch, segment_bins, …) of each part's training block, on the training device."""
    length = min(config.segment_bins, session.split.train.stop - session.settled)
    batch = max(1, config.bins_per_step // length)
    last = session.split.train.stop - length
    starts = torch.randint(session.settled, last + 1, (batch,), generator=random)
    at = starts[:, None] + torch.arange(length)
    return [part[at].to(training_device()) for part in parts]


def pick_session(sessions: Sequence[TrainingSession], random: torch.Generator) -> TrainingSession:
    """One session a step: all of a batch shares its tokenizer."""
    return sessions[int(torch.randint(len(sessions), (1,), generator=random))]
