"""Distributes the rows of a weight matrix over the threads of the CUDA step.

The sizes of a matrix and of the block go in. The layout, which says which thread holds which integers, and the weights
in the order in which the threads read them, come out. kernels/cuda/student_layout.h has the same formulas.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Int8 = npt.NDArray[np.int8]
Floats = npt.NDArray[np.float32]

CHUNK = 16  # integers that a thread reads at once


@dataclass(frozen=True)
class RowLayout:
    """Describes how a matrix (rows, n) lies on the threads of a block, as `ed_row_layout` of student_layout.h."""

    rows: int
    n: int
    block: int  # number of threads of the block

    @property
    def chunks(self) -> int:
        """Returns the number of chunks in a row."""
        return -(-self.n // CHUNK)

    @property
    def threads(self) -> int:
        """Returns how many threads share a row: the cheapest number, and the largest of equally cheap ones."""
        return min((8, 4, 2, 1), key=self._cost)

    @property
    def groups(self) -> int:
        """Returns how many groups of rows, and so how many rows, each thread works on."""
        return self._groups_for(self.threads)

    @property
    def padded(self) -> int:
        """Returns the length to which a vector (n,) is padded, because the threads read whole chunks."""
        return -(-self.chunks // self.threads) * self.threads * CHUNK

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
        t, groups, rounds = self.threads, self.groups, -(-self.chunks // self.threads)
        slots = -(-self.rows // groups)
        padded = np.zeros((slots * groups, rounds * t * CHUNK), np.int8)
        padded[: self.rows, : self.n] = weights
        chunks = padded.reshape(slots, groups, rounds, t, CHUNK).transpose(2, 1, 0, 3, 4)
        by_thread = [chunks[:, :, :, thread][:, self.group_order(thread)] for thread in range(t)]
        return np.stack(by_thread, axis=3).tobytes()

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
        return -(-self.rows * threads // self.block)

    def _cost(self, threads: int) -> int:
        """Returns the cost of a row that so many threads share.

        student_layout.h chooses their number by the same cost.
        """
        groups = self._groups_for(threads)
        active = -(-self.rows // groups) * threads
        return groups * -(-self.chunks // threads) * (active + 128)
