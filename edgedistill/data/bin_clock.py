"""Finds where bin 0 of a recording begins, and how many bins all needed parts cover.

The inputs are the parts of a recording: LFP, units and behavior, each with its own span in seconds. The output is a
`BinClock` with the edges of all 10 ms bins. See docs/numerics.md, "The bin clock".
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import numpy.typing as npt

from edgedistill.data.behavior.behavior import Behavior
from edgedistill.data.lfp.lfp import Lfp
from edgedistill.data.recording import Recording
from edgedistill.data.session import BINS_PER_S, MIN_BINS
from edgedistill.data.units.spike_clock import KNOWN_RATIOS, require_spikes_inside
from edgedistill.data.units.units import Units
from edgedistill.errors import RecordingError
from edgedistill.frontend import bin_edges

ROUNDING_S = 1e-8  # a smaller drift is a rounding of the times
QUIET_S = 5  # units may be silent this long before the end of a recording


@dataclass(frozen=True, eq=False)
class BinClock:
    """Holds T bins on the clock of the file."""

    edges_s: npt.NDArray[np.float64] = field(repr=False)  # (T + 1,)
    ends_first: str  # the part with which the bins end
    span_s: tuple[float, float]  # of the session: from the first to the last sample of LFP and behavior
    notes: tuple[str, ...] = ()

    @property
    def bins(self) -> int:
        """Returns T."""
        return len(self.edges_s) - 1

    def cut(self, most: int | None) -> BinClock:
        """Returns the first `most` bins, or all of them for None and where there are no more."""
        if most is None or most >= self.bins:
            return self
        return replace(self, edges_s=self.edges_s[: most + 1], ends_first="stretch that is read")


def find_clock(
    recording: Recording,
    lfp: Lfp | None,
    units: Units | None,
    behavior: Behavior | None,
    least_bins: int = MIN_BINS,
) -> BinClock:
    """Returns the bins that all given parts cover.

    Bin k begins k / 100 s after the first LFP frame, so that nothing is cut off at the start. The end is where the
    first of the parts ends. Without LFP bin 0 begins at 0 s, or at a whole second where all parts begin later than a
    minute. Edges follow the timestamps of an LFP whose clock wanders.

    Raises RecordingError where the parts do not overlap for `least_bins` or run on unequal clocks.
    """
    spans: dict[str, tuple[float, float]] = {}
    notes: tuple[str, ...] = ()
    if lfp is not None:
        first, last = lfp.times_at(np.array([0, lfp.frames]))
        spans["LFP"] = (float(first), float(last))
    if behavior is not None:
        spans["behavior"] = (behavior.start_s, behavior.stop_s)
    if units is not None:
        if not (heard := [unit for unit in units if len(unit)]):
            raise RecordingError(
                f"{recording.path}: the units hold no spikes",
                got=recording.describe_contents(),
                next_step=f"name another table with --units; edgedistill inspect {recording.path} lists them",
            )
        quiet = QUIET_S if spans else 0.0
        spans["units"] = (float(min(u[0] for u in heard)), float(max(u[-1] for u in heard)) + quiet)
        if units.observed is not None:
            finite = [one for one in units.observed if len(one) and np.isfinite(one).all()]
            watched = [(float(one[0, 0]), float(one[-1, 1])) for one in finite]
            spans["units"] = _join(spans["units"], *watched)
    recorded = {part: span for part, span in spans.items() if part != "units"}
    if len(recorded) > 1:  # before the units are blamed for not fitting into both
        _require_overlap(recording.path, recorded, least_bins)
        _require_one_unit(recording.path, recorded)
    if units is not None and recorded:
        notes = require_spikes_inside(units, _join(*recorded.values()), "the recording", _share(*recorded.values()))
    _require_overlap(recording.path, spans, least_bins)
    earliest = min(first for first, _ in spans.values())
    if lfp is not None:
        frames = lfp.frames * BINS_PER_S * lfp.rate.denominator // lfp.rate.numerator
        edges = compute_edges(lfp.start_s, frames) + find_drift(lfp, bin_edges(lfp.rate, 0, frames))
    else:
        start = float(np.floor(earliest)) if earliest >= 60 else 0.0
        edges = compute_edges(start, int((min(stop for _, stop in spans.values()) - start) * BINS_PER_S + 1e-6))
    bins = {part: int(np.searchsorted(edges, stop + 1e-8, side="right")) - 1 for part, (_, stop) in spans.items()}
    if lfp is not None:
        bins["LFP"] = len(edges) - 1
    ends_first = min(bins, key=lambda part: bins[part])
    if bins[ends_first] < least_bins:
        held = f"{bins[ends_first] / BINS_PER_S:g} s from the start of bin 0"
        raise _too_short_error(recording.path, held, least_bins)
    whole = [span for part, span in spans.items() if part != "units"] or [spans["units"]]
    return BinClock(edges[: bins[ends_first] + 1], ends_first, _join(*whole), notes)


def _join(*spans: tuple[float, float]) -> tuple[float, float]:
    return min(first for first, _ in spans), max(last for _, last in spans)


def _share(*spans: tuple[float, float]) -> tuple[float, float]:
    return max(first for first, _ in spans), min(last for _, last in spans)


def find_drift(lfp: Lfp, frames: npt.NDArray[np.int64]) -> npt.NDArray[np.float64]:
    """Returns by how much frames (n,) of the LFP's grid lie later in s than its rate alone would say."""
    drift = lfp.times_at(frames) - (lfp.start_s + frames / float(lfp.rate))
    return np.where(np.abs(drift) < ROUNDING_S, 0.0, drift)


def _require_overlap(path: Path, spans: dict[str, tuple[float, float]], least_bins: int) -> None:
    listed = ", ".join(f"{part} {first:.3f} to {last:.3f} s" for part, (first, last) in spans.items())
    shared = min(last for _, last in spans.values()) - max(first for first, _ in spans.values())
    if shared >= least_bins / BINS_PER_S - 1:  # the first spike may come late
        return
    short = [part for part, (first, last) in spans.items() if last - first < least_bins / BINS_PER_S]
    if short:
        raise (
            _too_short_error(path, listed, least_bins)
            if len(short) == len(spans)
            else _short_part_error(path, short, listed)
        )
    raise _unequal_clocks_error(path, listed, "two minutes in which all of them run")


def _require_one_unit(path: Path, spans: dict[str, tuple[float, float]]) -> None:
    """Refuses parts of which one is about a thousand or a million times as long as the other."""
    shorter, longer = sorted(last - first for first, last in spans.values())
    for ratio, unit in KNOWN_RATIOS:
        if 0.7 < longer / shorter / ratio < 1.4:
            listed = ", ".join(f"{part} {first:.3f} to {last:.3f} s" for part, (first, last) in spans.items())
            raise _unequal_clocks_error(path, listed, f"seconds; one of them may be in {unit}")


def _unequal_clocks_error(path: Path, got: str, expected: str) -> RecordingError:
    return RecordingError(
        f"{path}: LFP, units and behavior run on unequal clocks",
        got=got,
        expected=expected,
        causes=(
            "times in samples or milliseconds instead of seconds",
            "a missing `starting_time`",
            "parts of two recordings in one file",
        ),
        next_step=f"compare the times in `edgedistill inspect {path}` and write the file again",
    )


def _short_part_error(path: Path, short: list[str], got: str) -> RecordingError:
    parts = " and ".join(short)
    return RecordingError(
        f"{path}: less than two minutes of {parts} in a longer recording",
        got=got,
        expected="two minutes in which all of them run",
        causes=(
            f"{parts} with a rate, or with times, in another unit than Hz and seconds",
            f"only a part of the recording has {parts}",
        ),
        next_step=f"compare the times in `edgedistill inspect {path}` and write the file again, or leave it out",
    )


def _too_short_error(path: Path, got: str, least_bins: int) -> RecordingError:
    least = "two minutes" if least_bins == MIN_BINS else f"{least_bins / BINS_PER_S:g} s"
    return RecordingError(
        f"{path}: fewer than {least} of data",
        got=got,
        expected=f"at least {least_bins / BINS_PER_S:g} s",
        causes=("a test recording", "a file that was cut while it was written"),
        next_step="leave this session out",
    )


def compute_edges(start_s: float, n_bins: int, stretch: float = 1.0) -> npt.NDArray[np.float64]:
    """Returns the edges of all bins in s, (n_bins + 1,): start + stretch * k / 100, each rounded once.

    The sum is done in integers, because 0.29 * 100 is below 29 and a spike stored at 0.29 s belongs to bin 29.
    """
    (top, bottom), (longer, shorter) = start_s.as_integer_ratio(), stretch.as_integer_ratio()
    first, step, below = BINS_PER_S * top * shorter, bottom * longer, BINS_PER_S * bottom * shorter
    return np.array([(first + k * step) / below for k in range(n_bins + 1)])
