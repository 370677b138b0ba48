"""Reads another day of a bundle's array as the student of the bundle takes it.

A bundle and a recording go in. An `AnotherDay` comes out: the bins of the recording with the channels in the order of
the bundle, standardized by what a stretch of the day shows. What the stretch cannot show stays as the bundle has it.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from edgedistill.bundle import Bundle
from edgedistill.bundle.contents import DecoderSpec, read_decoder_spec, read_standardization
from edgedistill.data.bins import SessionBins, Split, bins_from_recording, split_bins
from edgedistill.data.candidates import NO_NAMES, SeriesNames
from edgedistill.data.opening.digest import file_sha256, require_unchanged
from edgedistill.data.recording import open_recording
from edgedistill.data.session import BINS_PER_S, MIN_BINS, MIN_BLOCK_BINS
from edgedistill.data.spatial_fit import update_standardization
from edgedistill.errors import RecordingError
from edgedistill.frontend import FrontEndConfig, Standardization, settling_bins
from edgedistill.matching import MatchedRecording, match_recording
from edgedistill.measure.score import MIN_SCORED_S
from edgedistill.pipeline.graph_checks import holdout_stretch
from edgedistill.pipeline.holdout_files import raw_frames
from edgedistill.training.batches import (
    TrainingSession,
    compute_gap,
    find_unlabelled_block,
    training_session_from_blocks,
)

LEAST_BINS = 30 * BINS_PER_S  # of a stretch, after the filters have settled
MOST_SCORED_BINS = 120 * BINS_PER_S  # after the stretch, so that a long recording costs no minutes
TRAIN_SHARE = 7 / 8  # of a stretch with labels; the rest chooses the penalty, as in a build
NOTHING_FOLLOWS = "too little of the recording follows the stretch that was used; --to leaves more of it"


@dataclass(frozen=True)
class StretchOptions:
    """Says which recording is read, and which seconds of it are used, counted from its first frame."""

    recording: Path
    names: SeriesNames = NO_NAMES
    labels: bool = False  # whether behavior is used, and not only compared with
    from_s: float = 0.0
    to_s: float | None = None  # None: to the end


@dataclass(frozen=True, eq=False)
class AnotherDay:
    """Holds a recording as the student of a bundle reads it."""

    bins: SessionBins  # with the channels in the order of the bundle
    session: TrainingSession  # the training block is what was learned from, the test block is what is scored
    old: Standardization  # of the bundle
    stretch: slice  # bins that were used
    kinematics: npt.NDArray[np.float32]  # (T, K), NaN where nothing may be scored
    unscored: str | None  # why no R² can be measured on the test block
    kept: tuple[int, ...]  # columns of channels which the stretch does not show, and that stay as the bundle has them
    frames: dict[str, npt.NDArray[Any]]  # raw frames of the holdout, as `holdout.npz` has them
    warnings: tuple[str, ...]


def read_another_day(bundle: Bundle, options: StretchOptions) -> AnotherDay:
    """Reads a recording for the student of a bundle.

    Raises RecordingError where it is not of the array that the bundle decodes, is too short, shows no channel, lacks
    the labels that are asked for, or changes while it is read. Raises BundleError for a bundle that does not say how
    its array goes together.
    """
    spec = read_decoder_spec(bundle)
    old = read_standardization(bundle, spec)
    path, digest = options.recording, file_sha256(options.recording)
    with require_unchanged(path, digest), open_recording(path, options.names) as recording:
        matched = match_recording(bundle, recording, keeps_statistics=False)
        bins = read_bins(matched, digest, spec, old, options)
        stretch = find_stretch(bins, options)
        split, follows = split_day(bins, stretch, spec, options)
        joint = update_standardization(bins, split.train, old)
        session = training_session_from_blocks(bins, split, joint.standardization)
        unscored = explain_unscored(bins, split, spec, follows)
        if options.labels:
            require_day_labels(bins, session, spec)
        held = holdout_stretch(session, spec.shape)
        assert bins.frontend is not None
        frames = raw_frames(matched.lfp, bins.frontend, held.start, held.stop)
    shape = (bins.bins, spec.shape.outputs)
    known = bins.behavior if bins.behavior is not None and unscored is None else np.full(shape, np.nan, np.float32)
    kept = tuple(map(int, np.flatnonzero(joint.kept)))
    return AnotherDay(bins, session, old, stretch, known, unscored, kept, frames, matched.warnings)


def read_bins(
    matched: MatchedRecording, digest: str, spec: DecoderSpec, old: Standardization, options: StretchOptions
) -> SessionBins:
    """Returns the bins of a recording up to the last one that is needed, through the front end of the bundle.

    `digest` is the SHA-256 of the recording.
    """
    config = front_end_of_day(matched, spec.front_end, old)
    most = None
    if options.to_s is not None:
        gap = settling_bins(config) + spec.shape.receptive_field + spec.shape.lag_rows
        most = to_bins(options.to_s) + gap + MOST_SCORED_BINS
    parts = ("lfp", "behavior")
    return bins_from_recording(
        matched.recording,
        need=parts if options.labels else ("lfp",),
        also=parts,
        frontend=config,
        sha256=digest,
        least_bins=MIN_BINS if options.labels else settling_bins(config) + LEAST_BINS,
        most_bins=most,
    )


def front_end_of_day(matched: MatchedRecording, own: FrontEndConfig, old: Standardization) -> FrontEndConfig:
    """Returns the settings of the bundle for a recording: its rate, and the channels that it marks as bad left out.

    A channel that the bundle leaves out and does not know stays out, because nothing depends on it.
    """
    unknown = set(own.left_out) - set(map(int, np.flatnonzero(old.spatial.known)))
    marked = set(map(int, np.flatnonzero(matched.masked)))
    return replace(own, rate=matched.lfp.rate, left_out=tuple(sorted(marked | unknown)))


def to_bins(seconds: float) -> int:
    """Returns the bin that a time in s after the first frame falls into."""
    return int(seconds * BINS_PER_S + 1e-6)


def find_stretch(bins: SessionBins, options: StretchOptions) -> slice:
    """Returns the bins that the options name. Raises RecordingError where they are too few to learn from."""
    stop = bins.bins if options.to_s is None else min(to_bins(options.to_s), bins.bins)
    stretch = slice(to_bins(options.from_s), stop)
    assert bins.frontend is not None
    settled = max(stretch.start, settling_bins(bins.frontend))
    if stop - settled < LEAST_BINS:
        raise RecordingError(
            f"{bins.path}: the stretch is too short to learn from",
            got=f"{max(0, stop - settled) / BINS_PER_S:g} s after the filters have settled, which takes "
            f"{settling_bins(bins.frontend) / BINS_PER_S:.1f} s from the start of the recording",
            expected=f"at least {LEAST_BINS / BINS_PER_S:g} s",
            next_step=f"name a longer one: --from 0 --to {(settled + LEAST_BINS) / BINS_PER_S:.0f} or more",
        )
    return stretch


def split_day(bins: SessionBins, stretch: slice, spec: DecoderSpec, options: StretchOptions) -> tuple[Split, bool]:
    """Returns the blocks of a day, and whether its test block follows the stretch.

    Without labels everything in the stretch is learned from. With labels its end chooses the penalty of the read-out,
    and without --to its last fifth is scored, as in a build. Raises RecordingError where labels leave nothing to score.
    """
    gap = compute_gap([bins], spec.shape.size)
    if options.labels and options.to_s is None:
        split = split_bins(bins.bins - stretch.start, gap, name=bins.path)
        return Split(*(shift(block, stretch.start) for block in (split.train, split.validation, split.test))), True
    test = slice(stretch.stop + gap, min(bins.bins, stretch.stop + gap + MOST_SCORED_BINS))
    follows = test.stop - test.start >= MIN_SCORED_S * BINS_PER_S
    if not options.labels:
        end = slice(stretch.stop, stretch.stop)
        last = slice(stretch.stop - min((stretch.stop - stretch.start) // 5, MOST_SCORED_BINS), stretch.stop)
        return Split(stretch, end, test if follows else last), follows
    train = stretch.start + int(TRAIN_SHARE * (stretch.stop - stretch.start - gap))
    validation = slice(train + gap, stretch.stop)
    if not follows or validation.stop - validation.start < MIN_BLOCK_BINS:
        raise too_few_labels_error(bins, gap)
    return Split(slice(stretch.start, train), validation, test), True


def shift(block: slice, by: int) -> slice:
    """Returns a block that begins `by` bins later."""
    return slice(block.start + by, block.stop + by)


def too_few_labels_error(bins: SessionBins, gap: int) -> RecordingError:
    """Returns the error for a stretch that leaves no validation block, or a recording that leaves nothing to score."""
    needed = round(MIN_BLOCK_BINS / (1 - TRAIN_SHARE)) + gap
    return RecordingError(
        f"{bins.path}: no new read-out can be fitted and scored with this stretch",
        got=f"{bins.bins / BINS_PER_S:g} s of recording",
        expected=f"{needed / BINS_PER_S:.0f} s of stretch, and {gap / BINS_PER_S + MIN_SCORED_S:.0f} s after it",
        next_step="leave out --from and --to, or leave out --labels",
    )


def explain_unscored(bins: SessionBins, split: Split, spec: DecoderSpec, follows: bool) -> str | None:
    """Returns why the R² of the test block cannot be measured, or None where it can."""
    if not follows:
        return NOTHING_FOLLOWS
    if bins.behavior is None:
        return "the recording holds no behavior that can be read"
    if not decodes(bins, spec):
        return f"the behavior of the recording is {describe_outputs(bins.output_names, bins.output_units)}"
    known = int(np.isfinite(bins.behavior[split.test]).all(axis=1).sum())
    if known < MIN_SCORED_S * BINS_PER_S:
        return f"{known / BINS_PER_S:g} s after the stretch have behavior, {MIN_SCORED_S} s are needed"
    return None


def require_day_labels(bins: SessionBins, session: TrainingSession, spec: DecoderSpec) -> None:
    """Raises RecordingError where no read-out of the bundle's outputs can be fitted on a day."""
    if not decodes(bins, spec):
        raise RecordingError(
            f"{bins.path}: its behavior is not what the bundle decodes",
            got=describe_outputs(bins.output_names, bins.output_units),
            expected=describe_outputs(spec.output_names, spec.output_units),
            next_step="name the series that was decoded with --behavior",
        )
    if block := find_unlabelled_block(session):
        raise RecordingError(
            f"{bins.path}: no known behavior in the {block} block",
            got=f"less than one second of it; {bins.coverage.to_text()}",
            expected="known behavior in all three blocks: training, validation and test",
            causes=("tracking began late or was lost",),
            next_step="take another stretch with --from and --to, or leave out --labels",
        )


def decodes(bins: SessionBins, spec: DecoderSpec) -> bool:
    """Returns whether the behavior of a day is what the bundle decodes."""
    return (bins.output_names, bins.output_units) == (spec.output_names, spec.output_units)


def describe_outputs(names: tuple[str, ...], units: tuple[str, ...]) -> str:
    """Returns names and units of outputs in one line."""
    return ", ".join(f"{name} ({unit})" for name, unit in zip(names, units, strict=True))
