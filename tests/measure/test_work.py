"""Tests the work of a step by hand, for a shape whose numbers all differ."""

from __future__ import annotations

from edgedistill.config import StudentShape
from edgedistill.measure.work import Work, count_work, count_work_by_part
from edgedistill.numerics import part_names

SHAPE = StudentShape(channels=3, outputs=2, d=8, layers=2, heads=4, window=7, ff=16, taps=5, dilation=2, lags=9)


def test_every_part_once_in_the_order_of_the_step() -> None:
    assert tuple(count_work_by_part(SHAPE)) == part_names(SHAPE)


def test_parts_by_hand() -> None:
    parts = count_work_by_part(SHAPE)
    assert parts["embed"] == Work(8 * 15 + 4 * 8 + 4 * 8 + 9 * 3, 8 * 15)
    assert parts["layers.0.qkv"] == Work(3 * (64 + 32), 3 * 64)
    assert parts["layers.1.attention"] == Work(2 * 7 * 8 + 4 * 4 * 7, 2 * 7 * 8)
    assert parts["layers.1.gate_up"] == Work(2 * (128 + 64), 256)
    assert parts["readout"] == Work(2 * 8 + 2 * 30 + 4 * 4 + 4 * 2, 2 * 38)
    assert count_work(SHAPE).multiply_adds == sum(part.multiply_adds for part in parts.values())
