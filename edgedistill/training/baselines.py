"""Fits the causal decoders that a neural engineer would try first: lagged ridge (Wiener filter) and Kalman filter.

A session goes in. Each decoder comes out with what it decodes and its score, on slow LFP, on log band power, on both,
and on spikes. Band power and counts are smoothed first, and outputs are smoothed as those of a student are. Smoothing,
lags, penalty, order and shrinkage are chosen on the validation block, over at least as many settings as any network
gets. Sources: Wiener filter as in Glaser 2020, Kalman filter as in Wu 2003.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import product
from typing import Any

import numpy as np
import numpy.typing as npt

from edgedistill.training.batches import TrainingSession
from edgedistill.training.bin_blocks import BinBlocks, PlainBins, smooth_bins
from edgedistill.training.evaluate import (
    PENALTIES,
    Array,
    Readout,
    Score,
    compute_mean_r2,
    find_calm_bins,
    find_fitted_rows,
    r2_score,
    score_decoded,
    solve_penalties,
    unscale_behavior,
)
from edgedistill.training.kalman import KalmanFilter, fit_linear_gaussian, run_decoders, solve_steady_kalman, stack_past
from edgedistill.training.lagged_moments import (
    EVERY_BIN,
    LaggedFilter,
    LaggedMoments,
    LagGrid,
    Mask,
    choose_grid,
    compute_lagged_moments,
    run_filters,
)
from edgedistill.training.output_filter import fit_output_filter

BIN_MS = 10
SMOOTHING_MS = (0, 50, 100, 200, 500)  # time constants of the exponential that smooths band power and counts
RIDGE_LAGS = (5, 10, 20, 40)
KALMAN_LAGS = (0, 5, 10, 20)
KALMAN_ORDERS = (1, 2)
SHRINKAGES = (0.01, 0.1)  # share by which the observation noise is shrunk towards its diagonal
CALM_LAGS = 10  # bins after an artefact of the LFP that no fit uses
MOST_FEATURES = 2200  # where there would be more, lags are spaced further apart, because a fit takes the cube of it
RUN_IN = 500  # bins before the validation block, in which a filter forgets its start

Decoder = LaggedFilter | KalmanFilter  # bins (T, I) -> kinematics (T, K), causal
Bins = npt.NDArray[Any]  # (T, I), usually float32, which is what a session holds
Key = tuple[str, str]  # one of METHODS, and the name of a selection of inputs
METHODS = ("ridge", "kalman")


@dataclass(frozen=True)
class InputGroup:
    """Names selections of some inputs that are smoothed and lagged together."""

    inputs: slice  # columns of the session's inputs
    slow: int  # how many of them come first that are slow LFP; the others are smoothed before they are lagged
    selections: Mapping[str, bool]  # name -> whether the slow LFP belongs to it

    @property
    def keys(self) -> list[Key]:
        """Returns each method on each selection."""
        return list(product(METHODS, self.selections))

    def choose_columns(self, selection: str, grid: LagGrid) -> slice:
        """Returns the columns of a selection in inputs that `grid` has stacked."""
        return slice(None) if self.selections[selection] else slice(grid.count_columns(self.slow), None)


@dataclass(frozen=True, eq=False)
class FittedDecoder:
    """Holds a linear decoder with its settings, and the mean R² on the validation block."""

    decoder: Decoder
    regularization: float  # penalty of a ridge, shrinkage of a Kalman filter
    validation_r2: float
    smoothing_ms: float = 0.0
    lags: int = 0  # bins before the newest that it reads
    grid: LagGrid = EVERY_BIN


@dataclass(frozen=True, eq=False)
class LinearBaseline:
    """Holds what the best linear decoder of its kind decodes from a session, and the settings that were chosen."""

    smoothing_ms: float
    lags: int
    decoded: Array  # (T, K) kinematics, streamed from the first bin of the session
    score: Score


@dataclass(frozen=True, eq=False)
class LaggedRidge:
    """Reads kinematics from the newest bin and the last `lags` before it, as `stack_lagged_bins` puts them together."""

    readout: Readout
    lags: int
    score: Score


@dataclass(frozen=True, eq=False)
class LinearFit:
    """Holds what all linear fits on one session share."""

    session: TrainingSession
    behavior: Array  # (T, K) in its own units
    rows: Mask  # (T,) bins that are fitted

    def compute_moments(self, bins: BinBlocks, lags: Sequence[int]) -> LaggedMoments:
        """Returns the moments of lagged bins (T, I), and of the kinematics and their past."""
        return compute_lagged_moments(bins, stack_past(self.behavior, max(KALMAN_ORDERS)), self.rows, lags)

    def judge(self, decoders: Sequence[tuple[float, Decoder]], bins: BinBlocks) -> list[FittedDecoder]:
        """Returns decoders of bins (T, I), each with its regularization and its mean R² on the validation block."""
        block = self.session.split.validation
        start = max(0, block.start - RUN_IN)
        found = run_decoders([decoder for _, decoder in decoders], bins, start, block.stop)
        r2 = [compute_mean_r2(r2_score(decoded[block.start - start :], self.behavior[block])) for decoded in found]
        return [FittedDecoder(decoder, strength, of) for (strength, decoder), of in zip(decoders, r2, strict=True)]


def fit_linear_baselines(session: TrainingSession, modality: str) -> dict[str, LinearBaseline]:
    """Returns the best ridge and the best Kalman filter on each choice of inputs that the session has, by name.

    For `lfp` these are `ridge_lfp` and `kalman_lfp`, and where the session has band power also `…_power` (that alone)
    and `…_lfp_power` (both). For `spikes` they are `ridge_spike` and `kalman_spike`.
    """
    bins, fit = session.inputs(modality).numpy(), prepare_fit(session, modality)
    found = {}
    for group in group_inputs(session, modality):
        inputs = bins[:, group.inputs]
        for (method, selection), best in search_group(fit, inputs, group).items():
            smoothed, columns = (
                smooth(inputs, best.smoothing_ms, group.slow),
                group.choose_columns(selection, best.grid),
            )
            raw = run_decoders([best.decoder], best.grid.stack(smoothed, columns))[0]
            decoded = fit_output_filter(raw, fit.behavior, session.split, session.settled)(raw)
            scored = score_decoded(decoded, fit.behavior, session.split)
            found[f"{method}_{selection}"] = LinearBaseline(best.smoothing_ms, best.lags, decoded, scored)
    return found


def fit_spike_decoder(session: TrainingSession) -> tuple[str, LinearBaseline]:
    """Returns the linear decoder of the session's spikes that decodes the validation block best, and its name.

    Raises RecordingError for a session without units.
    """
    found = fit_linear_baselines(session, "spikes")
    best = max(found, key=lambda name: found[name].score.validation_r2)
    return best, found[best]


def prepare_fit(session: TrainingSession, modality: str) -> LinearFit:
    """Returns what the linear fits on a session share. Artefacts of the LFP are left out, as they are for a student."""
    behavior = unscale_behavior(session)
    calm = find_calm_bins(session, modality, CALM_LAGS)
    return LinearFit(session, behavior, find_fitted_rows(behavior, session.split, session.settled, calm))


def group_inputs(session: TrainingSession, modality: str) -> list[InputGroup]:
    """Returns the inputs that baselines decode. Inputs of LFP are the slow LFP of each channel, then each band."""
    if modality != "lfp":
        return [InputGroup(slice(None), 0, {"spike": True})]
    channels = session.standardization.spatial.coupling.shape[-1]
    groups = [InputGroup(slice(channels), channels, {"lfp": True})]
    if session.inputs("lfp").shape[1] > channels:
        groups.append(InputGroup(slice(None), channels, {"power": False, "lfp_power": True}))
    return groups


def smooth(bins: Bins, smoothing_ms: float, slow: int) -> BinBlocks:
    """Returns bins (T, I) of which all but the first `slow` inputs are smoothed by an exponential.

    It begins at 0, which is their mean.
    """
    plain = PlainBins(bins)
    return smooth_bins(plain, slow, float(np.exp(-BIN_MS / smoothing_ms))) if smoothing_ms else plain


# ---------------------------------------------------------------- the search


def search_group(fit: LinearFit, bins: Bins, group: InputGroup) -> dict[Key, FittedDecoder]:
    """Returns the best decoder of each method on each selection of a group's inputs, whose bins are (T, I).

    Lags on the same grid share their moments. Lags that need a wider grid are tried only with the smoothing that was
    best with shorter ones, because each smoothing has moments of its own.
    """
    best: dict[Key, FittedDecoder] = {}
    inputs, grids = bins.shape[1], defaultdict(list)
    for longest in sorted({*RIDGE_LAGS, *KALMAN_LAGS}):
        grids[choose_grid(longest, inputs, group.slow, MOST_FEATURES)].append(longest)
    for grid, lags in grids.items():
        chosen = {key: found.smoothing_ms for key, found in best.items()}
        fresh = any(key not in chosen for key in group.keys)  # such as a ridge, whose shortest lag is not the shortest
        every = (SMOOTHING_MS if inputs > group.slow else (0,)) if fresh else ()
        for smoothing_ms in sorted({*chosen.values(), *every}):
            keys = [key for key in group.keys if chosen.get(key, smoothing_ms) == smoothing_ms]
            smoothed = smooth(bins, smoothing_ms, group.slow)
            moments = fit.compute_moments(grid.stack(smoothed), range(0, lags[-1] + 1, grid.spacing))
            for longest, (method, selection) in product(lags, keys):
                if longest not in (RIDGE_LAGS if method == "ridge" else KALMAN_LAGS):
                    continue
                columns, kept = group.choose_columns(selection, grid), best.get((method, selection))
                some = moments.select(columns, longest)
                fits = fit_ridges if method == "ridge" else fit_kalmans
                for found in fits(fit, some, grid.stack(smoothed, columns), kept):
                    if kept is None or found.validation_r2 > kept.validation_r2:  # NaN where no output moves
                        kept = replace(found, smoothing_ms=smoothing_ms, lags=longest, grid=grid)
                        best[method, selection] = kept
    return best


def fit_ridges(
    fit: LinearFit, moments: LaggedMoments, bins: BinBlocks, kept: FittedDecoder | None = None
) -> list[FittedDecoder]:
    """Returns ridges that are fitted to the moments of bins (T, I), one for each of PENALTIES.

    Beside a ridge that was `kept` before, only penalties of up to ten times more or less are tried.
    """
    near = [p for p in PENALTIES if kept is None or 0.09 < p / kept.regularization < 11]
    return fit.judge(list(solve_ridges(moments, fit.behavior.shape[1], near)), bins)


def solve_ridges(
    moments: LaggedMoments, outputs: int, penalties: Sequence[float] = PENALTIES
) -> Iterator[tuple[float, LaggedFilter]]:
    """Yields each penalty and its ridge from the lagged bins to the first `outputs` targets."""
    scale = moments.scale
    gram = moments.flat_gram / scale / scale[:, None]
    cross = moments.flat_cross[:, :outputs] / scale[:, None]
    for penalty, weights in solve_penalties(gram, cross, moments.count, penalties):
        weight = (weights / scale[:, None]).T.reshape(outputs, *moments.mean.shape)
        bias = moments.mean_target[:outputs] - np.tensordot(weight, moments.mean, 2)
        yield penalty, LaggedFilter(moments.lags, weight, bias)


def fit_kalmans(
    fit: LinearFit, moments: LaggedMoments, bins: BinBlocks, kept: FittedDecoder | None = None
) -> list[FittedDecoder]:
    """Returns Kalman filters that are fitted to the moments of bins (T, I), one for each order and shrinkage."""
    kalmans: list[tuple[float, Decoder]] = []
    for order in KALMAN_ORDERS:
        model = fit_linear_gaussian(moments, fit.behavior, fit.rows, order)
        kalmans += [(shrinkage, solve_steady_kalman(model, shrinkage)) for shrinkage in SHRINKAGES]
    return fit.judge(kalmans, bins)


# ---------------------------------------------------------------- the ridge that a bundle holds


def fit_ridge(
    bins: Bins,
    session: TrainingSession,
    bidirectional: bool = False,
    lags: Sequence[int] | None = None,
    modality: str = "lfp",
) -> LaggedRidge:
    """Returns the best lagged ridge on bins (T, C) of a modality, which are not smoothed.

    Lags and penalty are chosen on validation. `bidirectional` puts half of the lags into the future, which shows what
    the same filter would do offline. `lags` are those to choose from, RIDGE_LAGS by default.
    """
    fit = prepare_fit(session, modality)
    best: FittedDecoder | None = None
    for longest in RIDGE_LAGS if lags is None else lags:
        seen = PlainBins(bins, longest // 2 if bidirectional else 0)
        spacing = choose_grid(longest, bins.shape[1], 0, MOST_FEATURES).spacing
        moments = fit.compute_moments(seen, range(0, longest + 1, spacing))
        for found in fit_ridges(fit, moments, seen):
            if best is None or found.validation_r2 > best.validation_r2:  # NaN where no output moves
                best = replace(found, lags=longest)
    assert best is not None
    assert isinstance(best.decoder, LaggedFilter)
    ridge, longest = best.decoder, best.lags
    decoded = run_filters([ridge], PlainBins(bins, longest // 2 if bidirectional else 0))[0]
    scored = score_decoded(decoded, fit.behavior, session.split)
    weight = spread_lags(ridge, longest)
    return LaggedRidge(Readout(weight, ridge.bias, best.regularization, scored.validation_r2), longest, scored)


def fit_bundle_ridge(bins: Bins, channels: int, session: TrainingSession, lags: Sequence[int]) -> LaggedRidge:
    """Returns the lagged ridge that runs beside a student, on its inputs (T, I) as they are.

    It reads the slow LFP of the `channels` alone where that decodes the validation block better than all inputs do. The
    weights of band power are then 0. `lags` are those to choose from.
    """
    every = fit_ridge(bins, session, lags=lags)
    if bins.shape[1] == channels:
        return every
    slow = fit_ridge(bins[:, :channels], session, lags=lags)
    if not slow.readout.validation_r2 > every.readout.validation_r2:  # NaN where no output moves
        return every
    weight = np.zeros((len(slow.readout.bias), slow.lags + 1, bins.shape[1]))
    weight[..., :channels] = slow.readout.weight.reshape(len(weight), slow.lags + 1, channels)
    return replace(slow, readout=replace(slow.readout, weight=weight.reshape(len(weight), -1)))


def spread_lags(found: LaggedFilter, longest: int) -> Array:
    """Returns the weights (K, (longest + 1) * I) of every lag, which are 0 where the filter leaves a lag out."""
    outputs, _, inputs = found.weight.shape
    dense = np.zeros((outputs, longest + 1, inputs))
    dense[:, found.lags] = found.weight
    return dense.reshape(outputs, -1)


def score_ridge(bins: Bins, session: TrainingSession, bidirectional: bool = False, modality: str = "lfp") -> Score:
    """Returns the score of the best lagged ridge on bins (T, C) of a modality."""
    return fit_ridge(bins, session, bidirectional, modality=modality).score
