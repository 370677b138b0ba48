"""Frames come out the same whatever the chunks of the dataset are, and no chunk is unpacked more often than needed."""

from __future__ import annotations

import errno
import os
import shutil
import tempfile
from pathlib import Path
from typing import Any, NamedTuple

import h5py
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgedistill.data.lfp import blocks as lfp_blocks
from edgedistill.data.lfp.blocks import FrameReader
from edgedistill.errors import RecordingError

FRAMES, CHANNELS = 5000, 6
DATA = np.arange(FRAMES * CHANNELS, dtype=np.int16).reshape(FRAMES, CHANNELS)


@pytest.fixture(autouse=True)
def small_spans(monkeypatch: pytest.MonkeyPatch) -> None:
    """Makes 5000 frames look like an hour."""
    monkeypatch.setattr(lfp_blocks, "SPAN_BYTES", 4096)
    monkeypatch.setattr(lfp_blocks, "MOST_SPAN_BYTES", 16384)


class Counting:
    """Stands for a dataset, and counts how many stored numbers were read."""

    def __init__(self, data: h5py.Dataset) -> None:
        self._data, self.read = data, 0

    def __getattr__(self, name: str) -> Any:
        return getattr(self._data, name)

    def __getitem__(self, where: Any) -> Any:
        found = self._data[where]
        self.read += found.size
        return found


def open_reader(path: Path, data: np.ndarray, transposed: bool = False, **how: Any) -> tuple[FrameReader, Counting]:
    file = h5py.File(path / "a.h5", "w")
    dataset = Counting(file.create_dataset("data", data=data.T if transposed else data, **how))
    channels = 1 if data.ndim == 1 else data.shape[1]
    return FrameReader(dataset, len(data), channels, transposed, path / "a.h5", "acquisition/lfp"), dataset


GZIP = {"compression": "gzip"}


class Chunking(NamedTuple):
    how: dict[str, Any]
    scratch: bool


CHUNKINGS = {
    "contiguous": Chunking({}, False),
    "rows": Chunking({"chunks": (64, CHANNELS), **GZIP}, False),
    "tiles": Chunking({"chunks": (300, 4), **GZIP}, False),
    "long tiles": Chunking({"chunks": (3000, 4), **GZIP}, True),
    "columns": Chunking({"chunks": (FRAMES, 1), **GZIP}, True),
    "columns as they are": Chunking({"chunks": (FRAMES, 1)}, True),
}


@pytest.fixture(params=CHUNKINGS)
def chunking(request: pytest.FixtureRequest) -> Chunking:
    return CHUNKINGS[request.param]


@pytest.fixture(params=[False, True], ids=["time first", "channels first"])
def transposed(request: pytest.FixtureRequest) -> bool:
    return bool(request.param)


def turn(chunking: Chunking, transposed: bool) -> dict[str, Any]:
    chunks = chunking.how.get("chunks")
    return {**chunking.how, "chunks": chunks[::-1]} if transposed and chunks else chunking.how


def test_a_whole_pass_unpacks_every_chunk_once(tmp_path: Path, chunking: Chunking, transposed: bool) -> None:
    reader, dataset = open_reader(tmp_path, DATA, transposed, **turn(chunking, transposed))
    blocks = [reader.read(at, min(at + 333, FRAMES), streaming=True) for at in range(0, FRAMES, 333)]
    np.testing.assert_array_equal(np.concatenate(blocks), DATA)
    assert dataset.read == DATA.size
    assert (reader._scratch is not None) == chunking.scratch


@settings(deadline=None, max_examples=15)
@given(pieces=st.lists(st.tuples(st.integers(0, FRAMES - 1), st.integers(1, FRAMES)), min_size=1, max_size=8))
@pytest.mark.parametrize("name", CHUNKINGS)
def test_any_pieces_in_any_order_are_right(
    tmp_path_factory: pytest.TempPathFactory, name: str, pieces: list[tuple[int, int]]
) -> None:
    reader, _ = open_reader(tmp_path_factory.mktemp("pieces"), DATA, **CHUNKINGS[name].how)
    for start, length in pieces:
        np.testing.assert_array_equal(reader.read(start, min(start + length, FRAMES)), DATA[start : start + length])


def test_many_single_reads_of_long_columns_stay_linear(tmp_path: Path) -> None:
    reader, dataset = open_reader(tmp_path, DATA, chunks=(FRAMES, 1), **GZIP)
    np.testing.assert_array_equal(reader.read(100, 110), DATA[100:110])
    assert reader._scratch is None  # the first look needs no scratch file
    for at in range(0, FRAMES, 10):
        np.testing.assert_array_equal(reader.read(at, at + 10), DATA[at : at + 10])
    assert dataset.read < 1.1 * DATA.size


@pytest.mark.parametrize("kind", ["<i2", ">i2", "<f4", "<f8", "<i4", "<u2"])
def test_number_types_survive_the_scratch_file(tmp_path: Path, kind: str) -> None:
    data = DATA.astype(kind)
    reader, _ = open_reader(tmp_path, data, chunks=(FRAMES, 1), **GZIP)
    found = reader.read(10, 3000, streaming=True)
    assert found.dtype == data.dtype.newbyteorder("=")
    np.testing.assert_array_equal(found, data[10:3000])


def test_one_channel_in_one_dimension_is_read(tmp_path: Path) -> None:
    reader, _ = open_reader(tmp_path, np.arange(20_000, dtype=np.int16), chunks=(20_000,), **GZIP)
    np.testing.assert_array_equal(reader.read(5, 12_000, streaming=True)[:, 0], np.arange(5, 12_000))


def test_stretches_of_one_channel(tmp_path: Path, chunking: Chunking, transposed: bool) -> None:
    reader, _ = open_reader(tmp_path, DATA, transposed, **turn(chunking, transposed))
    found = reader.read_channel(2, [10, 1010, 2010], 100)
    np.testing.assert_array_equal(found, [DATA[at : at + 100, 2] for at in (10, 1010, 2010)])


@pytest.fixture
def tmpdir_of_test(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "scratch"
    folder.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    return folder


def test_the_scratch_file_has_no_name(tmp_path: Path, tmpdir_of_test: Path) -> None:
    reader, _ = open_reader(tmp_path, DATA, chunks=(FRAMES, 1), **GZIP)
    reader.read(0, 10, streaming=True)
    assert reader._scratch is not None
    assert list(tmpdir_of_test.iterdir()) == []


def test_without_room_the_error_names_tmpdir_and_the_bytes(
    tmp_path: Path, tmpdir_of_test: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    reader, _ = open_reader(tmp_path, DATA, chunks=(FRAMES, 1), **GZIP)
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: shutil._ntuple_diskusage(10**9, 10**9, 1000))
    with pytest.raises(RecordingError) as caught:
        reader.read(0, 10, streaming=True)
    message = str(caught.value)
    assert all(part in message for part in ("TMPDIR", str(tmpdir_of_test), f"{DATA.nbytes} bytes", "acquisition/lfp"))


def test_a_scratch_file_that_cannot_be_read_or_made_names_tmpdir(
    tmp_path: Path, tmpdir_of_test: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*args: Any, **settings: Any) -> Any:
        raise OSError(errno.EIO, "Input/output error")

    reader, _ = open_reader(tmp_path, DATA, chunks=(FRAMES, 1), **GZIP)
    with monkeypatch.context() as broken:
        broken.setattr(tempfile, "mkstemp", fail)
        with pytest.raises(RecordingError, match=f"Input/output error in {tmpdir_of_test}"):
            reader.read(0, 10, streaming=True)
    monkeypatch.setattr(os, "preadv", fail)
    with pytest.raises(RecordingError, match=f"Input/output error in {tmpdir_of_test}"):
        reader.read(0, 10, streaming=True)


def test_a_damaged_chunk_is_a_read_error_and_no_full_disk(tmp_path: Path) -> None:
    reader, dataset = open_reader(tmp_path, DATA, chunks=(FRAMES, 1), **GZIP)
    dataset.id.write_direct_chunk((0, 3), b"no gzip")
    with pytest.raises(RecordingError) as caught:
        reader.read(0, 10, streaming=True)
    message = str(caught.value)
    assert "cannot be read" in message
    assert "acquisition/lfp" in message
    assert "room" not in message
