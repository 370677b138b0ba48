"""From sessions to a bundle, stage by stage; a stage whose inputs have not changed is not run again.

`stages` is the way data flows, `cache` what keeps it from being walked twice, `assemble` what goes into the bundle.
"""

from edgedistill.build.stages import (
    BuildOptions,
    BuildResult,
    TableRow,
    build,
    distill,
    pretrain,
)

__all__ = ["BuildOptions", "BuildResult", "TableRow", "build", "distill", "pretrain"]
