"""A bundle that is not whole is refused, and the error names the file. A bundle is written whole or not at all."""

from __future__ import annotations

import hashlib
import json
import os
import resource
import shutil
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from edgedistill import staging
from edgedistill.bundle import FORMAT, Bundle, open_bundle, write_bundle
from edgedistill.errors import BundleError, OutputError
from edgedistill.scratch import scratch_in

FILES = {"student.onnx": b"graph" * 50, "subjects/spike-student/model.json": b"{}", "empty.bin": b""}
MANIFEST = {"name": "größe", "metrics": {"teacher_r2": 0.7, "int8_r2": None}, "recipe": None}


@pytest.fixture(params=["a.edge", "a.zip"])
def bundle(request: pytest.FixtureRequest, tmp_path: Path) -> Bundle:
    return write_bundle(tmp_path / request.param, MANIFEST, FILES)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write_bundle(tmp_path / "a.edge", MANIFEST, FILES).path


def forged(folder: Path, **changes: object) -> None:
    """Changes a manifest and corrects its hash, as a forger would."""
    manifest = {**json.loads((folder / "manifest.json").read_text()), **changes, "sha256": "0" * 64}
    text = json.dumps(manifest)
    (folder / "manifest.json").write_text(text.replace("0" * 64, hashlib.sha256(text.encode()).hexdigest()))


def test_what_was_written_comes_back(bundle: Bundle) -> None:
    again = open_bundle(str(bundle.path))
    assert again.names == tuple(sorted(FILES))
    assert {name: again.read(name) for name in FILES} == FILES
    assert (again.manifest.name, again.manifest.metrics, again.manifest.recipe) == tuple(MANIFEST.values())
    assert again.manifest.format == FORMAT
    assert again.manifest.files == {name: hashlib.sha256(data).hexdigest() for name, data in FILES.items()}
    assert again.sha256 == bundle.sha256


def test_a_file_is_copied_from_its_beginning_as_often_as_it_is_needed(tmp_path: Path) -> None:
    (tmp_path / "source").write_bytes(b"x" * 3_000_000)
    with (tmp_path / "source").open("rb") as source:
        for name, content in (("a.edge", tmp_path / "source"), ("b.edge", source), ("b.zip", source)):
            assert write_bundle(tmp_path / name, {}, {"big": content}).read("big") == b"x" * 3_000_000


def test_a_copy_of_a_file_is_what_was_checked_and_lies_in_no_named_place(tmp_path: Path, bundle: Bundle) -> None:
    with scratch_in(tmp_path / "scratch"):
        for name in FILES:
            with bundle.open_copy(name) as copy:
                assert copy.read() == FILES[name]
    assert [path.name for path in tmp_path.iterdir()] == [bundle.path.name]


def test_same_content_same_bytes(tmp_path: Path) -> None:
    one, two = (write_bundle(tmp_path / f"{n}.zip", MANIFEST, FILES) for n in "ab")
    assert one.path.read_bytes() == two.path.read_bytes()
    assert write_bundle(tmp_path / "c.edge", MANIFEST, FILES).sha256 == one.sha256


def test_a_zip_of_the_folder_is_the_same_bundle(folder: Path) -> None:
    zipped = Path(shutil.make_archive(str(folder), "zip", folder.parent, folder.name))
    assert open_bundle(zipped).read("student.onnx") == FILES["student.onnx"]


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(where=st.floats(0, 1, exclude_max=True), flip=st.integers(1, 255), data=st.data())
def test_one_changed_byte_is_found_and_its_file_named(
    folder: Path, where: float, flip: int, data: st.DataObject
) -> None:
    name = data.draw(st.sampled_from(["manifest.json", "student.onnx", "subjects/spike-student/model.json"]))
    good = (folder / name).read_bytes()
    raw = bytearray(good)
    raw[int(where * len(raw))] ^= flip
    (folder / name).write_bytes(raw)
    try:
        with pytest.raises(BundleError) as caught:
            open_bundle(folder)
        assert name in str(caught.value)
        assert str(folder) in str(caught.value)
    finally:
        (folder / name).write_bytes(good)


def test_every_changed_byte_of_a_manifest_is_found(folder: Path) -> None:
    good = (folder / "manifest.json").read_bytes()
    for i in range(len(good)):
        raw = bytearray(good)
        raw[i] ^= 1
        (folder / "manifest.json").write_bytes(raw)
        with pytest.raises(BundleError, match=r"manifest\.json"):
            open_bundle(folder)


@settings(max_examples=150, deadline=None)
@given(where=st.floats(0, 1, exclude_max=True), flip=st.integers(1, 255))
def test_a_changed_byte_of_a_zip_never_changes_content(
    where: float, flip: int, tmp_path_factory: pytest.TempPathFactory
) -> None:
    path = tmp_path_factory.mktemp("zip") / "a.zip"
    write_bundle(path, MANIFEST, FILES)
    raw = bytearray(path.read_bytes())
    raw[int(where * len(raw))] ^= flip
    path.write_bytes(raw)
    with suppress(BundleError):  # dates and attributes of the archive are not content
        assert {name: open_bundle(path).read(name) for name in FILES} == FILES


def test_a_truncated_zip_is_refused(tmp_path: Path) -> None:
    whole = write_bundle(tmp_path / "a.zip", MANIFEST, FILES).path.read_bytes()
    cut = tmp_path / "cut.zip"
    for length in range(4, len(whole), 7):
        cut.write_bytes(whole[:length])
        with pytest.raises(BundleError, match=r"cut\.zip.*damaged or cut short"):
            open_bundle(cut)


def test_a_changed_file_is_found_when_read_later(folder: Path) -> None:
    bundle = open_bundle(folder)
    (folder / "student.onnx").write_bytes(b"other")
    with pytest.raises(BundleError, match=r"student\.onnx"):
        bundle.read("student.onnx")
    with scratch_in(folder.parent), pytest.raises(BundleError, match=r"student\.onnx"):
        bundle.open_copy("student.onnx")


def test_a_missing_file_is_named(folder: Path) -> None:
    (folder / "student.onnx").unlink()
    with pytest.raises(BundleError, match=r"'student\.onnx' is missing"):
        open_bundle(folder)


def test_an_unlisted_name_is_refused(bundle: Bundle) -> None:
    with pytest.raises(BundleError, match="no file 'teacher'"):
        bundle.read("teacher")


def test_files_that_a_device_or_a_desktop_adds_are_ignored(folder: Path) -> None:
    (folder / "build" / "host").mkdir(parents=True)
    (folder / "build" / "host" / "build.json").write_text("{}")
    (folder / ".DS_Store").write_text("")
    assert open_bundle(folder).names == tuple(sorted(FILES))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"manifest_version": 3, "name": "browser extension"}, "not an edgedistill bundle"),
        ([1, 2], "not an edgedistill bundle"),
        ({"format": FORMAT + 1, "files": {}, "sha256": ""}, "newer format"),
        ({"format": "1", "files": {}, "sha256": ""}, "no such format"),
        ({"format": 1, "files": [], "sha256": "0" * 64}, "makes no sense"),
        ({"format": 1, "files": {"a": "b"}, "sha256": "0" * 64}, "makes no sense"),
        ({"format": 1, "files": {}, "sha256": "0" * 64}, "was changed"),
    ],
)
def test_a_foreign_manifest_is_refused(tmp_path: Path, content: object, message: str) -> None:
    (tmp_path / "manifest.json").write_text(json.dumps(content))
    with pytest.raises(BundleError, match=message):
        open_bundle(tmp_path)


def test_what_is_no_bundle_is_refused(tmp_path: Path) -> None:
    (tmp_path / "text.zip").write_text("hello")
    (tmp_path / "nothing.zip").write_bytes(b"")
    with zipfile.ZipFile(tmp_path / "other.zip", "w") as archive:
        archive.writestr("readme", "hello")
    for name in (".", "text.zip", "nothing.zip", "other.zip"):
        with pytest.raises(BundleError, match="not an edgedistill bundle"):
            open_bundle(tmp_path / name)
    with pytest.raises(BundleError, match="no such file"):
        open_bundle(tmp_path / "absent.edge")


OUTSIDE = ["../secret", "/etc/passwd", "a/../../b", "a\\..\\b", "C:x", "", ".", "a//b", "./a", "a/", "a\nb"]
RESERVED = ["build/x", "manifest.json"]


@pytest.mark.parametrize("name", OUTSIDE + RESERVED)
def test_names_that_lead_outside_are_neither_written_nor_read(folder: Path, name: str) -> None:
    with pytest.raises(BundleError, match="not a valid name for a file"):
        write_bundle(folder.parent / "b.edge", MANIFEST, {name: b"x"})
    assert not (folder.parent / "b.edge").exists()
    forged(folder, files={name: hashlib.sha256(b"x").hexdigest()})
    with pytest.raises(BundleError, match="not a valid name for a file"):
        open_bundle(folder)


def test_a_link_out_of_the_bundle_is_refused(folder: Path) -> None:
    (folder.parent / "outside").write_bytes(FILES["student.onnx"])
    (folder / "student.onnx").unlink()
    (folder / "student.onnx").symlink_to(folder.parent / "outside")
    with pytest.raises(BundleError, match="link"):
        open_bundle(folder)


def test_a_bundle_is_replaced_whole(bundle: Bundle) -> None:
    if bundle.path.is_dir():
        (bundle.path / "build").mkdir()
    write_bundle(bundle.path, {"name": "second"}, {"only": b"1"})
    assert open_bundle(bundle.path).names == ("only",)
    assert [path.name for path in bundle.path.parent.iterdir()] == [bundle.path.name]
    assert not (bundle.path / "build").exists()


@pytest.mark.parametrize("name", ["thesis", "thesis.zip"])
def test_what_is_not_a_bundle_is_never_overwritten(tmp_path: Path, name: str) -> None:
    target = tmp_path / name
    if name == "thesis":
        target.mkdir()
        target = target / "chapter"
    target.write_text("years of work")
    with pytest.raises(OutputError, match="not a bundle"):
        write_bundle(tmp_path / name, MANIFEST, FILES)
    assert target.read_text() == "years of work"
    assert [path.name for path in tmp_path.iterdir()] == [name]


def test_parents_and_an_empty_folder_are_fine(tmp_path: Path) -> None:
    (tmp_path / "empty.edge").mkdir()
    write_bundle(tmp_path / "empty.edge", MANIFEST, FILES)
    write_bundle(tmp_path / "new" / "a.zip", MANIFEST, FILES)


@contextmanager
def full_disk() -> Iterator[None]:
    """Limits every file to 100 bytes, which comes closest to a full disk without a second file system.

    This is not a fixture, because the limit would still hold while pytest writes its report, and would stop a report to
    a file.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.mark.parametrize("name", ["a.edge", "a.zip"])
def test_a_full_disk_leaves_nothing(tmp_path: Path, name: str) -> None:
    with full_disk(), pytest.raises(OutputError, match="could not be written"):
        write_bundle(tmp_path / name, MANIFEST, FILES)
    assert list(tmp_path.iterdir()) == []


def test_a_full_disk_leaves_the_old_bundle(bundle: Bundle) -> None:
    with full_disk(), pytest.raises(OutputError):
        write_bundle(bundle.path, {"name": "second"}, {"only": b"1" * 1000})
    assert open_bundle(bundle.path).sha256 == bundle.sha256
    assert [path.name for path in bundle.path.parent.iterdir()] == [bundle.path.name]


def test_a_failing_move_leaves_the_old_bundle(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(*_: object) -> None:
        raise OSError(30, "Read-only file system")

    monkeypatch.setattr(staging, "_exchange", fails)
    with pytest.raises(OutputError, match="Read-only"):
        write_bundle(folder, {}, {"only": b"1"})
    assert open_bundle(folder).names == tuple(sorted(FILES))
    assert [path.name for path in folder.parent.iterdir()] == [folder.name]


def test_a_place_that_cannot_hold_files_is_an_output_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError):
        write_bundle(tmp_path / "file" / "a.edge", MANIFEST, FILES)


def test_a_manifest_that_json_cannot_hold_is_refused(tmp_path: Path) -> None:
    for value in (float("nan"), object()):
        with pytest.raises(BundleError, match=r"manifest\.json"):
            write_bundle(tmp_path / "a.edge", {"metrics": {"teacher_r2": value}}, FILES)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("kind", ["pipe", "deep", "large", "device"])
def test_a_folder_whose_manifest_is_odd_is_not_replaced_and_its_manifest_not_waited_for(
    tmp_path: Path, kind: str
) -> None:
    place = tmp_path / "a.edge"
    place.mkdir()
    manifest = place / "manifest.json"
    if kind == "pipe":
        os.mkfifo(manifest)
    elif kind == "device":
        manifest.symlink_to("/dev/zero")
    else:
        manifest.write_bytes(b"[" * (100_000 if kind == "deep" else 9 << 20))
    with pytest.raises(OutputError, match="not a bundle"):
        write_bundle(place, MANIFEST, FILES)
    assert [path.name for path in place.iterdir()] == ["manifest.json"]


@pytest.mark.parametrize("form", [r'"\ud800"', '"\ud800"'])
def test_half_a_character_in_a_name_is_refused(folder: Path, form: str) -> None:
    """No file could be written with such a name, which JSON can hold."""
    text = (folder / "manifest.json").read_text()
    text = text.replace('"größe"', form).replace(json.loads(text)["sha256"], "0" * 64)
    raw = text.encode(errors="surrogatepass")
    (folder / "manifest.json").write_bytes(raw.replace(b"0" * 64, hashlib.sha256(raw).hexdigest().encode()))
    with pytest.raises(BundleError, match="half a character"):
        open_bundle(folder)


def test_bytes_of_a_name_that_are_no_text_become_question_marks(tmp_path: Path) -> None:
    written = write_bundle(tmp_path / "a.edge", {"name": b"ses\xff".decode(errors="surrogateescape")}, FILES)
    assert written.manifest.name == "ses?"
