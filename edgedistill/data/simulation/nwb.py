"""Writes simulated sessions as NWB files. Equal seeds give equal files, byte for byte.

The input is a `SimulationConfig`. The output is one NWB file a session, laid out as other labs do it: int16 LFP in an
`LFP` container, sorted units, and cursor position and velocity in a `behavior` module.
"""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple
from unittest.mock import patch

import numpy as np
import numpy.typing as npt

from edgedistill.data.nwb_writing import write_large_nwb
from edgedistill.data.simulation.config import VARIANTS
from edgedistill.data.simulation.sessions import LATENT_HZ, SimulatedSession, SimulationConfig, simulate_sessions
from edgedistill.files import atomic_write, output_error
from edgedistill.scratch import release_pages, scratch_in

if TYPE_CHECKING:
    from pynwb import NWBFile

UV_PER_BIT = 0.25
CHUNK_FRAMES = 8192
LFP_DATA = "processing/ecephys/LFP/lfp/data"  # its path in the file
SPIKE_RESOLUTION_S = 1e-9  # spike times are drawn as real numbers, not on the samples of a recording
FIRST_DAY = datetime(2024, 1, 1, 9, tzinfo=timezone.utc)


class Words(NamedTuple):
    """Holds what the files of a variant say of it."""

    name: str  # what its subjects, sessions and files are called
    description: str
    keyword: str
    experiment: str


WORDS = {
    "reaches": Words(
        "sim",
        "simulated self-paced reaching to random targets (edgedistill simulate)",
        "reaching",
        "A simulated animal moves a cursor to random targets, to try edgedistill without data.",
    ),
    "pursuit": Words(
        "pursuit",
        "simulated pursuit of a wandering target (edgedistill simulate --variant pursuit)",
        "pursuit",
        "A simulated animal follows a wandering target with a cursor, to try edgedistill without data.",
    ),
}


def simulate_to_nwb(config: SimulationConfig, out: Path) -> Iterator[Path]:
    """Writes one file a session into `out`, and yields each path when the file is complete. Raises OutputError."""
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise output_error(out, "the simulated sessions", error) from error
    with scratch_in(out):
        for session in simulate_sessions(config):
            path = out / f"{name_subject(config)}_day{session.index + 1:02d}.nwb"
            write_session(session, config, path)
            yield path


def write_session(session: SimulatedSession, config: SimulationConfig, path: Path) -> None:
    """Writes one session to `path` as a whole file. Raises OutputError."""
    with (
        atomic_write(path, "the simulated session", next_step=f"df -h {path.parent}") as partial,
        make_ids_repeatable(f"{prefix_of(config)}{config}{session.index}"),
    ):
        write_large_nwb(nwb_from_session(session, config), partial, {LFP_DATA: split_bits(session)})


def name_subject(config: SimulationConfig) -> str:
    """Returns the name of the simulated animal."""
    return f"{WORDS[config.variant].name}{config.seed:02d}"


def prefix_of(config: SimulationConfig) -> str:
    """Returns what tells the ids of a variant from those of the default, whose ids have no prefix."""
    return "" if config.variant == VARIANTS[0] else f"{config.variant}-"


@contextmanager
def make_ids_repeatable(name: str) -> Iterator[None]:
    """Makes the random ids that NWB gives to every object follow from `name`, so that equal seeds give equal files."""
    rng = np.random.default_rng(list(name.encode()))
    with patch("hdmf.container.uuid4", lambda: uuid.UUID(bytes=rng.bytes(16), version=4)):
        yield


def nwb_from_session(session: SimulatedSession, config: SimulationConfig) -> NWBFile:
    """Returns the in-memory NWB file of one simulated day, in which the LFP has no data yet."""
    from pynwb import NWBFile
    from pynwb.file import Subject

    start = FIRST_DAY + timedelta(days=config.days_apart * session.index)
    nwb = NWBFile(
        session_description=WORDS[config.variant].description,
        identifier=f"edgedistill-simulation-{prefix_of(config)}{config.seed}-{session.index}",
        session_id=f"{name_subject(config)}-day{session.index + 1:02d}",
        session_start_time=start,
        file_create_date=start,
        keywords=["simulated", "motor cortex", WORDS[config.variant].keyword],
        experiment_description=WORDS[config.variant].experiment,
        subject=Subject(
            subject_id=name_subject(config),
            species="Macaca mulatta",
            sex="U",
            age="P5Y/",
            description="simulated; the parameters are those of an adult rhesus macaque",
        ),
    )
    add_lfp(nwb, session, config)
    add_units(nwb, session)
    add_behavior(nwb, session)
    return nwb


def add_lfp(nwb: NWBFile, session: SimulatedSession, config: SimulationConfig) -> None:
    """Adds the room for the LFP as int16 with a conversion to volts, and one electrode a channel."""
    from hdmf.backends.hdf5.h5_utils import H5DataIO
    from pynwb.ecephys import LFP, ElectricalSeries

    device = nwb.create_device("array", description="Utah-like grid, 0.4 mm pitch")
    group = nwb.create_electrode_group("m1", description="simulated array in M1", location="M1", device=device)
    for x, y in session.electrodes_mm * 1000:
        place = {"x": float(x), "y": float(y), "z": 0.0}
        nwb.add_electrode(**place, rel_x=place["x"], rel_y=place["y"], location="M1", group=group)
    region = nwb.create_electrode_table_region(list(range(config.channels)), "all electrodes")
    # pynwb loses the electrode table unless the container joins the file before the series joins the container
    module = nwb.create_processing_module("ecephys", "simulated field potential")
    module.add(LFP(name="LFP"))
    shape = session.lfp_uv.shape
    series = ElectricalSeries(
        name="lfp",
        data=H5DataIO(shape=shape, dtype=np.dtype(np.int16), chunks=(min(shape[0], CHUNK_FRAMES), shape[1])),
        electrodes=region,
        rate=float(config.rate_hz),
        starting_time=0.0,
        conversion=UV_PER_BIT * 1e-6,
        resolution=UV_PER_BIT * 1e-6,
        description="simulated local field potential of all channels",
    )
    module.get("LFP").add_electrical_series(series)


def split_bits(session: SimulatedSession) -> Iterator[npt.NDArray[np.int16]]:
    """Yields the LFP as int16 (n, channels), block after block, each of which fills one chunk of the file."""
    for start in range(0, len(session.lfp_uv), CHUNK_FRAMES):
        bits = np.rint(session.lfp_uv[start : start + CHUNK_FRAMES] / UV_PER_BIT)
        yield np.clip(bits, -32768, 32767).astype(np.int16)
        release_pages()


def add_units(nwb: NWBFile, session: SimulatedSession) -> None:
    """Adds the recorded units, each with its index in the population."""
    from pynwb.misc import Units

    nwb.units = Units(name="units", description="simulated, perfectly sorted units", resolution=SPIKE_RESOLUTION_S)
    nwb.add_unit_column("population_id", "which member of the simulated population this unit is")
    for unit_id, times in zip(session.unit_ids, session.spike_times_s, strict=True):
        nwb.add_unit(spike_times=times, population_id=int(unit_id))


def add_behavior(nwb: NWBFile, session: SimulatedSession) -> None:
    """Adds position in metres and velocity in cm/s, with two columns each."""
    from pynwb import TimeSeries
    from pynwb.behavior import BehavioralTimeSeries, Position, SpatialSeries

    module = nwb.create_processing_module("behavior", "cursor in the plane")
    position = SpatialSeries(
        name="cursor_pos",
        data=session.position_cm / 100,
        rate=float(LATENT_HZ),
        starting_time=0.0,
        unit="meters",
        description="cursor position (x, y)",
        reference_frame="centre of the workspace; columns x, y",
    )
    velocity = TimeSeries(
        name="cursor_vel",
        data=session.velocity_cm_s,
        rate=float(LATENT_HZ),
        starting_time=0.0,
        unit="cm/s",
        description="cursor velocity (x, y)",
    )
    module.add(Position(spatial_series=position, name="Position"))
    module.add(BehavioralTimeSeries(time_series=velocity, name="Velocity"))
