"""Reads sessions as bins, several at a time, and each NWB file only once.

Paths of NWB files or folders go in, and a `Catalogue` of `SessionBins` comes out. This module imports nothing from
models or training, so that a change there does not make a file be read again.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import asdict, dataclass, replace
from multiprocessing import get_context
from pathlib import Path

from edgedistill import ranks
from edgedistill.config import NO_BANDS, BandPower
from edgedistill.data.bins import (
    SessionBins,
    bins_from_recording,
    file_sha256,
    load_session_bins,
    save_session_bins,
)
from edgedistill.data.opening.catalogue import ONE_BY_ONE, ReadingOptions, expand_paths
from edgedistill.data.opening.digest import require_unchanged
from edgedistill.data.opening.hdf5_files import reading_error, system_error
from edgedistill.data.opening.session_files import drop_repeats, find_session_files
from edgedistill.data.recording import SeriesNames, open_recording
from edgedistill.data.session_loading import combine_sessions, find_copies
from edgedistill.errors import RecordingError
from edgedistill.files import find_number
from edgedistill.pipeline.cache import Cache, Stage, wait_until_seen
from edgedistill.scratch import scratch_in

logger = logging.getLogger(__name__)

BINS = "bins.safetensors"  # the file of a session in the folder of its stage
LONGEST_NAME = 200  # bytes of a file's name in that of its stage, which gets 30 more; names end at 255


@dataclass(frozen=True)
class Skipped:
    """Names a file or path that was left out, and says why."""

    path: str
    error: RecordingError

    def to_json(self) -> dict[str, object]:
        """Returns the entry as it stands in the JSON answers of the commands under `skipped`."""
        got = None if self.error.got is None else str(self.error.got)
        return {"path": self.path, "what": self.error.what, "got": got, "next_step": self.error.next_step}


@dataclass(frozen=True)
class Catalogue:
    """Holds the sessions of a run in the order of time, and what was left out."""

    sessions: list[SessionBins]
    skipped: tuple[Skipped, ...] = ()


@dataclass(frozen=True)
class _Reading:
    """Holds what the reading of a file depends on, for another process."""

    root: Path  # of the cache
    names: SeriesNames
    line_hz: float
    bands: BandPower
    need: tuple[str, ...]
    also: tuple[str, ...]


def read_sessions(
    cache: Cache,
    data: Sequence[Path],
    names: SeriesNames,
    line_hz: float,
    bands: BandPower = NO_BANDS,
    need: tuple[str, ...] = ("lfp", "units", "behavior"),
    also: tuple[str, ...] = (),
) -> list[SessionBins]:
    """Returns the sessions of `read_catalogue`, one read after another."""
    return read_catalogue(cache, data, names, line_hz, bands, need=need, also=also).sessions


def read_catalogue(
    cache: Cache,
    data: Sequence[Path],
    names: SeriesNames,
    line_hz: float,
    bands: BandPower = NO_BANDS,
    options: ReadingOptions = ONE_BY_ONE,
    *,
    need: tuple[str, ...] = ("lfp", "units", "behavior"),
    also: tuple[str, ...] = (),
) -> Catalogue:
    """Returns the bins of every session in `data`. A file that was read before comes from the cache.

    Each session gets the parts in `need`, and those in `also` if its file has them. A copy of a session is left out.
    Raises RecordingError for a file that cannot be read, lacks a part in `need` or changes while it is read, unless
    such files are left out, and where no session remains. How each session was read is logged, one line at a time.
    """
    reading = _Reading(cache.root, names, line_hz, bands, need, also)

    def read() -> tuple[list[tuple[Path, Path]], list[Skipped]]:
        files, skipped = find_files(data, options.skip_bad)
        kept: list[tuple[Path, Path]] = []
        for path, found in zip(files, read_files(reading, files, options.jobs), strict=True):
            if isinstance(found, RecordingError):
                if not options.skip_bad:
                    raise found
                skipped.append(Skipped(str(path), found))
                continue
            folder, stage = found
            cache.note(stage.name, stage.seconds, stage.cached, stage.damage)
            kept.append((path, folder))
        return kept, skipped

    kept, skipped = ranks.lead(read)
    sessions = [replace(load_session_bins(wait_until_seen(folder) / BINS), path=str(path)) for path, folder in kept]
    skipped += [Skipped(path, error) for path, error in find_copies(sessions).items()]
    for one in skipped:
        logger.info("left out: %s", one.error.what + ("" if one.error.got is None else f" ({one.error.got})"))
    if not sessions:
        raise RecordingError(
            "none of the sessions can be used",
            got=f"{len(skipped)} left out; the first: {skipped[0].error.what}",
            next_step="edgedistill inspect says what is wrong with a file",
        )
    combined = combine_sessions(sessions)
    for session in combined:
        for line in describe_session(session):
            logger.info(line)
    return Catalogue(combined, tuple(skipped))


def find_files(data: Sequence[Path], skip_bad: bool) -> tuple[list[Path], list[Skipped]]:
    """Returns the files of `data`, and the paths without any, which are left out where `skip_bad` says so."""
    if not skip_bad:
        return find_session_files(list(data)), []
    skipped: list[Skipped] = []

    def try_one(find: Callable[[list[Path]], list[Path]], path: Path) -> list[Path]:
        try:
            return find([path])
        except RecordingError as error:
            skipped.append(Skipped(str(path), error))
            return []

    paths = [path for named in data for path in try_one(expand_paths, named)]
    return drop_repeats(file for path in paths for file in try_one(find_session_files, path)), skipped


def read_files(reading: _Reading, files: Sequence[Path], jobs: int) -> Iterator[tuple[Path, Stage] | RecordingError]:
    """Yields for each file the folder with its bins and how long it took, or why it cannot be read, in order.

    Each of `jobs` processes reads one file at a time. What comes out does not depend on their number.
    """
    if jobs == 1 or len(files) == 1:
        yield from (read_file(reading, path) for path in files)
        return
    with ProcessPoolExecutor(min(jobs, len(files)), get_context("spawn")) as pool:
        waiting = [pool.submit(read_file, reading, path) for path in files]
        try:
            for path, future in zip(files, waiting, strict=True):
                yield _collect(reading, path, future)
        finally:
            pool.shutdown(cancel_futures=True)


def _collect(
    reading: _Reading, path: Path, future: Future[tuple[Path, Stage] | RecordingError]
) -> tuple[Path, Stage] | RecordingError:
    """Returns what a process read. Where one has died, the file is read again alone, so that the right one is named."""
    try:
        return future.result()
    except BrokenProcessPool:
        pass
    with ProcessPoolExecutor(1, get_context("spawn")) as pool:
        try:
            return pool.submit(read_file, reading, path).result()
        except BrokenProcessPool:
            return RecordingError(
                f"{path}: the process that read this file has died",
                causes=("the memory was full, and the system ended it", "the file makes the HDF5 library crash"),
                next_step=f"edgedistill inspect {path}, or read fewer files at a time with --jobs 1",
            )


def read_file(reading: _Reading, path: Path) -> tuple[Path, Stage] | RecordingError:
    """Returns the folder with the bins of a file, read if they are not kept, and its stage; or why it is not read."""
    cache, names = Cache(reading.root), reading.names
    try:
        digest = file_sha256(path)

        def make(folder: Path) -> None:
            try:
                with scratch_in(folder), require_unchanged(path, digest), open_recording(path, names) as recording:
                    bins = bins_from_recording(
                        recording,
                        need=reading.need,
                        also=reading.also,
                        line_hz=reading.line_hz,
                        bands=reading.bands,
                        sha256=digest,
                    )
                    save_session_bins(bins, folder / BINS)
            except OSError as error:  # the cache would take it for a full disk
                raise reading_error(path, str(error), find_number(error)) from error

        inputs = [digest, asdict(names), reading.line_hz, asdict(reading.bands), reading.need, reading.also]
        folder = cache.stage(f"read-{shorten(path.stem)}", inputs, make)
    except RecordingError as error:
        return error
    except PermissionError as error:  # the cache has reported its own
        return system_error(path, error)
    return folder, cache.stages[-1]


def shorten(name: str) -> str:
    """Returns the beginning of a name that would be too long for a folder with a hash behind it."""
    raw = os.fsencode(name)
    return name if len(raw) <= LONGEST_NAME else raw[:LONGEST_NAME].decode(errors="ignore")


def describe_session(session: SessionBins) -> list[str]:
    """Returns what a person should know of how a session was read: its series, what is left out, and notes."""
    series = ", ".join(f"{part} {path}" for part, path in session.series.items())
    return [
        f"{session.session_id}: {series}; {session.coverage.to_text()}",
        *(f"{session.session_id}: note: {note}" for note in session.notes),
    ]
