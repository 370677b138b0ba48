"""Runs `edgedistill build`, which makes a bundle for one device from recorded sessions."""

from __future__ import annotations

from pathlib import Path

from edgedistill.pipeline.assembled import assemble_bundle
from edgedistill.pipeline.quantized import quantize_students
from edgedistill.pipeline.request import BuildOptions, check_request, require_free_out
from edgedistill.pipeline.result import BuildResult
from edgedistill.pipeline.run_context import Progress
from edgedistill.pipeline.trained import train_models
from edgedistill.reserved import reserving, work_folder
from edgedistill.scratch import with_scratch


def find_places(options: BuildOptions) -> tuple[Path, Path]:
    """Returns where a build writes. Raises OutputError before it waits for a place that it could not write to."""
    require_free_out(options)
    return options.out, work_folder(options.out, options.work)


@reserving(find_places)
@with_scratch(lambda options: (options.work or options.out).parent)
def build(options: BuildOptions, progress: Progress | None = None) -> BuildResult:
    """Runs a build and returns its result. A missed gate is part of the result and raises no error.

    Raises an EdgeDistillError, wherever possible before any training begins.
    """
    request = check_request(options, progress)
    trained = train_models(request)
    quantized = quantize_students(request, trained)
    return assemble_bundle(request, trained, quantized)
