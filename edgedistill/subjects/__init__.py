"""What a bench compares, and the bench: a bundle (and perhaps a recording for R²) in, a `BenchResult` out.

`holdout` reads the bundle, `candidates` makes every subject that this machine can run, `peers` are those that are not
ours, `fits` streams them for R², `bench` measures them in one run, `extras` adds what a report draws, `result` is the
JSON.
"""

from edgedistill.subjects.bench import QUICK, BenchOptions, bench
from edgedistill.subjects.candidates import chosen
from edgedistill.subjects.fits import fit_on_recording
from edgedistill.subjects.holdout import standardised
from edgedistill.subjects.result import BenchResult, Subject

__all__ = ["QUICK", "BenchOptions", "BenchResult", "Subject", "bench", "chosen", "fit_on_recording", "standardised"]
