"""A file of a stream grows with it, stays whole lines where the disk is full, and takes no memory."""

from __future__ import annotations

import resource
import tracemalloc
from collections.abc import Iterator
from contextlib import contextmanager
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest

from edgedistill.decoding import Predictions, Tally, format_csv_line, write_predictions
from edgedistill.errors import OutputError
from edgedistill.runtime import Flag, Output
from edgedistill.runtime.decoder import DecoderInfo
from edgedistill.stream_file import StreamFile

INFO = DecoderInfo("name", "c", "0" * 64, Fraction(1000), ("a", "b"), ("x", "y"), ("cm/s", "cm/s"), 1.0, 0.0, 10)


def outputs(first: int, stop: int) -> list[Output]:
    rng = np.random.default_rng(first)
    values = rng.normal(size=(2, stop - first, 2)).astype(np.float32)
    return [Output(first + i, 10 * (first + i) + 9, Flag(i % 32), i % 3, *values[:, i]) for i in range(stop - first)]


@contextmanager
def largest_file(size: int) -> Iterator[None]:
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def fill(file: StreamFile, at_once: int) -> None:
    for first in range(0, 100 * at_once, at_once):
        file.write(outputs(first, first + at_once))


def test_csv_grows_with_every_write_to_what_is_written_at_once(tmp_path: Path) -> None:
    made, path = outputs(0, 50), tmp_path / "out.csv"
    path.write_text("old")
    with StreamFile(path, INFO) as file:
        for i in range(0, 50, 10):
            file.write(made[i : i + 10])
            assert path.read_text().splitlines()[-1] == format_csv_line(made[i + 9])
    write_predictions(Predictions(INFO, tuple(made)), tmp_path / "whole.csv")
    assert path.read_bytes() == (tmp_path / "whole.csv").read_bytes()


def test_nwb_can_be_read_after_each_flush_and_equals_what_is_written_at_once(tmp_path: Path) -> None:
    import h5py

    made, path = outputs(0, 50), tmp_path / "out.nwb"
    with StreamFile(path, INFO) as file:
        file.write(made[:30])
        file.flush(sync=True)
        (tmp_path / "killed.nwb").write_bytes(path.read_bytes())  # what a power cut would leave
        file.write(made[30:])
    write_predictions(Predictions(INFO, tuple(made)), tmp_path / "whole.nwb")
    series = "processing/behavior/decoded"
    with (
        h5py.File(path) as found,
        h5py.File(tmp_path / "whole.nwb") as whole,
        h5py.File(tmp_path / "killed.nwb") as cut,
    ):
        for name in ("kinematics", "deviation", "flags", "bad_channels"):
            data = whole[series][name]["data"][:]
            assert np.array_equal(found[series][name]["data"][:], data)
            assert np.array_equal(cut[series][name]["data"][:], data[:30])
            assert found[series][name]["starting_time"][()] == whole[series][name]["starting_time"][()] == 0.01
            assert found[series][name]["data"].attrs["unit"] == whole[series][name]["data"].attrs["unit"]


def test_a_full_disk_keeps_whole_lines_and_says_the_cause(tmp_path: Path) -> None:
    path = tmp_path / "out.csv"
    with largest_file(1000), pytest.raises(OutputError, match="stay in the file"), StreamFile(path, INFO) as file:
        fill(file, 1)
    text = path.read_text()
    assert text.endswith("\n")
    assert 900 < len(text) <= 1000
    assert [int(line.split(",")[0]) for line in text.splitlines()[1:]] == list(range(text.count("\n") - 1))
    (tmp_path / "full.csv").symlink_to("/dev/full")
    with pytest.raises(OutputError, match="the disk is full"):
        StreamFile(tmp_path / "full.csv", INFO)


def test_a_full_disk_ends_nwb_with_a_message(tmp_path: Path) -> None:
    path = tmp_path / "out.nwb"
    with (
        largest_file(1 << 20),
        pytest.raises(OutputError, match="could not be written"),
        StreamFile(path, INFO) as file,
    ):
        fill(file, 2000)


def test_memory_is_flat(tmp_path: Path) -> None:
    tally, made = Tally(), outputs(0, 100)
    with StreamFile(tmp_path / "out.csv", INFO) as file:
        tracemalloc.start()
        try:
            for _ in range(200):
                file.write(made)
                tally.add(made)
            peak = tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()
    assert tally.bins == 20_000
    assert (tmp_path / "out.csv").stat().st_size > 1_000_000
    assert peak < 200_000


def test_a_tally_counts_as_predictions_do() -> None:
    made = outputs(0, 100)
    tally = Tally().add(made[:40]).add(made[40:])
    predictions = Predictions(INFO, tuple(made))
    assert tally.counts() == {str(f.name).lower(): int(np.count_nonzero(predictions.flags & f)) for f in Flag}
    assert (tally.bins, tally.most_bad) == (100, 2)
