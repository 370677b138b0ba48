"""The digest of a session stands for all of its samples, also for those that lie in other files."""

from __future__ import annotations

import errno
import hashlib
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

from edgedistill.data.opening.digest import file_sha256, find_other_files
from edgedistill.errors import RecordingError

DATA = np.arange(12, dtype=np.int16).reshape(4, 3)


def write_raw(folder: Path, name: str = "raw.h5") -> Path:
    with h5py.File(folder / name, "w") as raw:
        raw["group/data"] = DATA
    return folder / name


def link(file: h5py.File) -> list[Path]:
    raw = write_raw(Path(file.filename).parent)
    file["acquisition/lfp"] = h5py.ExternalLink(raw.name, "/group")
    return [raw]


def link_to_a_link(file: h5py.File) -> list[Path]:
    raw = write_raw(Path(file.filename).parent)
    with h5py.File(raw.with_name("middle.h5"), "w") as middle:
        middle["lfp"] = h5py.ExternalLink(raw.name, "/group")
        middle["back"] = h5py.ExternalLink(Path(file.filename).name, "/")
    file["acquisition"] = h5py.ExternalLink("middle.h5", "/")
    return [raw, raw.with_name("middle.h5")]


def store_outside(file: h5py.File) -> list[Path]:
    raw = Path(file.filename).parent / "values.bin"
    raw.write_bytes(DATA.tobytes())
    file.create_dataset("acquisition/lfp", DATA.shape, DATA.dtype, external=[(str(raw), 0, DATA.nbytes)])
    return [raw]


def make_virtual(file: h5py.File) -> list[Path]:
    raw = write_raw(Path(file.filename).parent)
    layout = h5py.VirtualLayout(shape=DATA.shape, dtype=DATA.dtype)
    layout[:] = h5py.VirtualSource(raw.name, "group/data", shape=DATA.shape)
    file.create_virtual_dataset("acquisition/lfp", layout)
    return [raw]


def make_virtual_of_many(file: h5py.File) -> list[Path]:
    folder = Path(file.filename).parent
    space = h5py.h5s.create_simple((0, 3), (h5py.h5s.UNLIMITED, 3))
    settings = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
    source = h5py.h5s.create_simple(DATA.shape)
    space.select_hyperslab((0, 0), (h5py.h5s.UNLIMITED, 1), stride=DATA.shape, block=DATA.shape)
    settings.set_virtual(space, b"raw-%b.h5", b"group/data", source)
    h5py.h5d.create(file.id, b"lfp", h5py.h5t.NATIVE_INT16, space, dcpl=settings)
    return [write_raw(folder, f"raw-{part}.h5") for part in range(2)]


def end_differently(path: Path) -> None:
    if path.suffix == ".bin":
        path.write_bytes(bytes(DATA.nbytes))
        return
    with h5py.File(path, "a") as file:
        file.attrs["changed"] = 1


@pytest.mark.parametrize("refer", [link, link_to_a_link, store_outside, make_virtual, make_virtual_of_many])
def test_data_in_other_files_count(tmp_path: Path, refer: Callable[[h5py.File], list[Path]]) -> None:
    path = tmp_path / "a.nwb"
    with h5py.File(path, "w") as file:
        file["plain"] = DATA
    plain = file_sha256(path)
    assert plain == hashlib.sha256(path.read_bytes()).hexdigest()
    with h5py.File(path, "a") as file:
        others = refer(file)
    assert sorted(find_other_files(path)) == sorted(others)
    digests = {plain, hashlib.sha256(path.read_bytes()).hexdigest(), file_sha256(path)}
    assert file_sha256(path) in digests
    for other in others:
        end_differently(other)
        digests.add(file_sha256(path))
    assert len(digests) == 3 + len(others)
    others[0].rename(tmp_path / "gone")
    assert others[0] not in find_other_files(path)


def test_links_inside_a_file_and_those_that_lead_nowhere_change_nothing(tmp_path: Path) -> None:
    path = tmp_path / "a.nwb"
    with h5py.File(path, "w") as file:
        file["a/data"] = DATA
        file["a/up"] = file["/"]
        file["soft"] = h5py.SoftLink("/a/data")
        file["lost"] = h5py.SoftLink("/b")
        file["gone"] = h5py.ExternalLink("gone.h5", "/")
    assert find_other_files(path) == []
    assert file_sha256(path) == hashlib.sha256(path.read_bytes()).hexdigest()


def test_a_drive_that_fails_is_an_error_of_the_recording(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_raw(tmp_path)

    def fail(self: Path, *args: Any, **settings: Any) -> Any:
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(Path, "open", fail)
    with pytest.raises(RecordingError, match=r"raw\.h5: the drive failed while the file was read"):
        file_sha256(path)


def test_a_link_that_was_not_fetched_names_datalad(tmp_path: Path) -> None:
    (tmp_path / "a.nwb").symlink_to(tmp_path / "gone")
    with pytest.raises(RecordingError, match="datalad get"):
        file_sha256(tmp_path / "a.nwb")


def test_a_pipe_is_refused_at_once(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "a.nwb")
    with pytest.raises(RecordingError, match="not a plain file"):
        file_sha256(tmp_path / "a.nwb")
