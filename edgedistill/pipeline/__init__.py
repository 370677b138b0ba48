"""The commands that train: `build`, and `pretrain`, `distill` and `calibrate` by themselves.

`build` is the way data flows: `request` checks what was asked for, `trained` holds the models, `quantized` their
integers, and `assembled` the bundle. `teacher`, `students` and `ranges` hold the stages that are kept, and a stage
whose inputs and code have not changed is not run again. `run_context` and `cache` are what all stages share.
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
