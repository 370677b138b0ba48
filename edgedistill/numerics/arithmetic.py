"""Defines the operations whose result is pinned to the last bit: sums in lanes, one exponential, one way to round.

Arrays of float32 come in and go out. numpy rounds each operation to nearest even and fuses none. An engine in another
language that does the same operations in the same order gets the same bits (docs/numerics.md, "Float arithmetic in the
exact class").
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float32]
Int8 = npt.NDArray[np.int8]
Int32 = npt.NDArray[np.int32]

LANES = 16
LEVELS = 127  # the range -127 … 127 is symmetric, and -128 is not used
RMS_EPSILON = np.float32(1e-6)

LN2 = 0.6931471805599453
LOG2_E = np.float32(1.4426950408889634)
LN2_HIGH = np.float32(0.693359375)  # it has nine bits, so its product with an exponent is exact
LN2_LOW = np.float32(-2.1219444005471377e-4)
# exp(r) = 1 + r + r² P(r) on |r| <= ln 2 / 2, P by Lawson's minimax fit to the relative error
POLYNOMIAL = tuple(np.float32(c) for c in (0.008312521, 0.04189016, 0.16667114, 0.4999923))
ROOT_HALF_BITS = np.int64(0x3FE6A09E667F3BCD)  # those of the float64 nearest to the root of 1/2
LOWEST, HIGHEST = np.float32(-87), np.float32(88)  # beyond these, 2**n would leave the normal numbers


def lane_sum(x: Floats) -> Floats:
    """Sums over the last axis: value i goes to lane i mod 16 in order, then lanes 8, 4, 2 and 1 apart are added."""
    fill = -x.shape[-1] % LANES
    if fill:
        x = np.concatenate([x, np.zeros((*x.shape[:-1], fill), np.float32)], axis=-1)
    parts = x.reshape(*x.shape[:-1], x.shape[-1] // LANES, LANES)
    lanes = parts[..., 0, :]
    for i in range(1, parts.shape[-2]):
        lanes = lanes + parts[..., i, :]
    for half in (8, 4, 2, 1):
        lanes = lanes[..., :half] + lanes[..., half : 2 * half]
    total: Floats = lanes[..., 0]
    return total


def exp32(x: Floats) -> Floats:
    """Returns e**x for x clipped to -87 … 88, with a relative error of at most 2e-7."""
    x = np.minimum(np.maximum(x, LOWEST), HIGHEST)
    n = np.rint(x * LOG2_E)
    r = (x - n * LN2_HIGH) - n * LN2_LOW
    p = np.full_like(r, POLYNOMIAL[0])
    for coefficient in POLYNOMIAL[1:]:
        p = p * r + coefficient
    mantissa = ((p * r) * r + r) + np.float32(1)
    power = ((n.astype(np.int32) + 127) << 23).view(np.float32)  # 2**n by its bits
    return np.asarray(mantissa * power, np.float32)


def log64(x: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Returns the natural logarithm of normal positive float64, off by at most 1e-9.

    It is the exponent times ln 2, and the series of the inverse hyperbolic tangent for what is left, from the root of
    1/2 to that of 2.
    """
    bits = np.ascontiguousarray(x).view(np.int64)
    exponent = (bits - ROOT_HALF_BITS) >> 52
    m = (bits - (exponent << 52)).view(np.float64)
    s = (m - 1) / (m + 1)
    z = s * s
    p = ((1 / 9 * z + 1 / 7) * z + 1 / 5) * z + 1 / 3
    return np.asarray(exponent * LN2 + (s + s) * (1 + z * p))


def silu32(x: Floats) -> Floats:
    """Returns x / (1 + e**-x)."""
    return np.asarray(x / (np.float32(1) + exp32(-x)), np.float32)


def rms32(x: Floats) -> Floats:
    """Returns x times the reciprocal of its root mean square over the last axis, without a gain."""
    mean = lane_sum(x * x) / np.float32(x.shape[-1])
    factor = np.float32(1) / np.sqrt(mean + RMS_EPSILON)
    return np.asarray(x * factor[..., None], np.float32)


def quantize(x: Floats, inv_scale: Floats) -> Int8:
    """Returns round(x * inv_scale), with ties to even, saturated at -127 and 127."""
    with np.errstate(over="ignore"):  # a product beyond float32 is infinite and saturates
        return np.asarray(np.clip(np.rint(x * inv_scale), -LEVELS, LEVELS), np.int8)


def product(x: npt.NDArray[Any], w: Int8) -> Int32:
    """Multiplies integers (…, n) by rows (out, n) to int32 (…, out). Float64 holds every partial sum exactly."""
    return np.asarray(x.astype(np.float64) @ w.astype(np.float64).T).astype(np.int32)
