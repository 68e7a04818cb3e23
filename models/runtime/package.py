"""A model package: a folder with a signed manifest and a model for the edge.

A cloud offers one, and an edge stores what it fetched as one. The model file is sent in xz: about
85 % of its bytes.
"""

import hashlib
import json
import lzma
import re
from dataclasses import dataclass
from pathlib import Path

from models.runtime import MANIFEST, SIGNATURES
from models.runtime.artifacts import WEIGHTS as WEIGHTS
from models.runtime.artifacts import Artifact as Artifact
from models.runtime.artifacts import every, find
from models.runtime.errors import DamagedArtifact, UnfitArtifact, UntrustedManifest

SCREENING = "screening"
MAX_MANIFEST = 256 * 1024
"""Largest size of a manifest, and of the file of its signatures, in bytes."""
MAX_MODEL = 64 * 2**20
"""Largest size of a model file in bytes, compressed or not; the shipped ones have about 1 MB."""
_MAX_UNPACKING = 100 * 2**20
"""Largest memory for unpacking, in bytes: xz needs the size of its dictionary, 65 MB at most."""

_VERSION = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,79}")
_FILE = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}\.onnx")


@dataclass(frozen=True)
class Package:
    """A model for the edge.

    ``version`` names it with all its settings: other thresholds are another version.
    """

    version: str
    model: Artifact


@dataclass(frozen=True, eq=False)
class Offer:
    """A package as it is sent: manifest, signatures, and the model file in xz with its SHA-256."""

    version: str
    name: str
    manifest: bytes
    signatures: bytes
    packed: bytes
    sha256: bytes


def read_package(name: str, folder: Path = WEIGHTS, keys: tuple[Path, ...] = ()) -> Package:
    """Return the package of a screening artifact; its file may be missing.

    With files of public ``keys``, one of them must have signed the manifest.

    Raises:
        UnfitArtifact: the artifact is of another kind, or its entry has an odd file name.
        UnknownArtifact, DamagedArtifact, UntrustedManifest, InvalidKey: see
            `models.runtime.artifacts.find`.
    """
    model = find(name, folder, keys)
    if model.kind != SCREENING:
        raise UnfitArtifact(f"{name} is of kind {model.kind!r}, expected {SCREENING!r}")
    if model.path.parent != folder or not _FILE.fullmatch(model.path.name):
        raise UnfitArtifact(f"{name}: file is {model.path}, expected NAME.onnx in {folder}")
    return Package(_version(model), model)


def only_screening(folder: Path) -> str | None:
    """Return the name of the screening artifact in a folder, None if there is not exactly one."""
    names = [one.name for one in every(folder.absolute()).values() if one.kind == SCREENING]
    return names[0] if len(names) == 1 else None


def open_offer(name: str, folder: Path = WEIGHTS, keys: tuple[Path, ...] = ()) -> Offer:
    """Read the package that a cloud offers, and compress its model; this takes a second.

    Raises:
        UntrustedManifest: nobody signed the manifest; no edge would take it.
        DamagedArtifact: a file is missing, too large, or not that of the manifest.
        UnknownArtifact, UnfitArtifact, InvalidKey: see `read_package`.
    """
    package = read_package(name, folder, keys)
    content = package.model.stored()
    try:
        manifest, signatures = ((folder / one).read_bytes() for one in (MANIFEST, SIGNATURES))
    except FileNotFoundError as error:
        hint = "edges take signed models only: sign it with overread-models sign"
        raise UntrustedManifest(f"{error.filename} is missing; {hint}") from error
    except OSError as error:
        raise DamagedArtifact(f"cannot read {error.filename}: {error.strerror}") from error
    if max(len(manifest), len(signatures)) > MAX_MANIFEST:
        raise DamagedArtifact(f"{folder}: a manifest of more than {MAX_MANIFEST} bytes")
    packed = lzma.compress(content, preset=6 | lzma.PRESET_EXTREME)
    if max(len(content), len(packed)) > MAX_MODEL:
        raise DamagedArtifact(f"{name}: {len(content)} bytes, expected at most {MAX_MODEL}")
    digest = hashlib.sha256(packed).digest()
    return Offer(package.version, name, manifest, signatures, packed, digest)


def unpacked(packed: bytes) -> bytes:
    """Return the model file that was sent; a small one that claims to be huge needs no memory.

    Raises:
        DamagedArtifact: it is not in xz, incomplete, or too large.
    """
    try:
        unpacker = lzma.LZMADecompressor(lzma.FORMAT_XZ, memlimit=_MAX_UNPACKING)
        content = unpacker.decompress(packed, MAX_MODEL + 1)
    except lzma.LZMAError as error:
        raise DamagedArtifact(f"the model file cannot be unpacked from xz: {error}") from error
    if len(content) > MAX_MODEL:
        raise DamagedArtifact(f"a model file of more than {MAX_MODEL} bytes")
    if not unpacker.eof:
        raise DamagedArtifact("the model file in xz is incomplete")
    return content


def is_version(text: str) -> bool:
    """Tell whether a text may be the version of a package, and so the name of a folder."""
    return _VERSION.fullmatch(text) is not None


def _version(model: Artifact) -> str:
    """Return the version: that of the model, and a digest of what decides how it is used."""
    values = [{"name": model.name, "sha256": model.sha256, "settings": model.settings}]
    text = json.dumps(values, sort_keys=True, separators=(",", ":"), default=str)
    version = f"{model.version}-{hashlib.sha256(text.encode()).hexdigest()[:8]}"
    if not is_version(version):
        raise UnfitArtifact(f"{model.name}: version = {model.version!r}, expected letters, digits")
    return version
