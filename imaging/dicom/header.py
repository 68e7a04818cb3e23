"""Find the DICOM files of a folder by their content, and read headers without trusting them."""

import codecs
import math
import os
import re
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from io import BufferedReader
from pathlib import Path
from typing import Any

import numpy as np
from pydicom import Dataset
from pydicom.filereader import read_partial
from pydicom.multival import MultiValue
from pydicom.tag import BaseTag, Tag

from imaging.dicom.planes import Plane
from imaging.dicom.scan import Pixels, plain_texts, scan
from imaging.errors import StudyError, UnreadableFile, is_machine_fault
from imaging.files import not_plain, open_plain, special_kind
from imaging.volume import FloatArray

ANNOUNCED = (
    "NumberOfSeriesRelatedInstances",
    "ImagesInAcquisition",
    "NumberOfStudyRelatedInstances",
)
"""Where a header may announce a number of images, the most exact one first."""
FUNCTIONAL_GROUPS = ("SharedFunctionalGroupsSequence", "PerFrameFunctionalGroupsSequence")
SOURCE_KEYWORDS = (
    *("PatientName", "PatientID", "IssuerOfPatientID", "PatientBirthDate", "PatientSex"),
    *("PatientAge", "PatientSize", "PatientWeight"),
    *("PatientIdentityRemoved", "DeidentificationMethod"),
    *("StudyInstanceUID", "StudyID", "StudyDate", "StudyTime", "StudyDescription"),
    *("AccessionNumber", "ReferringPhysicianName", "TimezoneOffsetFromUTC"),
    *("SeriesInstanceUID", "SeriesNumber", "SeriesDescription", "Modality", "BodyPartExamined"),
    *("FrameOfReferenceUID", "PositionReferenceIndicator", "PatientPosition"),
    *("Manufacturer", "ManufacturerModelName", "InstitutionName", "DeviceSerialNumber"),
    *("SoftwareVersions", "StationName"),
    *("SOPClassUID", "SOPInstanceUID", "InstanceNumber", "ImageType"),
    *("Rows", "Columns", "NumberOfFrames", "ImagePositionPatient", "ImageOrientationPatient"),
    *("PixelSpacing", "SliceThickness", "SpacingBetweenSlices"),
    *("AcquisitionDate", "AcquisitionTime", "SamplesPerPixel", "PhotometricInterpretation"),
    *("BitsAllocated", "BitsStored", "HighBit", "PixelRepresentation", "LossyImageCompression"),
    *("LossyImageCompressionRatio", "LossyImageCompressionMethod"),
)
"""The attributes that are kept for the DICOM objects of a report."""
HEADER_KEYWORDS = (
    *SOURCE_KEYWORDS,
    *("ContrastBolusAgent", "ConvolutionKernel", "ProtocolName", "AcquisitionNumber", *ANNOUNCED),
    *("PixelPaddingValue", "PixelPaddingRangeLimit"),
    *("RescaleSlope", "RescaleIntercept", "RescaleType", *FUNCTIONAL_GROUPS),
)
"""What is read of a header: that, and what reading depends on. All else is skipped unparsed."""
MAX_FILES = 20_000
"""More files than any one examination has: a wrong folder rather than a study."""
MAX_INFLATED = 512 << 20
"""Largest deflated file in bytes when it is inflated: a thousand slices."""
UNFINISHED = (".part", ".partial", ".filepart", ".crdownload", ".tmp")
"""Suffixes that programs append to the name of a file while they transfer it."""
DICOM_SUFFIXES = {".dcm", ".dicom", ".dic", ".ima"}
_TAGS = {keyword: int(Tag(keyword)) for keyword in HEADER_KEYWORDS}
_ABSENT = ("", b"")
_MAX_TEXT, _MAX_VALUES, _NUMBER_BYTES = 256, 64, 2
"""Longest text that is kept of a value, in characters, and most values: DICOM's names have 64."""
_WANTED = frozenset(_TAGS.values())
_PIXEL_DATA = Tag("PixelData")
_MAGIC = slice(128, 132)
_HEAD_BYTES = 512
"""Enough to know the format of a file."""
_SMALL = 1 << 16
_OTHER_FORMATS = (
    *(b"\x7fELF", b"MZ", b"\xcf\xfa\xed\xfe", b"\xca\xfe\xba\xbe"),  # programs and libraries
    *(b"\xff\xd8\xff", b"\x89PNG", b"GIF8", b"%PDF-"),
    *(b"PK\x03\x04", b"7z\xbc\xaf", b"Rar!", b"\x1f\x8b"),
    *(b"\xd0\xcf\x11\xe0", b"SQLite format 3"),
)
"""How the files begin that lie beside the images on a patient's disc."""
MAX_DEPTH = 64
"""Folders in folders: a walk through more would end in a RecursionError (Python 3.11)."""


@dataclass(frozen=True, eq=False)
class Instance:
    """One image as its header describes it; ``frame`` is its index inside its file.

    With ``damage`` its series cannot be read; what lies behind it may not be known. ``plane`` is
    its slice where it was decoded already, and ``made`` keeps what was made of the header.
    """

    file: Path
    data: Dataset
    transfer_syntax: str = ""
    frame: int = 0
    pixels: Pixels | None = None
    values: Mapping[int, tuple[str, bytes]] | None = None
    _texts: dict[str, tuple[str, ...]] = field(default_factory=dict, repr=False)
    made: dict[str, Any] = field(default_factory=dict, repr=False)
    damage: StudyError | None = None
    plane: Plane | None = None

    def text(self, keyword: str) -> str:
        """Return the value as stripped text, several joined by a backslash; empty if absent."""
        return "\\".join(self.texts(keyword))[: 4 * _MAX_TEXT]

    def texts(self, keyword: str) -> tuple[str, ...]:
        """Return every value of the attribute as stripped text; none if absent or empty."""
        if (known := self._texts.get(keyword)) is None:
            known = self._texts[keyword] = self._converted(keyword)
        return known

    def _converted(self, keyword: str) -> tuple[str, ...]:
        if self.values is not None and (tag := _TAGS.get(keyword)) is not None:
            plain = plain_texts(*self.values.get(tag, _ABSENT))
            if plain is not None:
                return plain
        value = self._raw(keyword)
        if value is None or value == "":
            return ()
        values = value if isinstance(value, MultiValue | list | tuple) else [value]
        return tuple(str(v)[:_MAX_TEXT].strip() for v in values[:_MAX_VALUES])

    def number(self, keyword: str) -> float | None:
        """Return the value as a finite float; None if absent or empty."""
        values = self.numbers(keyword, 1)
        return None if values is None else float(values[0])

    def advisory(self, keyword: str) -> float | None:
        """Return the value as a finite float; None if it is absent or no number.

        For what no image and no position depends on.
        """
        try:
            return self.number(keyword)
        except UnreadableFile:
            return None

    def integer(self, keyword: str) -> int | None:
        """Return the value as an int; None if absent or empty."""
        value = self.number(keyword)
        return None if value is None else int(value)

    def numbers(self, keyword: str, count: int) -> FloatArray | None:
        """Return the ``count`` values as finite floats ``(count,)``; None if absent or empty."""
        try:
            # a text that was cut is no number any more
            values = [float(t if len(t) < _MAX_TEXT else "") for t in self.texts(keyword) if t]
        except ValueError:
            reason = f"{keyword} is {self.text(keyword)[:40]!r}, not a number: send the file again"
            raise UnreadableFile(reason, self.file) from None
        if not all(map(math.isfinite, values)):
            reason = f"{keyword} is {values}, not finite: send the file again"
            raise UnreadableFile(reason, self.file)
        if values and len(values) != count:
            reason = f"{keyword} has {len(values)} values instead of {count}: send the file again"
            raise UnreadableFile(reason, self.file)
        return np.array(values) if values else None

    def _raw(self, keyword: str) -> object:
        try:
            value = self.data.get(keyword)
            # pydicom leaves bytes where it does not know the sign of a value; more are a text
            if isinstance(value, bytes):
                is_number = len(value) <= _NUMBER_BYTES
                return int.from_bytes(value, "little") if is_number else value.decode("latin-1")
            return value
        # A damaged value is met only now, when pydicom converts it, and fails as anything:
        # ValueError, TypeError, OverflowError, struct.error, NotImplementedError ...
        except Exception as error:
            if is_machine_fault(error):
                raise
            reason = f"{keyword} cannot be read ({_short(error)}): send the file again"
            raise UnreadableFile(reason, self.file) from None


def read_instance(file: Path) -> Instance:
    """Read the header of one DICOM file.

    Raises:
        UnreadableFile: the header is damaged or cut off.
    """
    with open_plain(file) as stream:
        found = scan(stream, _WANTED)
    if found is not None and len(found.data):
        return Instance(file, found.data, found.transfer_syntax, 0, found.pixels, found.values)
    data = load(file, (*HEADER_KEYWORDS, "ContrastBolusAgentSequence"))
    if not len(data):
        raise UnreadableFile("holds no DICOM attributes: send the file again", file)
    try:
        transfer_syntax = str(data.file_meta.get("TransferSyntaxUID", ""))
    except Exception:  # a damaged value: the pixel data then speaks for itself
        transfer_syntax = ""
    return Instance(file, data, transfer_syntax)


def load(file: Path, keywords: tuple[str, ...], *, pixels: bool = False) -> Dataset:
    """Read the named attributes of a file with pydicom.

    Raises:
        UnreadableFile: the file cannot be opened or parsed.
    """

    def is_past(tag: BaseTag, _vr: str | None, _length: int) -> bool:
        """Stop at the pixel data, or behind it: there lies what is no part of the image."""
        return tag > _PIXEL_DATA or (not pixels and tag == _PIXEL_DATA)

    tags: list[BaseTag | int] = [Tag(keyword) for keyword in keywords]
    try:
        with _Bounded(open_plain(file)) as stream:
            is_without_preamble = is_bare(stream.read(_HEAD_BYTES))
            stream.seek(0)
            return read_partial(stream, is_past, force=is_without_preamble, specific_tags=tags)
    # pydicom promises no set of exceptions for damaged files.
    except Exception as error:
        if isinstance(error, UnreadableFile) or is_machine_fault(error):
            raise
        raise UnreadableFile(f"damaged DICOM file ({_short(error)}): send it again", file) from None


class _Bounded(BufferedReader):
    """A file for pydicom that gives no more memory and bytes than a sound file needs."""

    def __init__(self, stream: BufferedReader) -> None:
        super().__init__(stream.detach())
        self._bytes = os.fstat(self.fileno()).st_size

    def read(self, size: int | None = -1) -> bytes:
        """Read bytes, up to the end of the file.

        pydicom reads all that is left only to inflate it in one piece: it must not inflate to more
        than `MAX_INFLATED`. A damaged length asks for gigabytes, which Python would allocate first.
        """
        if size is None or size < 0:
            content = super().read()
            self._require_inflatable(content)
            return content
        return super().read(size if size < _SMALL else min(size, self._bytes - self.tell()))

    def _require_inflatable(self, content: bytes) -> None:
        inflater, size, left = zlib.decompressobj(-zlib.MAX_WBITS), 0, content
        while left and not inflater.eof:
            size += len(inflater.decompress(left, 1 << 20))
            left = inflater.unconsumed_tail
            if size > MAX_INFLATED:
                raise ValueError(f"inflates to more than {MAX_INFLATED >> 20} MB")


def _short(error: Exception) -> str:
    return f"{type(error).__name__}: {error}"[:120]


def find_dicom(
    folder: Path, is_known: Callable[[Path], bool] = lambda _file: False
) -> tuple[list[Path], list[Path]]:
    """List the DICOM files below ``folder`` and the other files, each sorted by path.

    Those that ``is_known`` knows to be DICOM files are not opened.

    Hidden files, DICOMDIR and the archive folders of macOS are left out of both. What else lies on
    a patient's disc (a viewer, its libraries, pictures, texts, empty files) is among the others.

    Raises:
        UnreadableFile: the folder cannot be listed, holds too many files, or one of them was meant
            to be an image: by its name, or because the images beside it are named alike.
    """
    dicom: list[Path] = []
    others: list[Path] = []
    unknown: list[tuple[Path, bytes]] = []
    for count, file in enumerate(_files(folder), start=1):
        if count > MAX_FILES:
            reason = f"more than {MAX_FILES} files: give the folder of one study"
            raise UnreadableFile(reason, folder)
        if is_known(file) and not is_unfinished(file):
            dicom.append(file)
            continue
        # what is no file is not opened, and treated like an empty one
        head = b"" if special_kind(file) else read_head(file)
        unfinished = is_unfinished(file)
        # what is left of a transfer that was made again is no image
        found = is_dicom(head) and (unfinished or file.suffix.lower() not in UNFINISHED)
        if unfinished if found else file.suffix.lower() in DICOM_SUFFIXES:
            raise UnreadableFile(lost_image(file, head), file)
        (dicom if found else others).append(file)
        known = head.startswith(_OTHER_FORMATS) or (head and _is_text(head))
        if not found and (unfinished or not known):
            unknown.append((file, head))
    named_alike = {(file.parent, _kind_of_name(file.name)) for file in dicom}
    for file, head in unknown:
        name = file.stem if is_unfinished(file) else file.name
        if (file.parent, _kind_of_name(name)) in named_alike:
            raise UnreadableFile(lost_image(file, head), file)
    return dicom, others


def is_unfinished(file: Path) -> bool:
    """Tell whether the file's name is that of a transfer, and the finished file is not beside."""
    return file.suffix.lower() in UNFINISHED and not file.with_suffix("").exists()


def _kind_of_name(name: str) -> tuple[str, bool]:
    """Return what the names of one series have in common: their suffix, and whether they count.

    Scanners often write no suffix, or numbers after dots, as in a UID.
    """
    stem = re.sub(r"(\.\d+)+$", "", name)
    return Path(stem).suffix.lower(), any(letter.isdigit() for letter in name)


def lost_image(file: Path, head: bytes) -> str:
    """Say why a file that was meant to be an image is none."""
    if kind := special_kind(file):
        return not_plain(kind)
    if is_unfinished(file):
        return "is a transfer that has not finished: wait until it has, or send the file again"
    reason = "is not DICOM, although it is named like a DICOM file" if head else "is empty"
    return f"{reason}: send the file again"


def names_of(files: Sequence[Path]) -> str:
    """Name the first three files, and say how many there are besides."""
    more = f" and {len(files) - 3} more" if len(files) > 3 else ""
    return ", ".join(file.name for file in files[:3]) + more


def is_dicom(head: bytes) -> bool:
    """Tell by its first bytes whether a file is DICOM, with or without the preamble of part 10."""
    return head[_MAGIC] == b"DICM" or is_bare(head)


def is_bare(head: bytes) -> bool:
    """Tell whether a file that starts with ``head`` is a data set without preamble."""
    group, element = head[0:2], int.from_bytes(head[2:4], "little")
    starts_dataset = group in (b"\x02\x00", b"\x08\x00") and element <= 0x0018
    return starts_dataset and len(head) > 8 and head[_MAGIC] != b"DICM"


def read_head(file: Path) -> bytes:
    """Read the first bytes of a file.

    Raises:
        UnreadableFile: the file cannot be opened, or is no regular file.
    """
    with open_plain(file) as stream:
        return stream.read(_HEAD_BYTES)


def _files(folder: Path) -> Iterator[Path]:
    def fail(error: OSError) -> None:
        if is_machine_fault(error):
            raise error
        raise UnreadableFile(f"cannot be listed ({error.strerror}): check its permissions", folder)

    for root, folders, names in os.walk(folder, onerror=fail):
        if len(Path(root).parts) - len(folder.parts) > MAX_DEPTH:
            reason = f"folders are nested more than {MAX_DEPTH} deep: send the images in one folder"
            raise UnreadableFile(reason, folder)
        folders[:] = sorted(f for f in folders if not f.startswith((".", "__MACOSX")))
        links = [name for name in folders if Path(root, name).is_symlink()]
        for name in sorted([*names, *links]):
            if not name.startswith(".") and name.upper() != "DICOMDIR":
                yield Path(root, name)


def _is_text(head: bytes) -> bool:
    """Tell a README or LICENSE without suffix from a damaged image: UTF-8 without control codes."""
    try:
        text = codecs.getincrementaldecoder("utf-8")().decode(head)
    except UnicodeDecodeError:
        return False
    return all(letter >= " " or letter in "\t\n\r\f" for letter in text)
