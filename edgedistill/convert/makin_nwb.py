"""Builds the NWB 2 file of a session of O'Doherty, Makin and Sabes in memory.

The inputs are the session and its broadband. The output is a pynwb file in which the broadband is still empty: its
frames are written block by block afterwards.
"""

from __future__ import annotations

from datetime import datetime
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from edgedistill.convert.broadband import Broadband
from edgedistill.convert.clock import settings_for_times
from edgedistill.convert.makin_source import NAME, MakinSession, split_name
from edgedistill.convert.nwb_parts import (
    ADULT,
    SPATIAL_UNITS,
    add_electrodes,
    compress,
    compressed_space,
    new_nwb,
    start_units,
)

if TYPE_CHECKING:
    from pynwb import NWBFile

SOURCE = "doi:10.5281/zenodo.3854034"
NOMINAL_HZ = 24414.0625  # of the amplifier, a TDT RZ2
SERIES = "ElectricalSeriesBroadband"
UNITS = {"cursor_pos": "mm", "finger_pos": "cm", "target_pos": "mm"}
FACTS: dict[str, Any] = {
    "session_description": "self-paced reaching to random targets on a grid, with broadband of an array in M1",
    "experiment_description": "The animal moves a cursor with its fingertip to targets on a grid, without gaps or "
    "pre-movement delays.",
    "experimenter": ["O'Doherty, Joseph E.", "Makin, Joseph G.", "Cardoso, Mariana M. B.", "Sabes, Philip N."],
    "institution": "University of California, San Francisco",
    "lab": "Sabes lab",
    "keywords": ["motor cortex", "reaching", "broadband", "Utah array"],
    "related_publications": ["doi:10.1088/1741-2552/aa9e95", SOURCE],
}


def name_series(segment: int) -> str:
    """Returns the name of the broadband's series of a segment, counted from 0."""
    return SERIES if segment == 0 else f"{SERIES}{segment + 1}"


def build_nwb(session: MakinSession, wide: Broadband, name: str, start: datetime) -> tuple[NWBFile, list[str]]:
    """Returns the file in memory, in which the dataset of each segment is empty, and notes on the channels."""
    known = NAME.match(name)
    animal = known[1] if known else "unknown"
    subject = {
        "subject_id": animal,
        "species": "Macaca mulatta",
        "sex": "M",
        "age": ADULT,
        "description": "adult rhesus macaque; its age is not published",
    }
    nwb = new_nwb(name, start, SOURCE, subject, **FACTS)
    rows, notes = _add_channels(nwb, session, wide)
    _add_broadband(nwb, wide)
    _add_units(nwb, session, wide, rows)
    _add_positions(nwb, session)
    return nwb, notes


def _add_channels(nwb: NWBFile, session: MakinSession, wide: Broadband) -> tuple[list[int], list[str]]:
    """Adds the electrodes of the broadband, then others with units. Returns the row of each named one, and notes."""
    names, notes = list(wide.channel_names), []
    keys = [split_name(name) for name in names]
    mine = [split_name(name) for name in session.channel_names]
    if not set(keys) & set(mine):  # the broadband names no channel, or names them in another way
        notes.append("the channels of broadband and units were matched by their order, since no names agree")
        names = [*session.channel_names, *(f"channel {i + 1}" for i in range(len(mine), wide.channels))][
            : wide.channels
        ]
        keys = [split_name(name) for name in names]
    place = {key: row for row, key in enumerate(keys)}
    for name, key in zip(session.channel_names, mine, strict=True):
        if key not in place:
            place[key] = len(names)
            names.append(name)
    columns = {}
    if wide.electrodes_um is not None:
        beyond = np.full((len(names) - wide.channels, 3), np.nan)
        columns = dict(zip(("rel_x", "rel_y", "rel_z"), np.concatenate([wide.electrodes_um, beyond]).T, strict=True))
    device = nwb.create_device("array", description="Utah array with a TDT RZ2 amplifier")
    regions = [split_name(name)[0] if split_name(name)[1] is not None else "M1" for name in names]
    add_electrodes(nwb, names, [region if region != "channel" else "M1" for region in regions], device, **columns)
    return [place[key] for key in mine], notes


def _add_broadband(nwb: NWBFile, wide: Broadband) -> None:
    from pynwb.ecephys import ElectricalSeries

    for i, segment in enumerate(wide.clock.segments):
        series = ElectricalSeries(
            name=name_series(i),
            description="broadband voltages of all channels, as they were recorded",
            data=compressed_space((segment.stop - segment.first, wide.channels), wide.dtype),
            electrodes=nwb.create_electrode_table_region(list(range(wide.channels)), "channels of the broadband"),
            rate=wide.clock.rate_hz,
            starting_time=segment.start_s,
            conversion=wide.volts_per_bit,
            resolution=wide.volts_per_bit,
        )
        nwb.add_acquisition(series)


def _add_units(nwb: NWBFile, session: MakinSession, wide: Broadband, rows: list[int]) -> None:
    start_units(nwb, 1 / NOMINAL_HZ, "sorted units, and threshold crossings that no unit took")
    nwb.add_unit_column("unit_name", "channel and number of the unit, as published")
    nwb.add_unit_column("is_sorted", "false for the threshold crossings that no sorted unit of the channel took")
    observed = _find_observed(session, wide)
    for unit in session.units:
        nwb.add_unit(
            spike_times=unit.times_s,
            obs_intervals=observed,
            electrodes=[rows[unit.channel]],
            unit_name=f"{session.channel_names[unit.channel]} unit {unit.number}",
            is_sorted=unit.number > 0,
        )


def _find_observed(session: MakinSession, wide: Broadband) -> npt.NDArray[np.float64]:
    """Returns when spikes were observed (n, 2) in s: the session, less gaps of the broadband without a spike."""
    first, last = session.span_s
    inside = [gap for gap in wide.clock.gaps if first < gap[0] and gap[1] < last]
    silent = [gap for gap in inside if not any(_has_spike(unit.times_s, gap) for unit in session.units)]
    return np.array([first, *(edge for gap in silent for edge in gap), last]).reshape(-1, 2)


def _has_spike(times_s: npt.NDArray[np.float64], span: tuple[float, float]) -> bool:
    return bool(np.searchsorted(times_s, span[0]) < np.searchsorted(times_s, span[1], side="right"))


def _add_positions(nwb: NWBFile, session: MakinSession) -> None:
    from pynwb import TimeSeries
    from pynwb.behavior import Position

    module = nwb.create_processing_module("behavior", "cursor, finger and target")
    position = Position(name="Position")
    module.add(position)
    clock = settings_for_times(session.times_s)
    frame, tracker = "the screen; x to the right, y up", "the hand tracker, whose axes are z, -x and -y of the screen"
    finger = session.finger_pos
    for name, data, text, reference in (
        ("cursor_pos", session.cursor_pos, "cursor position (x, y)", frame),
        ("finger_pos", finger[:, :3], "position of the working fingertip (z, minus_x, minus_y)", tracker),
        ("target_pos", session.target_pos[:, :2], "target position (x, y)", frame),
    ):
        position.create_spatial_series(
            name=name,
            data=compress(data),
            unit=SPATIAL_UNITS[UNITS[name]],
            description=text,
            reference_frame=reference,
            **clock,
        )
    if finger.shape[1] == 6:
        text = "orientation of the sensor on the fingertip (azimuth, elevation, roll)"
        angles = compress(finger[:, 3:])
        module.add(TimeSeries(name="finger_orientation", data=angles, unit="degrees", description=text, **clock))
