"""`edgedistill build`: from sessions to a bundle for one device."""

from __future__ import annotations

from edgedistill.pipeline.assembled import assemble_bundle
from edgedistill.pipeline.quantized import quantize_students
from edgedistill.pipeline.request import BuildOptions, checked_request
from edgedistill.pipeline.result import BuildResult
from edgedistill.pipeline.run_context import Progress
from edgedistill.pipeline.trained import train_models


def build(options: BuildOptions, progress: Progress | None = None) -> BuildResult:
    """Returns what came of a build. Gates that are missed are in the result; they raise nothing.

    Raises an EdgeDistillError, before anything is trained wherever that is possible.
    """
    request = checked_request(options, progress)
    trained = train_models(request)
    quantized = quantize_students(request, trained)
    return assemble_bundle(request, trained, quantized)
