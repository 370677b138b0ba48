"""Defines `edgedistill simulate`, which writes NWB sessions of a simulated animal, for trials without own data."""

from __future__ import annotations

from pathlib import Path

import click

from edgedistill.cli.output import echo, json_option, print_json, show_training
from edgedistill.data.simulation.config import VARIANTS


@click.command(
    epilog="""\b
Examples:
  edgedistill simulate --out sessions
  edgedistill simulate --out small --sessions 3 --minutes 4 --seed 7
  edgedistill simulate --out months --sessions 6 --days-apart 30
  edgedistill simulate --out pursuit --variant pursuit

The same seed gives the same files. An existing file of the same name is replaced.""",
)
@click.option(
    "--out", type=click.Path(path_type=Path, file_okay=False), required=True, help="The folder to write the files to."
)
@click.option(
    "--variant",
    type=click.Choice(VARIANTS),
    default=VARIANTS[0],
    show_default=True,
    help="What is simulated: reaches to targets, or pursuit of a moving one. Tuning, field and background differ too.",
)
@click.option("--sessions", type=int, default=5, show_default=True, help="How many days to record, one file each.")
@click.option("--minutes", type=float, default=10.0, show_default=True, help="The length of each session in minutes.")
@click.option(
    "--seed",
    type=click.IntRange(min=0),
    default=0,
    show_default=True,
    help="The seed of all random numbers. Another seed is another animal.",
)
@click.option("--channels", type=int, default=32, show_default=True, help="The number of LFP channels of the array.")
@click.option("--units", type=int, default=64, show_default=True, help="The number of units that a session records.")
@click.option("--rate", type=int, default=1000, show_default=True, help="The sampling rate of the LFP in Hz.")
@click.option(
    "--days-apart",
    type=int,
    default=7,
    show_default=True,
    help="How many days lie between two sessions. The array ages with them.",
)
@click.option(
    "--aging",
    type=float,
    default=1.0,
    show_default=True,
    help="How fast the array ages, against the published pace. With 0 it does not.",
)
@json_option
def simulate(
    out: Path,
    variant: str,
    sessions: int,
    minutes: float,
    seed: int,
    channels: int,
    units: int,
    rate: int,
    days_apart: int,
    aging: float,
    as_json: bool,
) -> None:
    """Write realistic NWB sessions to try everything with.

    They hold spikes, LFP, cursor and electrodes. All sessions share one array and one population of neurons. From
    session to session other units are recorded and their tuning drifts. The LFP holds a shared 1/f background, beta
    that falls with movement, line noise, dead and noisy channels, and artefacts. With the days gains drift, electrodes
    die, noise floors rise and leaks take low frequencies away. Try a recipe on both variants before you trust it.
    """
    from edgedistill.data.simulation.nwb import simulate_to_nwb
    from edgedistill.data.simulation.sessions import SimulationConfig

    config = SimulationConfig(
        variant=variant,
        sessions=sessions,
        minutes=minutes,
        seed=seed,
        channels=channels,
        units=units,
        rate_hz=rate,
        days_apart=days_apart,
        aging=aging,
    )
    files: list[Path] = []
    with show_training() as report:
        for path in simulate_to_nwb(config, out):
            files.append(path)
            if report is not None:
                report("sessions", len(files), sessions, float("nan"), float("nan"))
    if as_json:
        written = [{"path": str(path), "bytes": path.stat().st_size} for path in files]
        settings = {
            key: getattr(config, key) for key in ("variant", "seed", "sessions", "minutes", "days_apart", "aging")
        }
        print_json({"out": str(out), **settings, "files": written})
        return
    for path in files:
        echo(f"{path}  {path.stat().st_size / 1e6:.1f} MB")
