"""From sessions to a bundle, stage by stage; a stage whose inputs have not changed is not run again.

`stages` is the way data flows, `options` what it is asked and answers, `inputs` what it begins with, `run` the
trained stages, `given` a student of an earlier run, `cache` what keeps stages, `assemble` what goes into the bundle.
"""

from edgedistill.pipeline.build import build, distill, pretrain
from edgedistill.pipeline.request import BuildOptions, BuildResult, TableRow

__all__ = ["BuildOptions", "BuildResult", "TableRow", "build", "distill", "pretrain"]
