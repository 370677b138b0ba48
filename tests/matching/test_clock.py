"""Rates are compared in parts per million, and days as a person counts them."""

from __future__ import annotations

from fractions import Fraction

import pytest

from edgedistill.matching.clock import describe_days, describe_rates, measure_ppm


def test_rates_are_compared_in_ppm() -> None:
    assert measure_ppm(Fraction("1000.0138"), Fraction(1000)) == pytest.approx(13.8)
    assert describe_rates(Fraction(1000), Fraction(1000)) is None
    assert describe_rates(Fraction("1000.000001"), Fraction(1000)) is None
    above, below = (describe_rates(Fraction(rate), Fraction(1000)) for rate in ("1000.0138", "999.95"))
    assert above is not None
    assert below is not None
    assert "1000.0138 Hz, 13.8 ppm above that of the bundle, 1000 Hz" in above
    assert "50 ppm below" in below


@pytest.mark.parametrize(
    ("start", "says"),
    [
        ("2024-05-01T12:00:00+00:00", None),
        ("2024-05-01T14:00:00+02:00", None),
        ("2024-05-04T12:00:00+00:00", "3 days after"),
        ("2024-04-30T11:00:00+00:00", "1 day before"),
        ("2024-05-01T15:30:00+00:00", "3.5 hours after"),
        ("2024-05-01T12:01:00+00:00", "1.0 minutes after"),
        ("2024-05-01T11:00:00+00:00", "1.0 hours before"),
        ("yesterday", None),
        ("2024-05-04T12:00:00", None),
    ],
)
def test_days_between_two_sessions(start: str, says: str | None) -> None:
    assert describe_days(start, "2024-05-01T12:00:00+00:00") == says
