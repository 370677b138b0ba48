"""The command line: words of a shell in, tables or one JSON object out, an exit code at the end.

The only part that prints or exits. `app` turns errors into messages and exit codes, `output` prints; the
commands stand beside them, a module for each kind: `sessions`, `training`, `calibration`, `compile`, `decoding`,
`measuring`, `machine`. Whatever takes long to import or is missing on a device (torch, pynwb, onnxruntime) is
imported inside the commands that use it.
"""

from edgedistill.cli.app import main
from edgedistill.cli.bench import bench, report
from edgedistill.cli.build import build, distill, pretrain
from edgedistill.cli.calibrate import calibrate
from edgedistill.cli.compile import compile_command
from edgedistill.cli.inspect import inspect, simulate
from edgedistill.cli.run import run
from edgedistill.cli.targets import doctor, targets

__all__ = ["main"]

for command in (
    simulate,
    inspect,
    pretrain,
    distill,
    calibrate,
    build,
    compile_command,
    run,
    bench,
    report,
    targets,
    doctor,
):
    main.add_command(command)
