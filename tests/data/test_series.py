"""The rates of recording hardware become exact fractions."""

from __future__ import annotations

from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgedistill.data.series import find_exact_rate


@pytest.mark.parametrize(
    ("hz", "rate"),
    [
        (1000.0, Fraction(1000)),
        (24414.0625, Fraction(390625, 16)),
        (24414.0625 / 24, Fraction(390625, 384)),
        (24414.0625 / 32, Fraction(390625, 512)),
        (2034.5052083333335, Fraction(390625, 192)),
        (30000 / 7, Fraction(30000, 7)),
    ],
)
def test_rates_of_known_hardware_become_exact_fractions(hz: float, rate: Fraction) -> None:
    assert find_exact_rate(hz) == rate


@given(st.floats(200, 50_000))
def test_any_rate_is_kept_within_a_billionth_with_a_small_denominator(hz: float) -> None:
    rate = find_exact_rate(hz)
    assert abs(rate - Fraction(hz)) <= Fraction(hz) / 10**9
    assert rate.denominator <= 10**6
