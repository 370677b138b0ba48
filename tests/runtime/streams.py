"""Makes frames for the arrays of small bundles, calls decoders, and compares what they give out, bit for bit.

Nothing here needs torch, so that a process which only decodes begins at once.
"""

from __future__ import annotations

from fractions import Fraction
from typing import Any

import numpy as np

from edgedistill.frontend import FrontEndConfig
from edgedistill.runtime import Decoder, Flag, Output
from edgedistill.runtime.shift import SHIFTED_BINS

SLOW_ARRAY = FrontEndConfig(rate=Fraction(250), channels=3, highpass_hz=1)  # every frame is kept
FAST_ARRAY = FrontEndConfig(  # 1220.7 Hz, decimated by 2; a bin has 12 or 13 frames; two channels are left out
    rate=Fraction(48828125, 40000), channels=5, highpass_hz=1, flat_s=0.1, recover_s=0.2, bridged_s=0.2, line_hz=50,
    fill_sweeps=3, follow_s=20, left_out=(1, 4),
)  # fmt: skip
ARRAYS = {"slow": SLOW_ARRAY, "fast": FAST_ARRAY}


def frames_of(kind: str, count: int, seed: int = 0) -> np.ndarray:
    """Returns noise on offsets as frames (count, C) in uV.

    Some channels lose samples, one dies and one saturates, and some frames are lost.
    """
    config, rng = ARRAYS[kind], np.random.default_rng(seed + 100)
    offsets = rng.normal(0, 500, config.channels)
    frames = (25 * rng.normal(size=(count, config.channels)) + offsets).astype(np.float32)
    for bad in (np.nan, np.inf, -np.inf, 3e38):
        at = rng.integers(count)
        frames[at : at + rng.integers(1, 9), rng.integers(config.channels)] = bad
    died = rng.integers(count)
    frames[died : died + count // 4, rng.integers(config.channels)] = 4.0
    frames[rng.integers(count) :, 0] = np.minimum(frames[rng.integers(count) :, 0].max(initial=30), 30)
    for lost in rng.integers(0, count, count // 400):
        frames[lost : lost + rng.integers(1, 60)] = np.nan
    return frames


def shift_soon(decoder: Decoder, bins: int = 3) -> None:
    """Ends the warm-up and raises the running amplitude, so that SHIFTED is set in `bins` bins, and cleared later.

    All channels count as settled.
    """
    channels, settled = decoder.shape.channels, float(decoder.frontend_config.settled_bins)
    power = np.linspace(16.5, 17.5, channels, dtype=np.float32)
    now = {"seen": np.array(10**6), "shift_bins": np.array(SHIFTED_BINS - bins), "shift_power": power}
    now |= {"fe_clean": np.full(channels, settled), "fe_lost_bins": np.array(0)}
    decoder.import_state({**decoder.export_state(), **now})


def same(found: list[Output], expected: list[Output]) -> bool:
    """Returns whether all outputs are equal bit for bit, with their flags."""

    def facts(o: Output) -> tuple[object, ...]:
        numbers = (o.kinematics.dtype, o.kinematics.tobytes(), o.deviation.dtype, o.deviation.tobytes())
        return o.bin, o.end_frame, o.flags, o.bad_channels, *numbers

    return [facts(o) for o in found] == [facts(o) for o in expected]


def state_equal(found: dict[str, Any], expected: dict[str, Any]) -> bool:
    def facts(state: dict[str, Any]) -> list[tuple[object, ...]]:
        return [(name, array.dtype, array.shape, array.tobytes()) for name, array in state.items()]

    return facts(found) == facts(expected)


def one_call(decoder: Decoder, what: str, frames: np.ndarray) -> list[Output]:
    count, channels = frames.shape
    if what == "float64":
        return decoder.push(frames.astype(np.float64) * 1.000001)
    if what == "int16":
        integers = np.nan_to_num(frames, nan=-5, posinf=0, neginf=0).clip(-32768, 32767).astype(np.int16)
        return decoder.push_i16(integers, 0.195 + 0.01 * np.arange(channels), -0.3)
    if what == "gap":
        return decoder.gap(count)
    if what == "step":
        kinematics = decoder.step(np.linspace(-2, 2, channels) + count)
        return [Output(0, 0, Flag(0), 0, kinematics, np.zeros_like(kinematics))]
    if what == "normalization":  # values that float32 cannot represent, and one silenced channel
        decoder.set_normalization(0.1 * np.arange(channels), (17.3 + count) * (np.arange(channels) != count % channels))
    elif what == "reset":
        decoder.reset()
    return decoder.push(frames)
