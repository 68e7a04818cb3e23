"""The folders of fetched models: ``state/models/VERSION``, each like ``models/weights``.

A file appears under its name only when it is whole and has the hash of the signed manifest. What
has come of a piece so far is a hidden file named after the hash of the whole piece.
"""

import hashlib
import os
import shutil
import tempfile
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from pathlib import Path

from edge.access import make_folder
from edge.atomic_files import move, remove, sync_folder, write_atomically
from edge.folders import AgentFolders
from edge.models.errors import RefusedModel
from models.runtime.errors import ModelError
from models.runtime.package import Package, is_version, read_package, unpacked
from models.runtime.signatures import MANIFEST, SIGNATURES

FOLDER = "models"
"""Name of the folder in the state folder."""
_NEW, _PART = ".new-", ".part"


@dataclass(frozen=True)
class ModelFolders:
    """All fetched models of an agent."""

    top: Path

    @classmethod
    def of(cls, folders: AgentFolders) -> "ModelFolders":
        """Return the models of these folders."""
        return cls(folders.state / FOLDER)

    def at(self, version: str) -> "ModelFolder":
        """Return the folder of one version, which may be missing.

        Raises:
            RefusedModel: the text is no version.
        """
        if not is_version(version):
            raise RefusedModel(f"{version!r} is no version of a model")
        return ModelFolder(self.top / version)

    def take(
        self, name: str, version: str, manifest: bytes, signatures: bytes, keys: tuple[Path, ...]
    ) -> tuple["ModelFolder", Package]:
        """Store manifest and signatures, if a trusted key signed them; both are durable then.

        Raises:
            RefusedModel: nobody who is trusted signed it, or it is not the manifest of ``version``.
            InvalidKey: the file of a key cannot be read.
            OSError: nothing can be written.
        """
        folder = self.at(version)
        make_folder(self.top)
        new = Path(tempfile.mkdtemp(prefix=_NEW, dir=self.top))
        try:
            write_atomically(new / MANIFEST, manifest)
            write_atomically(new / SIGNATURES, signatures)
            package = _checked(name, new, keys)
            if package.version != version:
                text = f"the manifest is of version {package.version}, offered was {version}"
                raise RefusedModel(text)
            if not folder.path.exists():
                move(new, folder.path)
            else:  # what has come of its files stays; signatures may be others
                for file in (SIGNATURES, MANIFEST):
                    move(new / file, folder.path / file)
        finally:
            shutil.rmtree(new, ignore_errors=True)
        return folder, folder.package(name, keys)

    def held(self) -> Iterator[tuple[bytes, int]]:
        """Yield the hash of every piece of which a part is here, and its bytes."""
        for part in self.top.glob(f"*/.*{_PART}"):
            digest = part.name[1 : -len(_PART)]
            if len(digest) == 64 and not set(digest) - set("0123456789abcdef"):
                yield bytes.fromhex(digest), part.stat().st_size

    def remove_others(self, versions: Collection[str]) -> list[str]:
        """Remove all versions but these; return which."""
        if not self.top.is_dir():
            return []
        others = [one for one in self.top.iterdir() if one.is_dir() and one.name not in versions]
        for one in others:
            remove(one)
        return [one.name for one in others if not one.name.startswith(".")]


@dataclass(frozen=True)
class ModelFolder:
    """The folder of one version."""

    path: Path

    def package(self, name: str, keys: tuple[Path, ...]) -> Package:
        """Return what the manifest says; a trusted key must have signed it.

        Raises:
            RefusedModel: there is none, or nobody who is trusted signed it.
        """
        return _checked(name, self.path, keys)

    def part(self, digest: bytes) -> Path:
        """Return the file for what has come of a piece with this SHA-256."""
        return self.path / f".{digest.hex()}{_PART}"

    def append(self, digest: bytes, offset: int, data: bytes) -> None:
        """Append to a piece.

        Raises:
            RefusedModel: it is not the next part of the piece.
        """
        with self.part(digest).open("ab") as file:
            if file.tell() != offset:
                raise RefusedModel(f"bytes from {offset} came, expected those from {file.tell()}")
            file.write(data)

    def whole(self, digest: bytes) -> bytes:
        """Return a piece that has come; one that is damaged is removed.

        Raises:
            RefusedModel: it is damaged.
        """
        part = self.part(digest)
        content = part.read_bytes()
        if hashlib.sha256(content).digest() != digest:
            remove(part)
            raise RefusedModel(f"a piece of {len(content)} bytes has another hash than was offered")
        return content

    def put(self, package: Package, packed: bytes) -> None:
        """Store the model file that was sent in xz, durably.

        Raises:
            RefusedModel: it cannot be unpacked, or has not the hash of the manifest.
        """
        try:
            content = unpacked(packed)
        except ModelError as error:
            raise RefusedModel(str(error)) from error
        if hashlib.sha256(content).hexdigest() != package.model.sha256:
            raise RefusedModel("the model file has another hash than in the manifest")
        write_atomically(package.model.path, content)

    def drop_parts(self) -> None:
        """Remove what has come of pieces."""
        for part in self.path.glob(f".*{_PART}"):
            remove(part)
        sync_folder(self.path)

    def remove(self) -> None:
        """Remove the version; a crash leaves it whole under its name, or not at all."""
        if self.path.is_dir():
            doomed = self.path.with_name(f"{_NEW}{self.path.name}-{os.getpid()}")
            remove(doomed)
            move(self.path, doomed)
            remove(doomed)


def is_there(package: Package) -> bool:
    """Tell whether the model file is there, with the right hash."""
    try:
        return bool(package.model.stored())
    except ModelError:
        return False


def _checked(name: str, folder: Path, keys: tuple[Path, ...]) -> Package:
    if not keys:
        raise RefusedModel(
            "models.keys is not set: a model from a cloud is used only if somebody who is trusted"
            " signed it; set models.keys to the public keys of who may sign models"
        )
    try:
        return read_package(name, folder, keys)
    except ModelError as error:
        raise RefusedModel(f"{type(error).__name__}: {error}") from error
