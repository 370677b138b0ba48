"""Defines the command line, which prints tables or one JSON object and ends with an exit code.

This is the only part of edgedistill that prints or exits. Each command has a module of its own name. `app` turns errors
into messages and exit codes, `output` prints, `bench_tables` prints what a bench measured, and `training_options` holds
the options that several commands share. Modules that take long to import or are missing on a device (torch, pynwb,
onnxruntime) are imported inside the commands that use them.
"""

from edgedistill.cli.adapt import adapt
from edgedistill.cli.app import main
from edgedistill.cli.bench import bench
from edgedistill.cli.build import build
from edgedistill.cli.cache import cache
from edgedistill.cli.calibrate import calibrate
from edgedistill.cli.compile import compile_command
from edgedistill.cli.convert import convert
from edgedistill.cli.distill import distill
from edgedistill.cli.doctor import doctor
from edgedistill.cli.embed import embed
from edgedistill.cli.inspect import inspect
from edgedistill.cli.pretrain import pretrain
from edgedistill.cli.report import report
from edgedistill.cli.run import run
from edgedistill.cli.runs import runs
from edgedistill.cli.sign import sign
from edgedistill.cli.simulate import simulate
from edgedistill.cli.stream import stream
from edgedistill.cli.targets import targets
from edgedistill.cli.verify import verify

__all__ = ["main"]

for command in (  # in the order in which a user needs them, as --help lists them
    simulate,
    convert,
    inspect,
    pretrain,
    distill,
    runs,
    embed,
    calibrate,
    build,
    compile_command,
    sign,
    verify,
    run,
    stream,
    adapt,
    bench,
    report,
    targets,
    cache,
    doctor,
):
    main.add_command(command)
