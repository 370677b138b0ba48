"""Measures whether the deviations of a bundle hold: how many true values of the holdout lie in its intervals.

The INT8 student decodes the holdout with all channels, with a quarter of them lost at random, and with a quarter lost
as a bank of neighbours. `measure.intervals` counts. The damage is done to the standardized channels, so lost channels
are filled in as in a stream.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from edgedistill.bench.holdout_scores import HOLDOUT, DecodedHoldout
from edgedistill.bench.subjects import LFP_INT8, LFP_STUDENT, Candidate
from edgedistill.bundle import Bundle
from edgedistill.bundle.contents import (
    Floats,
    Holdout,
    read_decoder_spec,
    read_deviation_model,
    read_spatial_model,
)
from edgedistill.bundle.manifest import Confidence
from edgedistill.frontend import SpatialModel
from edgedistill.measure.intervals import QUANTILES, Coverage, measure_coverage
from edgedistill.numerics.deviation import DeviationModel

RANDOM_DRAWS, BANKS = 3, 4  # of a quarter of the channels each
MOST_BINS = 12_000  # that are scored with channels lost, so that a long holdout does not take minutes

Lost = npt.NDArray[np.int64]


@dataclass(frozen=True)
class IntervalRow:
    """What intervals covered with some channels lost."""

    lost: str  # "none", "random" or "bank"
    channels: int  # that were lost
    draws: int  # of which ones
    deviation: tuple[float, ...]  # (K,) root of the mean square, in the units of the outputs
    coverage: tuple[Coverage, ...]  # by level

    def to_json(self) -> dict[str, object]:
        """Returns the row as `bench --json` has it."""
        return asdict(self) | {"coverage": [one.to_json() for one in self.coverage]}


@dataclass(frozen=True)
class Intervals:
    """What the intervals of one subject covered on the holdout."""

    subject: str
    rows: tuple[IntervalRow, ...]
    confidence: Confidence | None  # what the bundle says of its calibration
    source: str

    def to_json(self) -> dict[str, object]:
        """Returns the key `intervals` of `bench --json`."""
        return {
            "subject": self.subject,
            "confidence": None if self.confidence is None else asdict(self.confidence),
            "rows": [row.to_json() for row in self.rows],
            "source": self.source,
        }


def measure_intervals(
    bundle: Bundle, holdout: Holdout, candidates: Sequence[Candidate], decoded: Mapping[str, DecodedHoldout]
) -> Intervals | None:
    """Measures the coverage of the intervals of the LFP student, in INT8 where that was decoded.

    Returns None where it did not decode the holdout, or where nothing of the truth is known.
    """
    scored = {c.name: c for c in candidates if decoded[c.name].fit.r2 is not None}
    name = next((name for name in (LFP_INT8, LFP_STUDENT) if name in scored), None)
    if name is None:
        return None
    spec = read_decoder_spec(bundle)
    spatial, model = (
        read_spatial_model(bundle, spec.front_end),
        read_deviation_model(bundle, spec.front_end.channels, spec.shape.outputs),
    )
    rows = [
        count_row(kind, lost, stream_draws(scored[name], holdout, spatial, model, lost))
        for kind, lost in find_draws(spatial).items()
    ]
    return Intervals(name, tuple(rows), bundle.manifest.confidence, HOLDOUT)


def find_draws(spatial: SpatialModel) -> dict[str, list[Lost]]:
    """Returns the sets of channels that are lost: none, a quarter at random, and each bank of a quarter."""
    quarter = round(np.count_nonzero(spatial.known) / 4)
    draws = {"none": [np.zeros(0, np.int64)]}
    return draws | ({"random": draw_random(spatial, quarter), "bank": draw_banks(spatial, quarter)} if quarter else {})


def draw_random(spatial: SpatialModel, count: int) -> list[Lost]:
    """Draws RANDOM_DRAWS times which `count` of the known channels are lost."""
    known = np.flatnonzero(spatial.known)
    return [np.random.default_rng([8, draw]).permutation(known)[:count] for draw in range(RANDOM_DRAWS)]


def draw_banks(spatial: SpatialModel, count: int) -> list[Lost]:
    """Returns the BANKS that the known channels fall into, of `count` neighbours each."""
    known = np.flatnonzero(spatial.known)
    return [np.roll(known, -count * bank)[:count] for bank in range(BANKS)]


@dataclass(frozen=True, eq=False)
class Streamed:
    """What was decoded of T scored bins with D sets of lost channels."""

    decoded: Floats  # (D, T, K)
    deviation: Floats  # (D, T, K)
    truth: npt.NDArray[Any]  # (T, K), NaN where unknown or where nothing was recorded


def stream_draws(
    candidate: Candidate, holdout: Holdout, spatial: SpatialModel, model: DeviationModel, draws: Sequence[Lost]
) -> Streamed:
    """Streams the holdout once for each set of lost channels."""
    lossy = len(draws[0]) > 0
    stop = min(len(holdout.bins), holdout.score_from + MOST_BINS) if lossy else len(holdout.bins)
    scored = slice(holdout.score_from, stop)
    streams = [decode_without(candidate, holdout, spatial, model, lost, stop) for lost in draws]
    decoded, deviation = (np.stack([stream[part] for stream in streams])[:, scored] for part in (0, 1))
    recorded = np.asarray(holdout.there[scored].any(axis=1))
    return Streamed(decoded, deviation, np.where(recorded[:, None], holdout.kinematics[scored], np.nan))


def count_row(kind: str, draws: Sequence[Lost], streamed: Streamed) -> IntervalRow:
    """Counts the true values inside the intervals of every level."""
    size = np.sqrt((streamed.deviation.astype(np.float64) ** 2).mean(axis=(0, 1)))
    found = [measure_coverage(streamed.decoded, streamed.deviation, streamed.truth, level) for level in QUANTILES]
    return IntervalRow(kind, len(draws[0]), len(draws), tuple(map(float, size)), tuple(found))


def decode_without(
    candidate: Candidate, holdout: Holdout, spatial: SpatialModel, model: DeviationModel, lost: Lost, stop: int
) -> tuple[Floats, Floats]:
    """Streams the first `stop` bins without the `lost` channels. Returns kinematics and deviations, (T, K) each."""
    present, there = holdout.present[:stop], holdout.there[:stop].copy()
    there[:, lost] = False
    guess = candidate.decode(spatial.complete(present, there))
    return guess, model.deviations(guess, count_lost(spatial, there))


def count_lost(spatial: SpatialModel, there: npt.NDArray[Any]) -> Lost:
    """Returns how many channels are lost in each bin (T,), where `there` (T, C) are not."""
    return np.asarray(np.count_nonzero(spatial.known & ~there, axis=1))
