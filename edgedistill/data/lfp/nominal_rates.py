"""Knows the sampling rates that hardware has by its data sheet, and finds the one that a measured rate belongs to."""

from __future__ import annotations

from fractions import Fraction

# Tucker-Davis 24414.0625 Hz (and Makin's data), Neuralynx 32 kHz, Intan and Blackrock 30 kHz, Plexon 40 kHz
BASES = (*map(Fraction, (30000, 32000, 40000, 25000, 20000, 44100)), Fraction(390625, 16))
NEAR, NEAR_ROUND = 100e-6, 300e-6  # relative; a crystal is off by less
MOST_PARTS = 256


def find_nominal_rate(hz: float, blur: float = 1e-9) -> Fraction | None:
    """Returns the rate in Hz that hardware is sold with nearest to a measured one, or None where none is near.

    A rate within the relative uncertainty `blur` of the measured one comes first. Otherwise a multiple of 50 Hz, or a
    base rate divided by a power of two, comes before a base rate divided by any other number, and that before whole
    numbers.
    """
    exact = Fraction(hz)
    divided = [base / n for base in BASES if 1 <= (n := round(base / exact)) <= MOST_PARTS]
    power = [base / n for base in BASES if 1 <= (n := round(base / exact)) <= MOST_PARTS and n & (n - 1) == 0]
    double = [2 * base for base in BASES]
    tiers = (
        ([Fraction(50 * round(exact / 50)), *power, *double], NEAR_ROUND),
        (divided, NEAR),
        ([Fraction(round(exact))], NEAR),
    )
    for nominals, limit in (*((nominals, min(blur, NEAR)) for nominals, _ in tiers), *tiers):
        near = min(nominals, key=lambda rate: abs(rate - exact), default=Fraction(0))
        if near > 0 and abs(near - exact) <= limit * exact:
            return near
    return None
