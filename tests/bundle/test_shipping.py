"""A bundle that is shipped as one file becomes the same bundle again, with the files prepared for a device."""

from __future__ import annotations

import zipfile
from pathlib import Path

import pytest

from edgedistill.bundle import open_bundle, ship, write_bundle
from edgedistill.errors import BundleError, OutputError


def written(path: Path) -> Path:
    write_bundle(path, {"name": "d"}, {"student.onnx": b"graph", "subjects/spike-student/model.json": b"{}"})
    (path / "build/jetson/c").mkdir(parents=True)
    (path / "build/jetson/c/ed_api.c").write_text("int x;\n" * 100)
    (path / "build/.jetson.0123.tmp").mkdir()
    (path / "build/.jetson.0123.tmp/half").write_text("half-written")
    return path


def test_it_is_a_bundle_unopened_and_unpacked(tmp_path: Path) -> None:
    folder = written(tmp_path / "decoder.edge")
    shipped = ship(open_bundle(folder))
    assert shipped == tmp_path / "decoder.edge.zip"
    assert open_bundle(shipped).sha256 == open_bundle(folder).sha256
    with zipfile.ZipFile(shipped) as archive:
        archive.extractall(tmp_path / "there")
    there = tmp_path / "there/decoder.edge"
    assert open_bundle(there).sha256 == open_bundle(folder).sha256
    assert (there / "build/jetson/c/ed_api.c").read_text() == "int x;\n" * 100
    assert not list(there.rglob("half"))


def test_the_same_bundle_gives_the_same_bytes_and_replaces_the_zip_before(tmp_path: Path) -> None:
    folder = written(tmp_path / "decoder.edge")
    first = ship(open_bundle(folder)).read_bytes()
    assert ship(open_bundle(folder)).read_bytes() == first
    assert not [path for path in tmp_path.iterdir() if path.name.startswith(".")]


def test_what_is_damaged_or_in_the_way_is_told(tmp_path: Path) -> None:
    folder = written(tmp_path / "decoder.edge")
    bundle = open_bundle(folder)
    (tmp_path / "decoder.edge.zip").write_text("a letter")
    with pytest.raises(OutputError, match="not a bundle"):
        ship(bundle)
    (tmp_path / "decoder.edge.zip").unlink()
    (folder / "student.onnx").write_bytes(b"other")
    with pytest.raises(BundleError, match=r"student\.onnx"):
        ship(bundle)
    assert not (tmp_path / "decoder.edge.zip").exists()
