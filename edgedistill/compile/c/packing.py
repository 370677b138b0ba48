"""Packs weight matrices in the order in which each variant of the C kernels reads them.

Rows of int8 weights go in, or four-bit weights with the factors of their groups, and bytes come out. The headers
kernels/c/ed_ops_*.h describe the layouts. Weights are packed once, when a bundle is compiled.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from edgedistill.errors import EngineError, did_you_mean
from edgedistill.numerics.four_bits import GROUP, OFFSET, count_groups, four_bits_of, pack_nibbles

Int8 = npt.NDArray[np.int8]
Bytes = npt.NDArray[np.uint8]

BLOCK = 16  # outputs computed together, which are the int32 lanes of a 512-bit vector; rows are padded to this
LINE = 64  # bytes of a cache line, and of one 512-bit vector


@dataclass(frozen=True)
class Packing:
    """Describes the layout in which one variant reads a matrix (rows, n)."""

    group: int  # the most blocks of rows whose lines alternate, or 0 for a layout row by row
    unsigned: bool = False  # weights are stored as w + 128, because the instruction needs one unsigned factor
    rows: int = BLOCK  # in a block
    inputs: int = 4  # of a row that lie together
    factor_bytes: int = 1  # the factors of four-bit weights fill a multiple of this
    factor_pairs: bool = False  # factors of two groups of inputs share a word, one in front of both
    bias_once: bool = False  # the age bias lies in two pieces and not in one, which takes half the bytes

    def pack_matrix(self, rows: Int8) -> bytes:
        """Packs a matrix (rows, n) whose number of rows is a multiple of 16. Zeros pad n to a multiple of `inputs`.

        With groups the order is [group of blocks][inputs that lie together][block][rows][inputs], which the kernel
        reads from start to end.
        """
        padded = pad(rows, columns=self.inputs)
        if not self.group:
            return self._to_bytes(padded)
        blocks = len(rows) // self.rows
        group = group_of(blocks, self.group)
        grouped = padded.reshape(blocks // group, group, self.rows, -1, self.inputs).transpose(0, 3, 1, 2, 4)
        return self._to_bytes(grouped)

    def pack_four_bits(self, rows: Int8, factors: Bytes) -> bytes:
        """Packs a four-bit matrix (rows, n) with its factors (rows, groups), as the variant's header describes.

        Groups of inputs follow one another, each with its factors in front. n is padded with zeros.
        """
        nibbles = pad((four_bits_of(rows, factors) + OFFSET).astype(np.uint8), columns=4, value=OFFSET)
        spans = [slice(at, at + GROUP) for at in range(0, nibbles.shape[1], GROUP)]
        assert len(spans) == count_groups(rows.shape[1]) == factors.shape[1]
        if not self.group:
            return np.concatenate(
                [
                    part
                    for g, span in enumerate(spans)
                    for part in (factors[:, g, None], pack_nibbles(nibbles[:, span]))
                ],
                axis=1,
            ).tobytes()
        together = self.rows * group_of(len(rows) // self.rows, self.group)
        pack = _pair_blocks if self.rows == BLOCK else _pair_halves if self.inputs == 4 else _pair_inputs
        return b"".join(
            pack_factors(factors[at : at + together, g:], self, g) + pack(nibbles[at : at + together, span])
            for at in range(0, len(rows), together)
            for g, span in enumerate(spans)
        )

    def pack_few_rows(self, rows: Int8) -> bytes:
        """Packs a matrix (rows, n) with fewer rows than a block, row by row. Zeros pad n to a multiple of 64."""
        return self._to_bytes(pad(rows, columns=LINE))

    def _to_bytes(self, weights: Int8) -> bytes:
        return (weights ^ np.int8(-128) if self.unsigned else weights).tobytes()


PACKINGS = {
    "avx512": Packing(group=8, unsigned=True, factor_bytes=64),
    "avx2": Packing(group=2, factor_bytes=32),
    "neon": Packing(group=4, factor_bytes=16),
    "helium": Packing(group=1, rows=4, inputs=16, factor_bytes=4),
    "dsp": Packing(group=1, rows=4, factor_pairs=True, bias_once=True),
    "scalar": Packing(group=0),
}


def group_of(blocks: int, most: int) -> int:
    """Returns a divisor of `blocks`, as ED_GROUP_OF of ed_weights.h: at most `most`, and even if `blocks` is."""
    return next(group for group in (8, 6, 4, 2, 7, 5, 3, 1) if group <= most and blocks % group == 0)


def packing_of(ops: str) -> Packing:
    """Returns the packing of a variant. Raises EngineError for a variant that does not exist."""
    if ops not in PACKINGS:
        raise EngineError(f"unknown variant of the C kernels '{ops}'", expected=did_you_mean(ops, PACKINGS))
    return PACKINGS[ops]


def pack_factors(factors: Bytes, packing: Packing, group: int) -> bytes:
    """Returns what stands before one group of inputs, for its factors and those of the groups after it (rows, groups).

    Those of two blocks of 16 rows share a byte; those of smaller blocks have a byte each, or share a word with those of
    the next group.
    """
    if packing.factor_pairs:
        return b"" if group % 2 else _pair_groups(factors[:, :2])
    packed = (factors[:, :1] if packing.rows != BLOCK else _pair_rows(factors[:, :1])).tobytes()
    return packed + bytes(-len(packed) % packing.factor_bytes)


def _pair_rows(values: Bytes) -> Bytes:
    """Puts blocks of 16 rows (rows, n) in pairs, (pairs, 16, n): the first in the low half of a byte."""
    blocks = values.reshape(-1, BLOCK, values.shape[1])
    even = np.pad(blocks, ((0, len(blocks) % 2), (0, 0), (0, 0)))
    return np.asarray(even[::2] | even[1::2] << 4, np.uint8)


def _pair_blocks(nibbles: Bytes) -> bytes:
    """Packs one group of inputs (rows, n) as [4 inputs][pair of blocks][16 rows][4 inputs]."""
    pairs = _pair_rows(nibbles)
    return pairs.reshape(len(pairs), BLOCK, -1, 4).transpose(2, 0, 1, 3).tobytes()


def _pair_halves(nibbles: Bytes) -> bytes:
    """Packs one group of inputs (4, n) as [8 inputs][4 rows] words. Two inputs apart share a place in their halves."""
    return _to_words(pad(nibbles, columns=8).reshape(len(nibbles), -1, 8)).T.tobytes()


def _pair_groups(factors: Bytes) -> bytes:
    """Packs the factors (4, 1 or 2) of two groups as one word. Two rows apart share a place in their halves."""
    return _to_words(pad(factors, columns=2).T.reshape(-1)).tobytes()


def _to_words(nibbles: Bytes) -> npt.NDArray[np.uint32]:
    """Returns words (...) of nibbles (..., 8): the first, second, fifth and sixth in the low half, the others above."""
    words = sum(nibbles[..., i].astype(np.uint32) << shift for i, shift in enumerate((0, 4, 16, 20, 8, 12, 24, 28)))
    return np.asarray(words, "<u4")


def _pair_inputs(nibbles: Bytes) -> bytes:
    """Packs one group of inputs (4, n) as [4 rows][16 bytes]. A byte holds inputs i and i + 16 as signed nibbles.

    Weights that fill the group up to 32 inputs are 0.
    """
    signed = pad(nibbles ^ OFFSET, columns=GROUP)  # the offset is the sign of a nibble
    return np.asarray(signed[:, : GROUP // 2] | signed[:, GROUP // 2 :] << 4, np.uint8).tobytes()


def pad(array: npt.NDArray[Any], rows: int = 1, columns: int = 1, value: int = 0) -> npt.NDArray[Any]:
    """Returns an array (R, n) padded with `value` to multiples of `rows` and `columns`."""
    return np.pad(array, ((0, -array.shape[0] % rows), (0, -array.shape[1] % columns)), constant_values=value)
