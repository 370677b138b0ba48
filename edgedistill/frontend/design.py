"""Designs the front end: its configuration comes in, its bin clock, filters, delay and settling time go out.

Everything here is a pure function of `FrontEndConfig`. It is kept apart from the streaming code, so that the bundle,
the splits and the C code generator can ask for coefficients and delays without a stream.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from fractions import Fraction
from functools import cached_property, lru_cache
from itertools import pairwise

import numpy as np
import numpy.typing as npt
import scipy  # `scipy.signal` takes most of a second to import, which waits until filters are designed

from edgedistill.config import LONGEST_BAND_MS, SHORTEST_BAND_MS
from edgedistill.errors import ConfigError, did_you_mean

Array = npt.NDArray[np.float64]
Bands = tuple[tuple[float, float], ...]

LOWEST_RATE_HZ = 200
HIGHEST_RATE_HZ = 10_000_000
MOST_OF_A_FRACTION = 1 << 256
LOWEST_LINE_HZ, LOWEST_HIGHPASS_HZ = 5, 0.001
MOST_BANDS = 64
MOST_SWEEPS = 64
MOST_HISTORY = 1 << 26  # samples, and ranges of samples
# the largest values that are computed with; only sizes and times of sensible arrays lie below them
MOST: dict[str, float] = {
    "channels": 65_536,
    "bin_ms": 1000,
    "intermediate_hz": HIGHEST_RATE_HZ,
    "line_hz": HIGHEST_RATE_HZ,
    "notch_q": 10_000,
    "highpass_hz": HIGHEST_RATE_HZ,
    "lowpass_hz": HIGHEST_RATE_HZ,
    "filter_order": 16,
    "flat_uv": 1e9,
    "flat_s": 3600,
    "saturated_ms": 3_600_000,
    "recover_s": 3600,
    "bridged_s": 3600,
    "follow_s": 1e9,
    "band_ms": LONGEST_BAND_MS,
    "fill_sweeps": MOST_SWEEPS,
}
WHOLE = ("channels", "bin_ms", "filter_order", "saturated_ms", "fill_sweeps")
SHORTEST_FOLLOW_S = 10
FOLLOW_EXPECTED = (
    f"0 (statistics stay) or at least {SHORTEST_FOLLOW_S} s, below which they would follow the signal itself"
)
SETTLED = 0.04  # share of a step that is left when the filters count as settled
RESUMED = 0.02  # share of what they held before a bridged gap that all filters but the high-pass still remember
RESUME_BINS_PER_LOST = 4  # what the high-pass missed in a gap counts for so many times the gap's length
PASSED = 0.4  # of the decimated rate: above it, the decimator has taken away what a band would measure
LEAST_BAND_SHARE = 0.5  # of a band's width that must lie below that, or the band is left out
LEAST_BAND_HZ = 1  # width of a band, and its distance from 0 and half the rate: a sharper filter rings for minutes


@dataclass(frozen=True)
class FrontEndConfig:
    """Holds the settings of the front end, as they stand in a bundle. Making one raises ConfigError for a bad value."""

    rate: Fraction  # raw frames a second, exact
    channels: int
    bin_ms: int = 10
    intermediate_hz: float = 1000
    line_hz: float = 60  # 0: no notches
    notch_q: float = 30
    highpass_hz: float = 0.05
    lowpass_hz: float = 50
    filter_order: int = 2
    common_average: bool = True
    flat_uv: float = 1e-3
    flat_s: float = 1
    saturated_ms: int = 20
    recover_s: float = 1
    bridged_s: float = 2  # after lost frames no longer than this the filters go on; after more they start from rest
    fill_sweeps: int = 8  # steps of the solver that fills in lost channels
    follow_s: float = 0  # time constant with which mean and deviation follow the signal; 0: they stay
    left_out: tuple[int, ...] = ()  # columns of a frame that are bad in every bin, in order
    bands: Bands = ()  # (low, high) in Hz, whose log power stands beside the slow LFP
    band_ms: float = 100  # time constant with which the power of a band is smoothed

    def __post_init__(self) -> None:
        self._require_bounded()
        if self.rate < LOWEST_RATE_HZ:
            raise ConfigError(
                "the sampling rate is too low for the front end",
                got=f"{float(self.rate):g} Hz",
                expected=f"at least {LOWEST_RATE_HZ} Hz",
                causes=("the file holds band power, not LFP", "the rate was written in kHz"),
                next_step="edgedistill inspect FILE shows the rate that the file states",
            )
        nyquist = float(self.decimated_rate / 2)
        for name, fine, expected in (
            ("channels", self.channels >= 1, "at least 1"),
            ("bin_ms", self.bin_ms >= 1, "at least 1"),
            ("bin_ms", self.decimated_rate * self.bin_ms >= 1000, "at least one decimated sample a bin"),
            ("line_hz", self.line_hz >= 0, "0 (none) or the frequency of the mains"),
            ("notch_q", self.notch_q > 0, "above 0"),
            ("highpass_hz", 0 < self.highpass_hz < self.lowpass_hz, "between 0 and lowpass_hz"),
            ("lowpass_hz", self.lowpass_hz < nyquist, f"below {nyquist:g}, half the decimated rate"),
            ("filter_order", self.filter_order >= 1, "at least 1"),
            ("bridged_s", self.bridged_s >= 0, "0 or more"),
            ("fill_sweeps", 0 <= self.fill_sweeps <= MOST_SWEEPS, f"from 0 to {MOST_SWEEPS}"),
            ("follow_s", can_follow(self.follow_s), FOLLOW_EXPECTED),
            (
                "bands",
                all(_is_band(low, high, nyquist) for low, high in self.bands),
                f"pairs of frequencies from {LEAST_BAND_HZ} to {nyquist - LEAST_BAND_HZ:g} Hz (half the decimated rate "
                f"less {LEAST_BAND_HZ}), the second at least {LEAST_BAND_HZ} Hz above the first",
            ),
            (
                "band_ms",
                SHORTEST_BAND_MS <= self.band_ms <= LONGEST_BAND_MS,
                f"from {SHORTEST_BAND_MS} to {LONGEST_BAND_MS} ms",
            ),
            (
                "left_out",
                _are_columns(self.left_out, self.channels),
                f"columns from 0 to {self.channels - 1}, in order, each once, and not all of them",
            ),
        ):
            if not fine:
                got = getattr(self, name)
                raise ConfigError(f"the front end cannot have this {name}", got=got, expected=expected)

    def _require_bounded(self) -> None:
        """Raises ConfigError for a value of another kind, or one that would take memory or time without an end."""
        numbers = {field.name: getattr(self, field.name) for field in fields(self) if field.name in MOST}
        for name, value in {**numbers, "rate": self.rate}.items():
            whole = name in WHOLE
            fits = isinstance(value, (Fraction, int) if whole or name == "rate" else (int, float, Fraction))
            if not fits or isinstance(value, bool) or not value <= MOST.get(name, HIGHEST_RATE_HZ):
                expected = f"a {'whole ' if whole else ''}number of at most {MOST.get(name, HIGHEST_RATE_HZ):g}"
                raise ConfigError(f"the front end cannot have this {name}", got=repr(value)[:80], expected=expected)
        if max(self.rate.numerator, self.rate.denominator) >= MOST_OF_A_FRACTION:
            raise ConfigError("the sampling rate is a fraction with too large numbers", expected="below 2^256")
        slow = 0 < self.line_hz < LOWEST_LINE_HZ or 0 < self.highpass_hz < LOWEST_HIGHPASS_HZ
        if slow or len(self.bands) > MOST_BANDS:
            raise ConfigError(
                "the front end cannot have this many filters, or such slow ones",
                expected=f"line_hz of 0 or at least {LOWEST_LINE_HZ}, highpass_hz at least {LOWEST_HIGHPASS_HZ}, "
                f"at most {MOST_BANDS} bands",
            )
        rows = max(self.flat_s * 1000, self.saturated_ms) / max(self.bin_ms, 1)
        if rows * self.channels > MOST_HISTORY or self.rate * self.bin_ms / 1000 * self.channels > MOST_HISTORY:
            raise ConfigError("the front end cannot keep that many samples", expected=f"at most {MOST_HISTORY}")

    @cached_property  # exact fractions are slow, and every bin asks
    def decimation(self) -> int:
        """Returns D: raw frames whose index is a multiple of D are kept."""
        return find_decimation(self.rate, self.intermediate_hz)

    @property
    def decimated_rate(self) -> Fraction:
        """Returns the rate of the second filter stage, in samples a second."""
        return self.rate / self.decimation

    @property
    def features(self) -> int:
        """Returns F, the numbers that a channel has in a bin: its slow LFP, and the log power of each band."""
        return 1 + len(self.bands)

    @property
    def inputs(self) -> int:
        """Returns I = F · C, the numbers in a bin. That of feature f of channel c is number f · C + c."""
        return self.features * self.channels

    @property
    def band_rate(self) -> float:
        """Returns the weight of a new bin in the smoothed power of a band."""
        return -math.expm1(-self.bin_ms / self.band_ms)

    @property
    def flat_bins(self) -> int:
        """Returns the number of bins over which a channel must not move to count as flat."""
        return _whole(self.flat_s * 1000 / self.bin_ms)

    @property
    def saturated_bins(self) -> int:
        """Returns the number of bins for which a channel must stand still at an extreme to count as saturated."""
        return _whole(self.saturated_ms / self.bin_ms)

    @property
    def recover_bins(self) -> int:
        """Returns the number of bins without a trigger after which a channel is good again."""
        return _whole(self.recover_s * 1000 / self.bin_ms)

    @property
    def bridged_bins(self) -> int:
        """Returns the largest number of lost bins in a row after which the filters go on where they were."""
        return math.floor(self.bridged_s * 1000 / self.bin_ms + 1e-9)

    @property
    def settled_bins(self) -> int:
        """Returns the number of bins without a trigger after which a channel counts as settled."""
        return self.recover_bins + settling_bins(self)

    @property
    def follow_rate(self) -> float:
        """Returns the weight of a new bin in the statistics that follow the signal, 0 where they stay."""
        return self.bin_ms / (1000 * self.follow_s) if self.follow_s else 0.0

    def clean_after_loss(self, lost_bins: int) -> int:
        """Returns what `clean` of a channel is at most after so many lost bins in a row."""
        if lost_bins > self.bridged_bins:
            return self.recover_bins
        return max(self.recover_bins, self.settled_bins - resume_bins(self) - RESUME_BINS_PER_LOST * lost_bins)

    def edge(self, k: int) -> int:
        """Returns the first raw frame of bin k, ceil(k * frames per bin), in integers so that no clock ever drifts."""
        return -(-k * self.bin_ms * self.rate.numerator // (1000 * self.rate.denominator))

    def bin_of(self, frame: int) -> int:
        """Returns the bin that holds raw frame `frame`, the exact inverse of `edge`."""
        return find_bin(self.rate, frame, self.bin_ms)

    def to_json(self) -> dict[str, object]:
        """Returns plain values for the manifest, with the rate as "numerator/denominator"."""
        rate = f"{self.rate.numerator}/{self.rate.denominator}"
        bands = [list(band) for band in self.bands]
        return {**asdict(self), "rate": rate, "left_out": list(self.left_out), "bands": bands}

    @classmethod
    def from_json(cls, data: Mapping[str, object]) -> FrontEndConfig:
        """Returns the settings that `to_json` wrote. Raises ConfigError for unknown or missing names."""
        known = [field.name for field in fields(cls)]
        for name in data:
            if name not in known:
                raise ConfigError("unknown front-end setting", got=name, expected=did_you_mean(name, known))
        if missing := {"rate", "channels"} - data.keys():
            raise ConfigError("front-end settings are incomplete", got=f"no {', '.join(sorted(missing))}")
        values: dict[str, object] = {**data, "rate": _parse_rate(str(data["rate"]))}
        if isinstance(left_out := values.get("left_out"), list):
            values["left_out"] = tuple(left_out)
        if (bands := values.get("bands")) is not None:
            values["bands"] = _parse_bands(bands)
        return cls(**values)  # type: ignore[arg-type]


def _parse_rate(text: str) -> Fraction:
    """Returns a rate as `to_json` wrote it. Raises ConfigError for any other text."""
    if not re.fullmatch(r"[0-9]{1,80}(/[1-9][0-9]{0,80}|\.[0-9]{1,80})?", text):
        got = repr(text[:80])
        raise ConfigError("the front end cannot have this rate", got=got, expected="a fraction, such as 390625/16")
    return Fraction(text)


def _is_band(low: float, high: float, nyquist: float) -> bool:
    """Returns whether a filter of float64 can hold a band at a rate of twice `nyquist`; false for NaN."""
    return low >= LEAST_BAND_HZ and high - low >= LEAST_BAND_HZ and high <= nyquist - LEAST_BAND_HZ


def _parse_bands(bands: object) -> Bands:
    """Returns the bands of a manifest. Raises ConfigError."""
    if not isinstance(bands, list):
        raise ConfigError("the front end cannot have these bands", got=bands, expected="a list of [low, high] in Hz")
    return tuple(_parse_band(band) for band in bands)


def _parse_band(band: object) -> tuple[float, float]:
    """Returns a band of a manifest. Raises ConfigError."""
    if isinstance(band, list) and len(band) == 2 and all(type(edge) in (int, float) for edge in band):
        return float(band[0]), float(band[1])
    raise ConfigError("the front end cannot have this band", got=band, expected="[low, high] in Hz")


def find_bands(wanted: Bands, rate: Fraction, intermediate_hz: float = FrontEndConfig.intermediate_hz) -> Bands:
    """Returns those of the `wanted` bands that LFP at `rate` Hz holds, cut where the decimated rate ends.

    A band of which less than half would be left is left out.
    """
    highest = PASSED * float(rate / find_decimation(rate, intermediate_hz))
    cut = [(low, min(high, highest)) for low, high in wanted]
    return tuple(
        band for band, (low, high) in zip(cut, wanted, strict=True) if band[1] - low >= LEAST_BAND_SHARE * (high - low)
    )


def can_follow(follow_s: float) -> bool:
    """Returns whether statistics can follow the signal with this time constant in s; 0 means that they stay."""
    return follow_s == 0 or SHORTEST_FOLLOW_S <= follow_s < math.inf


def require_follow(follow_s: float) -> None:
    """Raises ConfigError for a time constant in s with which statistics cannot follow the signal."""
    if not can_follow(follow_s):
        raise ConfigError(
            "statistics cannot follow the signal this fast", got=f"{follow_s:g} s", expected=FOLLOW_EXPECTED
        )


def _are_columns(columns: object, channels: int) -> bool:
    """Returns whether this is a tuple of column numbers, in order and each once, that leaves at least one of them."""
    if not isinstance(columns, tuple) or any(type(column) is not int for column in columns):
        return False
    fits = not columns or (columns[0] >= 0 and columns[-1] < channels > len(columns))
    return fits and all(before < after for before, after in pairwise(columns))


def _whole(bins: float) -> int:
    """Rounds up to whole bins, at least one, and ignores an excess that comes from rounding a decimal fraction."""
    return max(1, math.ceil(bins - 1e-9))


def find_decimation(rate: Fraction, intermediate_hz: float) -> int:
    """Returns the smallest D for which rate / D is at most `intermediate_hz`."""
    return max(1, math.ceil(rate / Fraction(intermediate_hz)))


def find_bin(rate: Fraction, frame: int, bin_ms: int = 10) -> int:
    """Returns the bin that holds raw frame `frame` of a stream at `rate` Hz, the exact inverse of `bin_edges`."""
    return frame * 1000 * rate.denominator // (bin_ms * rate.numerator)


def bin_edges(rate: Fraction, first: int, last: int, bin_ms: int = 10) -> npt.NDArray[np.int64]:
    """Returns the first raw frames of bins first .. last, both included. Bin k covers [edges[k], edges[k + 1])."""
    numerator, denominator = rate.numerator * bin_ms, rate.denominator * 1000
    return np.array([-(-k * numerator // denominator) for k in range(first, last + 1)], dtype=np.int64)


@lru_cache(maxsize=32)
def _sections(config: FrontEndConfig) -> tuple[Array, Array]:
    fs1 = float(config.decimated_rate)
    decimator: Array = np.empty((0, 6))
    if config.decimation > 1:
        decimator = scipy.signal.butter(4, 0.4 * fs1, fs=float(config.rate), output="sos")
    notches = [
        np.concatenate(scipy.signal.iirnotch(config.line_hz * n, config.notch_q, fs=fs1))[None]
        for n in range(1, count_notches(config) + 1)
    ]
    order = config.filter_order
    highpass = scipy.signal.butter(order, config.highpass_hz, "highpass", fs=fs1, output="sos")
    lowpass = scipy.signal.butter(order, config.lowpass_hz, "lowpass", fs=fs1, output="sos")
    return decimator, np.concatenate([*notches, highpass, lowpass])


def count_notches(config: FrontEndConfig) -> int:
    """Returns the number of notches, with which the shaper begins: the mains and its harmonics below half the rate."""
    return math.ceil(float(config.decimated_rate) / 2 / config.line_hz) - 1 if config.line_hz > 0 else 0


@lru_cache(maxsize=32)
def _band_sections(config: FrontEndConfig) -> Array:
    fs1, order = float(config.decimated_rate), config.filter_order
    found = [scipy.signal.butter(order, band, "bandpass", fs=fs1, output="sos") for band in config.bands]
    return np.stack(found) if found else np.empty((0, order, 6))


def band_sections(config: FrontEndConfig) -> Array:
    """Returns the sections (B, S, 6) of each band at rate / D, through which goes what the notches have left."""
    return _band_sections(config).copy()


def filter_sections(config: FrontEndConfig) -> tuple[Array, Array]:
    """Returns second-order sections (S, 6): the decimator at the raw rate (S = 0 if D = 1), the rest at rate / D."""
    decimator, shaper = _sections(config)
    return decimator.copy(), shaper.copy()


def group_delay_ms(config: FrontEndConfig, hz: float = 10.0) -> float:
    """Returns the delay in ms of an envelope around `hz` through both filter stages.

    The delay counts from a signal to the sample that a bin reports. The bin is complete at most one decimated sample
    later. The delays of the sections are summed, because the polynomials of the whole chain are ill-conditioned with a
    0.05 Hz high-pass.
    """
    decimator, shaper = _sections(config)
    stages = ((decimator, float(config.rate)), (shaper, float(config.decimated_rate)))
    samples = [
        (scipy.signal.group_delay((row[:3], row[3:]), w=[hz], fs=fs)[1][0], fs) for sos, fs in stages for row in sos
    ]
    return float(sum(1000 * delay / fs for delay, fs in samples))


def rest_states(sections: Array, before: int = 0) -> Array:
    """Returns the states (S, 2) of `sections` (S, 6) in the steady state of a constant input of 1.

    The first `before` sections are computed and left out.

    For another constant they are multiplied by it. A filter that begins in this state makes no step of an electrode's
    offset.
    """
    states = np.empty((len(sections), 2))
    level = 1.0
    for i, (b0, b1, b2, _, a1, a2) in enumerate(sections):
        after = level * (b0 + b1 + b2) / (1 + a1 + a2)
        second = b2 * level - a2 * after
        states[i] = (b1 * level - a1 * after) + second, second
        level = after
    return states[before:]


@lru_cache(maxsize=32)
def settling_bins(config: FrontEndConfig) -> int:
    """Returns the bins until the response to a step stays below 4 % of the step.

    The filters start from rest, so the step is no electrode's offset. It is what the first sample is away from the
    signal's mean, which can be a few deviations. The slowest filter decides. That is the high-pass, which takes 14.3 s
    at 0.05 Hz.
    """
    _, shaper = _sections(config)
    length = math.ceil(math.log(1e-4) / math.log(_slowest_pole(shaper)))  # by then nothing can return
    last = int(np.flatnonzero(np.abs(scipy.signal.sosfilt(shaper, np.ones(length))) >= SETTLED)[-1])
    return _bins_of(config, last + 1)


@lru_cache(maxsize=32)
def resume_bins(config: FrontEndConfig) -> int:
    """Returns the bins until all filters but the high-pass have forgotten what they held before a bridged gap.

    The notches decide. What they held is the mains at its phase before the gap. The smoothed power of bands then has to
    forget that as well.
    """
    _, shaper = _sections(config)
    passing = np.abs(shaper[:, :3].sum(axis=1)) > 1e-9  # the sections that let a constant through
    filters = np.concatenate([shaper[passing], *_band_sections(config)])
    smoothing = math.ceil(-math.log(RESUMED) * config.band_ms / config.bin_ms) if config.bands else 0
    return _bins_of(config, math.log(RESUMED) / math.log(_slowest_pole(filters))) + smoothing


def _slowest_pole(sections: Array) -> float:
    """Returns the largest magnitude of a pole: what a section keeps of its state from sample to sample."""
    return max(float(np.abs(np.roots(row[3:])).max()) for row in sections)


def _bins_of(config: FrontEndConfig, samples: float) -> int:
    """Returns the bins that hold so many decimated samples."""
    return math.ceil(samples * 1000 / (float(config.decimated_rate) * config.bin_ms))
