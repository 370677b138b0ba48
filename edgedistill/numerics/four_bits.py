"""Says what four-bit weights are, and packs them for a file and unpacks them again (docs/numerics.md, "Four bits").

A four-bit matrix is an int8 matrix of a constrained form. In each row, each group of 32 inputs is `q * factor`, with q
from -7 to 7 and one whole factor from 1 to 15. An engine may read the int8 matrix and know nothing of this, or read
half the bytes and multiply the sum of each group by its factor. Integer sums are exact, so both give the same bits.

In memory a student holds `WEIGHT` (out, n) int8 and `WEIGHT.factor` (out, groups) uint8. A file holds the same numbers
as `WEIGHT.nibbles` (out, n / 2) and `WEIGHT.factor_nibbles` (out, groups / 2), two to a byte with the first in the low
half.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from edgedistill.errors import BundleError

GROUP = 32  # inputs that share a factor
MOST = 7  # the largest magnitude of q
MOST_FACTOR = 15  # four bits too, and 7 * 15 = 105 is an int8
OFFSET = 8  # a nibble holds q + 8
FACTOR, NIBBLES, FACTOR_NIBBLES = ".factor", ".nibbles", ".factor_nibbles"  # stand behind the name of a matrix

Tensors = Mapping[str, npt.NDArray[Any]]
Int8 = npt.NDArray[np.int8]
Bytes = npt.NDArray[np.uint8]


def count_groups(inputs: int) -> int:
    """Returns the number of groups in a row. The last one may be shorter."""
    return -(-inputs // GROUP)


def spread_factors(factors: npt.NDArray[Any], inputs: int) -> npt.NDArray[Any]:
    """Returns the factor of each weight (out, inputs) from those of the groups (out, groups)."""
    return np.repeat(factors, GROUP, axis=1)[:, :inputs]


def four_bits_of(weights: Int8, factors: Bytes) -> Int8:
    """Returns q (out, n) of a matrix that has the form, as `find_form_fault` checks it."""
    return (weights // spread_factors(factors, weights.shape[1]).astype(np.int8)).astype(np.int8)


def find_form_fault(weights: Int8, factors: Bytes) -> str | None:
    """Returns what keeps an int8 matrix from being a four-bit one with these factors, or None."""
    if not ((factors >= 1) & (factors <= MOST_FACTOR)).all():
        return f"a factor of {int(factors.min())} to {int(factors.max())}"
    spread = spread_factors(factors, weights.shape[1]).astype(np.int16)
    if (weights % spread).any():
        row, column = np.argwhere(weights % spread)[0]
        return f"{weights[row, column]} with the factor {spread[row, column]}"
    if (np.abs(weights.astype(np.int16)) > MOST * spread).any():
        row, column = np.argwhere(np.abs(weights.astype(np.int16)) > MOST * spread)[0]
        return f"{weights[row, column]} with the factor {spread[row, column]}"
    return None


def pack_nibbles(values: npt.NDArray[Any]) -> Bytes:
    """Returns values (rows, n) from 0 to 15 as bytes (rows, n / 2, rounded up), the first of two in the low half."""
    even = np.pad(values.astype(np.uint8), ((0, 0), (0, values.shape[1] % 2)))
    return np.asarray(even[:, ::2] | even[:, 1::2] << 4, np.uint8)


def unpack_nibbles(packed: Bytes, count: int) -> Bytes:
    """Returns the first `count` values (rows, count) of `pack_nibbles`."""
    return np.stack([packed & 15, packed >> 4], axis=2).reshape(len(packed), -1)[:, :count]


def pack_tensors(tensors: Tensors) -> dict[str, npt.NDArray[Any]]:
    """Returns a student's tensors as a file holds them. Without four-bit matrices they are what they were."""
    found: dict[str, npt.NDArray[Any]] = {}
    for name, array in tensors.items():
        if name.endswith(FACTOR):
            found[name.removesuffix(FACTOR) + FACTOR_NIBBLES] = pack_nibbles(array)
        elif name + FACTOR in tensors:
            found[name + NIBBLES] = pack_nibbles(four_bits_of(array, tensors[name + FACTOR]) + OFFSET)
        else:
            found[name] = array
    return found


def unpack_tensors(tensors: Tensors, matrices: Mapping[str, tuple[int, int]]) -> dict[str, npt.NDArray[Any]]:
    """Returns a student's tensors from those of a file. `matrices` are the shapes (out, n) of its weights.

    Raises BundleError that names a matrix whose four-bit form is incomplete, doubled, or not what `pack_tensors` gives.
    """
    found = dict(tensors)
    for name, (rows, n) in matrices.items():
        nibbles, factors = found.pop(name + NIBBLES, None), found.pop(name + FACTOR_NIBBLES, None)
        if nibbles is None and factors is None:
            continue
        if name in tensors or name + FACTOR in tensors:
            raise _form_error(name, "the matrix twice, with four and with eight bits")
        q = _read_nibbles(name + NIBBLES, nibbles, rows, n).astype(np.int8) - np.int8(OFFSET)
        factor = _read_nibbles(name + FACTOR_NIBBLES, factors, rows, count_groups(n))
        if (q < -MOST).any():
            raise _form_error(name, f"{int(q.min())}")
        if (factor < 1).any():
            raise _form_error(name, "a factor of 0")
        found[name] = q * spread_factors(factor, n).astype(np.int8)
        found[name + FACTOR] = np.ascontiguousarray(factor)
    return found


def _read_nibbles(name: str, packed: npt.NDArray[Any] | None, rows: int, count: int) -> Bytes:
    size = (rows, -(-count // 2))
    if packed is None or packed.dtype != np.uint8 or packed.shape != size:
        got = "nothing" if packed is None else f"{packed.dtype} {packed.shape}"
        raise BundleError(f"'{name}' is not a tensor of this student", got=got, expected=f"uint8 {size}")
    if count % 2 and (packed[:, -1] >> 4).any():
        raise _form_error(name, "more than its columns")
    return unpack_nibbles(packed, count)


def _form_error(name: str, got: str) -> BundleError:
    return BundleError(
        f"'{name}' is not a four-bit matrix",
        got=got,
        expected=f"q * factor, with q from {-MOST} to {MOST} and a factor from 1 to {MOST_FACTOR} for {GROUP} inputs",
    )


def require_form(name: str, weights: Int8, factors: Bytes) -> None:
    """Raises BundleError that names an int8 matrix which is not a four-bit one with these factors."""
    if fault := find_form_fault(weights, factors):
        raise _form_error(name, fault)
