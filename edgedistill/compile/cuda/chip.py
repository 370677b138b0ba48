"""Which GPU a bundle is compiled for: a target and perhaps a chip's name in, a chip out, and the GPU if it is here.

The one at hand goes first, since only there can the result be run; else the only one that the target's file names.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from edgedistill.errors import ConfigError, DeviceError
from edgedistill.machine.gpu import Gpu, find_gpu
from edgedistill.target import Target


@dataclass(frozen=True)
class Chip:
    """What is compiled for."""

    name: str  # "sm_87"
    gpu: Gpu | None  # None: not on this machine, so nothing can be run

    @property
    def note(self) -> str | None:
        """What to know of what is compiled."""
        return None if self.gpu else f"compiled for {self.name}, which is not on this machine: not run"


def chosen_chip(target: Target, asked: str | None) -> Chip:
    """ConfigError for what is no chip or none of the target's; DeviceError where none is here and none is named."""
    if asked is not None and not re.fullmatch(r"sm_\d+[af]?", asked):
        raise ConfigError(f"'{asked}' is no chip of NVIDIA", expected="sm_ and a number, such as sm_87")
    try:
        gpu = find_gpu()
    except DeviceError as error:
        name = asked or (target.chips[0] if len(target.chips) == 1 else None)
        if name is None:
            raise error
        return Chip(_allowed(target, name), None)
    return Chip(_allowed(target, asked or gpu.chip), gpu if asked in (None, gpu.chip) else None)


def _allowed(target: Target, chip: str) -> str:
    if target.chips and chip not in target.chips:
        raise ConfigError(
            f"target '{target.name}' is not for {chip}",
            got=chip,
            expected=f"one of its chips: {', '.join(target.chips)}",
            next_step="edgedistill compile BUNDLE --target cuda   (any NVIDIA GPU)",
        )
    return chip
