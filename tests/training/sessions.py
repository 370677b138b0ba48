"""Makes small sessions of random numbers on the bin clock, on which the models of these tests are trained."""

from __future__ import annotations

from dataclasses import replace
from fractions import Fraction

import numpy as np

from edgedistill.config import StudentSize, TeacherSize, TrainingConfig
from edgedistill.data.bins import SessionBins
from edgedistill.frontend import FrontEndConfig
from edgedistill.training.batches import TrainingSession, training_session_from_bins

CHANNELS, UNITS, T, GAP = 3, 6, 12_000, 300
STUDENT = StudentSize(d=8, layers=1, heads=2, window=10, ff=8, taps=2, dilation=2, lags=3)
TEACHER = TeacherSize(8, 1, 2, 16, patch=4, span=2, predictor_layers=1, predictor_d=12, mask_share=0.3)
TRAINING = TrainingConfig(
    bins_per_step=128, segment_bins=64, burn_in=8, learning_rate=5e-3, steps=12, eval_every=3, patience=6
)


def session_bins(name: str = "s1", seed: int = 0, channels: int = CHANNELS, first_id: int = 0) -> SessionBins:
    """Returns bins in which the velocity wanders slowly, and LFP and spikes follow it."""
    rng = np.random.default_rng(seed)
    noise = rng.normal(size=(T + 200, 2))
    slow = np.stack([np.convolve(n, np.hanning(60), "same") for n in noise.T], 1)[:T]
    velocity = slow / slow.std(0)
    lfp = 20 * velocity @ rng.normal(size=(2, channels)) + 8 * rng.normal(size=(T, channels)) + 5
    rate = np.exp(0.6 * velocity @ rng.normal(size=(2, UNITS)) - 2)
    return SessionBins(
        session_id=name,
        path=f"{name}.nwb",
        sha256="0" * 64,
        subject_id=None,
        session_start="2024-01-01T00:00:00+00:00",
        start_s=0.0,
        bins=T,
        frontend=FrontEndConfig(rate=Fraction(250), channels=channels, highpass_hz=1),
        channel_ids=tuple(str(first_id + c) for c in range(channels)),
        output_names=("x", "y"),
        output_units=("cm/s", "cm/s"),
        lfp=lfp,
        bad=np.zeros((T, channels), np.bool_),
        counts=np.minimum(rng.poisson(rate), 255).astype(np.uint8),
        behavior=(10 * velocity).astype(np.float32),
    )


def with_bands(bins: SessionBins, bands: int, seed: int = 7) -> SessionBins:
    """Returns bins that also hold so many bands, whose log power follows the movement in each channel."""
    assert bins.lfp is not None
    assert bins.behavior is not None
    assert bins.frontend is not None
    rng, channels = np.random.default_rng(seed), bins.frontend.channels
    power = [0.02 * bins.behavior @ rng.normal(size=(2, channels)) for _ in range(bands)]
    power = [part + 0.2 * rng.normal(size=part.shape) + 3 for part in power]
    edges = tuple((10.0 * band, 10.0 * band + 10) for band in range(1, bands + 1))
    lfp = np.concatenate([bins.lfp, *power], axis=1)
    return replace(bins, lfp=lfp, frontend=replace(bins.frontend, bands=edges))


def session(name: str = "s1", seed: int = 0, **array: int) -> TrainingSession:
    return training_session_from_bins(session_bins(name, seed, **array), GAP)


def disturbed(bins: SessionBins, first: int) -> SessionBins:
    """Returns the same session with everything from bin `first` on replaced."""
    changes = {}
    for name in ("lfp", "counts", "behavior", "bad"):
        values = getattr(bins, name).copy()
        values[first:] = {"lfp": 1e5, "counts": 200, "behavior": np.nan, "bad": True}[name]
        changes[name] = values
    return replace(bins, **changes)
