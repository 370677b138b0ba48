"""Reads frames from an outlet of Lab Streaming Layer, found by its name.

Stamps are those of the sender, so that one clock counts all frames. LSL's own estimate of how far that clock is from
the one of this machine only goes into the times of outputs.
"""

from __future__ import annotations

from contextlib import suppress
from fractions import Fraction
from threading import Event
from time import perf_counter
from types import ModuleType
from typing import Any

import numpy as np

from edgedistill.data.lfp.layout import microvolts_in
from edgedistill.data.series import find_exact_rate
from edgedistill.errors import RecordingError
from edgedistill.live.lsl import import_lsl
from edgedistill.live.source import Chunk, SourceHeader, SourceLost

RESOLVE_S = 0.5
OPENING_S = 5.0
OFFSET_S = 0.5  # between two looks at LSL's estimate of the clocks, which it renews every few seconds
BUFFER_S = 10  # of frames that LSL keeps while nobody reads; the oldest go first
CHUNK_FRAMES = 1024


class LslSource:
    """Reads one stream. It is resolved again by its name when it vanished."""

    def __init__(self, name: str) -> None:
        self._name, self._lsl = name, import_lsl()
        self._inlet: Any = None
        self._offset_s, self._offset_read_s = 0.0, 0.0

    def open(self, stop: Event) -> SourceHeader | None:
        """Waits for an outlet of this name. Raises RecordingError for one that holds no regular numbers."""
        lsl = self._lsl
        self.close()
        while not stop.is_set():
            found = lsl.resolve_byprop("name", self._name, minimum=1, timeout=RESOLVE_S)
            if not found:
                continue
            inlet = lsl.StreamInlet(found[0], max_buflen=BUFFER_S, recover=False, as_numpy=True)
            with suppress(lsl.util.LostError, lsl.util.TimeoutError):  # it left in this moment
                header = _read_header(lsl, inlet.info(timeout=OPENING_S), f"lsl:{self._name}")
                inlet.open_stream(timeout=OPENING_S)
                self._inlet = inlet
                self._read_offset(OPENING_S)
                return header
            inlet.close_stream()
        return None

    def read(self, timeout_s: float) -> Chunk | None:
        """Returns all frames that have arrived."""
        try:
            frames, stamps_s = self._inlet.pull_chunk(timeout=timeout_s, max_samples=CHUNK_FRAMES, min_samples=1)
        except self._lsl.util.LostError:
            raise SourceLost(f"lsl:{self._name} was closed, or the network lost it") from None
        arrived_s = perf_counter()
        if not len(stamps_s):
            return None
        if arrived_s - self._offset_read_s >= OFFSET_S:
            self._offset_read_s = arrived_s
            self._read_offset(0.0)
        return Chunk(frames, arrived_s, stamps_s=np.asarray(stamps_s, np.float64), offset_s=self._offset_s)

    def close(self) -> None:
        """Closes the inlet."""
        if self._inlet is not None:
            self._inlet.close_stream()
            self._inlet = None

    def _read_offset(self, timeout_s: float) -> None:
        """Takes what LSL knows of the clocks. It is measured by a thread of LSL, so this does not wait for long."""
        with suppress(self._lsl.util.LostError, self._lsl.util.TimeoutError):
            self._offset_s = self._inlet.time_correction(timeout=timeout_s)


def _read_header(lsl: ModuleType, info: Any, where: str) -> SourceHeader:
    count, rate = info.channel_count(), info.nominal_srate()
    if info.channel_format() == lsl.cf_string or rate == lsl.IRREGULAR_RATE:
        raise RecordingError(
            f"{where} holds no frames at a regular rate",
            got="texts" if info.channel_format() == lsl.cf_string else "an irregular rate",
            expected="numbers at a nominal rate",
            causes=("it is a stream of markers",),
            next_step="name the stream of the amplifier",
        )
    labels, units = info.get_channel_labels(), info.get_channel_units()
    named = labels is not None and all(labels) and len(set(labels)) == count
    warnings = []
    gains = [microvolts_in(unit) if unit else None for unit in units or [None] * count]
    if None in gains:
        unknown = next(i for i, gain in enumerate(gains) if gain is None)
        stated = units[unknown] if units else None
        warnings.append(
            f"{where} states {f'the unit {stated!r}' if stated else 'no unit'} for channel {unknown + 1}: its numbers "
            "count as microvolts"
        )
    return SourceHeader(
        where=where,
        rate=find_exact_rate(rate) if rate > 0 else Fraction(0),
        channel_count=count,
        channel_names=tuple(map(str, labels)) if named else None,
        gain_uv=tuple(1.0 if gain is None else gain for gain in gains),
        clock="lsl",
        warnings=tuple(warnings),
    )
