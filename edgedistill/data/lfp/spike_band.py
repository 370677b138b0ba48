"""Tells by its data whether a stream is the spike band, of which a high-pass at about 300 Hz has left no LFP.

The input is a few seconds of a series from several places. The output is how much power it has per hertz at 2 to 50 Hz,
relative to that from 300 Hz on. Broadband falls with frequency, so that the ratio is far above 1. White noise has 1.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
from scipy.signal import welch

from edgedistill.data.lfp.blocks import FrameReader
from edgedistill.data.lfp.layout import Scale

LEAST_RATE_HZ = 1200  # a slower stream holds no spikes
SPIKE_BAND_RATIO = 0.03
LOW_HZ, HIGH_HZ = (2.0, 50.0), (300.0, 3000.0)
PLACES, PLACE_S, CHANNELS = 5, 2.0, 8


def measure_low_ratio(reader: FrameReader, scale: Scale, rate: float) -> float | None:
    """Returns the ratio of mean power densities, the median over some channels. None: too slow, short or empty."""
    if not LEAST_RATE_HZ < rate <= reader.frames / PLACE_S:  # nor where it is no number, which `lfp.clock` refuses
        return None
    length = int(PLACE_S * rate)
    places = max(1, min(PLACES, reader.frames // length))
    starts = np.linspace(0, reader.frames - length, places).astype(int).tolist()
    channels = np.unique(np.linspace(0, reader.channels - 1, CHANNELS).astype(int))
    found = []
    for channel in channels:
        raw = reader.read_channel(int(channel), starts, length).astype(np.float64) * scale.gain_uv[channel]
        found += [ratio for place in raw if (ratio := _compare_bands(place, rate)) is not None]
    return float(np.median(found)) if found else None


def _compare_bands(uv: npt.NDArray[np.float64], rate: float) -> float | None:
    if not np.isfinite(uv).all() or np.ptp(uv) == 0:
        return None
    hz, density = welch(uv, rate, nperseg=int(rate))
    low = density[(hz >= LOW_HZ[0]) & (hz <= LOW_HZ[1])].mean()
    high = density[(hz >= HIGH_HZ[0]) & (hz <= min(HIGH_HZ[1], 0.4 * rate))].mean()
    return float(low / high) if high > 0 else None
