"""Packs weight matrices in the order in which each variant of the C kernels reads them.

Rows of int8 weights go in, and bytes come out. The headers kernels/c/ed_ops_*.h describe the layouts. Weights are
packed once, when a bundle is compiled.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from edgedistill.errors import EngineError, did_you_mean

Int8 = npt.NDArray[np.int8]

BLOCK = 16  # outputs computed together, which are the int32 lanes of a 512-bit vector; rows are padded to this
LINE = 64  # bytes of a cache line, and of one 512-bit vector


@dataclass(frozen=True)
class Packing:
    """Describes the layout in which one variant reads a matrix (rows, n)."""

    group: int  # the most blocks of rows whose lines alternate, or 0 for a layout row by row
    unsigned: bool = False  # weights are stored as w + 128, because the instruction needs one unsigned factor
    rows: int = BLOCK  # in a block

    def pack_matrix(self, rows: Int8) -> bytes:
        """Packs a matrix (rows, n) whose number of rows is a multiple of 16. n is padded to a multiple of 4 with zeros.

        With groups the order is [group of blocks][4 inputs][block][rows][4 inputs], which the kernel reads from start
        to end.
        """
        padded = pad(rows, columns=4)
        if not self.group:
            return self._to_bytes(padded)
        blocks = len(rows) // self.rows
        group = group_of(blocks, self.group)
        grouped = padded.reshape(blocks // group, group, self.rows, -1, 4).transpose(0, 3, 1, 2, 4)
        return self._to_bytes(grouped)

    def pack_few_rows(self, rows: Int8) -> bytes:
        """Packs a matrix (rows, n) with fewer rows than a block, row by row. Zeros pad n to a multiple of 64."""
        return self._to_bytes(pad(rows, columns=LINE))

    def _to_bytes(self, weights: Int8) -> bytes:
        return (weights ^ np.int8(-128) if self.unsigned else weights).tobytes()


PACKINGS = {
    "avx512": Packing(group=8, unsigned=True),
    "avx2": Packing(group=2),
    "neon": Packing(group=4),
    "dsp": Packing(group=1, rows=4),
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


def pad(array: npt.NDArray[Any], rows: int = 1, columns: int = 1) -> npt.NDArray[Any]:
    """Returns an array (R, n) padded with zeros to multiples of `rows` and `columns`."""
    return np.pad(array, ((0, -array.shape[0] % rows), (0, -array.shape[1] % columns)))
