"""The published method is measured as published, but smaller, on the blocks of our own tables."""

from __future__ import annotations

import pytest

from benchmarks.accuracy.paper import DISTILLED, PUBLISHED, ROWS, SINGLE, SMALL, compute_gap_closed, shrink
from edgedistill.config import load_preset


def test_only_size_and_length_differ_from_the_published_preset() -> None:
    published, nano = load_preset("paper"), load_preset("nano")
    small = shrink(published, nano)
    for size, whole in ((small.teacher, published.teacher), (small.patch_student, published.patch_student)):
        assert {name for name, value in vars(whole).items() if getattr(size, name) != value} == set(SMALL)
        assert (size.span, size.mask_share) == (1, 0.6)
    for training, whole_training in (
        (small.teacher_training, published.teacher_training),
        (small.training, published.training),
    ):
        changed = {name for name, value in vars(whole_training).items() if getattr(training, name) != value}
        assert changed == {"bins_per_step", "steps", "learning_rate"}
        assert training.segment_bins == 500
    assert (small.student, small.band_power) == (
        nano.student,
        nano.band_power,
    )  # so blocks and inputs are those of nano


def test_the_share_of_the_gap_is_that_of_the_published_table() -> None:
    rows = {row: {"r2": {"day": PUBLISHED[row]}} for row in ROWS}
    assert compute_gap_closed([rows]) == pytest.approx((0.71 - 0.24) / (0.69 - 0.24))
    rows[DISTILLED] = rows[SINGLE]
    assert compute_gap_closed([rows]) == 0
