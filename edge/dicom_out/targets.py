"""What a target is to which DICOM files are sent, and what it may answer.

By C-STORE they go to an AE (`edge.dicom_out.scu`), by STOW-RS to a DICOMweb service
(`edge.dicom_out.stow`).

What a target says is sorted by who may be at fault. An object that it *refuses* is at fault itself.
A target that is *unreachable* would take no other object either: nothing answers, or it does not
let this edge in. Where both is possible both is said: the target is full, or it ends the connection
while it gets an object, which some do with one that they cannot handle.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path

import pydicom
from pydicom.uid import UID, ExplicitVRLittleEndian
from pynetdicom.status import STORAGE_SERVICE_CLASS_STATUS

from edge.settings.targets import ObjectKind

MAX_REASON = 300
"""Characters of a target's own words that are kept."""

STOPPED = "the agent stops"
"""Why a target gets no more files when the agent is being stopped."""


@dataclass(frozen=True)
class Refusal:
    """Why a target refused an object.

    ``code`` is what the standard calls it; ``comment`` are the target's own words, which may name a
    patient and are never logged. ``is_last``: the target is at fault too, and gets no more.
    ``of_class``: it takes no object of this class; ``of_object``: or this one is at fault.
    """

    code: str
    comment: str = ""
    is_last: bool = False
    of_class: bool = False
    of_object: bool = False

    @classmethod
    def of(cls, status: int, comment: str = "") -> "Refusal | None":
        """Return what a failure means: a full target (PS3.4, B.2), a class (PS3.7, C.4.1)."""
        if status == 0x0111:  # it has the object already (PS3.7, C.5.1)
            return None
        is_full, of_object = 0xA700 <= status <= 0xA7FF, 0xA900 <= status <= 0xA9FF
        of_class = of_object or status == 0x0122
        return cls(status_words(status), comment, is_full, of_class, of_object)

    def __str__(self) -> str:
        return f"{self.code}: {self.comment}" if self.comment else self.code


class Unreachable(Exception):
    """The target, or the way to it, is at fault; the message says why."""


@dataclass(frozen=True)
class Sent:
    """What became of files that were sent to a target.

    Attributes:
        stored: names of the files that it has accepted.
        refused: by name, why it refused a file.
        unreachable: why it took no more; empty if it answered for every file. A file may be among
            the refused ones too.
        not_taken: by name, why it takes no object of a file's class.
    """

    stored: tuple[str, ...] = ()
    refused: Mapping[str, Refusal] = field(default_factory=dict)
    unreachable: str = ""
    not_taken: Mapping[str, Refusal] = field(default_factory=dict)


Store = Callable[[Path | pydicom.Dataset], Refusal | None]
"""Sends one object; returns why it is refused, None if it is stored."""


class Target(ABC):
    """A place to which objects are sent."""

    def send(self, files: Sequence[Path], stopped: Callable[[], bool]) -> Sent:
        """Send files, and return what became of each. What is compressed may be sent decoded.

        What the target refuses although it has it counts as stored: some refuse what comes again.

        ``stopped`` is asked between two files; the target counts as unreachable once it is true.

        Raises:
            OSError: a file cannot be read.
        """
        stored, refused, unreachable = list[str](), dict[str, Refusal](), ""
        try:
            with self._opened(files) as store:
                for file in files:
                    if stopped():
                        raise Unreachable(STOPPED)
                    refusal = store(file)
                    if refusal and not refusal.is_last and (plain := decoded(file)) is not None:
                        refusal = store(plain)
                    if refusal is None:
                        stored.append(file.name)
                        continue
                    refused[file.name] = refusal
                    if refusal.is_last:
                        raise Unreachable(refusal.code)
        except Unreachable as error:
            unreachable = str(error)
        doubtful = {one.name: uids_of(one) for one in files
                    if one.name in refused and not refused[one.name].of_class}  # fmt: skip
        for name in self._has(doubtful) if doubtful else ():
            stored.append(name)
            del refused[name]
        return Sent(tuple(stored), refused, unreachable)

    @abstractmethod
    def _opened(self, files: Sequence[Path]) -> AbstractContextManager[Store]:
        """Return the connection for these files; it and what it yields raise `Unreachable`."""

    @abstractmethod
    def _has(self, files: Mapping[str, tuple[str, str, str]]) -> set[str]:
        """Return which of these names, with their UIDs, the target has, as far as it says so."""

    @abstractmethod
    def echo(self) -> str:
        """Return why the target does not answer; empty if it does."""


def class_of(file: Path) -> UID:
    """Return the SOP class of a DICOM file that can be read."""
    return UID(pydicom.dcmread(file, specific_tags=["SOPClassUID"]).SOPClassUID)


def decoded(file: Path) -> pydicom.Dataset | None:
    """Return an object without its compression; None if it has none."""
    syntax = pydicom.filereader.read_file_meta_info(file).TransferSyntaxUID
    if not (syntax.is_compressed or syntax.is_deflated):
        return None
    plain = pydicom.dcmread(file)
    if syntax.is_compressed:
        plain.decompress(generate_instance_uid=False)
    plain.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    return plain


def uids_of(file: Path) -> tuple[str, str, str]:
    """Return the UIDs of study, series and instance of a DICOM file that can be read."""
    data = pydicom.dcmread(file, stop_before_pixels=True)
    return str(data.StudyInstanceUID), str(data.SeriesInstanceUID), str(data.SOPInstanceUID)


def kind_of(sop_class: str) -> ObjectKind | None:
    """Return which kind of object a SOP class is; None for any other."""
    name = UID(sop_class).name
    return next((kind for kind, words in _KIND_WORDS.items() if words in name), None)


_KIND_WORDS: Mapping[ObjectKind, str] = {
    "sr": "SR Storage",
    "seg": "Segmentation Storage",
    "capture": "Secondary Capture Image Storage",
    "pdf": "Encapsulated PDF Storage",
}
"""What the names of their SOP classes have in common (PS3.6, table A-1)."""


def status_words(code: int) -> str:
    """Return what the standard calls a failure, with its code."""
    _, words = STORAGE_SERVICE_CLASS_STATUS.get(code, ("", ""))
    return f"{words} (0x{code:04X})" if words else f"status 0x{code:04X}"
