"""Calibrates the standard deviation that comes with every output, on labels of the session that no training saw.

The INT8 student and the session go in, and `CalibratedDeviations` come out. The student decodes the stretch around the
validation block with all channels, and with more and more of them lost, as it would on the device. `deviation_fit`
turns the errors into tables. Errors on the training block would be of no use, because they are a third smaller.
docs/accuracy.md, "Confidence", shows how many true values of the test block lie in the intervals.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass

import numpy as np
import numpy.typing as npt
import torch

from edgedistill.bundle.manifest import Confidence
from edgedistill.config import StudentShape
from edgedistill.measure.intervals import measure_coverage
from edgedistill.numerics import Int8Model
from edgedistill.numerics.deviation import DeviationModel
from edgedistill.numerics.smoothing import SmoothingModel
from edgedistill.pipeline.deviation_fit import COVERED, Decoded, fit_deviations, spread_as_deviations
from edgedistill.quantization.exact_torch import run_exact_stream
from edgedistill.training.batches import TrainingSession
from edgedistill.training.evaluate import unscale_behavior

LOST = (0.125, 0.25, 0.5, 0.75, 1.0)  # shares of the channels
PIECE, PIECES = 1000, 10  # bins of a piece, and pieces of the stretch, each of which loses other channels
MOST_BINS = 60_000  # of the stretch, which bounds the time for a long session
LEAST_BINS = 500  # with labels; in fewer, hardly any of the tenth of errors that lie outside are independent

Floats = npt.NDArray[np.float32]
Mask = npt.NDArray[np.bool_]
Array = npt.NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class CalibratedDeviations:
    """Holds the deviations of a decoder's outputs, and on how much data they were calibrated."""

    model: DeviationModel
    confidence: Confidence | None  # None: of a bundle that does not say it

    def describe(self) -> dict[str, object] | None:
        """Returns the confidence as it stands in a manifest."""
        return None if self.confidence is None else asdict(self.confidence)


def calibrate_deviations(
    model: Int8Model, session: TrainingSession, smoothing: SmoothingModel | None = None, stop: int | None = None
) -> CalibratedDeviations:
    """Returns the deviations of the outputs of `model`, calibrated on `session`, on no bin from `stop` on.

    The outputs are smoothed by `smoothing`, where that is not None.
    Where the stretch around the validation block has too few labels, they are those of the behavior itself.
    """
    truth, stretch = find_truth(session), find_calibration_stretch(session, model.shape, stop)
    train, channels = truth[session.split.train], session.standardization.spatial.channels
    behavior = train[np.isfinite(train).all(axis=1)]
    labelled = int(np.isfinite(truth[stretch]).all(axis=1).sum())
    if labelled < LEAST_BINS:
        note = (
            f"the deviations are those of the behavior, as if nothing had been decoded, because only {labelled} bins "
            f"between the training and the test block have labels, and {LEAST_BINS} are needed"
        )
        return CalibratedDeviations(spread_as_deviations(behavior, channels), Confidence(labelled, None, note))
    decoder = PieceDecoder(model, session, smoothing)
    intact = decoder.decode(stretch, np.zeros(0, np.int64))
    lossy = [decode_with_losses(decoder, truth, stretch, count) for count in count_lost(session)]
    deviations = fit_deviations([collect([intact], truth), *lossy], behavior, channels)
    spread = deviations.deviations(intact.kinematics, intact.lost)
    found = measure_coverage(intact.kinematics[None], spread[None], truth[stretch], COVERED)
    return CalibratedDeviations(deviations, Confidence(labelled, found.standard_error))


def find_truth(session: TrainingSession) -> Array:
    """Returns the behavior (T, K) in its own units, with NaN where it or all channels of the LFP are unknown."""
    assert session.source is not None
    truth = unscale_behavior(session)
    usable = np.asarray(np.isfinite(truth).all(axis=1) & session.source.there.numpy().any(axis=1))
    return np.where(usable[:, None], truth, np.nan)


def find_calibration_stretch(session: TrainingSession, shape: StudentShape, stop: int | None = None) -> slice:
    """Returns the validation block with those bins around it, before `stop`, whose errors tell as much as its own do.

    The blocks are apart by a receptive field and the settling time of the front end. Bins beyond the receptive field
    share nothing with training or test but the tail of a filter, so they are used as well. A long stretch is cut.
    """
    split, reach = session.split, shape.receptive_field + shape.lag_rows
    start = min(split.validation.start, split.train.stop + reach)
    end = max(split.validation.stop, split.test.start - reach)
    return slice(start, min(end, start + MOST_BINS, end if stop is None else stop))


def count_lost(session: TrainingSession) -> list[int]:
    """Returns how many channels are lost at each share of LOST, each number once."""
    known = int(np.count_nonzero(session.standardization.spatial.known))
    return sorted({max(1, round(share * known)) for share in LOST} if known else ())


@dataclass(frozen=True, eq=False)
class Piece:
    """Holds a stretch of B bins that was decoded with some channels lost."""

    bins: slice
    kinematics: Floats  # (B, K)
    lost: npt.NDArray[np.int64]  # (B,) number of channels that were lost


@dataclass(frozen=True, eq=False)
class PieceDecoder:
    """Decodes stretches of a session with some channels lost, as the decoder does on a device."""

    model: Int8Model
    session: TrainingSession
    smoothing: SmoothingModel | None = None  # of the outputs

    def decode(self, piece: slice, lost: npt.NDArray[np.int64]) -> Piece:
        """Decodes a piece after a run-up of one receptive field, without the `lost` channels."""
        source, shape = self.session.source, self.model.shape
        assert source is not None
        start = max(0, piece.start - shape.receptive_field - shape.lag_rows)
        present, there = (part[start : piece.stop].numpy().copy() for part in (source.present, source.there))
        present[:, lost], there[:, lost] = 0, False
        spatial = source.standardization.spatial
        bins = torch.from_numpy(spatial.complete(present, there))
        raw = run_exact_stream(shape, self.model.tensors, bins)[1].numpy()
        kinematics = raw if self.smoothing is None else self.smoothing.run(raw)
        missing = np.count_nonzero(spatial.known & ~there, axis=1)
        return Piece(piece, kinematics[piece.start - start :], missing[piece.start - start :])


def decode_with_losses(decoder: PieceDecoder, truth: Array, stretch: slice, count: int) -> Decoded:
    """Decodes PIECES pieces of the stretch, evenly spaced among its labels, each with `count` other channels lost."""
    labelled = stretch.start + np.flatnonzero(np.isfinite(truth[stretch]).all(axis=1))
    centers = labelled[np.linspace(0, len(labelled) - 1, PIECES).astype(int)]
    last = max(stretch.start, stretch.stop - PIECE)
    pieces = []
    for draw, start in enumerate(np.clip(centers - PIECE // 2, stretch.start, last).tolist()):
        lost = draw_lost(decoder.session.standardization.spatial.known, count, draw)
        pieces.append(decoder.decode(slice(start, min(start + PIECE, stretch.stop)), lost))
    return collect(pieces, truth)


def draw_lost(known: Mask, count: int, draw: int) -> npt.NDArray[np.int64]:
    """Draws which `count` of the known channels (C,) are lost: any of them, or a bank of neighbours, in turn.

    A larger number contains the smaller ones.
    """
    random, channels = np.random.default_rng([7, draw]), np.flatnonzero(known)
    if draw % 2:
        return np.roll(channels, -int(random.integers(len(channels))))[:count]
    return random.permutation(channels)[:count]


def collect(pieces: list[Piece], truth: Array) -> Decoded:
    """Returns what was decoded in all bins of the pieces whose truth (T, K) is known."""
    kinematics, lost = np.concatenate([p.kinematics for p in pieces]), np.concatenate([p.lost for p in pieces])
    true = np.concatenate([truth[piece.bins] for piece in pieces])
    known = np.isfinite(true).all(axis=1)
    return Decoded(float(lost[known].mean()), kinematics[known], kinematics[known].astype(np.float64) - true[known])
