"""A file that HDF5 grows and that can be opened whenever its writer is killed.

HDF5 changes bytes that it wrote before, such as the length of a dataset, and between two of these changes the file on
the disk makes no sense. Here they wait in memory, while new bytes go to the disk behind the others, where nothing
points to them yet. `commit` first writes the changes into a journal beside the file, and then into the file. So a
process that is killed leaves the state of its last commit. If that happens in the moment in which the changes are
written, the journal holds all of them, and `recover` finishes what was begun.

HDF5 crashes the interpreter when a write fails. Errors are therefore kept until the caller asks, and from then on
nothing reaches the disk.
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import io
import os
import stat
import struct
from contextlib import suppress
from pathlib import Path
from typing import Any

from edgedistill.files import remove, require_replaceable

MAGIC = b"edgedistill journal 1\n"
RECORD = struct.Struct("<QQ")  # place in the file, number of bytes
PAGE = 4096
MOST_JOURNAL_BYTES = 1 << 28  # what HDF5 changes between two commits is a few pages for each dataset
OPEN = os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK  # no link is followed, and no pipe waited for


def journal_of(path: Path) -> Path:
    """Returns where the journal of the file at `path` lies."""
    return path.with_name(f".{path.name}.journal")


class RollbackFile(io.RawIOBase):
    """A new file at a path, for `h5py.File(file, "w")`."""

    def __init__(self, path: Path) -> None:
        """The file appears at `path` with the first commit, and replaces what is there. Raises OSError.

        In a folder that is shared, others may have put links in the place of the journal and of the new file.
        """
        super().__init__()
        require_replaceable(path)
        self._partial: Path | None = path.with_name(f".{path.name}.new")  # the lock on the journal keeps others away
        self._journal = os.open(journal_of(path), OPEN | os.O_CREAT, 0o666)
        try:
            fcntl.flock(self._journal, fcntl.LOCK_EX | fcntl.LOCK_NB)
            _require_own(self._journal, journal_of(path))
            os.ftruncate(self._journal, 0)
            remove(self._partial)
            self._file = os.open(self._partial, OPEN | os.O_CREAT | os.O_EXCL, 0o666)
        except OSError:
            os.close(self._journal)
            raise
        self._path = path
        self._error: OSError | None = None
        self._at = 0  # where the next read or write begins
        self._size = 0  # as HDF5 knows it
        self._unfinished = False  # the file lacks changes that the journal holds
        self._committed = 0  # bytes that a reader may rely on
        self._pages: dict[int, bytearray] = {}  # changed ones, by number

    def raise_hidden_error(self) -> None:
        """Raises the first OSError that a write met."""
        if self._error is not None:
            raise self._error

    def commit(self) -> None:
        """Makes what was written what a reader finds. Raises OSError, and then the state of before stays.

        Where only the last writes of a commit failed, the journal stays as well, and `recover` finishes the commit.
        """
        self.raise_hidden_error()
        try:
            os.ftruncate(self._file, max(self._size, self._committed))
            os.fsync(self._file)
            pages = self._joined_pages()
            if pages:
                _write_journal(self._journal, pages)
                self._committed, self._unfinished = self._size, True  # from here on the journal completes the file
                _apply(self._file, pages)
                os.fsync(self._file)
                os.ftruncate(self._journal, 0)
                self._unfinished = False
            if self._partial is not None:
                self._partial.replace(self._path)
                self._partial = None
        except OSError as error:
            self._error = error
            raise
        self._pages.clear()
        self._committed = self._size
        os.ftruncate(self._file, self._size)

    # ---------------------------------------------------------------- what h5py calls

    def readable(self) -> bool:
        """Returns True."""
        return True

    def writable(self) -> bool:
        """Returns True."""
        return True

    def seekable(self) -> bool:
        """Returns True."""
        return True

    def fileno(self) -> int:
        """Returns the descriptor of the file, which lacks the changes that wait."""
        return self._file

    def tell(self) -> int:
        """Returns where the next read or write begins."""
        return self._at

    def seek(self, offset: int, whence: int = os.SEEK_SET, /) -> int:
        """Sets where the next read or write begins."""
        self._at = offset + {os.SEEK_SET: 0, os.SEEK_CUR: self._at, os.SEEK_END: self._size}[whence]
        return self._at

    def readinto(self, buffer: Any, /) -> int:
        """Reads what was written, whether it is on the disk or waits."""
        view = memoryview(buffer).cast("B")
        count = max(0, min(len(view), self._size - self._at))
        found = os.pread(self._file, count, self._at)
        view[: len(found)] = found
        view[len(found) : count] = bytes(count - len(found))
        for number in range(self._at // PAGE, -(-(self._at + count) // PAGE)):
            if (page := self._pages.get(number)) is not None:
                start, stop = max(self._at, number * PAGE), min(self._at + count, (number + 1) * PAGE)
                view[start - self._at : stop - self._at] = page[start - number * PAGE : stop - number * PAGE]
        self._at += count
        return count

    def write(self, data: Any, /) -> int:
        """Writes bytes: new ones to the disk, others into the pages that wait."""
        view = memoryview(data).cast("B")
        start, stop = self._at, self._at + len(view)
        whole = -(-self._committed // PAGE) * PAGE  # a page with committed bytes waits as a whole
        split = min(max(start, whole), stop) if self._error is None else stop
        self._change(start, view[: split - start])
        try:
            done = split
            while done < stop:
                done += os.pwrite(self._file, view[done - start :], done)
        except OSError as error:
            self._error = error
            self._change(done, view[done - start :])
        self._at, self._size = stop, max(self._size, stop)
        return len(view)

    def truncate(self, size: int | None = None, /) -> int:
        """Sets the size that HDF5 knows. The file gets it with the next commit."""
        self._size = self._at if size is None else size
        return self._size

    def close(self) -> None:
        """Closes the file as the last commit left it."""
        if self.closed:
            return
        super().close()
        with suppress(OSError):
            os.ftruncate(self._file, self._committed)
        os.close(self._file)
        if self._partial is not None:
            remove(self._partial)
        if not self._unfinished:
            with suppress(OSError):
                journal_of(self._path).unlink()
        os.close(self._journal)

    # ---------------------------------------------------------------- pages that wait

    def _change(self, start: int, view: memoryview) -> None:
        stop = start + len(view)
        if start == stop:
            return
        for number in range(start // PAGE, -(-stop // PAGE)):
            first, last = max(start, number * PAGE), min(stop, (number + 1) * PAGE)
            if number not in self._pages:
                page = bytearray(os.pread(self._file, PAGE, number * PAGE))
                self._pages[number] = page + bytes(PAGE - len(page))
            self._pages[number][first - number * PAGE : last - number * PAGE] = view[first - start : last - start]

    def _joined_pages(self) -> list[tuple[int, bytes]]:
        """Returns place and bytes of each stretch of pages."""
        joined: list[tuple[int, list[bytes]]] = []
        for number in sorted(self._pages):
            page = bytes(self._pages[number][: max(0, self._size - number * PAGE)])
            if joined and joined[-1][0] + len(joined[-1][1]) == number:
                joined[-1][1].append(page)
            else:
                joined.append((number, [page]))
        return [(number * PAGE, b"".join(pages)) for number, pages in joined]


def recover(path: Path) -> bool:
    """Finishes what a writer that was killed had begun, and returns whether there was something to finish.

    Does nothing while the writer lives, and where there is no journal. A recording and a journal may come from a
    stranger, so only bytes within a plain file of this user change, and never what a link leads to. Raises OSError.
    """
    try:
        journal = os.open(journal_of(path), OPEN)
    except OSError:
        return False
    try:
        try:
            fcntl.flock(journal, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            return False
        _require_own(journal, journal_of(path))
        pages = _read_journal(journal)
        if pages:
            file = os.open(path, OPEN)
            try:
                _require_own(file, path)
                size = os.fstat(file).st_size  # a commit makes the file as long as it will be before its journal
                if any(place + len(data) > size for place, data in pages):
                    raise OSError(errno.EINVAL, "its journal is that of another file", str(path))
                _apply(file, pages)
                os.fsync(file)
            finally:
                os.close(file)
        journal_of(path).unlink()
        return bool(pages)
    finally:
        os.close(journal)


def _require_own(descriptor: int, path: Path) -> None:
    """Raises OSError unless an open file is plain, this user's, and has no second name elsewhere."""
    found = os.fstat(descriptor)
    if not stat.S_ISREG(found.st_mode) or found.st_uid != os.geteuid() or found.st_nlink != 1:
        raise OSError(errno.EPERM, "it is not a plain file of this user's", str(path))


def _write_journal(journal: int, pages: list[tuple[int, bytes]]) -> None:
    body = MAGIC + b"".join(RECORD.pack(place, len(data)) + data for place, data in pages)
    whole = memoryview(body + hashlib.sha256(body).digest())
    done = 0
    while done < len(whole):
        done += os.pwrite(journal, whole[done:], done)
    os.fsync(journal)


def _read_journal(journal: int) -> list[tuple[int, bytes]]:
    """Returns what a journal holds, or nothing if it was not written to its end."""
    size = os.fstat(journal).st_size
    whole = os.pread(journal, size, 0) if size <= MOST_JOURNAL_BYTES else b""
    body, digest = whole[:-32], whole[-32:]
    if not body.startswith(MAGIC) or hashlib.sha256(body).digest() != digest:
        return []
    pages, at = [], len(MAGIC)
    while at < len(body):
        if len(body) - at < RECORD.size:
            return []
        place, count = RECORD.unpack_from(body, at)
        at += RECORD.size
        if count > len(body) - at:
            return []
        pages.append((place, body[at : at + count]))
        at += count
    return pages


def _apply(file: int, pages: list[tuple[int, bytes]]) -> None:
    for place, data in pages:
        view, done = memoryview(data), 0
        while done < len(view):
            done += os.pwrite(file, view[done:], place + done)
