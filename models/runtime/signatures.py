"""Signatures of the manifest, which holds the hashes of all artifacts.

``manifest.sig`` lies beside ``manifest.toml`` and has one line for each signer: the identity of the
public key, and an Ed25519 signature (RFC 8032) in base64. Whether a signature is required, and by
whom, the caller says with the files of public keys.
"""

import base64
import hashlib
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
    load_pem_private_key,
    load_pem_public_key,
)

from models.runtime import MANIFEST, SIGNATURES
from models.runtime.errors import InvalidKey, UntrustedManifest

_CONTEXT = b"overread manifest 1\n"
"""Signed before the manifest, so that no signature of anything else is one of a manifest."""
_ID_CHARACTERS = 16


def signer_of(manifest: bytes, folder: Path, keys: Sequence[Path]) -> str:
    """Return the trusted key that signed a manifest: the name of its file, and its identity.

    Raises:
        UntrustedManifest: none of the keys did, or a signature by one of them is wrong.
        InvalidKey: the file of a key cannot be read.
    """
    read = [(one, read_public_key(one)) for one in keys]
    trusted = {identity(key): (f"{one.stem} ({identity(key)})", key) for one, key in read}
    names = ", ".join(f"{trusted[identity(key)][0]} of {one}" for one, key in read)
    file = folder / SIGNATURES
    try:
        signatures = _read(file)
    except FileNotFoundError:
        raise UntrustedManifest(
            f"{folder / MANIFEST} is not signed: {file} is missing, expected a signature by {names}"
        ) from None
    known = [key_id for key_id in signatures if key_id in trusted]
    if not known:
        others = ", ".join(signatures) or "nobody"
        raise UntrustedManifest(f"{file} has signatures by {others}, expected one by {names}")
    for key_id in known:
        name, key = trusted[key_id]
        try:
            key.verify(signatures[key_id], _CONTEXT + manifest)
        except InvalidSignature:
            raise UntrustedManifest(
                f"{file}: the signature by {name} is not one of {folder / MANIFEST}, which was"
                " changed since: restore both files, or sign again with overread-models sign"
            ) from None
    return trusted[known[0]][0]


def make_keys(folder: Path, name: str) -> tuple[Path, Path]:
    """Write a pair of keys; return the files of the private and of the public one.

    Raises:
        FileExistsError: one of the files exists; nothing is replaced.
        OSError: the folder cannot be written.
    """
    private, public = folder / f"{name}.key", folder / f"{name}.pem"
    if existing := [file for file in (private, public) if file.exists()]:
        raise FileExistsError(f"{existing[0]} exists: choose another name")
    key = Ed25519PrivateKey.generate()
    folder.mkdir(parents=True, exist_ok=True)
    private.touch(mode=0o600, exist_ok=False)
    private.write_bytes(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
    public.write_bytes(
        key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
    )
    return private, public


def sign(folder: Path, key_file: Path) -> str:
    """Sign the manifest of a folder, beside the signatures by others; return the key's identity.

    Raises:
        InvalidKey: the file of the private key cannot be read.
        UntrustedManifest: the file of signatures is damaged.
        OSError: the manifest cannot be read, or the signature not written.
    """
    key = _pem(key_file, partial(load_pem_private_key, password=None))
    if not isinstance(key, Ed25519PrivateKey):
        raise InvalidKey(
            f"{key_file} holds no Ed25519 private key without a password, expected PEM"
        )
    own = key.sign(_CONTEXT + (folder / MANIFEST).read_bytes())
    file = folder / SIGNATURES
    signatures = _read(file) if file.exists() else {}
    signatures[identity(key.public_key())] = own
    lines = (f"{key_id} {base64.b64encode(one).decode()}\n" for key_id, one in signatures.items())
    part = file.with_name(f".{SIGNATURES}.part")
    part.write_text("".join(lines))
    part.replace(file)
    return identity(key.public_key())


def read_public_key(file: Path) -> Ed25519PublicKey:
    """Read the file of a public key.

    Raises:
        InvalidKey: it cannot be read, or holds no Ed25519 public key as PEM.
    """
    key = _pem(file, load_pem_public_key)
    if not isinstance(key, Ed25519PublicKey):
        raise InvalidKey(f"{file} holds no Ed25519 public key, expected PEM")
    return key


def _pem(file: Path, load: Callable[[bytes], Any]) -> Any:
    """Return the key in a file, None if it holds none."""
    try:
        return load(file.read_bytes())
    except OSError as error:
        raise InvalidKey(f"{file}: {error.strerror}") from error
    except (ValueError, TypeError, UnsupportedAlgorithm):
        return None


def _read(file: Path) -> dict[str, bytes]:
    """Return the signatures by the identity of their key.

    Raises:
        FileNotFoundError: there are none.
        UntrustedManifest: the file is damaged.
    """
    try:
        pairs = [line.split() for line in file.read_text("ascii").splitlines()]
        return {key_id: base64.b64decode(text, validate=True) for key_id, text in pairs}
    except ValueError as error:
        wrong = f"{file} is damaged: expected a key and its signature a line"
        raise UntrustedManifest(wrong) from error


def identity(key: Ed25519PublicKey) -> str:
    """Return the identity of a key: the beginning of its SHA-256, hexadecimal."""
    return hashlib.sha256(key.public_bytes_raw()).hexdigest()[:_ID_CHARACTERS]
