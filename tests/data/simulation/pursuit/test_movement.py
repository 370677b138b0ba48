"""A pursuing hand moves for seconds, rests between trials, and stays within the workspace."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgedistill.data.simulation.config import LATENT_HZ
from edgedistill.data.simulation.pursuit.movement import simulate_pursuit

MINUTE = 60 * LATENT_HZ


@settings(max_examples=10, deadline=None)
@given(st.integers(0, 1000))
def test_the_hand_stays_in_the_workspace_at_speeds_of_an_arm(seed: int) -> None:
    position, velocity = simulate_pursuit(2 * MINUTE, np.random.default_rng(seed))
    speed = np.linalg.norm(velocity, axis=1)
    assert position.shape == velocity.shape == (2 * MINUTE, 2)
    assert np.abs(position).max() < 20
    assert 5 < speed.mean() < 20
    assert speed.max() < 120


def test_trials_of_seconds_follow_rests_of_about_a_second() -> None:
    _, velocity = simulate_pursuit(10 * MINUTE, np.random.default_rng(0))
    moving = np.linalg.norm(velocity, axis=1) >= 4
    edges = np.flatnonzero(np.diff(moving))
    rests = np.diff(edges)[0 if moving[edges[0]] else 1 :: 2]
    long_rests = rests[rests > 0.6 * LATENT_HZ]
    assert 60 < len(long_rests) < 130  # a trial and its rest last 4 to 9 s
    assert np.median(long_rests) == pytest.approx(1.8 * LATENT_HZ, rel=0.3)


def test_the_hand_moves_in_submovements_not_in_one_sweep() -> None:
    """Its speed has several peaks a second, where a reach has one."""
    _, velocity = simulate_pursuit(5 * MINUTE, np.random.default_rng(1))
    speed = np.convolve(np.linalg.norm(velocity, axis=1), np.hanning(9) / 4, "same")
    peaks = (speed[1:-1] > speed[:-2]) & (speed[1:-1] > speed[2:]) & (speed[1:-1] > 4)
    assert 1 < peaks.sum() / ((speed > 4).sum() / LATENT_HZ) < 5
