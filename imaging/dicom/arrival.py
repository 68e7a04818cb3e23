"""Look at what has arrived of a study: its series, and images still to come.

Only the first bytes of a file are parsed, so that none costs more than a little time and memory.
A file that is no DICOM image tells nothing here; reading the study refuses it if it is damaged.
"""

import filecmp
import hashlib
import os
import warnings
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from io import BytesIO
from itertools import groupby
from pathlib import Path

from pydicom import Dataset
from pydicom.filereader import read_partial
from pydicom.tag import BaseTag, Tag

from imaging.dicom.header import ANNOUNCED, MAX_FILES, is_bare, load
from imaging.errors import is_machine_fault
from imaging.files import open_plain

_HEAD_BYTES = 1 << 16
"""Identifiers and counts of images lie before it: private groups of scanners take 10 kB at most."""
_LAST_TAG = 0x00201209
_IDENTIFIERS = ("PatientID", "StudyInstanceUID", "SeriesInstanceUID", "SOPInstanceUID")
_MAX_FOLDERS = 64
"""Of a study, of which an image each is looked at: 2 ms each. More are taken for one series."""
_MAX_DIRECTORY_BYTES = 1 << 26
"""A record of a DICOMDIR takes some 500 bytes, so this is more than 100,000 of them."""


@dataclass(frozen=True)
class Arrived:
    """One image that has arrived.

    ``announced`` is the number of images that belong to it, or 0; ``of_study``: to its study.
    """

    file: Path
    patient_id: str
    study_uid: str
    series_uid: str
    image_uid: str
    announced: int
    of_study: bool = False


def arrived(study: Path) -> Iterator[Arrived]:
    """Yield the images below a folder in the order of their paths; other files are left out."""
    for file in files_of(study):
        if (image := look(file)) is not None:
            yield image


def files_of(study: Path) -> list[Path]:
    """Return the files below a folder that could be images, by path; none for a file."""
    found = (Path(top, name) for top, _, names in os.walk(study) for name in names)
    return sorted(file for file in found if not file.name.startswith("."))


def missing_images(study: Path) -> int:
    """Return how many images of a study are still to come, as the first of each folder announces.

    All images of a folder count for the series of its first one.
    """
    files, firsts, there = files_of(study), list[Arrived](), Counter[str]()
    folders = [list(group) for _, group in groupby(files, key=lambda file: file.parent)]
    for beside in folders if len(folders) <= _MAX_FOLDERS else [files]:
        if (first := next(filter(None, map(look, beside)), None)) is not None:
            firsts.append(first)
            there[first.series_uid] += len(beside)
    counts = [len(files) if one.of_study else there[one.series_uid] for one in firsts]
    return max([0, *(one.announced - n for one, n in zip(firsts, counts, strict=True))])


def look(file: Path) -> Arrived | None:
    """Return the image in a file; None if it is no DICOM image, or damaged."""
    try:
        # pydicom warns of values, with their text, when they are converted
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            data = head_of(file, (*_IDENTIFIERS, *ANNOUNCED))
            patient, study, series, image = (
                str(data.get(keyword) or "") for keyword in _IDENTIFIERS
            )
            numbers = [_count(data, keyword) for keyword in ANNOUNCED]
    # pydicom promises no set of exceptions for damaged files
    except Exception:
        return None
    if not (series and image):
        return None
    announced = next(filter(None, numbers), 0)
    # the number of the study is the last one
    return Arrived(file, patient, study, series, image, announced, not any(numbers[:-1]))


def is_same_image(one: Path, other: Path) -> bool:
    """Compare the data sets of two files; each sender writes other file meta information (PS3.10).

    Raises:
        OSError: one cannot be read.
    """
    return filecmp.cmp(one, other, shallow=False) or _data_set(one) == _data_set(other)


def _data_set(file: Path) -> bytes:
    """Return the SHA-256 of what lies behind the file meta information, whose length comes first.

    Where no length is stated it is that of the whole file.
    """
    with file.open("rb") as stream:
        prefix, length = stream.read(140)[128:], stream.read(4)
        is_stated = prefix == b"DICM\x02\x00\x00\x00UL\x04\x00"
        stream.seek(144 + int.from_bytes(length, "little") if is_stated else 0)
        return hashlib.file_digest(stream, "sha256").digest()


def head_of(file: Path, keywords: tuple[str, ...]) -> Dataset:
    """Parse the named attributes in the first bytes of a file.

    Raises:
        Exception: it cannot be opened, or is no DICOM file; pydicom promises no set of exceptions.
    """
    with open_plain(file) as stream:
        head = stream.read(_HEAD_BYTES)

    def after(tag: BaseTag, _vr: str | None, _length: int) -> bool:
        return int(tag) > _LAST_TAG

    tags: list[BaseTag | int] = [Tag(name) for name in keywords]
    return read_partial(BytesIO(head), after, force=is_bare(head), specific_tags=tags)


def _count(data: Dataset, keyword: str) -> int:
    try:
        count = int(data.get(keyword) or 0)
    except (TypeError, ValueError, OverflowError):
        return 0
    return count if 0 <= count <= MAX_FILES else 0


def listed_images(folder: Path, series_uid: str) -> int:
    """Return how many images of a series the folder's DICOMDIR lists.

    It is 0 without a DICOMDIR, and with one that is damaged: the images speak for themselves.
    """
    file = folder / "DICOMDIR"
    try:
        if not file.is_file() or file.stat().st_size > _MAX_DIRECTORY_BYTES:
            return 0
        records = load(file, ("DirectoryRecordSequence",))
        return _chained(list(records.DirectoryRecordSequence), series_uid)
    # pydicom promises no set of exceptions for damaged files
    except Exception as error:
        if is_machine_fault(error):
            raise
        return 0


def _chained(records: list[Dataset], series_uid: str) -> int:
    """Count the images that are chained to the record of a series by offsets (PS3.3, annex F)."""
    at = {record.seq_item_tell: record for record in records}
    found: set[int] = set()
    for series in records:
        if series.DirectoryRecordType == "SERIES" and series.SeriesInstanceUID == series_uid:
            offset = series.OffsetOfReferencedLowerLevelDirectoryEntity
            while offset in at and offset not in found:
                found.add(offset)
                offset = at[offset].OffsetOfTheNextDirectoryRecord
    return sum(at[offset].DirectoryRecordType == "IMAGE" for offset in found)
