"""From sessions to a bundle, stage by stage; a stage whose inputs have not changed is not run again.

`stages` is the way data flows, `options` what it is asked and answers, `inputs` what it begins with, `run` the
trained stages, `given` a student of an earlier run, `cache` what keeps stages, `assemble` what goes into the bundle.
"""

from edgedistill.build.options import BuildOptions, BuildResult, TableRow
from edgedistill.build.stages import build, distill, pretrain

__all__ = ["BuildOptions", "BuildResult", "TableRow", "build", "distill", "pretrain"]
