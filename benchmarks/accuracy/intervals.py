"""Measures what the intervals of bundles cover on their holdouts, and how sure each figure is.

    python -m benchmarks.accuracy.intervals BUNDLE…

The INT8 student of each bundle decodes its holdout with all channels, with a quarter lost at random, and with each bank
of a quarter lost, as in `bench`. Beside the shares of `bench`, the 90 % intervals are counted for each draw of lost
channels, and for the slow, the middle and the fast third of what was decoded. The standard error of a mean over bundles
takes them as independent. Results are written to benchmarks/results/cpu/intervals.json.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

from benchmarks.harness import RESULTS, Result, describe_conditions, option_parser, say, write_result
from edgedistill.bench.intervals import Streamed, find_draws, stream_draws
from edgedistill.bench.subjects import LFP_INT8, Candidate, open_candidates
from edgedistill.bundle import Bundle, open_bundle
from edgedistill.bundle.contents import read_decoder_spec, read_deviation_model, read_holdout, read_spatial_model
from edgedistill.measure.intervals import QUANTILES, measure_coverage
from edgedistill.numerics.deviation import DeviationModel
from edgedistill.runtime.compiled_engines import choose_engine

MODULE = "benchmarks.accuracy.intervals"
LEAST, MOST = 0.88, 0.92  # what the 90 % intervals are to cover
THIRDS = ("slow", "middle", "fast")


def measure_bundle(bundle: Bundle) -> Result:
    """Returns what the intervals of one bundle cover."""
    spec, holdout = read_decoder_spec(bundle), read_holdout(bundle)
    spatial, model = (
        read_spatial_model(bundle, spec.front_end),
        read_deviation_model(bundle, spec.front_end.channels, spec.shape.outputs),
    )
    candidates, _ = open_candidates(bundle, holdout, choose_engine(bundle), (LFP_INT8,))
    student: Candidate = next(c for c in candidates if c.name == LFP_INT8)
    rows = {}
    for kind, lost in find_draws(spatial).items():
        say(f"{bundle.path}: {kind}")
        rows[kind] = describe_row(stream_draws(student, holdout, spatial, model, lost), model)
    confidence = bundle.manifest.confidence
    return {
        "bundle": bundle.manifest.name,
        "sha256": bundle.sha256,
        "session": bundle.manifest.session and bundle.manifest.session.id,
        "preset": bundle.manifest.preset,
        "channels": spec.front_end.channels,
        "scored_bins": int(np.isfinite(holdout.kinematics[holdout.score_from :]).all(axis=1).sum()),
        "calibrated_on_bins": confidence and confidence.labelled_bins,
        "calibration_error": confidence and confidence.standard_error,
        "rows": rows,
    }


def describe_row(streamed: Streamed, model: DeviationModel) -> Result:
    """Returns the coverage of both levels, and that of 90 % for each draw and each third of the decoded speed."""
    coverage = [measure_coverage(streamed.decoded, streamed.deviation, streamed.truth, level) for level in QUANTILES]
    draws = zip(streamed.decoded, streamed.deviation, strict=True)
    each = [measure_coverage(one[None], size[None], streamed.truth, 0.9).share for one, size in draws]
    return {
        "coverage": [one.to_json() for one in coverage],
        "coverage_by_draw": each,
        "coverage_by_speed": cover_thirds(streamed, model),
    }


def cover_thirds(streamed: Streamed, model: DeviationModel) -> dict[str, float]:
    """Returns what the 90 % intervals cover in the slow, the middle and the fast third of what was decoded."""
    known = np.isfinite(streamed.truth).all(axis=1)
    within = np.abs(streamed.decoded - streamed.truth) <= QUANTILES[0.9] * streamed.deviation
    hits = within[:, known].mean(axis=2).ravel()
    speed = np.concatenate([model.speed(decoded[known]) for decoded in streamed.decoded])
    thirds = np.array_split(np.argsort(speed, kind="stable"), len(THIRDS))
    return {name: float(hits[part].mean()) for name, part in zip(THIRDS, thirds, strict=True)}


# ---------------------------------------------------------------- over bundles


def summarize(bundles: Sequence[Result]) -> Result:
    """Returns, by kind of loss and level, the mean share over bundles, its standard error, and the extremes."""
    rows: Result = {}
    for kind in bundles[0]["rows"]:
        for i, level in enumerate(QUANTILES):
            found = [one["rows"][kind]["coverage"][i] for one in bundles]
            shares, errors = [one["share"] for one in found], [one["standard_error"] for one in found]
            sure = None if None in errors else float(np.sqrt(np.sum(np.square(errors))) / len(errors))
            spread = float(np.std(shares, ddof=1)) if len(shares) > 1 else None
            rows[f"{kind} {level:.0%}"] = {
                "mean": float(np.mean(shares)), "standard_error": sure, "deviation_over_bundles": spread,
                "lowest": min(shares), "highest": max(shares),
            }  # fmt: skip
    return rows


def judge(rows: Result) -> list[Result]:
    """Judges the mean share of the 90 % intervals."""
    found = [(name, row["mean"]) for name, row in rows.items() if name.endswith("90%")]
    return [{"name": name, "value": mean, "ok": LEAST <= mean <= MOST} for name, mean in found]


def show(result: dict[str, Any]) -> None:
    console = Console()
    table = Table("bundle", *result["rows"], title="true values inside intervals, ± standard error of the count")
    for one in result["bundles"]:
        cells = [found for row in one["rows"].values() for found in row["coverage"]]
        table.add_row(one["bundle"], *(format_share(cell["share"], cell["standard_error"]) for cell in cells))
    cells = list(result["rows"].values())
    table.add_row("mean", *(format_share(cell["mean"], cell["standard_error"]) for cell in cells))
    console.print(table)
    for gate in result["limits"]:
        console.print(f"{'met   ' if gate['ok'] else 'MISSED'} {gate['name']}: {gate['value']:.1%}")


def format_share(share: float, error: float | None) -> str:
    return f"{share:.1%}" if error is None else f"{100 * share:.1f} ± {100 * error:.1f} %"


def main() -> None:
    parser = option_parser(__doc__, RESULTS / "cpu")
    parser.add_argument("bundles", type=Path, nargs="+")
    options = parser.parse_args()
    bundles = [measure_bundle(open_bundle(path)) for path in options.bundles]
    rows = summarize(bundles)
    result = {**describe_conditions(MODULE), "rows": rows, "limits": judge(rows), "bundles": bundles}
    write_result(options.out, "intervals", result)
    show(result)


if __name__ == "__main__":
    main()
