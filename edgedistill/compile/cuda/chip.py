"""Finds the chip that a bundle is compiled for.

A target goes in, and optionally the name of a chip. A Chip comes out, with the GPU if it is in this machine. The GPU of
this machine is preferred, because the result can only be run there. Without one, the chip must be named, or be the only
one of the target.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from edgedistill.errors import ConfigError, DeviceError
from edgedistill.machine.gpu import Gpu, find_gpu
from edgedistill.target import Target


@dataclass(frozen=True)
class Chip:
    """Describes a chip to compile for."""

    name: str  # "sm_87"
    gpu: Gpu | None  # None where this machine does not have the chip, so that nothing can be run

    @property
    def note(self) -> str | None:
        """Returns a note for the user if the chip is not in this machine, otherwise None."""
        return None if self.gpu else f"compiled for {self.name}, which this machine lacks, so it was not run"


def find_chip(target: Target, wanted: str | None) -> Chip:
    """Returns the chip to compile for: `wanted`, or else the GPU of this machine, or else the target's only chip.

    Raises ConfigError for a name that is not a chip or not one of the target's. Raises DeviceError where this machine
    has no GPU and no chip is named.
    """
    if wanted is not None and not re.fullmatch(r"sm_\d+[af]?", wanted):
        raise ConfigError(f"'{wanted}' is not the name of an NVIDIA chip", expected="sm_ and a number, such as sm_87")
    try:
        gpu = find_gpu()
    except DeviceError as error:
        name = wanted or (target.chips[0] if len(target.chips) == 1 else None)
        if name is None:
            raise error
        return Chip(_require_allowed(target, name), None)
    return Chip(_require_allowed(target, wanted or gpu.chip), gpu if wanted in (None, gpu.chip) else None)


def _require_allowed(target: Target, chip: str) -> str:
    """Returns `chip`. Raises ConfigError where the target does not name that chip."""
    if target.chips and chip not in target.chips:
        raise ConfigError(
            f"target '{target.name}' is not for {chip}",
            got=chip,
            expected=f"one of its chips: {', '.join(target.chips)}",
            next_step="edgedistill compile BUNDLE --target cuda   (any NVIDIA GPU)",
        )
    return chip
