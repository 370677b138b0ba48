"""Distributes the rows of a weight matrix over the threads of the CUDA step.

The sizes of a matrix and of the block go in, and whether its weights have four bits. The layout, which says which
thread holds which integers, and the weights in the order in which the threads read them, come out.
kernels/cuda/student_layout.h has the same formulas.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from edgedistill.compile.c.packing import pad
from edgedistill.numerics.four_bits import GROUP, OFFSET, four_bits_of

Int8 = npt.NDArray[np.int8]
Bytes = npt.NDArray[np.uint8]
Floats = npt.NDArray[np.float32]

CHUNK = 16  # bytes that a thread reads at once
WORD = 4  # factors of four-bit weights that a thread reads at once


@dataclass(frozen=True)
class RowLayout:
    """Describes how a matrix (rows, n) lies on the threads of a block, as `ed_row_layout` of student_layout.h."""

    rows: int
    n: int
    block: int  # number of threads of the block
    four: bool = False  # whether the weights have four bits
    most: int = 8  # threads that may share a row

    @property
    def chunk(self) -> int:
        """Returns the integers in a chunk: 16, or the 32 four-bit weights that share a factor."""
        return GROUP if self.four else CHUNK

    @property
    def chunks(self) -> int:
        """Returns the number of chunks in a row."""
        return -(-self.n // self.chunk)

    @property
    def rounds(self) -> int:
        """Returns the number of chunks of a row that a thread takes."""
        return -(-self.chunks // self.threads)

    @property
    def threads(self) -> int:
        """Returns how many threads share a row: the cheapest number, and the largest of equally cheap ones."""
        return min((number for number in (8, 4, 2, 1) if number <= self.most), key=self._cost)

    @property
    def groups(self) -> int:
        """Returns how many groups of rows, and so how many rows, each thread works on."""
        return self._groups_for(self.threads)

    @property
    def padded(self) -> int:
        """Returns the length to which a vector (n,) is padded, because the threads read whole chunks."""
        return self.rounds * self.threads * self.chunk

    @property
    def after_exchange(self) -> tuple[int, int]:
        """Returns a thread's groups, and the threads that share a row, after the threads have exchanged sums."""
        groups, threads = self.groups, self.threads
        while threads > 1 and groups % 2 == 0:
            groups, threads = groups // 2, threads // 2
        return groups, threads

    def group_order(self, thread: int) -> list[int]:
        """Returns the place of each of the groups of a thread.

        `thread` is the number of the thread among those that share a row. The order is its own inverse, so that it also
        gives the group at each place.
        """
        place = np.arange(self.groups)
        bit, half = self.threads // 2, self.groups // 2
        while bit >= self.after_exchange[1]:
            if thread & bit:
                place += np.where(place // half % 2, -half, half)
            bit, half = bit // 2, half // 2
        return [int(group) for group in place]

    def pack(self, weights: Int8) -> bytes:
        """Packs weights (rows, n) in the order [round][place of the group][thread][16]."""
        return self._order(weights, self.chunk).tobytes()

    def pack_four_bits(self, weights: Int8, factors: Bytes) -> bytes:
        """Packs weights (rows, n) of four bits, and behind them their factors (rows, groups of 32).

        A byte holds one input of two rows, in the order [round][pair of places][half of the chunk][thread][16], and
        factors lie in the order [place in the passes / 4][thread][4].
        """
        q = self._order(four_bits_of(weights, factors), self.chunk).astype(np.uint8)
        rows_share = q[:, ::2] << 4 | (q[:, 1::2] + OFFSET)  # (rounds, pairs of places, threads, 32)
        halves = rows_share.reshape(*rows_share.shape[:-1], 2, CHUNK).swapaxes(2, 3)
        in_passes = self._order(factors, 1).reshape(self.rounds * self.groups, -1)
        words = pad(in_passes, rows=WORD).reshape(-1, WORD, in_passes.shape[1]).swapaxes(1, 2)
        behind = words.tobytes()
        return halves.tobytes() + behind + bytes(-len(behind) % CHUNK)

    def _order(self, values: npt.NDArray[Any], width: int) -> npt.NDArray[Any]:
        """Returns values (rows, chunks * width) in the order of the passes, (rounds, places, threads, width).

        Zeros fill up rows and chunks.
        """
        t, groups, rounds = self.threads, self.groups, self.rounds
        slots = -(-self.rows // groups)
        padded = np.zeros((slots * groups, rounds * t * width), values.dtype)
        padded[: self.rows, : values.shape[1]] = values
        chunks = padded.reshape(slots, groups, rounds, t, width).transpose(2, 1, 0, 3, 4)
        by_thread = [chunks[:, :, :, thread][:, self.group_order(thread)] for thread in range(t)]
        return np.stack(by_thread, axis=3).reshape(rounds, groups, slots * t, width)

    def distribute(self, values: Floats) -> Floats:
        """Distributes one value per row (rows,) over the threads, as (own rows, threads of the block).

        Each thread gets the values of the rows that it holds after the exchange, and 0 where it holds none.
        """
        groups, threads = self.after_exchange
        found = np.zeros((-(-groups // threads), self.block), np.float32)
        for i, thread in np.ndindex(found.shape):
            t = thread % self.threads
            rest = t % threads + i * threads
            row = thread // self.threads * self.groups + self.group_order(t)[0] + rest
            if rest < groups and row < self.rows:
                found[i, thread] = values[row]
        return found

    def _groups_for(self, threads: int) -> int:
        together = 2 if self.four else 1  # rows, which share the bytes of their weights
        return together * -(-self.rows * threads // (together * self.block))

    def _cost(self, threads: int) -> int:
        """Returns the cost of a row that so many threads share.

        student_layout.h chooses their number by the same cost.
        """
        groups = self._groups_for(threads)
        active = -(-self.rows // groups) * threads
        return groups * -(-self.chunks // threads) * (active + 128)
