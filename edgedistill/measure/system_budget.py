"""Estimates the power of a whole implant, by signal and by where it is decoded, from a model.

The compute of a decoder alone flatters spikes, because most of the power goes into acquiring and sending them. The
channels, the multiply-adds of a step and, where there was a sensor, its measured power go in. A row in mW for each
signal and place comes out. Every assumption has a source and may be replaced by a caller. Nothing here was measured by
us except the compute, where it says so.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

from edgedistill.errors import ConfigError, did_you_mean

BINS_PER_S = 100


@dataclass(frozen=True)
class Assumption:
    """One figure that the model rests on."""

    value: float
    unit: str
    source: str


ASSUMPTIONS = {
    "spike_front_end_uw": Assumption(
        11.35, "µW a channel", "amplifier and converter to 9.7 kHz: Antoniadis and Constandinou, arXiv 2511.12540"
    ),
    "sbp_front_end_uw": Assumption(6.6, "µW a channel", "spiking-band power: Karpowicz 2024, as summarised by others"),
    "lfp_front_end_uw": Assumption(2.8, "µW a channel", "LFP: Karpowicz 2024, as summarised by others"),
    "spike_detection_uw": Assumption(
        0.53, "µW a channel", "adaptive detector in 65 nm; published ones lie between 0.07 and 3.6"
    ),
    "spike_rate_hz": Assumption(30_000, "samples/s", "customary for spikes"),
    "sbp_rate_hz": Assumption(2_000, "samples/s", "Nason 2020"),
    "lfp_rate_hz": Assumption(1_000, "samples/s", "1 kHz; a bench takes the rate of the recording"),
    "slow_lfp_rate_hz": Assumption(200, "samples/s", "the least that the front end takes; holds what is below 50 Hz"),
    "sample_bits": Assumption(16, "bits", "customary; 10 to 12 suffice for decoding (Even-Chen 2020)"),
    "count_bits": Assumption(4, "bits", "spikes of a channel in a 10 ms bin, 0 to 15"),
    "output_bits": Assumption(16, "bits", "a decoded value"),
    "radio_pj_per_bit": Assumption(
        5.8, "pJ a bit", "transmitter alone, ultra-wideband in 28 nm: PMC7614137; commodity 2.4 GHz radios need 8,000"
    ),
    "mac_pj": Assumption(0.23, "pJ", "8-bit multiply and add in 45 nm: Horowitz, ISSCC 2014"),
    "weight_read_pj": Assumption(12.5, "pJ a byte", "from a 1 MB SRAM in 45 nm: Horowitz, ISSCC 2014"),
}


@dataclass(frozen=True)
class BudgetRow:
    """The power of one signal that is decoded in one place. Compute is None where it happens outside the implant."""

    signal: str
    decoded: str  # "outside" or "implant"
    mbit_per_s: float  # through the radio
    acquisition_mw: float
    processing_mw: float  # spike detection
    radio_mw: float
    compute_mw: float | None
    compute_source: str

    @property
    def total_mw(self) -> float:
        """The power of the implant in mW."""
        return self.acquisition_mw + self.processing_mw + self.radio_mw + (self.compute_mw or 0.0)

    def to_json(self) -> dict[str, object]:
        """Returns the row of `bench --system --json`."""
        return {
            "signal": self.signal,
            "decoded": self.decoded,
            "mbit_per_s": self.mbit_per_s,
            "acquisition_mw": self.acquisition_mw,
            "processing_mw": self.processing_mw,
            "radio_mw": self.radio_mw,
            "compute_mw": self.compute_mw,
            "compute_source": self.compute_source,
            "total_mw": self.total_mw,
        }


@dataclass(frozen=True)
class Load:
    """What an implant records and decodes."""

    channels: int  # electrodes
    outputs: int
    macs: int  # 8-bit multiply-adds of a step
    weight_bytes: int  # read in a step
    measured_mw: float | None = None  # power of 100 steps a second, above idle
    measured_on: str = ""
    highest_band_hz: float = 0  # to which the power of bands is read; 0: the slow LFP alone


def replace_assumptions(changes: Mapping[str, float]) -> dict[str, Assumption]:
    """Returns ASSUMPTIONS with some values replaced.

    Raises ConfigError for an unknown name, a negative value or one that is not finite.
    """
    for name, value in changes.items():
        if name not in ASSUMPTIONS:
            raise ConfigError(f"unknown assumption '{name}'", expected=did_you_mean(name, ASSUMPTIONS))
        if not 0 <= value < float("inf"):
            raise ConfigError(f"the assumption '{name}' cannot be that", got=value, expected="0 or more")
    given = {name: replace(ASSUMPTIONS[name], value=value, source="given") for name, value in changes.items()}
    return {**ASSUMPTIONS, **given}


def estimate_system_budget(load: Load, assumptions: Mapping[str, Assumption] = ASSUMPTIONS) -> tuple[BudgetRow, ...]:
    """Returns a row for each signal and place. The network, and so the compute, is the same for every signal.

    Where the decoder reads the power of bands, one more row says what the slow LFP alone would take to send. Raises
    ConfigError for an LFP that is sampled too slowly for those bands.
    """
    require_rate(load, assumptions["lfp_rate_hz"])
    a = {name: assumption.value for name, assumption in assumptions.items()}
    count = a["count_bits"] * BINS_PER_S
    front_end = {"spikes": a["spike_front_end_uw"], "SBP": a["sbp_front_end_uw"], "LFP": a["lfp_front_end_uw"]}
    signals = [  # name, front end, detection in µW a channel, bits a channel and second when sent
        ("spikes, raw", front_end["spikes"], 0.0, a["spike_rate_hz"] * a["sample_bits"]),
        ("spikes, detected", front_end["spikes"], a["spike_detection_uw"], count),
        ("spiking-band power", front_end["SBP"], 0.0, a["sbp_rate_hz"] * a["sample_bits"]),
        ("LFP", front_end["LFP"], 0.0, a["lfp_rate_hz"] * a["sample_bits"]),
    ]
    slow = ("LFP below 50 Hz alone", front_end["LFP"], 0.0, a["slow_lfp_rate_hz"] * a["sample_bits"])
    outside = [
        _make_row(name, "outside", load, a, uw, detect, bits * load.channels)
        for name, uw, detect, bits in [*signals, *([slow] if load.highest_band_hz else [])]
    ]
    sent = load.outputs * a["output_bits"] * BINS_PER_S
    inside = [_make_row(name, "implant", load, a, uw, detect, sent) for name, uw, detect, _ in signals[1:]]
    return (*outside, *inside)


def require_rate(load: Load, rate: Assumption) -> None:
    """Raises ConfigError where an LFP of this rate does not hold the bands whose power is read."""
    if rate.value < 2 * load.highest_band_hz:
        raise ConfigError(
            "an LFP that is sampled so slowly does not hold the bands that the decoder reads",
            got=f"lfp_rate_hz = {rate.value:g}",
            expected=f"at least {2 * load.highest_band_hz:g}, twice the highest frequency of a band",
            next_step="for a decoder of the slow LFP alone: edgedistill build --bands none",
        )


def _make_row(
    signal: str, decoded: str, load: Load, a: Mapping[str, float], uw: float, detect: float, bits_per_s: float
) -> BudgetRow:
    compute, source = _estimate_compute(load, a) if decoded == "implant" else (None, "not in the implant")
    return BudgetRow(
        signal,
        decoded,
        bits_per_s / 1e6,
        uw * load.channels / 1e3,
        detect * load.channels / 1e3,
        bits_per_s * a["radio_pj_per_bit"] / 1e9,
        compute,
        source,
    )


def _estimate_compute(load: Load, a: Mapping[str, float]) -> tuple[float, str]:
    if load.measured_mw is not None:
        return load.measured_mw, f"measured on {load.measured_on}"
    picojoules = load.macs * a["mac_pj"] + load.weight_bytes * a["weight_read_pj"]
    return picojoules * BINS_PER_S / 1e9, "estimated: multiply-adds and weight reads of a dedicated chip, no more"
