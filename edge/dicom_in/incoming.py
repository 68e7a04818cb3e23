"""An instance on its way into the store: who sends it, what is accepted, and its hidden file."""

import hashlib
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import BinaryIO

from pydicom.uid import (
    CTImageStorage,
    EnhancedCTImageStorage,
    LegacyConvertedEnhancedCTImageStorage,
)

from edge.access import file_mode
from edge.atomic_files import is_transient
from edge.dicom_in.identity import Identity, Reason, Refused, data_set_digest
from edge.settings.core import MB

MAX_INSTANCES = 10_000
"""Instances of one study that may wait in the inbox, and of one request."""
SOP_CLASSES = frozenset(
    {CTImageStorage, EnhancedCTImageStorage, LegacyConvertedEnhancedCTImageStorage}
)
"""Storage classes that are received."""
_CHECK_BYTES = 4 << 20
"""The free disk space is checked again after this many bytes."""


@dataclass(frozen=True)
class Source:
    """Who sends an instance.

    Attributes:
        way: ``dicom`` or ``stow``.
        caller: calling AE title, or the name of the HTTP caller.
        called: called AE title; empty for HTTP.
        peer: network address.
    """

    way: str
    caller: str
    called: str
    peer: str

    @property
    def words(self) -> dict[str, str]:
        """What the log says of it."""
        return {"way": self.way, "peer": self.peer, "caller": self.caller}


@dataclass(eq=False)
class Sender:
    """An association or a request that sends instances.

    Attributes:
        again: how many of its images were stored already.
        missed: whether an instance was refused: its studies are not whole.
    """

    source: Source
    again: int = 0
    missed: bool = False


@dataclass(frozen=True)
class Expected:
    """What the request says of an instance; empty for what it does not say."""

    sop_class: str = ""
    instance: str = ""
    study: str = ""

    def require(self, identity: Identity) -> None:
        """Compare with what the data set says.

        Raises:
            Refused: they differ.
        """
        pairs = (
            ("SOP class", self.sop_class, identity.sop_class),
            ("SOP instance", self.instance, identity.instance),
            ("study", self.study, identity.study),
        )
        for name, said, found in pairs:
            if said and said != found:
                raise Refused(Reason.MISMATCH, f"the data set has another {name} than the request")


class Incoming:
    """An instance on its way, in a hidden file.

    Attributes:
        bytes: those that have come.
        refusal: why it is refused; what comes of it after that is dropped.
    """

    def __init__(self, path: Path, limit_mb: int, require_room: Callable[[], None]) -> None:
        self.path, self.bytes = path, 0
        self.refusal: Refused | None = None
        self._limit_mb, self._require_room = limit_mb, require_room
        self._checked, self._data_from, self._hash = 0, -1, hashlib.sha256()
        self._file: BinaryIO | None = None

    def open(self) -> None:
        """Make the file.

        Raises:
            OSError: it cannot be made.
        """
        opener = partial(os.open, mode=0o600)
        self._file = open(self.path, "xb", opener=opener)  # noqa: SIM115 - closed by `discard`
        os.fchmod(self._file.fileno(), file_mode(self.path.parent.parent))

    def begin_data_set(self) -> None:
        """Note that what is written from now on is the data set; it is hashed on its way."""
        self._data_from = self.bytes

    def digest(self, offset: int) -> bytes:
        """Return the SHA-256 of the data set, which begins at ``offset``."""
        if offset == self._data_from:
            return self._hash.digest()
        return data_set_digest(self.path, offset)

    def write(self, data: bytes) -> None:
        """Append data; refuse the instance if it becomes too large, or the disk too full."""
        self.bytes += len(data)
        with self.refusing():
            if self.bytes > self._limit_mb * MB:
                text = f"the instance is larger than {self._limit_mb} MB"
                raise Refused(Reason.TOO_LARGE, text)
            if self._file is None:
                return
            if self.bytes - self._checked >= _CHECK_BYTES:
                self._checked = self.bytes
                self._require_room()
            with refusing_faults():
                self._file.write(data)
            if self._data_from >= 0:
                self._hash.update(data)

    @contextmanager
    def refusing(self) -> Iterator[None]:
        """Refuse the instance where `Refused` is raised; the first refusal counts."""
        try:
            yield
        except Refused as refusal:
            self.refusal = self.refusal or refusal
            self.discard()

    def sync(self) -> None:
        """Write all to the disk, and close the file.

        Raises:
            Refused: the disk is full.
        """
        assert self._file is not None
        with refusing_faults():
            self._file.flush()
            os.fsync(self._file.fileno())
            self._file.close()

    def discard(self) -> None:
        """Remove what has arrived; it may be called again."""
        if self._file is not None:
            with suppress(OSError):  # closing writes what is buffered, and the disk may be full
                self._file.close()
            self._file = None
        self.path.unlink(missing_ok=True)


@contextmanager
def refusing_faults() -> Iterator[None]:
    """Turn the errors of a full or failing disk into a refusal."""
    try:
        yield
    except OSError as error:
        reason = Reason.NO_ROOM if is_transient(error) else Reason.FAULT
        raise Refused(reason, f"the inbox cannot be written: {error.strerror}") from error
