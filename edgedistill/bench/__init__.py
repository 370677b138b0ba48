"""What a bench compares, and the bench: a bundle (and perhaps a recording for R²) in, a `BenchResult` out.

`holdout` reads the bundle, `candidates` makes every subject that this machine can run, `peers` are those that are not
ours, `fits` streams them for R², `bench` measures them in one run, `extras` adds what a report draws, `result` is the
JSON.
"""

from edgedistill.bench.comparison import QUICK, BenchOptions, bench
from edgedistill.bench.holdout import standardised
from edgedistill.bench.holdout_scores import fit_on_recording
from edgedistill.bench.result import BenchResult, Subject
from edgedistill.bench.subjects import chosen

__all__ = ["QUICK", "BenchOptions", "BenchResult", "Subject", "bench", "chosen", "fit_on_recording", "standardised"]
