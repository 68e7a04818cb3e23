"""Read from a received file what it is, without trusting a byte of it; why one is refused.

Only the first bytes are parsed, so that no file costs more than a little time and memory. UIDs
become names of files: one with anything but digits and dots is refused.
"""

import hashlib
import re
import zlib
from dataclasses import dataclass
from enum import Enum
from io import BytesIO
from pathlib import Path

from pydicom import Dataset
from pydicom.filereader import read_dataset
from pydicom.tag import BaseTag, Tag
from pydicom.uid import DeflatedExplicitVRLittleEndian, ExplicitVRBigEndian, ImplicitVRLittleEndian

from imaging.dicom.pixels import TRANSFER_SYNTAXES

_HEAD_BYTES = 1 << 18
"""The identifiers lie before it: private groups of scanners take 10 kB at most."""
_PREAMBLE = 128
_MAGIC = b"DICM"
_META_GROUP = 0x0002
_UID = re.compile(r"[0-9]+(\.[0-9]+)*", re.ASCII)
MAX_UID = 64
"""Characters of a UID (PS3.5, section 9.1)."""
_IDENTIFIERS = ("SOPClassUID", "SOPInstanceUID", "StudyInstanceUID", "SeriesInstanceUID")
_PATIENT = "PatientID"
_LAST = Tag("SeriesInstanceUID")


class Reason(Enum):
    """Why an instance is refused: the words of log and metrics, and the code for the sender.

    The code is that of C-STORE (PS3.4, table B.2-1; PS3.7, annex C), and the failure reason of
    STOW-RS (PS3.18, annex I).
    """

    NO_ROOM = "no room", 0xA700
    STOPPING = "stopping", 0xA700
    TOO_LARGE = "too large", 0xA701
    TOO_MANY = "too many", 0xA702
    SOP_CLASS = "SOP class", 0x0122
    SYNTAX = "transfer syntax", 0xC122
    UID = "UID", 0xC001
    UNREADABLE = "unreadable", 0xC000
    MISMATCH = "mismatch", 0xA900
    CONFLICT = "conflict", 0x0111
    FAULT = "fault", 0x0110

    def __init__(self, words: str, status: int) -> None:
        self.words, self.status = words, status


class Refused(Exception):
    """An instance is not stored; nothing of it is left.

    The text has no patient data and no UID: it goes into logs, and to the sender.

    Attributes:
        sop_class: of the instance; empty if it is not known.
        instance: its SOP Instance UID; empty if it is not known.
    """

    def __init__(self, reason: Reason, text: str) -> None:
        super().__init__(text)
        self.reason, self.sop_class, self.instance = reason, "", ""


@dataclass(frozen=True)
class Identity:
    """What a file says it is.

    Attributes:
        offset: where the data set begins, behind the file meta information.
        patient: PatientID, in whatever characters; empty where there is none.
    """

    offset: int
    sop_class: str
    instance: str
    study: str
    series: str
    patient: str = ""

    @property
    def folder(self) -> str:
        """Name of the folder of its study: digits, dots, a dash and a hash of the patient.

        Two patients whose studies have the same UID by mistake are not mixed.
        """
        return f"{self.study}-{hashlib.sha256(self.patient.encode()).hexdigest()[:8]}"


def checked_uid(text: str, name: str) -> str:
    """Return the UID if it can be nothing else.

    Raises:
        Refused: it is empty, too long, or holds other characters than digits and dots.
    """
    if len(text) > MAX_UID or not _UID.fullmatch(text):
        raise Refused(Reason.UID, f"{name} is no UID of digits and dots, {MAX_UID} at most")
    return text


def identify(file: Path) -> Identity:
    """Read the identity of a DICOM file (PS3.10).

    Raises:
        Refused: it is no DICOM file, a UID is missing or invalid, or the transfer syntax is not
            one that the reader decodes.
    """
    with file.open("rb") as stream:
        head = stream.read(_HEAD_BYTES)
    if head[_PREAMBLE : _PREAMBLE + len(_MAGIC)] != _MAGIC:
        raise Refused(Reason.UNREADABLE, "no DICOM file: the prefix DICM is missing")
    try:
        content = BytesIO(head)
        content.seek(_PREAMBLE + len(_MAGIC))
        meta = read_dataset(
            content, False, True, stop_when=lambda tag, *_: tag.group != _META_GROUP
        )
        offset = content.tell()
    # pydicom promises no set of exceptions for damaged files
    except Exception as error:
        text = f"the file meta information is damaged ({type(error).__name__})"
        raise Refused(Reason.UNREADABLE, text) from None
    syntax = _uid(meta, "TransferSyntaxUID")
    if syntax not in TRANSFER_SYNTAXES:
        raise Refused(Reason.SYNTAX, "the transfer syntax is not one that the reader decodes")
    try:
        data = _identifiers(head[offset:], syntax)
    except Exception as error:  # pydicom promises no set of exceptions for damaged files
        text = f"the data set is damaged ({type(error).__name__})"
        raise Refused(Reason.UNREADABLE, text) from None
    sop_class, instance, study, series = (_uid(data, keyword) for keyword in _IDENTIFIERS)
    patient = _raw(data, _PATIENT, "latin-1").strip("\0 ")
    return Identity(offset, sop_class, instance, study, series, patient)


def data_set_digest(file: Path, offset: int) -> bytes:
    """Return the SHA-256 of a file's data set, without its file meta information."""
    with file.open("rb") as stream:
        stream.seek(offset)
        return hashlib.file_digest(stream, "sha256").digest()


def _identifiers(head: bytes, syntax: str) -> Dataset:
    """Parse the beginning of a data set; a deflated one is inflated no further than needed."""
    if syntax == DeflatedExplicitVRLittleEndian:
        head = zlib.decompressobj(-zlib.MAX_WBITS).decompress(head, _HEAD_BYTES)
    tags: list[BaseTag | int] = [Tag(keyword) for keyword in (*_IDENTIFIERS, _PATIENT)]
    return read_dataset(
        BytesIO(head),
        syntax == ImplicitVRLittleEndian,
        syntax != ExplicitVRBigEndian,
        stop_when=lambda tag, *_: bool(tag > _LAST),
        specific_tags=tags,
    )


def _uid(data: Dataset, keyword: str) -> str:
    return checked_uid(_raw(data, keyword, "ascii").rstrip("\0 "), keyword)


def _raw(data: Dataset, keyword: str, charset: str) -> str:
    """Return the raw value as text, because pydicom warns of invalid ones with their text."""
    element = data.get_item(keyword)
    value = b"" if element is None else element.value
    return value.decode(charset, "replace") if isinstance(value, bytes) else ""
