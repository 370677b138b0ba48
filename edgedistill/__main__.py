"""Runs the command line: `python -m edgedistill`."""

from edgedistill.cli import main

main()
