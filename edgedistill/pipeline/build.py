"""Runs `edgedistill build`, which makes a bundle for one device from recorded sessions."""

from __future__ import annotations

from edgedistill.pipeline.assembled import assemble_bundle
from edgedistill.pipeline.quantized import quantize_students
from edgedistill.pipeline.request import BuildOptions, check_request
from edgedistill.pipeline.result import BuildResult
from edgedistill.pipeline.run_context import Progress
from edgedistill.pipeline.trained import train_models
from edgedistill.reserved import reserving, work_folder


@reserving(lambda options: (options.out, work_folder(options.out, options.work)))
def build(options: BuildOptions, progress: Progress | None = None) -> BuildResult:
    """Runs a build and returns its result. A missed gate is part of the result and raises no error.

    Raises an EdgeDistillError, wherever possible before any training begins.
    """
    request = check_request(options, progress)
    trained = train_models(request)
    quantized = quantize_students(request, trained)
    return assemble_bundle(request, trained, quantized)
