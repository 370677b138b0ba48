"""The windows of a calibration lie apart in the training block, cover all speeds, and hold no artefacts."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from edgedistill.errors import RecordingError
from edgedistill.quantization.calibration.recipe import Recipe
from edgedistill.quantization.calibration.windows import Draw, draw_windows
from edgedistill.training.batches import TrainingSession

from ...training.sessions import STUDENT, session

RECIPE = Recipe("r", "", "minmax", windows=12, window_bins=100)
RUN_UP = STUDENT.layers * (STUDENT.window - 1) + (STUDENT.taps - 1) * STUDENT.dilation


@pytest.fixture(scope="module")
def day() -> TrainingSession:
    return session()


def draw(*sessions: TrainingSession, recipe: Recipe = RECIPE, seed: int = 0) -> Draw:
    return draw_windows(sessions, "lfp", STUDENT, recipe, seed)


def louder(day: TrainingSession, first: int, bins: int, value: float) -> TrainingSession:
    lfp = day.inputs("lfp").clone()
    lfp[first : first + bins, 1] = value
    return replace(day, lfp=lfp)


@given(
    seed=st.integers(0, 1000),
    windows=st.integers(1, 200),
    bins=st.integers(1, 3000),
    strata=st.integers(1, 6),
    labelled=st.booleans(),
)
@settings(max_examples=40, deadline=None)
def test_windows_lie_in_the_training_block_with_their_run_up_and_apart(
    day: TrainingSession, seed: int, windows: int, bins: int, strata: int, labelled: bool
) -> None:
    day = day if labelled else replace(day, behavior=None)
    recipe = replace(RECIPE, windows=windows, window_bins=bins, strata=strata)
    drawn = draw(day, recipe=recipe, seed=seed).windows
    room = day.split.train.stop - day.settled - RUN_UP
    assert len(drawn) == min(windows, max(1, room // bins))
    ends = [day.settled]
    for window in drawn:
        assert window.first_bin >= ends[-1]
        assert window.first_bin - window.run_up >= day.settled
        assert window.run_up == RUN_UP
        ends.append(window.first_bin + window.bins)
    assert ends[-1] <= day.split.train.stop


def test_windows_depend_on_the_seed_alone(day: TrainingSession) -> None:
    assert draw(day) == draw(day)
    assert draw(day, seed=1) != draw(day)


def test_movement_is_drawn_as_often_as_rest(day: TrainingSession) -> None:
    assert day.behavior is not None
    still = day.behavior * 0.01
    still[2000:2400] = 3.0  # 4 s of movement in more than a minute
    moving = replace(day, behavior=still)

    def share(recipe: Recipe) -> float:
        drawn = draw(moving, recipe=recipe).windows
        return float(np.mean([1900 < window.first_bin < 2400 for window in drawn]))

    recipe = replace(RECIPE, windows=8, strata=4)
    assert share(recipe) >= 0.4
    assert share(replace(recipe, strata=1)) <= 0.25


def test_every_session_gives_as_many_windows(day: TrainingSession) -> None:
    drawn = draw(day, session("s2", 1), recipe=replace(RECIPE, windows=13)).windows
    assert Counter(window.session for window in drawn) == {"s1": 7, "s2": 6}


def test_bins_without_behavior_are_drawn_too(day: TrainingSession) -> None:
    assert day.behavior is not None
    unknown = day.behavior.clone()
    unknown[3000:] = torch.nan
    drawn = draw(replace(day, behavior=unknown), recipe=replace(RECIPE, windows=20)).windows
    firsts = np.array([window.first_bin for window in drawn])
    assert (firsts < 3000).any()
    assert (firsts >= 3000).any()


def test_a_short_block_gives_half_of_itself_to_the_run_up_and_fewer_windows(day: TrainingSession) -> None:
    short = replace(day, split=replace(day.split, train=slice(0, day.settled + 120)))
    (window,) = draw(short).windows
    assert window.run_up == (120 - 100) // 2


# ---------------------------------------------------------------- artefacts


def test_a_window_with_an_artefact_is_left_out_replaced_and_listed(day: TrainingSession) -> None:
    clean = draw(day, recipe=replace(RECIPE, windows=1000)).windows
    hit = louder(day, 3000, 10, 1000.0)
    found = draw(hit, recipe=replace(RECIPE, windows=1000))
    assert {(w.first_bin <= 3009, w.first_bin + 100 > 3000) for w in found.windows}.isdisjoint({(True, True)})
    artefacts = [one for one in found.left_out if one.value is not None]
    assert [one.value for one in artefacts] == [1000.0] * len(artefacts)
    assert 1 <= len(artefacts) <= 2
    assert "artefact" in artefacts[0].reason
    assert len(found.windows) + len(found.left_out) == len(clean)
    few = draw(hit, recipe=replace(RECIPE, windows=20))
    assert len(few.windows) == 20


def test_windows_that_ring_after_an_artefact_are_left_out_where_enough_remain(day: TrainingSession) -> None:
    hit = replace(louder(day, 3000, 10, 1000.0), settled=300)
    found = draw(hit, recipe=replace(RECIPE, windows=1000))
    assert not [w for w in found.windows if 3000 < w.first_bin < 3000 + hit.settled]
    assert any("rings" in one.reason for one in found.left_out)
    short = replace(hit, split=replace(hit.split, train=slice(0, 3010 + hit.settled)), settled=1700)
    many = replace(short, settled=2900)
    assert draw(many, recipe=replace(RECIPE, windows=1000, window_bins=20)).windows  # better than none


def test_nan_windows_are_left_out_and_a_session_of_nothing_else_is_refused(day: TrainingSession) -> None:
    found = draw(louder(day, 3000, 50, torch.nan), recipe=replace(RECIPE, windows=1000))
    assert [one.reason for one in found.left_out if one.value is None and "NaN" in one.reason]
    for value, says in ((torch.nan, "it holds NaN"), (0.0, "masked")):
        nothing = replace(day, lfp=torch.full_like(day.inputs("lfp"), value))
        with pytest.raises(RecordingError, match=rf"session s1: no window[\s\S]*from bin \d+ on[\s\S]*{says}"):
            draw(nothing)


def test_other_sessions_make_up_for_windows_that_one_lacks(day: TrainingSession) -> None:
    silent = replace(day, lfp=torch.zeros_like(day.inputs("lfp")))
    short = replace(day, id="s3", split=replace(day.split, train=slice(0, day.settled + 50)))
    found = draw(silent, session("s2"), short)
    assert [window.session for window in found.windows] == ["s2"] * 12
    assert {one.session for one in found.left_out} == {"s1", "s3"}  # told, though another session has windows


def test_no_session_and_a_block_shorter_than_a_window_are_refused(day: TrainingSession) -> None:
    with pytest.raises(RecordingError, match="nothing to calibrate on"):
        draw()
    with pytest.raises(RecordingError, match=r"session s1[\s\S]*shorter than a window"):
        draw(day, recipe=replace(RECIPE, window_bins=20_000))
