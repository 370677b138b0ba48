"""Signs a bundle, and checks who signed it.

The signature is Ed25519 over the hash that identifies the bundle. This hash covers the manifest, and the manifest holds
the hashes of all other files, so the signature covers everything that edgedistill reads from a bundle. It lies beside
the manifest as `manifest.sig`. Keys are files that ssh-keygen and openssl make. The package `cryptography`, the extra
`sign`, is imported only here.
"""

from __future__ import annotations

import base64
import hashlib
import json
import shutil
import zipfile
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

from edgedistill.bundle.manifest import SIGNATURE
from edgedistill.bundle.reading import Bundle, read_member
from edgedistill.contained import replace_file
from edgedistill.errors import BundleError, ConfigError, EdgeDistillError, SignatureError
from edgedistill.files import atomic_write, output_error

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

MOST_BYTES = 1 << 16  # of a key or a signature
MAKE_KEYS = "make a pair with `ssh-keygen -t ed25519 -N '' -f KEY`"
OPENSSH_BEGINS = (b"-----BEGIN OPENSSH", b"ssh-")


def sign_bundle(bundle: Bundle, key: Ed25519PrivateKey) -> str:
    """Writes the signature into the bundle and returns the fingerprint of its key. Replaces one in a folder.

    Raises SignatureError for a zip that is signed already, and OutputError where the signature cannot be written.
    """
    public = key.public_key()
    signature = base64.b64encode(key.sign(_message(bundle))).decode()
    content = {"algorithm": "ed25519", "public_key": _openssh_line(public), "signature": signature}
    data = (json.dumps(content, indent=1) + "\n").encode()
    if not bundle.path.is_dir():
        _add_to_zip(bundle, data)
        return find_fingerprint(public)
    try:
        replace_file(bundle.path, SIGNATURE, data)
    except OSError as error:
        raise output_error(bundle.path / SIGNATURE, "the signature", error) from error
    return find_fingerprint(public)


def require_signature(bundle: Bundle, key_file: str | Path) -> str:
    """Checks that the owner of the public key in `key_file` signed this bundle, and returns the key's fingerprint.

    `bundle` is as `open_bundle` returned it, so that all its files have the hashes of its manifest. Raises
    SignatureError where the signature is missing, damaged, by another key or of another content.
    """
    key = load_public_key(Path(key_file))
    from cryptography.exceptions import InvalidSignature

    claimed, signature = _read_signature(bundle, f"one by {find_fingerprint(key)}, the key in {key_file}")
    try:
        key.verify(signature, _message(bundle))
    except InvalidSignature:
        pass
    else:
        return find_fingerprint(key)
    if claimed != _openssh_line(key):
        raise SignatureError(
            f"{bundle.path}: this bundle was not signed with the key in {key_file}",
            got=f"a signature that names the key {_fingerprint_of_line(claimed)}",
            expected=find_fingerprint(key),
            causes=("somebody else made this bundle", f"{key_file} is the key of another person or lab"),
            next_step="ask whoever sent the bundle for their public key, on another way than the bundle came",
        )
    raise SignatureError(
        f"{bundle.path}: this is not the content that was signed",
        got=f"a manifest with the hash {bundle.sha256}",
        expected=f"the manifest that '{SIGNATURE}' was made for",
        causes=("the bundle was changed after it was signed, and its hashes were written anew",),
        next_step="get the bundle again from whoever signed it, and do not use this one",
    )


def load_signing_key(path: Path) -> Ed25519PrivateKey:
    """Returns the private key in a file of ssh-keygen or openssl. Raises ConfigError for any other file."""
    data = _read_key(path)
    from cryptography.exceptions import UnsupportedAlgorithm
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
    from cryptography.hazmat.primitives.serialization import load_pem_private_key, load_ssh_private_key

    load = load_ssh_private_key if data.startswith(OPENSSH_BEGINS) else load_pem_private_key
    try:
        key = load(data, None)
    except (ValueError, TypeError, UnsupportedAlgorithm) as error:
        causes = ("it is the public key", "it has a passphrase, which edgedistill does not ask for")
        raise _unusable(path, "a private Ed25519 key without a passphrase", error, causes) from error
    if not isinstance(key, Ed25519PrivateKey):
        raise _unusable(path, "a private Ed25519 key", f"a key of another kind, {type(key).__name__}")
    return key


def load_public_key(path: Path) -> Ed25519PublicKey:
    """Returns the public key in a file of ssh-keygen or openssl. Raises ConfigError for any other file."""
    data = _read_key(path)
    from cryptography.exceptions import UnsupportedAlgorithm
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
    from cryptography.hazmat.primitives.serialization import load_pem_public_key, load_ssh_public_key

    load = load_ssh_public_key if data.startswith(OPENSSH_BEGINS) else load_pem_public_key
    try:
        key = load(data)
    except (ValueError, TypeError, UnsupportedAlgorithm) as error:
        raise _unusable(path, "a public Ed25519 key", error, ("it is the private key",)) from error
    if not isinstance(key, Ed25519PublicKey):
        raise _unusable(path, "a public Ed25519 key", f"a key of another kind, {type(key).__name__}")
    return key


def find_fingerprint(key: Ed25519PublicKey) -> str:
    """Returns the fingerprint of a key as `ssh-keygen -lf KEY.pub` prints it."""
    return _fingerprint_of_line(_openssh_line(key))


# ---------------------------------------------------------------- the parts


def _message(bundle: Bundle) -> bytes:
    """Returns what is signed. The words before the hash keep it from being taken for something else."""
    return f"edgedistill bundle sha256:{bundle.sha256}\n".encode()


def _read_signature(bundle: Bundle, expected: str) -> tuple[str, bytes]:
    """Returns the public key that `manifest.sig` names, which anybody could have written there, and the signature."""
    try:
        content = json.loads(read_member(bundle.path, bundle.prefix + SIGNATURE, MOST_BYTES))
        return str(content["public_key"]), base64.b64decode(content["signature"], validate=True)
    except BundleError as error:
        if not isinstance(error.__cause__, (FileNotFoundError, KeyError)):
            raise
        raise SignatureError(
            f"{bundle.path}: this bundle is not signed",
            got=f"no '{SIGNATURE}' in it",
            expected=f"a signature: {expected}",
            causes=("it was never signed", "it was built or adapted again since, which needs a new signature"),
            next_step="get a signed bundle from whoever made it. For a bundle of your own: edgedistill sign",
        ) from error
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise SignatureError(
            f"{bundle.path}: '{SIGNATURE}' is damaged", got=f"{type(error).__name__}: {error}", expected=expected
        ) from error


def _add_to_zip(bundle: Bundle, data: bytes) -> None:
    name = bundle.prefix + SIGNATURE
    with atomic_write(bundle.path, "the signed bundle") as partial:
        shutil.copyfile(bundle.path, partial)
        with zipfile.ZipFile(partial, "a") as archive:
            if name in archive.namelist():
                raise SignatureError(
                    f"{bundle.path}: this zip is signed already",
                    expected="a bundle without a signature, or a folder, where it is replaced",
                    next_step=f"zip -d {bundle.path} {name}",
                )
            entry = zipfile.ZipInfo(name)  # without a date, so that equal content gives equal bytes
            entry.external_attr = 0o644 << 16
            archive.writestr(entry, data)


def _read_key(path: Path) -> bytes:
    """Returns the content of a file of keys. Raises EdgeDistillError where `cryptography` is not installed."""
    if find_spec("cryptography") is None:
        raise EdgeDistillError(
            "signatures need the package cryptography",
            got="no such package in this environment",
            next_step="pip install 'edgedistill[sign]'",
        )
    try:
        if not path.is_file():
            raise _unusable(path, "a file", "a folder or a device" if path.exists() else "no such file")
        with path.open("rb") as file:
            return file.read(MOST_BYTES)
    except OSError as error:
        raise _unusable(path, "a file that can be read", error.strerror) from error


def _unusable(path: Path, expected: str, got: object, causes: tuple[str, ...] = ()) -> ConfigError:
    kinds = "in the form of OpenSSH or PEM" if "key" in expected else "with a key in it"
    return ConfigError(
        f"{path}: there is no key here that can be used",
        got=str(got).splitlines()[0],
        expected=f"{expected}, {kinds}",
        causes=causes,
        next_step=MAKE_KEYS,
    )


def _openssh_line(key: Ed25519PublicKey) -> str:
    from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

    return key.public_bytes(Encoding.OpenSSH, PublicFormat.OpenSSH).decode()


def _fingerprint_of_line(line: str) -> str:
    """Returns the fingerprint of a key "ssh-ed25519 BASE64", or the text itself where it is no key."""
    try:
        raw = base64.b64decode(line.split()[1], validate=True)
    except (ValueError, IndexError):
        return line[:80]
    return "SHA256:" + base64.b64encode(hashlib.sha256(raw).digest()).decode().rstrip("=")
