"""Compares everything that could decode in place of a bundle's student, in one run on this machine.

A bundle goes in, and a recording too where R² on another day is asked for. A `BenchResult` comes out. `holdout` reads
the spike counts of the bundle, `peers` holds the decoders that are not ours, and `subjects` opens every subject that
this machine can run. `holdout_scores` streams them for R², `timing` takes times and energies, `extras` adds what a
report draws, and `comparison` runs all of it. `result` holds what was found and its JSON.
"""

from edgedistill.bench.comparison import QUICK, BenchOptions, bench
from edgedistill.bench.holdout import standardize_counts
from edgedistill.bench.holdout_scores import score_on_recording
from edgedistill.bench.result import BenchResult, Subject
from edgedistill.bench.subjects import STUDENTS, select_subjects

__all__ = [
    "QUICK",
    "STUDENTS",
    "BenchOptions",
    "BenchResult",
    "Subject",
    "bench",
    "score_on_recording",
    "select_subjects",
    "standardize_counts",
]
