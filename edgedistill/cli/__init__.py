"""The command line: words of a shell go in, tables or one JSON object come out, with an exit code at the end.

This is the only part of edgedistill that prints or exits. Each command stands in the module of its name. `app` turns
errors into messages and exit codes, `output` prints, `bench_tables` prints what a bench measured, and
`training_options` holds the options that several commands share. Whatever takes long to import or is missing on a
device (torch, pynwb, onnxruntime) is imported inside the commands that use it.
"""

from edgedistill.cli.app import main
from edgedistill.cli.bench import bench
from edgedistill.cli.build import build
from edgedistill.cli.calibrate import calibrate
from edgedistill.cli.compile import compile_command
from edgedistill.cli.distill import distill
from edgedistill.cli.doctor import doctor
from edgedistill.cli.inspect import inspect
from edgedistill.cli.pretrain import pretrain
from edgedistill.cli.report import report
from edgedistill.cli.run import run
from edgedistill.cli.simulate import simulate
from edgedistill.cli.targets import targets

__all__ = ["main"]

for command in (  # the order of the work, in which --help lists them
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
