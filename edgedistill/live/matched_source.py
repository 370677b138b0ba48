"""Compares the header of a source with a bundle before the first frame, and turns its frames into the bundle's.

The rules are those for a recording: the rate must agree within what two crystals differ by, names put the channels in
order, and names that contradict the order are refused. A source may have more channels than the bundle, such as a
trigger, if its names hold all names of the bundle.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt

from edgedistill.bundle import Bundle
from edgedistill.bundle.manifest import Channel
from edgedistill.data.lfp.electrodes import Electrode
from edgedistill.errors import RecordingError
from edgedistill.live.source import SourceHeader
from edgedistill.matching.channels import find_order
from edgedistill.matching.clock import MOST_PPM, describe_rates, measure_ppm
from edgedistill.runtime.decoder import DecoderInfo


@dataclass(frozen=True, eq=False)
class MatchedSource:
    """Says how the frames of a source become those of the bundle."""

    channels: tuple[Channel, ...]  # (C,) of the bundle
    columns: tuple[int, ...]  # (C,) of the source
    gain_uv: npt.NDArray[np.float64]  # (C,) in the order of the bundle
    warnings: tuple[str, ...]

    @cached_property
    def _all_in_order(self) -> bool:
        return self.columns == tuple(range(len(self.columns)))

    @cached_property
    def _in_microvolts(self) -> bool:
        return bool((self.gain_uv == 1).all())

    def arrange(self, frames: npt.NDArray[Any]) -> npt.NDArray[np.float32]:
        """Returns frames (n, C') of the source as (n, C) in uV, each value rounded once."""
        picked = (
            frames if self._all_in_order and frames.shape[1] == len(self.columns) else frames[:, list(self.columns)]
        )
        if picked.dtype == np.float32 and self._in_microvolts:
            return np.ascontiguousarray(picked)
        with np.errstate(over="ignore"):  # a value beyond float32 becomes infinite, its channel masked
            return np.ascontiguousarray((picked * self.gain_uv).astype(np.float32))


def match_source(bundle: Bundle, info: DecoderInfo, header: SourceHeader) -> MatchedSource:
    """Compares a source with the bundle. Raises RecordingError where the bundle cannot decode it."""
    ppm = measure_ppm(header.rate, info.rate)
    if abs(ppm) > MOST_PPM:
        raise RecordingError(
            f"{header.where}: the rate is not that of the bundle",
            got=f"{float(header.rate):.10g} Hz",
            expected=f"{float(info.rate):.10g} Hz, at most {MOST_PPM} ppm off",
            causes=("the amplifier is set to another rate", "another stream is meant"),
            next_step="set the amplifier to this rate, or build a bundle from a recording at the other rate",
        )
    channels = bundle.manifest.channels or tuple(map(Channel, info.channel_ids))
    if header.matched:
        return MatchedSource(channels, tuple(range(len(channels))), np.array(header.gain_uv), header.warnings)
    columns, warnings = _find_columns(channels, header)
    rates = describe_rates(header.rate, info.rate)
    return MatchedSource(
        channels,
        columns,
        np.array(header.gain_uv)[list(columns)],
        (*header.warnings, *([rates] if rates else []), *warnings),
    )


def _find_columns(channels: Sequence[Channel], header: SourceHeader) -> tuple[tuple[int, ...], tuple[str, ...]]:
    names, wanted = header.channel_names, len(channels)
    if names is None:
        if header.channel_count != wanted:
            raise _wrong_count(header, wanted)
        unnamed = f"{header.where} does not name its channels, so their order was not compared with the bundle's"
        return tuple(range(wanted)), (unnamed,)
    kept = range(header.channel_count)
    extra: tuple[str, ...] = ()
    if header.channel_count != wanted:
        found = _find_named([c.label for c in channels], names) or _find_named([c.id for c in channels], names)
        if found is None:
            raise _wrong_count(header, wanted)
        left = [name for i, name in enumerate(names) if i not in found]
        extra = (f"{len(left)} channels of {header.where} are not in the bundle and left out: {', '.join(left[:5])}",)
        return found, extra
    order = find_order(channels, [Electrode(names[i], names[i]) for i in kept], header.where)
    return order.columns, order.warnings


def _find_named(wanted: Sequence[str | None], names: Sequence[str]) -> tuple[int, ...] | None:
    """Returns where each wanted name stands, or None where one is missing or stands twice."""
    places = {name: i for i, name in enumerate(names)}
    if None in wanted or len(places) != len(names) or not set(wanted) <= places.keys():
        return None
    return tuple(places[name] for name in wanted if name is not None)


def _wrong_count(header: SourceHeader, wanted: int) -> RecordingError:
    names = ", ".join(header.channel_names[:5]) + " …" if header.channel_names else "no names"
    return RecordingError(
        f"{header.where}: the channels are not those of the bundle",
        got=f"{header.channel_count} channels ({names})",
        expected=f"{wanted} channels, or more whose names hold all of the bundle's",
        causes=("another stream is meant", "the amplifier sends a selection of its channels"),
        next_step="edgedistill inspect BUNDLE lists the channels of the bundle",
    )
