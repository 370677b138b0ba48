"""Draws noise with a given spectrum: the sources of simulated backgrounds and rhythms."""

from __future__ import annotations

import numpy as np
from scipy.signal import butter, sosfilt

from edgedistill.data.simulation.config import Array


def draw_coloured_noise(frames: int, rate_hz: int, rng: np.random.Generator, chi: float, knee_hz: float = 0.5) -> Array:
    """Draws noise (frames,) of unit variance whose power falls as f^-chi above the knee and is flat below."""
    padded = 1 << (frames - 1).bit_length()
    spectrum = rng.normal(size=padded // 2 + 1) + 1j * rng.normal(size=padded // 2 + 1)
    hz = np.fft.rfftfreq(padded, 1 / rate_hz)
    spectrum *= np.maximum(hz, knee_hz) ** (-chi / 2)
    noise = np.fft.irfft(spectrum, padded)[:frames]
    return np.asarray(noise / noise.std())


def draw_band_noise(
    rows: int, frames: int, band_hz: tuple[float, float], rate_hz: int, rng: np.random.Generator
) -> Array:
    """Draws noise (rows, frames) of unit variance within the band."""
    noise = sosfilt(butter(2, band_hz, "bandpass", fs=rate_hz, output="sos"), rng.normal(size=(rows, frames)))
    return np.asarray(noise / noise.std(axis=1, keepdims=True))
