"""A recording from a stranger that leads to a pipe or a device is refused at once, and not waited for."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import h5py
import pytest

from edgedistill.data.opening.digest import file_sha256
from edgedistill.data.opening.opening import open_nwb
from edgedistill.errors import RecordingError

SHAPE = (100, 3)


def link(file: h5py.File, target: Path) -> None:
    file["acquisition/more"] = h5py.ExternalLink(str(target), "/group")


def link_to_a_link(file: h5py.File, target: Path) -> None:
    between = Path(file.filename).with_name("between.h5")
    with h5py.File(between, "w") as other:
        other["group"] = h5py.ExternalLink(str(target), "/group")
        other["back"] = h5py.ExternalLink(Path(file.filename).name, "/")
    file["acquisition/more"] = h5py.ExternalLink(between.name, "/")


def store_outside(file: h5py.File, target: Path) -> None:
    file.create_dataset("acquisition/more", SHAPE, "i2", external=[(str(target), 0, h5py.h5f.UNLIMITED)])


def make_virtual(file: h5py.File, target: Path) -> None:
    layout = h5py.VirtualLayout(shape=SHAPE, dtype="i2")
    layout[:] = h5py.VirtualSource(str(target), "values", shape=SHAPE)
    file.create_virtual_dataset("acquisition/more", layout)


@pytest.mark.timeout(60)
@pytest.mark.parametrize("kind", ["pipe", "device"])
@pytest.mark.parametrize("lead", [link, link_to_a_link, store_outside, make_virtual])
def test_what_leads_to_no_plain_file_is_refused_by_name(
    tmp_path: Path, whole: Path, lead: Callable[[h5py.File, Path], None], kind: str
) -> None:
    path, target = tmp_path / "a.nwb", tmp_path / "pipe" if kind == "pipe" else Path("/dev/zero")
    shutil.copy(whole, path)
    if kind == "pipe":
        os.mkfifo(target)
    with h5py.File(path, "r+") as file:
        lead(file, target)
    for use in (open_nwb, file_sha256):
        with pytest.raises(RecordingError, match=f"leads to {target}, which is not a plain file"):
            use(path)


def test_names_that_no_disk_allows_lead_nowhere(tmp_path: Path, whole: Path) -> None:
    path = tmp_path / "a.nwb"
    shutil.copy(whole, path)
    with h5py.File(path, "r+") as file:
        file["acquisition/more"] = h5py.ExternalLink("x" * 5000, "/group")
    reader, _, unreadable = open_nwb(path)
    reader.close()
    assert [part.path for part in unreadable] == ["acquisition/more"]
    assert file_sha256(path)
