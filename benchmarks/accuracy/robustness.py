"""Measures what decoders keep of their R² with channels lost and noise added, beside what a new fit could keep.

    python -m benchmarks.accuracy.robustness SESSIONS… --preset nano

SESSIONS are folders with recordings of one array each. The bundle of each folder is built under --work unless --bundle
names one that was built from it. The INT8 students on LFP and spikes and the ridge of the bundle decode its holdout as
in `bench --robustness`, with more draws. The row `refitted ridge` is a ridge that was fitted anew on the surviving
channels alone, which is what a linear decoder that knew the loss beforehand would reach. What is measured of a bundle
is kept under --work, so that an interrupted run can go on. Results are written to benchmarks/results/cpu/robustness/.
"""

from __future__ import annotations

import json
from argparse import ArgumentParser, Namespace
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from rich.console import Console
from rich.table import Table

from benchmarks.harness import RESULTS, Result, describe_conditions, option_parser, say, write_result
from edgedistill.bench.holdout_scores import decode_holdout
from edgedistill.bench.robustness_subjects import LFP_RIDGE, choose_subjects
from edgedistill.bench.subjects import LFP_INT8, SPIKE_INT8, open_candidates
from edgedistill.bundle import Bundle, open_bundle
from edgedistill.bundle.contents import Holdout, read_decoder_spec, read_holdout, read_ridge
from edgedistill.config import BandPower
from edgedistill.data.candidates import NO_NAMES
from edgedistill.data.spatial_fit import fit_spatial_model
from edgedistill.errors import EdgeDistillError
from edgedistill.frontend import FrontEndConfig
from edgedistill.measure.damage import LfpSignal, draw_bank, draw_channels
from edgedistill.measure.robustness import (
    LIMITS,
    LOST_BANK,
    LOST_CHANNELS,
    Curve,
    Harm,
    Truth,
    list_harms,
    measure_curves,
)
from edgedistill.pipeline import BuildOptions, build
from edgedistill.pipeline.cache import Cache
from edgedistill.pipeline.graph_checks import holdout_stretch
from edgedistill.pipeline.inputs import read_sessions
from edgedistill.runtime.compiled_engines import choose_engine
from edgedistill.training.baselines import fit_bundle_ridge
from edgedistill.training.batches import TrainingSession, compute_gap, training_session_from_bins

MODULE = "benchmarks.accuracy.robustness"
REFITTED = "refitted ridge"
DRAWN = {LOST_CHANNELS: draw_channels, LOST_BANK: draw_bank}


def open_or_build(folder: Path, options: Namespace, bundle: Path | None) -> Bundle:
    """Returns the bundle of a folder of recordings, which is built unless it is there."""
    path = bundle or options.work / f"{folder.name}-{Path(options.preset).stem}.edge"
    if not path.exists():
        build(BuildOptions("host", (folder,), path, options.preset, steps=options.steps))
    return open_bundle(path)


def measure_once(bundle: Bundle, folder: Path, options: Namespace) -> Result:
    """Returns what `measure_bundle` finds, which is measured unless it was before."""
    name = f"robustness-{bundle.sha256[:16]}-{options.draws}"
    path = options.work / f"{name}.json"
    if not path.exists():
        say(f"measuring {bundle.path}")
        write_result(options.work, name, measure_bundle(bundle, folder, options))
    return dict(json.loads(path.read_text()))


def measure_bundle(bundle: Bundle, folder: Path, options: Namespace) -> Result:
    """Returns the curves of one bundle at the levels that have a limit."""
    spec, holdout, engine = read_decoder_spec(bundle), read_holdout(bundle), choose_engine(bundle)
    session = find_session(bundle, holdout, folder, options.work)
    candidates, _ = open_candidates(bundle, holdout, engine, (LFP_INT8, SPIKE_INT8))
    decoded = {c.name: decode_holdout(c, bundle, holdout) for c in candidates}
    subjects = choose_subjects(bundle, holdout, candidates, decoded)
    if LFP_RIDGE not in subjects:
        raise EdgeDistillError(f"{bundle.path} holds no ridge", next_step="build it again")
    truth = Truth(holdout.kinematics, holdout.score_from)
    curves = measure_curves(subjects, truth, list_limited_harms(spec.front_end.channels), LFP_INT8, options.draws)
    signal, lags = subjects[LFP_RIDGE].signal, read_ridge(bundle, spec.shape).lags
    assert isinstance(signal, LfpSignal)
    curves = tuple(add_refits(curve, signal, session, spec.front_end, lags) for curve in curves)
    return {
        "bundle": bundle.manifest.name,
        "sha256": bundle.sha256,
        "session": session.id,
        "preset": bundle.manifest.preset,
        "engine": engine,
        "channels": spec.front_end.channels,
        "curves": [curve.to_json() for curve in curves],
    }


def list_limited_harms(channels: int) -> list[Harm]:
    """Returns the kinds of damage that have limits, at these levels alone."""
    harms = [harm for harm in list_harms(channels) if harm.kind in LIMITS]
    return [replace(harm, levels=(0.0, *LIMITS[harm.kind])) for harm in harms]


def find_session(bundle: Bundle, holdout: Holdout, folder: Path, work: Path) -> TrainingSession:
    """Returns the session that a bundle decodes, from the recordings in `folder`.

    Raises EdgeDistillError where the bundle's holdout is not that of any session there.
    """
    spec = read_decoder_spec(bundle)
    bands = BandPower(spec.front_end.bands, spec.front_end.band_ms)
    bins = read_sessions(Cache(work / "read"), [folder], NO_NAMES, spec.front_end.line_hz, bands)
    gap = compute_gap(bins, spec.shape.size)
    for one in bins:
        if one.session_id == bundle.manifest.session.id:
            session = training_session_from_bins(one, gap)
            stretch = holdout_stretch(session, spec.shape)
            if np.array_equal(session.inputs("lfp")[stretch].numpy(), holdout.bins):
                return session
    raise EdgeDistillError(
        f"{folder} does not hold the recordings that {bundle.path} was built from",
        got=[one.session_id for one in bins],
        expected=f"session {bundle.manifest.session.id} with the holdout of the bundle",
    )


def add_refits(
    curve: Curve, signal: LfpSignal, session: TrainingSession, front_end: FrontEndConfig, lags: int
) -> Curve:
    """Returns the curve with a row for a ridge that was fitted anew on the channels that each draw leaves."""
    if curve.kind not in DRAWN:
        return curve
    rows = []
    for level in curve.levels:
        lost = [DRAWN[curve.kind](signal, level, draw) for draw in range(curve.draws if level else 1)]
        r2 = [refit(session, np.setdiff1d(signal.find_live(), one), front_end, lags) for one in lost]
        rows.append((float(np.mean(r2)), min(r2), max(r2)))
    return replace(curve, r2={**curve.r2, REFITTED: tuple(rows)})


def refit(session: TrainingSession, kept: npt.NDArray[np.intp], front_end: FrontEndConfig, lags: int) -> float:
    """Returns the R² on the test block of a ridge on the `kept` channels alone, as if the array had no others."""
    assert session.source is not None
    every = np.concatenate([kept + feature * front_end.channels for feature in range(front_end.features)])
    present, there = session.source.present.numpy()[:, every], session.source.there.numpy()[:, kept]
    config, train = replace(front_end, channels=len(kept), left_out=()), session.split.train
    mean, std = np.zeros(len(every)), np.ones(len(every))
    bad = np.tile(~there[train], front_end.features)
    spatial = fit_spatial_model(config, present[train].astype(np.float64), bad, mean, std)
    bins = spatial.complete(present, there).astype(np.float64)
    return fit_bundle_ridge(bins, len(kept), session, [lags]).score.r2


# ---------------------------------------------------------------- over bundles


def summarize(bundles: list[Result]) -> Result:
    """Returns, by row, the mean intact R² and the mean share that is kept at each level, with those of each bundle."""
    rows: Result = {}
    for row in dict.fromkeys(name for one in bundles for curve in one["curves"] for name in curve["r2"]):
        intact = [one["curves"][0]["r2"][row][0]["mean"] for one in bundles]
        rows[row] = {"intact_r2": describe(intact), "kept_share": {}}
        for i, curve in enumerate(bundles[0]["curves"]):
            for at, level in enumerate(curve["levels"]):
                if level and row in curve["r2"]:
                    kept = [one["curves"][i]["kept_share"][row][at] for one in bundles]
                    rows[row]["kept_share"][f"{curve['kind']} {level:g}"] = describe(kept)
    return rows


def describe(values: list[float | None]) -> Result:
    """Returns the mean of the values, or None where one of them is unknown, and the values."""
    known = [value for value in values if value is not None]
    return {"mean": float(np.mean(known)) if len(known) == len(values) else None, "bundles": values}


def judge(rows: Result) -> list[Result]:
    """Judges the mean share that the LFP student keeps."""
    found = []
    for kind, limits in LIMITS.items():
        for level, limit in limits.items():
            kept = rows[LFP_INT8]["kept_share"][f"{kind} {level:g}"]["mean"]
            found.append({"name": f"{kind} {level:g}", "value": kept, "limit": limit, "ok": kept and kept >= limit})
    return found


def show(result: dict[str, Any]) -> None:
    console = Console()
    rows, levels = result["rows"], list(result["rows"][LFP_INT8]["kept_share"])
    table = Table("row", "intact R²", *levels, title=f"share of R² that is kept, {len(result['bundles'])} bundles")
    table.columns[0].no_wrap = True
    for row, found in rows.items():
        kept = [found["kept_share"].get(level, {}).get("mean") for level in levels]
        cells = ["–" if share is None else f"{share:.1%}" for share in kept]
        table.add_row(row, f"{found['intact_r2']['mean']:.3f}", *cells)
    console.print(table)
    for gate in result["limits"]:
        value = "–" if gate["value"] is None else f"{gate['value']:.1%}"
        console.print(f"{'met   ' if gate['ok'] else 'MISSED'} {gate['name']}: {value}, limit {gate['limit']:.0%}")


def parse_options() -> ArgumentParser:
    parser = option_parser(__doc__, RESULTS / "cpu" / "robustness")
    parser.add_argument("data", type=Path, nargs="+", help="folders with recordings of one array each")
    parser.add_argument("--bundle", type=Path, action="append", help="the bundle of a folder, once for each folder")
    parser.add_argument("--preset", default="nano")
    parser.add_argument("--steps", type=int, help="limits the training of a build")
    parser.add_argument("--draws", type=int, default=5)
    parser.add_argument("--work", type=Path, default=Path("build/robustness"))
    return parser


def main() -> None:
    parser = parse_options()
    options = parser.parse_args()
    paths = options.bundle or [None] * len(options.data)
    if len(paths) != len(options.data):
        parser.error(f"{len(options.data)} folders and {len(paths)} bundles: each folder needs one")
    options.work.mkdir(parents=True, exist_ok=True)
    bundles = []
    for folder, path in zip(options.data, paths, strict=True):
        bundles.append(measure_once(open_or_build(folder, options, path), folder, options))
    rows = summarize(bundles)
    limits = judge(rows)
    name = f"robustness-{Path(options.preset).stem}"
    conditions = describe_conditions(MODULE)
    result = {**conditions, "draws": options.draws, "rows": rows, "limits": limits, "bundles": bundles}
    write_result(options.out, name, result)
    show(result)


if __name__ == "__main__":
    main()
