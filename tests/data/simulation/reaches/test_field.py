"""The field of a single unit is that of Telenczuk 2020."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgedistill.data.simulation.animal import Population
from edgedistill.data.simulation.config import SimulationConfig
from edgedistill.data.simulation.reaches.field import sum_unit_fields


@settings(max_examples=25, deadline=None)
@given(st.floats(0, 0.8), st.booleans(), st.floats(0.1, 0.4))
def test_the_field_of_a_spike_is_later_and_smaller_farther_away(mm: float, inhibitory: bool, spike_s: float) -> None:
    config = SimulationConfig(channels=4, units=1, population=4, rate_hz=10_000)
    place = np.array([[0.0, 0.0], [mm, 0.0], [0.2, 0.0], [0.4, 0.0]])
    kinds = np.array([inhibitory, not inhibitory])  # the second unit stays silent
    population = Population(place, np.zeros((2, 3)), kinds, *(np.zeros(0) for _ in range(4)))
    field, _ = sum_unit_fields(config, population, [np.array([spike_s]), np.zeros(0)], 5000)
    delay_s = 0.0104 + mm / 200
    assert np.argmax(field[:, 1]) / config.rate_hz == pytest.approx(spike_s + delay_s, abs=2e-4)
    assert field[:, 1].max() == pytest.approx(field[:, 0].max() * np.exp(-mm / 0.2), rel=1e-6)
