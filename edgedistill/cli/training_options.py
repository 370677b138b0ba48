"""Defines the options that several commands share: how sessions are read, models trained and students quantized."""

from __future__ import annotations

import os
from collections.abc import Callable
from functools import wraps
from pathlib import Path
from typing import Any, TypeVar, cast

import click

from edgedistill.cli.output import json_option
from edgedistill.config import ALIGNMENTS, CENTRINGS, DEFAULT_ALIGNMENT, Alignment, preset_names
from edgedistill.quantization.calibration.recipe import DEFAULT_RECIPE, list_recipes

MOST_JOBS = 4  # a process that reads takes about 0.5 GB
Command = TypeVar("Command", bound=Callable[..., Any])

PATH = click.Path(path_type=Path)
SERIES_HELP = {
    "lfp": "The LFP to read, where a session holds several: a name, a path, a container, or what the names of segments "
    "have in common (M1 for M1_1 and M1_2).",
    "units": "The table of spike times to read, where a session holds several: a name, a path, or a container.",
    "behavior": "The behavior to read, where a session holds several: a name, a path, a container, what the names of "
    "several series have in common, or columns of one series (NAME[0,1]).",
}

FOLLOW_HELP = (
    "The time constant with which mean and deviation of each channel follow the signal while the bundle decodes, 10 s "
    "or more. 0 keeps them as they are."
)


def add_series_options(command: Command) -> Command:
    """Adds --lfp, --units and --behavior to a command, which receives them as one `SeriesNames` called `names`."""

    @wraps(command)
    def with_names(*args: Any, lfp: str | None, units: str | None, behavior: str | None, **others: Any) -> Any:
        from edgedistill.data.candidates import SeriesNames

        return command(*args, names=SeriesNames(lfp, units, behavior), **others)

    for part in ("behavior", "units", "lfp"):
        with_names = click.option(f"--{part}", metavar="NAME", help=SERIES_HELP[part])(with_names)
    return cast(Command, with_names)


def add_reading_options(command: Command) -> Command:
    """Adds --jobs and --skip-bad to a command, which receives them as one `ReadingOptions` called `reading`."""

    @wraps(command)
    def with_reading(*args: Any, jobs: int | None, skip_bad: bool, **others: Any) -> Any:
        from edgedistill.data.opening.catalogue import ReadingOptions

        return command(*args, reading=ReadingOptions(jobs or count_jobs(), skip_bad), **others)

    with_reading = click.option(
        "--skip-bad",
        is_flag=True,
        help="Leave out sessions that cannot be read, or that lack what this command needs, and list them with the "
        "reason. Without it, the first of them ends the command.",
    )(with_reading)
    with_reading = click.option(
        "--jobs",
        metavar="N",
        type=click.IntRange(min=1),
        show_default=f"cores, at most {MOST_JOBS}",
        help="How many sessions are read at a time, each by a process of its own. The result is the same.",
    )(with_reading)
    return cast(Command, with_reading)


def count_jobs() -> int:
    """Returns how many sessions are read at a time by default: one a core, and few enough for the memory."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return min(MOST_JOBS, cores)


def add_alignment_options(command: Command) -> Command:
    """Adds --alignment and --centring to a command, which receives them as one `Alignment` called `alignment`.

    That is None where neither is given.
    """

    @wraps(command)
    def with_alignment(*args: Any, alignment: str | None, centring: str | None, **others: Any) -> Any:
        usual = DEFAULT_ALIGNMENT
        asked = (
            None
            if alignment is None and centring is None
            else Alignment(alignment or usual.kind, centring or usual.centring)
        )
        return command(*args, alignment=asked, **others)

    with_alignment = click.option(
        "--centring",
        type=click.Choice(CENTRINGS),
        show_default=DEFAULT_ALIGNMENT.centring,
        help="With --alignment subspace: whether the student's activations only lose the mean of a batch, or are also "
        "divided by its deviation.",
    )(with_alignment)
    with_alignment = click.option(
        "--alignment",
        type=click.Choice(ALIGNMENTS),
        show_default=DEFAULT_ALIGNMENT.kind,
        help="How the student is aligned to the teacher: by the angle to the whitened components of its features, by "
        "the angle to its centred latents, by their squared error, or layer by layer in the directions of the task.",
    )(with_alignment)
    return cast(Command, with_alignment)


label_minutes_option = click.option(
    "--label-minutes",
    metavar="MINUTES",
    type=click.FloatRange(min=0),
    help="Learn behavior from the first so many minutes of labels in the training block of one session alone: "
    "the session that is decoded in a build, the latest in a distillation. All else sees everything, without labels.  "
    "[default: all labels of all sessions]",
)
trials_option = click.option(
    "--trials",
    metavar="N",
    type=click.IntRange(min=1),
    default=1,
    show_default=True,
    help="Train each student with so many settings (learning rate, weight decay, damage to the inputs, weight and kind "
    "of the alignment) and take the one that decodes the validation block best. The first trial is the preset as it "
    "is, and 1 tries nothing else. More need the package optuna.",
)
line_hz_option = click.option(
    "--line-hz",
    type=float,
    default=60.0,
    show_default=True,
    help="The mains frequency in Hz, which is filtered out with its harmonics. 0 filters nothing out.",
)
bands_option = click.option(
    "--bands",
    type=click.Choice(["preset", "none"]),
    default="preset",
    show_default=True,
    help="The bands whose log power the student sees beside the slow LFP: those of the preset, or none.",
)
seed_option = click.option(
    "--seed",
    type=int,
    default=0,
    show_default=True,
    help="The seed of all random numbers. The same seed gives the same result.",
)
recipe_option = click.option(
    "--recipe",
    metavar="NAME",
    default=DEFAULT_RECIPE,
    show_default=True,
    help="The calibration recipe, which says how the ranges of the INT8 activations are found: "
    f"{', '.join(list_recipes())}, or a .toml file of your own.",
)
preset_option = click.option(
    "--preset",
    metavar="NAME",
    default="edge",
    show_default=True,
    help=f"The size of the models and their training: {', '.join(preset_names())}, or a .toml file of your own.",
)
steps_option = click.option(
    "--steps",
    type=click.IntRange(min=1),
    help="The most optimizer steps that each stage may take.  [default: what the preset says]",
)


def add_training_options(command: Command) -> Command:
    """Adds the options of a training to a command: preset, steps, seed, how sessions are read, and --json."""
    reading = (add_reading_options, line_hz_option, add_series_options)
    for option in (json_option, *reading, seed_option, steps_option, preset_option):
        command = option(command)
    return command
