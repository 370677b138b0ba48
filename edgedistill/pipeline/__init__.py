"""Runs the commands that make models and bundles: `build`, `pretrain`, `distill`, `calibrate` and `adapt`.

A `build` goes through four modules. `request` checks what the user asked for, `trained` trains the models, `quantized`
turns them into integers, and `assembled` writes the bundle. `teacher`, `students` and `ranges` contain the stages whose
results are kept on disk. A stage whose inputs and code have not changed is not run again. All stages use `run_context`
and `cache`. `adaptation` makes a bundle for another day and trains nothing.
"""

from edgedistill.pipeline.build import build
from edgedistill.pipeline.distillation import DistillOptions, distill
from edgedistill.pipeline.pretraining import PretrainOptions, pretrain
from edgedistill.pipeline.request import BuildOptions
from edgedistill.pipeline.result import BuildResult, TableRow, TrainingSummary

__all__ = [
    "BuildOptions",
    "BuildResult",
    "DistillOptions",
    "PretrainOptions",
    "TableRow",
    "TrainingSummary",
    "build",
    "distill",
    "pretrain",
]
