"""Deviations are calibrated on bins that neither training nor test shares, on what the device would decode."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from edgedistill.measure.intervals import QUANTILES
from edgedistill.numerics import Int8Model, Oracle
from edgedistill.pipeline import confidence
from edgedistill.pipeline.confidence import (
    LEAST_BINS,
    PieceDecoder,
    calibrate_deviations,
    count_lost,
    decode_with_losses,
    draw_lost,
    find_calibration_stretch,
    find_truth,
)
from edgedistill.training.batches import TrainingSession

from ..numerics.students import random_model
from ..training.sessions import STUDENT, session

CHANNELS = 8


@pytest.fixture(scope="module")
def day() -> TrainingSession:
    return session(channels=CHANNELS)


@pytest.fixture(scope="module")
def model(day: TrainingSession) -> Int8Model:
    return random_model(STUDENT.shape(CHANNELS, 2))


def relabel(day: TrainingSession, block: slice, value: float) -> TrainingSession:
    """Returns the session with another behavior in some bins."""
    assert day.behavior is not None
    behavior = day.behavior.clone()
    behavior[block] = value
    return replace(day, behavior=behavior)


def tables(day: TrainingSession, model: Int8Model) -> list[bytes]:
    found = calibrate_deviations(model, day).model
    return [part.tobytes() for part in (found.at_rest, found.by_speed, found.center, found.weight)]


def test_the_stretch_reaches_as_far_as_it_shares_nothing_with_training_and_test(
    day: TrainingSession, model: Int8Model
) -> None:
    stretch, reach = find_calibration_stretch(day, model.shape), model.shape.receptive_field + model.shape.lag_rows
    assert (stretch.start, stretch.stop) == (day.split.train.stop + reach, day.split.test.start - reach)
    assert stretch.start < day.split.validation.start
    assert stretch.stop > day.split.validation.stop
    long = replace(model.shape, window=400)  # a longer reach than the gap, which another student may have set
    far = find_calibration_stretch(day, long)
    assert (far.start, far.stop) == (day.split.validation.start, day.split.validation.stop)


def test_no_bin_from_the_stop_on_is_used(day: TrainingSession, model: Int8Model) -> None:
    stop = day.split.validation.stop
    assert find_calibration_stretch(day, model.shape, stop).stop == stop
    later = relabel(day, slice(stop, None), 1e3)
    found, other = (calibrate_deviations(model, one, stop=stop).model for one in (day, later))
    assert found.at_rest.tobytes() == other.at_rest.tobytes()
    assert calibrate_deviations(model, later).model.at_rest.tobytes() != found.at_rest.tobytes()


def test_a_long_stretch_is_cut(day: TrainingSession, model: Int8Model, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(confidence, "MOST_BINS", 700)
    stretch = find_calibration_stretch(day, model.shape)
    assert stretch.stop - stretch.start == 700
    assert calibrate_deviations(model, day).confidence.labelled_bins == 700


def test_labels_of_the_test_block_change_nothing(day: TrainingSession, model: Int8Model) -> None:
    found = tables(day, model)
    assert tables(relabel(day, slice(day.split.test.start, None), 1e3), model) == found
    assert tables(relabel(day, day.split.validation, 1e3), model) != found


def test_errors_on_the_training_block_change_nothing(day: TrainingSession, model: Int8Model) -> None:
    assert day.behavior is not None
    mirrored = day.behavior.clone()
    mirrored[day.split.train] *= -1  # as large, and nothing of it is decoded right
    found, other = (calibrate_deviations(model, one).model for one in (day, replace(day, behavior=mirrored)))
    assert other.at_rest == pytest.approx(found.at_rest, rel=0.05)


def test_a_piece_is_decoded_as_a_stream_that_began_long_before(day: TrainingSession, model: Int8Model) -> None:
    piece, lost = slice(8000, 8100), np.array([1, 5])
    found = PieceDecoder(model, day).decode(piece, lost)
    present, there = day.source.present.numpy().copy(), day.source.there.numpy().copy()
    there[:, lost] = False
    whole = Oracle(model).run(day.standardization.spatial.complete(present, there)[: piece.stop])
    assert found.kinematics.tobytes() == whole[piece].tobytes()
    assert (found.lost == 2).all()


def test_the_channels_that_are_lost_are_known_ones_and_a_larger_number_contains_the_smaller() -> None:
    known = np.ones(20, np.bool_)
    known[[3, 11]] = False
    for draw in range(4):
        sets = [draw_lost(known, count, draw).tolist() for count in (2, 5, 18)]
        assert all(len(set(lost)) == count for lost, count in zip(sets, (2, 5, 18), strict=True))
        assert sets[1][:2] == sets[0]
        assert set(sets[2]) == set(np.flatnonzero(known).tolist())
        places = [np.flatnonzero(known).tolist().index(channel) for channel in sets[1]]
        assert (np.diff(places) % 18 == 1).all() == bool(draw % 2)  # a bank of neighbours at every other draw


def test_more_lost_channels_have_larger_errors_and_all_of_them_leave_the_spread(
    day: TrainingSession, model: Int8Model
) -> None:
    assert count_lost(day) == [1, 2, 4, 6, 8]
    found = calibrate_deviations(model, day).model
    assert (np.diff(found.at_rest, axis=0) >= 0).all()
    truth, stretch = find_truth(day), find_calibration_stretch(day, model.shape)
    decoded = decode_with_losses(PieceDecoder(model, day), truth, stretch, CHANNELS)
    assert decoded.lost == CHANNELS
    assert np.ptp(decoded.kinematics, axis=0) == pytest.approx(0)  # nothing is left that could be decoded
    within = np.abs(decoded.errors) <= QUANTILES[0.9] * np.sqrt(found.at_rest[CHANNELS])
    assert (within.mean(axis=0) >= 0.89).all()


def test_bins_without_any_channel_do_not_count(day: TrainingSession, model: Int8Model) -> None:
    there, gone = day.source.there.clone(), slice(day.split.validation.start, day.split.validation.start + 200)
    there[gone] = False
    source = replace(day.source, there=there, present=day.source.present * there)
    with_gap = relabel(replace(day, source=source), gone, 1e6)
    found, whole = (calibrate_deviations(model, one) for one in (with_gap, day))
    assert found.confidence.labelled_bins == whole.confidence.labelled_bins - 200
    assert found.model.at_rest == pytest.approx(whole.model.at_rest, rel=0.3)


def test_channels_that_the_recording_lacks_count_as_lost(day: TrainingSession, model: Int8Model) -> None:
    there = day.source.there.clone()
    there[day.split.validation.start - 200 :, :2] = False
    lacking = replace(day, source=replace(day.source, there=there))
    stretch = find_calibration_stretch(day, model.shape)
    decoded = decode_with_losses(PieceDecoder(model, lacking), find_truth(lacking), stretch, 1)
    assert 1 <= decoded.lost <= 3


def test_too_few_labels_leave_the_spread_of_the_behavior_and_a_note(day: TrainingSession, model: Int8Model) -> None:
    first = day.split.validation.start
    sparse = relabel(day, slice(day.split.train.stop, first), torch.nan)
    few = relabel(sparse, slice(first + LEAST_BINS - 1, day.split.test.start), torch.nan)
    found = calibrate_deviations(model, few)
    assert found.confidence.labelled_bins == LEAST_BINS - 1
    assert found.confidence.standard_error is None
    assert f"only {LEAST_BINS - 1} bins" in str(found.confidence.note)
    train = find_truth(day)[day.split.train]
    size = np.quantile(np.abs(train - train.mean(axis=0)), 0.9, axis=0) / QUANTILES[0.9]
    assert np.sqrt(found.model.at_rest) == pytest.approx(np.tile(size, (CHANNELS + 1, 1)), rel=1e-5)
    enough = relabel(sparse, slice(first + LEAST_BINS, day.split.test.start), torch.nan)
    assert calibrate_deviations(model, enough).confidence.note is None


def test_pieces_lie_where_the_labels_are(day: TrainingSession, model: Int8Model) -> None:
    stretch = find_calibration_stretch(day, model.shape)
    sparse = relabel(day, slice(stretch.start, stretch.stop - LEAST_BINS), torch.nan)
    truth = find_truth(sparse)
    assert len(decode_with_losses(PieceDecoder(model, sparse), truth, stretch, 2).errors) >= LEAST_BINS
