"""Recordings with all kinds of flaws, and bins that can be compared."""

from __future__ import annotations

from fractions import Fraction
from itertools import pairwise

import numpy as np
from hypothesis import settings
from hypothesis import strategies as st

from edgedistill.frontend import (
    Bins,
    FrontEndConfig,
)

RATES = (
    Fraction(390625, 16),
    Fraction(30000),
    Fraction(1000),
    Fraction(390625, 384),
    Fraction(250),
    Fraction(200),
)
BANDS = ((12.0, 30.0), (30.0, 60.0))
quick = settings(deadline=None, max_examples=20)


def short_rules(rate: Fraction, channels: int, **changes: object) -> FrontEndConfig:
    """Returns the default chain with rules that are short enough to act within a few bins."""
    return FrontEndConfig(rate, channels, **{"flat_s": 0.05, "recover_s": 0.04, **changes})  # type: ignore[arg-type]


def left_out_columns(channels: int) -> st.SearchStrategy[tuple[int, ...]]:
    """Draws columns that the settings may leave out: any but all."""
    columns = st.sets(st.integers(0, channels - 1), max_size=channels - 1)
    return columns.map(lambda drawn: tuple(sorted(drawn)))


def recording(config: FrontEndConfig, bins: int, seed: int) -> np.ndarray:
    """Returns frames (n, C) float32 with NaN, infinities, lost packets, and dead, saturated and silent channels."""
    rng = np.random.default_rng(seed)
    n = config.edge(bins) + int(rng.integers(0, config.edge(1)))
    x = rng.normal(scale=50, size=(n, config.channels)).astype(np.float32)
    for channel in range(config.channels):
        a, b = np.sort(rng.integers(0, n, 2))
        fault = rng.integers(0, 7)
        if fault == 0:
            x[a:b, channel] = np.nan
        elif fault == 1:
            x[rng.integers(0, n, 2), channel] = (np.inf, -np.inf)
        elif fault == 2:
            x[:, channel] = 0
        elif fault == 3:
            x[:, channel] = np.clip(x[:, channel], -60, 60)
            x[a:b, channel] = 60
        elif fault == 4:
            x[a:b, channel] = 1e-4 * x[a:b, channel].clip(-1, 1)
    if rng.random() < 0.5:
        begin = int(rng.integers(0, n))
        x[begin : begin + int(rng.integers(1, 3 * config.edge(1)))] = np.nan
    return x


def fields(bins: Bins) -> dict[str, np.ndarray]:
    names = ("values", "bad", "end_frame", "gap", "unsettled")
    return {name: getattr(bins, name) for name in names}


def joined(parts: list[Bins]) -> dict[str, np.ndarray]:
    for before, after in pairwise(parts):
        assert after.first_bin == before.first_bin + len(before.values)
    return {name: np.concatenate([fields(part)[name] for part in parts]) for name in fields(parts[0])}


def assert_same(a: dict[str, np.ndarray], b: dict[str, np.ndarray]) -> None:
    """Compares bit for bit, the sign of zero included."""
    for name in a:
        assert a[name].dtype == b[name].dtype
        assert a[name].shape == b[name].shape
        assert a[name].tobytes() == b[name].tobytes(), name


def noise(n: int, channels: int) -> np.ndarray:
    return np.random.default_rng(7).normal(scale=30, size=(n, channels))
