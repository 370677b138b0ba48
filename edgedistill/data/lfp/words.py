"""Tells from the words around an ElectricalSeries which frequency band it holds.

The inputs are the name, container, `filtering` and description of a series. The output is one of four bands: low
frequencies (LFP), unknown, a narrow band (theta, ripple and the like), or the spike band.
"""

from __future__ import annotations

import re
from enum import IntEnum
from typing import Any

from edgedistill.data.series import Series

LOW_WORDS = ("lfp", "lfps", "lf", "ecog", "ieeg", "eeg", "seeg", "lowpass", "lowpassed")
HIGH_WORDS = ("ap", "aps", "spike", "spikes", "spiking", "spikeband", "mua", "highpass", "highpassed")
BAND_WORDS = ("theta", "alpha", "beta", "gamma", "delta", "ripple", "ripples", "spindle", "spindles", "swr")
COPY_WORDS = ("bandpass", "bandpassed", "envelope", "power", "phase", "hilbert")  # only in a name: "zero-phase"
LOWEST_SPIKE_HZ, HIGHEST_LFP_HZ, NARROW_OCTAVES = 150, 1000, 2.4

PHRASES = (
    (re.compile(r"\b(low|high|band) pass(ed)?\b"), r"\1pass"),
    (re.compile(r"\b(local )?field potentials?\b|\blow frequenc(y|ies)\b"), "lfp"),
    (re.compile(r"\baction potentials?\b|\bspike band\b|\bspiking band\b"), "spikes"),
)
NUMBER = r"(\d+(?:\.\d+)?)\s*(k?hz)?"
RANGE = re.compile(NUMBER + r"\s*(?:-|–|to|and)\s*" + NUMBER, re.IGNORECASE)
ANY_NUMBER = re.compile(r"(\d+(?:\.\d+)?)\s*(k?hz)\b", re.IGNORECASE)


class Band(IntEnum):
    """Orders the bands: an LFP is read first, and the spike band last."""

    LOW = 0
    UNKNOWN = 1
    NARROW = 2
    HIGH = 3


def split_words(text: str) -> list[str]:
    """Returns the words of a name or sentence in small letters: `ElectricalSeriesAP` holds `electrical series ap`."""
    text = re.sub(r"(?<=[a-z0-9])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])", " ", text)
    text = re.sub(r"[^a-z0-9]+", " ", text.lower()).strip()
    for pattern, word in PHRASES:
        text = pattern.sub(word, text)
    return text.split()


def tell_band(series: Series) -> tuple[Band, str]:
    """Returns the band of a series and the words that say so, e.g. `filtering says "highpass"`.

    The name counts before the container, and that before `filtering` and the description.
    """
    node = series.node
    containers = series.path.split("/")[1:-1]
    low: tuple[Band, str] | None = None
    for where, text in (
        *((("name", series.name),)),
        *(("container", name) for name in reversed(containers)),
        ("filtering", _text(node, "filtering")),
        ("description", _text(node, "description")),
    ):
        named = where in ("name", "container")
        verdict = _tell_from_name(text) if named else _tell_from_sentence(text)
        if verdict is None:
            continue
        band, word = verdict
        if band is Band.LOW and low is None:
            low = band, f'the {where} says "{word}"'  # a narrower word further on still counts: LFP/theta
        elif band is Band.NARROW or low is None:
            return band, f'the {where} says "{word}"'
    if low is None and type(node.parent).__name__ == "LFP":
        return Band.LOW, "it lies in an LFP container"
    return low or (Band.UNKNOWN, "nothing names its band")


def _text(node: Any, attribute: str) -> str:
    value = getattr(node, attribute, None)
    return "" if value is None else str(value)


def _tell_from_name(text: str) -> tuple[Band, str] | None:
    words = split_words(text)
    for band, known in ((Band.NARROW, (*BAND_WORDS, *COPY_WORDS)), (Band.LOW, LOW_WORDS), (Band.HIGH, HIGH_WORDS)):
        if found := [word for word in words if word in known]:
            return band, found[0]
    return (Band.LOW, "lfp") if "lfp" in text.lower() else None


def _tell_from_sentence(text: str) -> tuple[Band, str] | None:
    """Judges a sentence. One that speaks of several bands, or of LFP and spikes, says nothing."""
    words = split_words(text)
    bands = {word for word in words if word in BAND_WORDS}
    if len(bands) == 1:
        return Band.NARROW, bands.pop()
    if (limits := RANGE.search(text)) is not None and (limits[2] or limits[4]):
        first = _to_hz(limits[1], limits[2] or limits[4])
        last = _to_hz(limits[3], limits[4] or limits[2])
        return _tell_from_limits(first, last, limits[0])
    low, high = ([w for w in words if w in known] for known in (LOW_WORDS, HIGH_WORDS))
    hz = [_to_hz(number, unit) for number, unit in ANY_NUMBER.findall(text)]
    if hz and "highpass" in words and max(hz) < LOWEST_SPIKE_HZ:
        high = []  # a high-pass at 0.1 Hz only removes the offset
    if hz and min(hz) > HIGHEST_LFP_HZ:
        low = [word for word in low if not word.startswith("lowpass")]
    if bool(low) == bool(high):
        return None
    return (Band.LOW, low[0]) if low else (Band.HIGH, high[0])


def _tell_from_limits(first: float, last: float, words: str) -> tuple[Band, str] | None:
    if first >= LOWEST_SPIKE_HZ:
        return (Band.HIGH, words) if last > HIGHEST_LFP_HZ else (Band.NARROW, words)
    if first > 0.5 and last / first < 2**NARROW_OCTAVES:
        return Band.NARROW, words
    return (Band.LOW, words) if first < last <= HIGHEST_LFP_HZ else None


def _to_hz(number: str, unit: str | None) -> float:
    return float(number) * (1000 if unit and unit.lower() == "khz" else 1)
