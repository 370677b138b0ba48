"""Sends outputs over Lab Streaming Layer: one sample a bin, with values, deviations, flags and masked channels.

A sample bears the time of the last frame of its bin on LSL's clock, so that a receiver sees how old it is: by its own
`local_clock()`, transport from the amplifier included.
"""

from __future__ import annotations

from time import perf_counter
from typing import Any

import numpy as np

from edgedistill.live.lsl import import_lsl
from edgedistill.live.records import DecodedBin, StreamBlock, StreamDescription

CONTENT = "Decoded"


class LslSink:
    """Holds an outlet."""

    never_waits = True  # LSL keeps a bounded queue for each receiver, which loses the oldest samples

    def __init__(self, name: str) -> None:
        self._name, self._lsl = name, import_lsl()
        self._outlet: Any = None
        self._offset_s = 0.0  # LSL's clock less perf_counter()
        self._on_lsl_clock = False

    def open(self, description: StreamDescription) -> None:
        """Opens the outlet. Its channels are named with their units."""
        lsl = self._lsl
        outputs = list(zip(description.output_names, description.output_units, strict=True))
        names = [*(name for name, _ in outputs), *(f"{name} sd" for name, _ in outputs), "flags", "bad_channels"]
        units = [*(unit for _, unit in outputs), *(unit for _, unit in outputs), "bits", "channels"]
        rate = 1 / description.bin_s
        source_id = f"edgedistill {description.sha256[:16]} {self._name}"
        info = lsl.StreamInfo(self._name, CONTENT, len(names), rate, lsl.cf_float32, source_id)
        info.set_channel_labels(names)
        info.set_channel_units(units)
        about = info.desc().append_child("edgedistill")
        for key in ("bundle", "sha256", "engine", "source"):
            about.append_child_value(key, str(getattr(description, key)))
        about.append_child_value("group_delay_ms", f"{description.group_delay_ms:g}")
        about.append_child_value("smoothing_delay_ms", f"{description.smoothing_delay_ms:g}")
        self._outlet = lsl.StreamOutlet(info)
        self._on_lsl_clock = description.clock == "lsl"
        self._offset_s = lsl.local_clock() - perf_counter()

    def accept(self, block: StreamBlock) -> None:
        """Sends a sample for each bin at once."""
        for bin_ in block.bins:
            values = [*bin_.kinematics, *bin_.deviation, float(bin_.flags), float(bin_.bad_channels)]
            self._outlet.push_chunk(np.array([values], np.float32), self._find_stamp(bin_))

    def idle(self) -> None:
        """Does nothing."""

    def close(self) -> None:
        """Closes the outlet, which tells its receivers."""
        self._outlet = None

    def _find_stamp(self, bin_: DecodedBin) -> float:
        if self._on_lsl_clock and bin_.stamp_s is not None:
            return bin_.stamp_s
        return bin_.arrived_s + self._offset_s
