"""`sign`, `verify` and `run --require-signature` end with 0 for the owner of the key, and with a message otherwise."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

import numpy as np
import pytest

from edgedistill.bundle import SIGNATURE
from edgedistill.errors import SignatureError
from edgedistill.runtime import Decoder

from ..bundles import CHANNELS
from ..signatures import make_keys, rewrite_manifest
from .calling import answer, call, refused

pytest.importorskip("cryptography", reason="cryptography comes with the extra sign")
FRAMES = np.zeros((100, CHANNELS), "<f4").tobytes()


@pytest.fixture
def own(bundle: Path, tmp_path: Path) -> Path:
    """A copy of the bundle that a test may change."""
    shutil.copytree(bundle, tmp_path / "own.edge")
    shutil.rmtree(tmp_path / "own.edge/build", ignore_errors=True)
    return tmp_path / "own.edge"


def test_from_a_key_to_a_stream(own: Path, tmp_path: Path) -> None:
    private, public = make_keys(tmp_path)
    made = answer("sign", own, "--key", private)
    found = answer("verify", own, "--key", public)
    assert (made["signed_by"], made["sha256"]) == (found["signed_by"], found["sha256"])
    assert (made["signature"], found["not_covered"]) == (SIGNATURE, [])
    run = call("run", own, "-", "--require-signature", public, "--engine", "onnxruntime", stdin=FRAMES)
    assert (run.exit_code, run.stdout.count("\n")) == (0, 41)
    with Decoder.open(own, "onnxruntime", require_signature=public) as decoder:
        assert decoder.info.sha256 == found["sha256"]


def test_verify_says_what_is_not_covered(own: Path, tmp_path: Path) -> None:
    private, public = make_keys(tmp_path)
    call("sign", own, "--key", private)
    assert "nothing" in call("verify", own, "--key", public).stdout
    (own / "build/host").mkdir(parents=True)
    for name in "abcd":
        (own / f"build/host/{name}.c").touch()
    shown = call("verify", own, "--key", public)
    assert shown.exit_code == 0
    assert "4 files, which edgedistill never reads: build/host/a.c" in shown.stdout
    assert answer("verify", own, "--key", public)["not_covered"] == [f"build/host/{name}.c" for name in "abcd"]


def test_every_refusal_is_exit_1_and_nothing_is_decoded(own: Path, tmp_path: Path) -> None:
    private, public = make_keys(tmp_path)
    _, other = make_keys(tmp_path, "other")

    def all_refuse(key: Path, says: str) -> None:
        refused("verify", own, "--key", key, says=(says,))
        refused("run", own, "-", "--require-signature", key, says=(says,), stdin=FRAMES)

    all_refuse(public, "not signed")
    call("sign", own, "--key", private)
    all_refuse(other, "not signed with the key")
    all_refuse(tmp_path / "none.pub", "no key here")
    with pytest.raises(SignatureError):
        Decoder.open(own, "onnxruntime", require_signature=other)
    rewrite_manifest(own, b'"preset": "nano"', b'"preset": "edge"')
    all_refuse(public, "not the content that was signed")
    (own / "student.onnx").write_bytes(b"other")
    all_refuse(public, "was changed after the bundle was written")


def test_without_the_extra_one_message(own: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    private, public = make_keys(tmp_path)
    monkeypatch.setitem(sys.modules, "cryptography", None)
    refused("verify", own, "--key", public, says=("pip install 'edgedistill[sign]'",))
    refused("sign", own, "--key", private, says=("pip install 'edgedistill[sign]'",))


def test_a_wrong_key_ends_a_build_before_it_begins(tmp_path: Path) -> None:
    words = ("build", "--target", "host", "--data", tmp_path, "--out", tmp_path / "d.edge", "--sign", tmp_path / "none")
    refused(*words, says=("no key here",))
