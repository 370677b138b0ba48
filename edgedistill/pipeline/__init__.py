"""Runs the commands that make models and bundles: `build`, `pretrain`, `distill`, `calibrate` and `adapt`.

A `build` goes through four modules. `request` checks what the user asked for, `trained` trains the models, `quantized`
turns them into integers, and `assembled` writes the bundle. `teacher`, `students` and `ranges` contain the stages whose
results are kept on disk. A stage whose inputs and code have not changed is not run again. All stages use `run_context`
and `cache`. `adaptation` makes a bundle for another day and trains nothing.

What is named here is imported when it is first used. The processes that only read sessions then never import torch.
"""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from edgedistill.pipeline.building import build
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

_MODULES = {
    "building": ("build",),
    "distillation": ("DistillOptions", "distill"),
    "pretraining": ("PretrainOptions", "pretrain"),
    "request": ("BuildOptions",),
    "result": ("BuildResult", "TableRow", "TrainingSummary"),
}


def __getattr__(name: str) -> object:
    """Returns what is named in `__all__`, from the module that defines it."""
    for module, names in _MODULES.items():
        if name in names:
            return getattr(import_module(f"edgedistill.pipeline.{module}"), name)
    raise AttributeError(f"module 'edgedistill.pipeline' has no attribute {name!r}")
