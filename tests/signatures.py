"""Makes keys, and changes signed bundles as somebody does who has no key."""

from __future__ import annotations

import hashlib
from pathlib import Path

from edgedistill.bundle import MANIFEST, open_bundle


def make_keys(folder: Path, name: str = "lab", form: str = "openssh", kind: str = "ed25519") -> tuple[Path, Path]:
    """Writes a pair as ssh-keygen or openssl does, and returns the paths of the private and the public key."""
    from cryptography.hazmat.primitives import serialization as s
    from cryptography.hazmat.primitives.asymmetric import ec, ed25519

    key = ed25519.Ed25519PrivateKey.generate() if kind == "ed25519" else ec.generate_private_key(ec.SECP256R1())
    ssh = form == "openssh"
    private, public = folder / name, folder / f"{name}.pub"
    own = s.PrivateFormat.OpenSSH if ssh else s.PrivateFormat.PKCS8
    private.write_bytes(key.private_bytes(s.Encoding.PEM, own, s.NoEncryption()))
    encoding, form_ = (
        (s.Encoding.OpenSSH, s.PublicFormat.OpenSSH) if ssh else (s.Encoding.PEM, s.PublicFormat.SubjectPublicKeyInfo)
    )
    public.write_bytes(key.public_key().public_bytes(encoding, form_))
    return private, public


def rewrite_manifest(folder: Path, old: bytes, new: bytes, **files: bytes) -> None:
    """Changes manifest and files as somebody does who knows the format: with right hashes."""
    raw = (folder / MANIFEST).read_bytes()
    assert old in raw
    own, blank = open_bundle(folder).sha256.encode(), b"0" * 64
    raw = raw.replace(own, blank, 1).replace(old, new)
    (folder / MANIFEST).write_bytes(raw.replace(blank, hashlib.sha256(raw).hexdigest().encode(), 1))
    for name, data in files.items():
        (folder / name).write_bytes(data)
    open_bundle(folder)  # it is whole as far as its hashes tell
