"""Every second of a session is kept, or left out for one reason."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgedistill.data.coverage import BEFORE, after_end, cover, mask_covered, mask_intervals

EDGES = 10.0 + np.arange(101) / 100


def test_seconds_are_counted_under_the_first_reason_that_applies() -> None:
    first, second = np.zeros(100, np.bool_), np.zeros(100, np.bool_)
    first[:30], second[20:50] = True, True
    found = cover((8.0, 12.5), EDGES, after_end("LFP"), [("gap", first), ("noise", second), ("never", first & second)])
    assert found.session_s == pytest.approx(4.5)
    assert found.kept_s == pytest.approx(0.5)
    assert found.left_out_s == pytest.approx({BEFORE: 2.0, "gap": 0.3, "noise": 0.2, "after the end of the LFP": 1.5})
    assert found.to_text() == (
        "0.5 of 4.5 s kept; left out: before the first bin 2 s, gap 0.3 s, noise 0.2 s, after the end of the LFP 1.5 s"
    )


@settings(max_examples=200, deadline=None)
@given(
    before=st.floats(0, 100), after=st.floats(0, 100), bins=st.integers(1, 300), seed=st.integers(0, 1000),
    reasons=st.integers(0, 4),
)  # fmt: skip
def test_kept_and_left_out_seconds_add_up_to_the_session(
    before: float, after: float, bins: int, seed: int, reasons: int
) -> None:
    rng = np.random.default_rng(seed)
    edges = np.concatenate([[0.0], np.cumsum(rng.uniform(0.0099, 0.0101, bins))])
    masks = [(f"reason {i}", rng.random(bins) < rng.random()) for i in range(reasons)]
    found = cover((-before, edges[-1] + after), edges, after_end("units"), masks)
    assert found.kept_s + sum(found.left_out_s.values()) == pytest.approx(found.session_s, abs=1e-9)
    assert found.session_s == pytest.approx(before + edges[-1] + after, abs=1e-9)
    kept = ~np.any([np.zeros(bins, np.bool_), *(mask for _, mask in masks)], axis=0)
    assert found.kept_s == pytest.approx(np.diff(edges)[kept].sum(), abs=1e-9)


def test_a_bin_touches_an_interval_but_not_one_that_ends_where_it_begins() -> None:
    touched = mask_intervals(EDGES, np.array([[10.10, 10.12], [10.505, 10.506], [5.0, 10.01], [10.99, 99.0]]))
    assert np.flatnonzero(touched).tolist() == [0, 10, 11, 50, 99]
    assert not mask_intervals(EDGES, np.array([[0.0, 10.0], [11.0, 12.0]])).any()


def test_a_bin_is_covered_only_if_it_lies_wholly_inside() -> None:
    covered = mask_covered(EDGES, np.array([[10.0, 10.02], [10.495, 10.53]]))
    assert np.flatnonzero(covered).tolist() == [0, 1, 50, 51, 52]
    assert not mask_covered(EDGES, np.empty((0, 2))).any()
