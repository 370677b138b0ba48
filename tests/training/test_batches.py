"""A training step sees only its own training block, normalized on that block alone."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from edgedistill import scratch
from edgedistill.errors import RecordingError
from edgedistill.frontend import settling_bins
from edgedistill.models.teacher import PatchAutoencoder
from edgedistill.training.batches import (
    TrainingSession,
    compute_gap,
    draw_segments,
    find_unlabelled_block,
    make_generator,
    pick_session,
    training_session_from_bins,
)
from edgedistill.training.pretrain import compute_over_segments, train_teacher

from .sessions import GAP, STUDENT, TEACHER, TRAINING, UNITS, T, disturbed, session, session_bins, with_bands

PLAIN = session()


@settings(max_examples=40, deadline=None)
@given(step=st.integers(0, 10**6), length=st.integers(1, 12_000), seed=st.integers(0, 9))
def test_segments_stay_inside_the_training_block(step: int, length: int, seed: int) -> None:
    config = replace(TRAINING, segment_bins=length, burn_in=0, bins_per_step=max(length, 512))
    at = torch.arange(T)
    first, second = draw_segments(PLAIN, [at, at * 2], config, make_generator(seed, step))
    assert first.min() >= PLAIN.settled
    assert first.max() < PLAIN.split.train.stop
    assert torch.equal(first * 2, second)
    assert (first.diff(dim=1) == 1).all()
    again = draw_segments(PLAIN, [at], config, make_generator(seed, step))[0]
    assert torch.equal(again, first)


def test_segments_reach_both_ends_of_the_block() -> None:
    config, at = replace(TRAINING, segment_bins=2000, bins_per_step=2000 * 4000, burn_in=0), torch.arange(T)
    (drawn,) = draw_segments(PLAIN, [at], config, make_generator(0, 0))
    length = PLAIN.split.train.stop - PLAIN.settled
    assert drawn[:, 0].min() - PLAIN.settled < length / 100
    assert PLAIN.split.train.stop - 1 - drawn[:, -1].max() < length / 100


def test_steps_draw_different_segments_and_every_session_is_drawn() -> None:
    sessions = [session("a", 0), session("b", 1), session("c", 2)]
    picked = [pick_session(sessions, make_generator(0, step)).id for step in range(60)]
    assert set(picked) == {"a", "b", "c"}
    starts = [draw_segments(PLAIN, [torch.arange(T)], TRAINING, make_generator(0, s))[0][0, 0].item() for s in range(9)]
    assert len(set(starts)) > 5


def statistics_of(made: TrainingSession) -> list[np.ndarray]:
    """Returns all that was fitted on the training block."""
    lfp, spatial = made.standardization, made.standardization.spatial
    array = [spatial.coupling, spatial.scale, spatial.inverse_scale, spatial.gain]
    return [lfp.mean, lfp.std, *array, *made.spike_normalization, *made.scale]


def test_without_its_bands_a_session_is_that_of_the_slow_lfp_alone() -> None:
    plain = session_bins(channels=5)
    banded, slow = (training_session_from_bins(bins, GAP) for bins in (with_bands(plain, 2), plain))
    assert banded.inputs("lfp").shape[1] == 15
    found = banded.without_bands()
    assert torch.equal(found.inputs("lfp"), slow.inputs("lfp"))
    assert found.source is not None
    assert slow.source is not None
    assert torch.equal(found.source.present, slow.source.present)
    assert np.array_equal(found.standardization.spatial.coupling, slow.standardization.spatial.coupling)


def test_the_same_channels_with_other_bands_are_another_array() -> None:
    names = [training_session_from_bins(with_bands(session_bins(), bands), GAP).array for bands in (0, 1, 2)]
    assert names[0] == session().array
    assert len(set(names)) == 3


def test_the_same_channels_of_another_subject_are_another_array() -> None:
    spelled = ("Jenkins", " jenkins", "Indy", None)
    names = [training_session_from_bins(replace(session_bins(), subject_id=s), GAP).array for s in spelled]
    assert names[0] == names[1]
    assert len(set(names)) == 3


def test_statistics_come_from_the_training_block_alone() -> None:
    bins = session_bins()
    stop = PLAIN.split.train.stop
    other = training_session_from_bins(disturbed(bins, stop), GAP)
    for mine, its in zip(statistics_of(PLAIN), statistics_of(other), strict=True):
        assert mine.tobytes() == its.tobytes()
    for name in ("lfp", "spikes", "counts", "behavior"):
        assert torch.equal(getattr(PLAIN, name)[:stop], getattr(other, name)[:stop]), name
    assert (PLAIN.split, PLAIN.settled, PLAIN.array) == (other.split, other.settled, other.array)


def test_bins_inside_the_training_block_change_the_statistics() -> None:
    bins = session_bins()
    assert bins.lfp is not None
    lfp = bins.lfp.copy()
    lfp[PLAIN.split.train.stop - 1] += 400  # no artefact: those count for nothing
    other = training_session_from_bins(replace(bins, lfp=lfp), GAP)
    assert (other.standardization.mean > PLAIN.standardization.mean).all()


@settings(max_examples=15, deadline=None)
@given(total=st.integers(1, 300), segment=st.integers(1, 80), batch=st.integers(1, 5), whose=st.sampled_from("ef"))
def test_latents_and_features_cover_every_bin(total: int, segment: int, batch: int, whose: str) -> None:
    teacher = PatchAutoencoder(TEACHER, {"s1": UNITS})
    read, width = (teacher.latents, TEACHER.d) if whose == "e" else (teacher.features, TEACHER.predictor_d)
    spikes = PLAIN.inputs("spikes")[:total]
    found = compute_over_segments(lambda bins: read("s1", bins), spikes, segment, width, batch=batch)
    assert found.shape == (total, width)
    norms = found.square().mean(1)  # a bin that was left out would hold what was in memory
    assert torch.isfinite(found).all()
    assert (norms < 1.5).all()
    assert (norms > 0.01).all()


def test_z_scores_have_unit_variance_on_the_training_block() -> None:
    block = slice(settling_bins(session_bins().frontend), PLAIN.split.train.stop)  # type: ignore[arg-type]
    for values in (PLAIN.inputs("lfp")[block], PLAIN.inputs("spikes")[: block.stop]):
        torch.testing.assert_close(values.mean(0), torch.zeros(values.shape[1]), atol=1e-4, rtol=0)
        torch.testing.assert_close(values.std(0), torch.ones(values.shape[1]), atol=1e-3, rtol=0)


def test_unknown_behavior_stays_nan() -> None:
    bins = session_bins()
    assert bins.behavior is not None
    values = bins.behavior.copy()
    values[:, 1] = 3  # never moves
    values[100:200] = np.nan
    made = training_session_from_bins(replace(bins, behavior=values), GAP)
    assert made.behavior is not None
    assert torch.isnan(made.behavior[100:200]).all()
    assert torch.isfinite(made.behavior[200:]).all()
    assert made.scale[1][1] == 1


def test_asking_for_a_missing_part_raises_an_error() -> None:
    bins = replace(session_bins(), counts=None, behavior=None)
    made = training_session_from_bins(bins, GAP)
    assert made.behavior is None
    with pytest.raises(RecordingError, match="s1 holds no spikes"):
        made.inputs("spikes")
    bare = training_session_from_bins(replace(session_bins(), lfp=None, bad=None, frontend=None), GAP)
    with pytest.raises(RecordingError, match="s1 holds no lfp"):
        bare.inputs("lfp")


def arrays(*sessions: TrainingSession) -> int:
    return len({s.array for s in sessions})


def test_sessions_with_the_same_channel_ids_share_an_array() -> None:
    assert arrays(session("a", 0), session("b", 1)) == 1
    assert arrays(session("a", 0), session("b", 1, first_id=1)) == 2
    assert arrays(session("a", 0), session("b", 1, channels=4)) == 2


def test_the_gap_is_receptive_field_plus_taps_plus_settling_time() -> None:
    bins = session_bins()
    assert bins.frontend is not None
    field = STUDENT.shape(3, 2).receptive_field + (STUDENT.taps - 1) * STUDENT.dilation
    assert compute_gap([bins], STUDENT) == settling_bins(bins.frontend) + field
    assert compute_gap([replace(bins, frontend=None)], STUDENT) > field


@pytest.mark.parametrize(("hidden", "block"), [(slice(0, 8000), "training"), (slice(9000, None), "test")])
def test_a_block_without_labels_is_named(hidden: slice, block: str) -> None:
    bins = session_bins()
    assert bins.behavior is not None
    behavior = bins.behavior.copy()
    behavior[hidden] = np.nan
    assert find_unlabelled_block(training_session_from_bins(bins, GAP)) is None
    assert find_unlabelled_block(training_session_from_bins(replace(bins, behavior=behavior), GAP)) == block


def with_invalid(**changes: object) -> TrainingSession:
    bins = session_bins()
    valid = np.ones(bins.bins, np.bool_)
    valid[2000:5000] = False
    disturbed = np.repeat(~valid[:, None], bins.lfp.shape[1], axis=1)
    behavior = bins.behavior.copy()
    behavior[~valid] = np.nan
    return training_session_from_bins(
        replace(bins, valid=valid, disturbed=disturbed, behavior=behavior, **changes), GAP
    )


def test_bins_that_are_not_valid_count_in_no_statistic() -> None:
    bins = session_bins()
    wild = {name: getattr(bins, name).copy() for name in ("lfp", "counts")}
    wild["lfp"][2000:5000] = 1e6
    wild["counts"][2000:5000] = 200
    clean, made = with_invalid(), with_invalid(**wild)
    for found, expected in zip(statistics_of(made), statistics_of(clean), strict=True):
        np.testing.assert_array_equal(found, expected)
    known = np.r_[0:2000, 5000 : made.split.train.stop]
    np.testing.assert_allclose(made.spike_normalization[0], bins.counts[known].mean(0), rtol=1e-12)
    for modality in ("lfp", "spikes"):
        assert not made.inputs(modality)[2000:5000].any()
        assert torch.isnan(made.targets(modality)[2000:5000]).all()
        assert torch.isfinite(made.targets(modality)[:2000]).all()
    assert torch.isnan(made.counts[2000:5000]).all()


def test_counts_of_a_unit_that_was_not_observed_are_unknown_and_not_zero() -> None:
    bins = session_bins()
    observed = np.ones(bins.counts.shape, np.bool_)
    observed[:3000, 2] = False
    made = training_session_from_bins(replace(bins, observed=observed), GAP)
    assert torch.isnan(made.counts[:3000, 2]).all()
    assert torch.isfinite(made.counts[:, [0, 1, 3]]).all()
    assert made.spike_normalization[0][2] == pytest.approx(bins.counts[3000 : made.split.train.stop, 2].mean())
    assert not made.spikes[:3000, 2].any()


def test_segments_with_little_to_learn_from_are_not_drawn() -> None:
    made, config = with_invalid(), replace(TRAINING, segment_bins=400, bins_per_step=40_000)
    position = torch.arange(len(made.valid))
    drawn = draw_segments(made, [position, made.valid.float()], config, make_generator(1, 0))
    assert drawn[1].mean(1).min() >= 0.5
    assert ((drawn[0][:, 0] < 2000) & (drawn[0][:, 0] > 1600)).any()  # up to half a segment may be left out


def test_a_session_that_is_whole_draws_what_it_drew_before() -> None:
    made = session()
    every = draw_segments(made, [torch.arange(T)], TRAINING, make_generator(3, 0))[0]
    last = made.split.train.stop - TRAINING.segment_bins
    starts = torch.randint(made.settled, last + 1, (len(every),), generator=make_generator(3, 0))
    assert torch.equal(every[:, 0].cpu(), starts)


def test_disturbed_bins_are_filled_in_in_training_alone_and_scored_as_a_stream_sees_them() -> None:
    bins = session_bins()
    plain = training_session_from_bins(bins, GAP)
    disturbed = np.zeros(bins.bad.shape, np.bool_)
    firsts = (3000, plain.split.validation.start + 50, plain.split.test.start + 50)
    for at in firsts:
        disturbed[at : at + 40, 1] = True
    made = training_session_from_bins(replace(bins, disturbed=disturbed), GAP)
    assert made.source is not None
    lost = np.argwhere(~made.source.there.numpy())
    assert lost.tolist() == [[at, 1] for at in range(3000, 3040)]
    for first in firsts:
        rows = slice(first, first + 40)
        wanted = made.standardization.inputs(bins.lfp[rows], disturbed[rows] & (first == 3000))
        np.testing.assert_array_equal(made.lfp[rows].numpy(), wanted)
    rows = np.setdiff1d(np.arange(made.settled, made.split.train.stop), np.arange(3000, 3040))
    assert made.standardization.mean[1] == pytest.approx(bins.lfp[rows, 1].mean(), abs=0.5)


def test_the_models_input_is_what_a_stream_makes_of_the_same_bins() -> None:
    bins = session_bins()
    bad = bins.bad.copy()
    bad[4000:4100, 2] = True
    made = training_session_from_bins(replace(bins, bad=bad), GAP)
    spatial = made.standardization.spatial
    for at in (3999, 4000, 4099, 4100):
        present, there = made.standardization.standardize(bins.lfp[at][None], bad[at][None])
        assert made.lfp[at].numpy().tobytes() == spatial.complete(present, there)[0].tobytes()
    assert made.lfp[4000:4100, 2].abs().max() > 0


def test_the_size_of_a_block_changes_no_input(monkeypatch: pytest.MonkeyPatch) -> None:
    bad = session_bins().bad.copy()
    bad[4000:4100, 2] = True
    bins = with_bands(replace(session_bins(), bad=bad), 2)
    whole = training_session_from_bins(bins, GAP)
    monkeypatch.setattr(scratch, "BLOCK_VALUES", 1)  # blocks of 64 bins
    found = training_session_from_bins(bins, GAP)
    for one, other in ((found.lfp, whole.lfp), (found.source.present, whole.source.present)):
        assert one.numpy().tobytes() == other.numpy().tobytes()
    assert torch.equal(found.source.there, whole.source.there)


@pytest.mark.parametrize("block", ["training", "validation"])
def test_a_session_without_a_usable_block_is_refused_and_the_block_is_named(block: str) -> None:
    bins, split = session_bins(), session().split
    valid = np.ones(bins.bins, np.bool_)
    valid[split.train if block == "training" else split.validation] = False
    with pytest.raises(RecordingError, match=f"nothing of the {block} block") as caught:
        training_session_from_bins(replace(bins, valid=valid), GAP)
    assert "s1.nwb" in str(caught.value)


def test_a_unit_that_training_never_observes_does_not_spoil_the_teacher() -> None:
    bins = session_bins()
    observed = np.ones(bins.counts.shape, np.bool_)
    observed[:11_500, 1] = False
    made = training_session_from_bins(replace(bins, observed=observed), GAP)
    teacher = train_teacher([made], TEACHER, TRAINING, 0)
    assert all(torch.isfinite(parameter).all() for parameter in teacher.parameters())
