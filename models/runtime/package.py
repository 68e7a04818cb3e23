"""A model package: a folder with a signed manifest, a model for the edge, and its INT4 form.

A cloud offers one, and an edge stores what it fetched as one. The model is what the edge will run
in the end. Its INT4 form is small, so that it can be tried before the rest is there. Both are sent
as residuals: of the INT4 form to nothing, and of the model to its INT4 form. Many models have no
INT4 form.
"""

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from enum import IntEnum
from pathlib import Path

from models.runtime.artifacts import WEIGHTS as WEIGHTS
from models.runtime.artifacts import Artifact as Artifact
from models.runtime.artifacts import every, find
from models.runtime.errors import DamagedArtifact, UnfitArtifact, UntrustedManifest
from models.runtime.residual import make_residual
from models.runtime.signatures import MANIFEST, SIGNATURES

SCREENING = "screening"
MOST_MANIFEST = 256 * 1024
"""Largest size of a manifest, and of the file of its signatures, in bytes."""
MOST_PIECE = 64 * 2**20
"""Largest size of a model file or residual in bytes; the shipped ones have about 1 MB."""

_VERSION = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,79}")
_FILE = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}\.onnx")


class Role(IntEnum):
    """What a piece of a transfer is; the numbers are those of the contract."""

    INT4 = 1
    FINAL = 2


@dataclass(frozen=True)
class Package:
    """A model for the edge with its INT4 form, None if it has none.

    ``version`` names both with all their settings: other thresholds are another version.
    """

    version: str
    final: Artifact
    first: Artifact | None

    @property
    def signed_by(self) -> str:
        """The trusted key that signed the manifest; empty where none was required."""
        return self.final.signed_by


@dataclass(frozen=True, eq=False)
class Piece:
    """What is sent of a package: the residual of one file, with its SHA-256."""

    role: Role
    sha256: bytes
    content: bytes


@dataclass(frozen=True, eq=False)
class Offer:
    """A package as it is sent: manifest, signatures and pieces, in the order of sending."""

    version: str
    name: str
    manifest: bytes
    signatures: bytes
    pieces: tuple[Piece, ...]


def read_package(name: str, folder: Path = WEIGHTS, keys: tuple[Path, ...] = ()) -> Package:
    """Return the package of a screening artifact; its files may be missing.

    With files of public ``keys``, one of them must have signed the manifest.

    Raises:
        UnfitArtifact: the artifact is of another kind, or its entry has an odd file name.
        UnknownArtifact, DamagedArtifact, UntrustedManifest, InvalidKey: see
            `models.runtime.artifacts.find`.
    """
    final = find(name, folder, keys)
    if final.kind != SCREENING:
        raise UnfitArtifact(f"{name} is of kind {final.kind!r}, expected {SCREENING!r}")
    first = next(
        (
            one
            for one in every(folder, keys).values()
            if (one.kind, one.precision, one.parent) == (SCREENING, "int4", name)
        ),
        None,
    )
    for one in filter(None, (final, first)):
        if one.path.parent != folder or not _FILE.fullmatch(one.path.name):
            raise UnfitArtifact(f"{one.name}: file = {one.path.name!r}, expected NAME.onnx")
    return Package(_version(final, first), final, first)


def open_offer(name: str, folder: Path = WEIGHTS, keys: tuple[Path, ...] = ()) -> Offer:
    """Read the package that a cloud offers, and make its residuals; this takes a second.

    Raises:
        UntrustedManifest: nobody signed the manifest; no edge would take it.
        DamagedArtifact: a file is missing, too large, or not that of the manifest.
        UnknownArtifact, UnfitArtifact, InvalidKey: see `read_package`.
    """
    package = read_package(name, folder, keys)
    final = package.final.stored()
    first = package.first.stored() if package.first else b""
    files = {Role.INT4: make_residual(b"", first)} if first else {}
    files[Role.FINAL] = make_residual(first, final)
    try:
        manifest, signatures = (folder / one for one in (MANIFEST, SIGNATURES))
        texts = manifest.read_bytes(), signatures.read_bytes()
    except FileNotFoundError as error:
        hint = "edges take signed models only: sign it with overread-models sign"
        raise UntrustedManifest(f"{error.filename} is missing; {hint}") from error
    except OSError as error:
        raise DamagedArtifact(f"cannot read {error.filename}: {error.strerror}") from error
    for text in texts:
        if len(text) > MOST_MANIFEST:
            raise DamagedArtifact(f"{folder}: a manifest of more than {MOST_MANIFEST} bytes")
    for content in files.values():
        if len(content) > MOST_PIECE:
            raise DamagedArtifact(f"{name}: {len(content)} bytes, expected at most {MOST_PIECE}")
    pieces = tuple(Piece(r, hashlib.sha256(c).digest(), c) for r, c in files.items())
    return Offer(package.version, name, *texts, pieces)


def is_version(text: str) -> bool:
    """Tell whether a text may be the version of a package, and so the name of a folder."""
    return _VERSION.fullmatch(text) is not None


def _version(final: Artifact, first: Artifact | None) -> str:
    """Return the version: that of the model, and a digest of what decides how it is used."""

    def entry(one: Artifact) -> Mapping[str, object]:
        return {"name": one.name, "sha256": one.sha256, "settings": one.settings}

    values = [entry(one) for one in (final, first) if one is not None]
    text = json.dumps(values, sort_keys=True, separators=(",", ":"), default=str)
    version = f"{final.version}-{hashlib.sha256(text.encode()).hexdigest()[:8]}"
    if not is_version(version):
        raise UnfitArtifact(f"{final.name}: version = {final.version!r}, expected letters, digits")
    return version
