"""Builds the NWB 2 file of a recording of Flint and others, 2012, in memory.

The inputs are the trials and their joined LFP. The output is a pynwb file: LFP, units that were observed in the trials,
position and velocity of the hand, and a table of the trials.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import datetime
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from edgedistill.convert.clock import settings_for_times
from edgedistill.convert.flint_lfp import JoinedLfp
from edgedistill.convert.flint_source import HAND_RATE_HZ, FlintTrial
from edgedistill.convert.nwb_parts import ADULT, SPATIAL_UNITS, add_electrodes, compress, new_nwb, start_units

if TYPE_CHECKING:
    from pynwb import NWBFile

SOURCE = "doi:10.1088/1741-2560/9/4/046006"
SPIKE_RATE_HZ = 30_000.0  # of the amplifier, a Blackrock Cerebus
EDGE_S = 2 / HAND_RATE_HZ  # before and after a trial in which its spikes still belong to it
FACTS: dict[str, Any] = {
    "session_description": "center-out reaching with LFP and sorted units of an array in M1",
    "experiment_description": "A monkey moves the handle of a planar manipulandum from a center to targets around it. "
    "The positions of the targets were estimated afterwards.",
    "experimenter": ["Flint, Robert D.", "Lindberg, Eric W.", "Jordan, Luke R.", "Miller, Lee E.", "Slutzky, Marc W."],
    "institution": "Northwestern University",
    "lab": "Slutzky lab",
    "keywords": ["motor cortex", "center-out reaching", "local field potential", "Utah array"],
    "related_publications": [SOURCE],
}
SUBJECT = {
    "subject_id": "monkey C",
    "species": "Macaca mulatta",
    "sex": "U",
    "age": ADULT,
    "description": "adult rhesus macaque, monkey C of the publication; its age is not published",
}


@dataclass(frozen=True)
class FlintFile:
    """Holds what one file is made of."""

    session_id: str
    start: datetime
    trials: list[FlintTrial] = field(repr=False)
    hand_unit: str
    lfp: JoinedLfp
    notes: tuple[str, ...]

    @property
    def bytes(self) -> int:
        """Returns the size of all data, uncompressed."""
        lfp, hand = self.lfp, sum(len(trial.times_s) for trial in self.trials)
        return lfp.frames.nbytes + lfp.times_s.nbytes + 64 * hand + 8 * sum(len(s) for _, s in self.unit_spikes)

    @cached_property
    def unit_spikes(self) -> list[tuple[int, npt.NDArray[np.float64]]]:
        """Returns number, counted from 0, and spike times in s of each neuron that fired."""
        count = len(self.trials[0].spikes_s)
        joined = [np.sort(np.concatenate([trial.spikes_s[k] for trial in self.trials])) for k in range(count)]
        return [(k, times) for k, times in enumerate(joined) if len(times)]

    @cached_property
    def observed_s(self) -> npt.NDArray[np.float64]:
        """Returns when spikes were observed (trials, 2) in s: each trial, with the spikes at its edges."""
        return _find_observed(self.trials)

    def count_unobserved(self) -> int:
        """Returns how many spikes lie outside all trials."""
        spikes, starts, stops = [times for _, times in self.unit_spikes], *self.observed_s.T
        inside = [np.searchsorted(starts, s, side="right") - np.searchsorted(stops, s, side="left") > 0 for s in spikes]
        return sum(int(np.count_nonzero(~found)) for found in inside)


def build_nwb(facts: FlintFile) -> NWBFile:
    """Returns the file in memory."""
    nwb = new_nwb(facts.session_id, facts.start, SOURCE, SUBJECT, **FACTS)
    _add_lfp(nwb, facts.lfp)
    _add_units(nwb, facts)
    _add_hand(nwb, facts)
    nwb.add_trial_column("condition", "as published: good where the target was switched off at the end")
    for trial in facts.trials:
        nwb.add_trial(float(trial.times_s[0]), trial.stop_s, condition=trial.condition)
    return nwb


def _add_lfp(nwb: NWBFile, lfp: JoinedLfp) -> None:
    from pynwb.ecephys import LFP, ElectricalSeries

    device = nwb.create_device("array", description="Utah array with a Blackrock Cerebus amplifier")
    names = [f"LFP of Neuron({k + 1})" for k in lfp.neurons]
    add_electrodes(nwb, names, ["M1"] * len(names), device)
    # pynwb loses the electrode table unless the container joins the file before the series joins the container
    module = nwb.create_processing_module("ecephys", "local field potential")
    module.add(LFP(name="LFP"))
    clock = settings_for_times(lfp.times_s)
    if "timestamps" in clock:
        clock["timestamps"] = compress(lfp.times_s)
    series = ElectricalSeries(
        name="lfp",
        description=f"local field potential of all trials at {lfp.rate_hz:g} Hz; timestamps step at pauses",
        data=compress(lfp.frames),
        electrodes=nwb.create_electrode_table_region(list(range(len(names))), "channels of the LFP"),
        conversion=lfp.volts,
        **clock,
    )
    module["LFP"].add_electrical_series(series)


def _add_units(nwb: NWBFile, facts: FlintFile) -> None:
    start_units(nwb, 1 / SPIKE_RATE_HZ, "sorted units, observed during trials")
    nwb.add_unit_column("neuron", "number of the neuron in the published file, counted from 1")
    channel = {k: row for row, k in enumerate(facts.lfp.neurons)}
    for k, times in facts.unit_spikes:
        rows = [channel[k]] if k in channel else []
        nwb.add_unit(spike_times=times, obs_intervals=facts.observed_s, neuron=k + 1, electrodes=rows)


def _find_observed(trials: list[FlintTrial]) -> npt.NDArray[np.float64]:
    """Returns the spans of the trials, each stretched to its spikes in the first moment of a pause, but no further."""
    spans = np.array([(trial.times_s[0], trial.stop_s) for trial in trials])
    spans[1:, 0] = np.maximum(spans[1:, 0], spans[:-1, 1])
    earliest = -np.inf
    for span, after, trial in zip(spans, [*spans[1:, 0], np.inf], trials, strict=True):
        spikes = np.concatenate(trial.spikes_s)
        near = spikes[(spikes >= max(earliest, span[0] - EDGE_S)) & (spikes <= min(after, span[1] + EDGE_S))]
        span[:] = np.min(near, initial=span[0]), np.max(near, initial=span[1])
        earliest = span[1]
    return spans


def _add_hand(nwb: NWBFile, facts: FlintFile) -> None:
    from pynwb import TimeSeries
    from pynwb.behavior import BehavioralTimeSeries, Position

    clock = settings_for_times(np.concatenate([trial.times_s for trial in facts.trials]))
    places = {
        "hand_pos": np.concatenate([trial.hand_pos[:, :2] for trial in facts.trials]),
        "target_pos": np.concatenate([trial.target_pos[:, :2] for trial in facts.trials]),
    }
    module = nwb.create_processing_module("behavior", "the hand, and the target of each trial")
    position = Position(name="Position")
    module.add(position)
    for name, data in places.items():
        position.create_spatial_series(
            name=name,
            data=compress(data),
            unit=SPATIAL_UNITS[facts.hand_unit],
            description=f"{name.partition('_')[0]} position (x, y)",
            reference_frame="the plane of the manipulandum",
            **clock,
        )
    velocity = TimeSeries(
        name="hand_vel",
        data=compress(np.concatenate([trial.hand_vel[:, :2] for trial in facts.trials])),
        unit=f"{facts.hand_unit}/s",
        description="hand velocity (x, y)",
        **clock,
    )
    module.add(BehavioralTimeSeries(name="Velocity", time_series=velocity))
