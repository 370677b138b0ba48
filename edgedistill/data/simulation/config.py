"""Holds the settings of a simulation, and the constants that all of its parts share."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from edgedistill.errors import ConfigError

Array = npt.NDArray[np.float64]

LATENT_HZ = 100  # rates change on this clock; spikes are spread within a step
LEAD_S = 0.1  # motor cortex leads movement by this much
VARIANTS = ("reaches", "pursuit")  # the folders beside this file; the first is the default


@dataclass(frozen=True)
class SimulationConfig:
    """Says what is simulated: `channels` on a 0.4 mm grid, `units` of `population`, `minutes` of LFP at `rate_hz`.

    `variant` names the kind of animal, task and field (docs/accuracy.md compares them). Sessions lie `days_apart` days
    apart. `aging` multiplies the wear of the array: 1 is the published pace, 0 none.
    """

    sessions: int = 5
    minutes: float = 10.0
    seed: int = 0
    channels: int = 32
    units: int = 64
    population: int = 2000
    rate_hz: int = 1000
    line_hz: float = 60.0
    days_apart: int = 7
    aging: float = 1.0
    variant: str = field(default=VARIANTS[0], repr=False)  # the ids in files follow from the repr

    @property
    def steps(self) -> int:
        """Returns the length of a session in steps at LATENT_HZ."""
        return round(self.minutes * 60 * LATENT_HZ)

    def __post_init__(self) -> None:
        if self.variant not in VARIANTS:
            raise ConfigError(
                "there is no such variant of the simulator", got=self.variant, expected=f"one of {', '.join(VARIANTS)}"
            )
        if self.rate_hz < 500 or self.rate_hz % LATENT_HZ:
            raise ConfigError(
                "cannot simulate at this LFP rate",
                got=f"{self.rate_hz} Hz",
                expected=f"a multiple of {LATENT_HZ} Hz, at least 500 Hz",
            )
        if self.population < 4 * self.units:
            raise ConfigError(
                "the population is too small to record another subset of units every day",
                got=f"{self.units} units of {self.population}",
                expected=f"a population of at least {4 * self.units}",
            )
        if self.sessions < 1 or not 0 < self.minutes < 1e4 or self.channels < 4 or not 1 <= self.units <= 500:
            raise ConfigError(
                "cannot simulate this",
                got=f"{self.sessions} x {self.minutes} min, {self.channels} channels, {self.units} units",
                expected="at least 1 session of more than 0 min, 4 channels and 1 to 500 units",
            )
        if not 1 <= self.days_apart <= 365 or not 0 <= self.aging <= 10:
            raise ConfigError(
                "cannot age the array like this",
                got=f"{self.days_apart} days between sessions, wear times {self.aging}",
                expected="1 to 365 days, and wear times 0 to 10",
            )
