"""A signature tells who signed exactly this content. Everything else is refused, each fault in its own words."""

from __future__ import annotations

import hashlib
import json
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from edgedistill.bundle import (
    SIGNATURE,
    load_signing_key,
    open_bundle,
    require_signature,
    ship,
    sign_bundle,
    write_bundle,
)
from edgedistill.errors import BundleError, ConfigError, EdgeDistillError, OutputError, SignatureError

from ..signatures import make_keys, rewrite_manifest

pytest.importorskip("cryptography", reason="cryptography comes with the extra sign")

FILES = {"student.onnx": b"graph", "subjects/model.json": b"{}"}


@pytest.fixture
def keys(tmp_path: Path) -> tuple[Path, Path]:
    return make_keys(tmp_path)


def signed(path: Path, private: Path, **facts: object) -> Path:
    sign_bundle(write_bundle(path, {"name": "d", **facts}, FILES), load_signing_key(private))
    return path


@pytest.mark.parametrize("form", ["openssh", "pem"])
@pytest.mark.parametrize("name", ["d.edge", "d.zip"])
def test_the_owner_of_the_key_is_told(tmp_path: Path, name: str, form: str) -> None:
    private, public = make_keys(tmp_path, form=form)
    path = signed(tmp_path / name, private)
    assert require_signature(open_bundle(path), public).startswith("SHA256:")


def test_a_fingerprint_is_that_of_ssh_keygen(tmp_path: Path) -> None:
    if shutil.which("ssh-keygen") is None:
        pytest.skip("ssh-keygen is not installed")
    subprocess.run(
        ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(tmp_path / "own")], check=True, timeout=240
    )
    listed = subprocess.run(
        ["ssh-keygen", "-lf", str(tmp_path / "own.pub")], check=True, capture_output=True, text=True, timeout=240
    )
    path = signed(tmp_path / "d.edge", tmp_path / "own")
    assert require_signature(open_bundle(path), tmp_path / "own.pub") == listed.stdout.split()[1]


def test_what_is_signed_is_the_hash_of_the_manifest(tmp_path: Path, keys: tuple[Path, Path]) -> None:
    """The statement of docs/cli.md, which other programs can check: a line with the hash, and a raw signature."""
    from base64 import b64decode

    from cryptography.hazmat.primitives.serialization import load_ssh_public_key

    path = signed(tmp_path / "d.edge", keys[0])
    signature = b64decode(json.loads((path / SIGNATURE).read_bytes())["signature"])
    message = f"edgedistill bundle sha256:{open_bundle(path).sha256}\n".encode()
    load_ssh_public_key(keys[1].read_bytes()).verify(signature, message)  # type: ignore[call-arg, union-attr]


def test_a_zip_of_a_signed_folder_is_signed_packed_and_unpacked(tmp_path: Path, keys: tuple[Path, Path]) -> None:
    packed = ship(open_bundle(signed(tmp_path / "d.edge", keys[0])))
    require_signature(open_bundle(packed), keys[1])
    with zipfile.ZipFile(packed) as archive:
        archive.extractall(tmp_path / "there")
    require_signature(open_bundle(tmp_path / "there/d.edge"), keys[1])


# ---------------------------------------------------------------- refusals


@pytest.mark.parametrize("name", ["d.edge", "d.zip"])
def test_a_bundle_without_a_signature_is_refused(tmp_path: Path, keys: tuple[Path, Path], name: str) -> None:
    bundle = write_bundle(tmp_path / name, {"name": "d"}, FILES)
    with pytest.raises(SignatureError, match="not signed") as caught:
        require_signature(bundle, keys[1])
    assert SIGNATURE in str(caught.value)


def test_another_key_is_refused_with_both_fingerprints(tmp_path: Path, keys: tuple[Path, Path]) -> None:
    private, other = make_keys(tmp_path, "other")
    path = signed(tmp_path / "d.edge", keys[0])
    own = require_signature(open_bundle(path), keys[1])
    with pytest.raises(SignatureError, match="not signed with the key") as caught:
        require_signature(open_bundle(path), other)
    assert own in str(caught.value.got)
    assert caught.value.expected == sign_bundle(open_bundle(path), load_signing_key(private))


def test_a_changed_manifest_is_refused_although_its_hashes_are_right(tmp_path: Path, keys: tuple[Path, Path]) -> None:
    path = signed(tmp_path / "d.edge", keys[0])
    rewrite_manifest(path, b'"name": "d"', b'"name": "e"')
    with pytest.raises(SignatureError, match="not the content that was signed"):
        require_signature(open_bundle(path), keys[1])


def test_a_changed_file_is_refused_with_its_old_and_with_its_new_hash(tmp_path: Path, keys: tuple[Path, Path]) -> None:
    path = signed(tmp_path / "d.edge", keys[0])
    was = hashlib.sha256(b"graph").hexdigest().encode()
    (path / "student.onnx").write_bytes(b"other")
    with pytest.raises(BundleError, match=r"'student\.onnx' was changed"):
        open_bundle(path)
    (path / "student.onnx").write_bytes(b"graph")
    new = hashlib.sha256(b"other").hexdigest().encode()
    rewrite_manifest(path, was, new, **{"student.onnx": b"other"})
    with pytest.raises(SignatureError, match="not the content that was signed"):
        require_signature(open_bundle(path), keys[1])


def test_a_signature_of_another_bundle_is_refused(tmp_path: Path, keys: tuple[Path, Path]) -> None:
    first, second = (signed(tmp_path / f"{name}.edge", keys[0], by=name) for name in ("a", "b"))
    shutil.copy(first / SIGNATURE, second / SIGNATURE)
    with pytest.raises(SignatureError, match="not the content that was signed"):
        require_signature(open_bundle(second), keys[1])


def test_the_key_that_a_signature_names_proves_nothing(tmp_path: Path, keys: tuple[Path, Path]) -> None:
    private, _ = make_keys(tmp_path, "other")
    path = signed(tmp_path / "d.edge", private)
    content = json.loads((path / SIGNATURE).read_bytes())
    content["public_key"] = keys[1].read_text().strip()
    (path / SIGNATURE).write_text(json.dumps(content))
    with pytest.raises(SignatureError):
        require_signature(open_bundle(path), keys[1])


@pytest.mark.parametrize(
    "content", [b"", b"\xff\xfe", b"[]", b"{}", b'{"public_key": 1, "signature": 7}', b"[" * 9000, b"x" * 100_000]
)
def test_a_damaged_signature_is_refused(tmp_path: Path, keys: tuple[Path, Path], content: bytes) -> None:
    path = signed(tmp_path / "d.edge", keys[0])
    (path / SIGNATURE).write_bytes(content)
    with pytest.raises(BundleError, match=SIGNATURE):
        require_signature(open_bundle(path), keys[1])


def test_a_link_in_the_place_of_the_signature_is_neither_read_nor_written_through(
    tmp_path: Path, keys: tuple[Path, Path]
) -> None:
    path, outside = signed(tmp_path / "d.edge", keys[0]), tmp_path / "outside"
    (path / SIGNATURE).rename(outside)
    (path / SIGNATURE).symlink_to(outside)
    before = outside.read_bytes()
    with pytest.raises(BundleError, match="not read"):
        require_signature(open_bundle(path), keys[1])
    with pytest.raises(OutputError):
        ship(open_bundle(path))
    private, public = make_keys(tmp_path, "other")
    sign_bundle(open_bundle(path), load_signing_key(private))
    assert outside.read_bytes() == before
    require_signature(open_bundle(path), public)


# ---------------------------------------------------------------- what a signature covers


def test_a_bundle_that_is_written_again_loses_its_signature(tmp_path: Path, keys: tuple[Path, Path]) -> None:
    path = signed(tmp_path / "d.edge", keys[0])
    write_bundle(path, {"name": "d"}, FILES)
    with pytest.raises(SignatureError, match="not signed"):
        require_signature(open_bundle(path), keys[1])


def test_a_manifest_cannot_list_its_own_signature(tmp_path: Path) -> None:
    with pytest.raises(BundleError, match=SIGNATURE):
        write_bundle(tmp_path / "d.edge", {"name": "d"}, {SIGNATURE: b"{}"})


def test_files_that_no_hash_covers_are_named(tmp_path: Path, keys: tuple[Path, Path]) -> None:
    path = signed(tmp_path / "d.edge", keys[0])
    assert open_bundle(path).list_uncovered() == ()
    (path / "build/host").mkdir(parents=True)
    (path / "build/host/ed.c").touch()
    (path / ".hidden").touch()
    (path / "elsewhere").symlink_to(tmp_path)
    assert open_bundle(path).list_uncovered() == (".hidden", "build/host/ed.c", "elsewhere")
    require_signature(open_bundle(path), keys[1])


def test_a_second_file_of_a_name_in_a_zip_is_not_covered(tmp_path: Path, keys: tuple[Path, Path]) -> None:
    path = signed(tmp_path / "d.zip", keys[0])
    assert open_bundle(path).list_uncovered() == ()
    with zipfile.ZipFile(path, "a") as archive, pytest.warns(UserWarning, match="Duplicate"):
        archive.writestr("student.onnx", b"graph")
    assert open_bundle(path).list_uncovered() == ("student.onnx",)


def test_a_zip_is_signed_once(tmp_path: Path, keys: tuple[Path, Path]) -> None:
    path = signed(tmp_path / "d.zip", keys[0])
    before = path.read_bytes()
    with pytest.raises(SignatureError, match="signed already"):
        sign_bundle(open_bundle(path), load_signing_key(keys[0]))
    assert path.read_bytes() == before


# ---------------------------------------------------------------- keys


def test_what_is_no_ed25519_key_is_refused(tmp_path: Path, keys: tuple[Path, Path]) -> None:
    bundle = open_bundle(signed(tmp_path / "d.edge", keys[0]))
    private, public = keys
    ec = [make_keys(tmp_path, f"ec-{form}", form, "ec") for form in ("openssh", "pem")]
    (tmp_path / "words").write_text("these are no keys")
    for path in (private, ec[0][1], ec[1][1], tmp_path, tmp_path / "none", tmp_path / "words"):
        with pytest.raises(ConfigError, match="no key here"):
            require_signature(bundle, path)
    for path in (public, ec[0][0], ec[1][0], tmp_path, tmp_path / "none", tmp_path / "words"):
        with pytest.raises(ConfigError, match="no key here"):
            load_signing_key(path)


def test_a_key_with_a_passphrase_is_refused_with_the_reason(tmp_path: Path) -> None:
    from cryptography.hazmat.primitives import serialization as s
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

    path = tmp_path / "locked"
    locked = s.BestAvailableEncryption(b"secret")
    path.write_bytes(Ed25519PrivateKey.generate().private_bytes(s.Encoding.PEM, s.PrivateFormat.PKCS8, locked))
    with pytest.raises(ConfigError, match="passphrase"):
        load_signing_key(path)


def test_without_the_extra_one_message_names_it(
    tmp_path: Path, keys: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    bundle = write_bundle(tmp_path / "d.edge", {"name": "d"}, FILES)
    monkeypatch.setitem(sys.modules, "cryptography", None)
    for ask in (lambda: require_signature(bundle, keys[1]), lambda: load_signing_key(keys[0])):
        with pytest.raises(EdgeDistillError, match=r"edgedistill\[sign\]"):
            ask()
