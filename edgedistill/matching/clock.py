"""Compares the clocks of a recording and a bundle: the sampling rate, and the day on which each was recorded."""

from __future__ import annotations

from datetime import datetime
from fractions import Fraction

LEAST_PPM = 0.01  # 36 us an hour; timestamps do not tell a rate better
MOST_PPM = 200  # two crystals of 100 ppm each; one frame in 5,000 moves no bin by more than 2 us


def measure_ppm(rate: Fraction, expected: Fraction) -> float:
    """Returns how much faster a rate is than expected, in parts per million."""
    return float((rate / expected - 1) * 1_000_000)


def describe_rates(rate: Fraction, expected: Fraction) -> str | None:
    """Returns a warning for a rate that differs from the bundle's, or None where both are the same."""
    ppm = measure_ppm(rate, expected)
    if abs(ppm) < LEAST_PPM:
        return None
    return (
        f"the sampling rate is {float(rate):.10g} Hz, {abs(ppm):.3g} ppm {'above' if ppm > 0 else 'below'} that of the "
        f"bundle, {float(expected):.10g} Hz: frames are decoded as if at that rate, but times follow the clock "
        "of the recording"
    )


def describe_days(start: str, expected: str) -> str | None:
    """Returns how long after or before the bundle's session one began, or None where both began at once.

    Both are ISO 8601. Returns None too where one of them cannot be read.
    """
    try:
        minutes = (datetime.fromisoformat(start) - datetime.fromisoformat(expected)).total_seconds() / 60
    except (ValueError, TypeError):
        return None
    if minutes == 0:
        return None
    hours = abs(minutes) / 60
    days = round(hours / 24)
    shorter = f"{hours:.1f} hours" if hours >= 1 else f"{abs(minutes):.1f} minutes"
    amount = f"{days} day{'s' * (days != 1)}" if days else shorter
    return f"{amount} {'after' if minutes > 0 else 'before'}"
