"""Which files of a folder are DICOM: judged by content, so that names do not matter."""

from __future__ import annotations

import codecs
import os
from collections.abc import Iterator
from pathlib import Path

from imaging.errors import UnreadableFile

DICOM_SUFFIXES = frozenset({".dcm", ".dicom", ".dic", ".ima"})
MAX_FILES = 20_000
"""More than the files of any one examination: a wrong folder rather than a study."""

_MAGIC = slice(128, 132)
_HEAD_BYTES = 512


def find_dicom(folder: Path) -> tuple[list[Path], list[Path]]:
    """The DICOM files below ``folder`` and the other files, each sorted by path.

    Hidden files, DICOMDIR and what a file system leaves behind count as neither.

    Raises:
        UnreadableFile: the folder cannot be listed, holds too many files, or one of them is a
            DICOM file by its name, or could be, and is none by its content.
    """
    dicom: list[Path] = []
    others: list[Path] = []
    for count, file in enumerate(_files(folder), start=1):
        if count > MAX_FILES:
            reason = f"more than {MAX_FILES} files: give the folder of one study"
            raise UnreadableFile(reason, folder)
        (dicom if is_dicom(file) else others).append(file)
    return dicom, others


def is_dicom(file: Path) -> bool:
    """Whether the file is DICOM, with or without the preamble of part 10.

    Raises:
        UnreadableFile: the file cannot be opened, or only its name says that it is DICOM.
    """
    head = read_head(file)
    if head[_MAGIC] == b"DICM" or is_bare(head):
        return True
    if not _could_be_dicom(file) or (head and _is_text(head) and not _claims_dicom(file)):
        return False
    reason = "is empty" if not head else "is not DICOM, though its name says so"
    raise UnreadableFile(f"{reason}: send the file again", file)


def is_bare(head: bytes) -> bool:
    """Whether a file that starts with ``head`` is a data set without preamble (old exports)."""
    group, element = head[0:2], int.from_bytes(head[2:4], "little")
    starts_dataset = group in (b"\x02\x00", b"\x08\x00") and element <= 0x0018
    return starts_dataset and len(head) > 8 and head[_MAGIC] != b"DICM"


def read_head(file: Path) -> bytes:
    """The first bytes of a file, enough to know its format.

    Raises:
        UnreadableFile: the file cannot be opened.
    """
    try:
        with file.open("rb") as stream:
            return stream.read(_HEAD_BYTES)
    except OSError as error:
        raise UnreadableFile(f"cannot be opened ({error.strerror})", file) from None


def _files(folder: Path) -> Iterator[Path]:
    def fail(error: OSError) -> None:
        raise UnreadableFile(f"cannot be listed ({error.strerror})", folder)

    for root, folders, names in os.walk(folder, onerror=fail):
        folders[:] = sorted(f for f in folders if not f.startswith((".", "__MACOSX")))
        for name in sorted(names):
            file = Path(root, name)
            if not name.startswith(".") and name.upper() != "DICOMDIR" and file.is_file():
                yield file


def _could_be_dicom(file: Path) -> bool:
    """No suffix, or one of digits (a name that is a UID), is how scanners often write files."""
    return _claims_dicom(file) or not file.suffix or file.suffix[1:].isdigit()


def _claims_dicom(file: Path) -> bool:
    return file.suffix.lower() in DICOM_SUFFIXES


def _is_text(head: bytes) -> bool:
    """A README or LICENSE without suffix: a damaged image has bytes that no text has."""
    try:
        text = codecs.getincrementaldecoder("utf-8")().decode(head)
    except UnicodeDecodeError:
        return False
    return all(letter >= " " or letter in "\t\n\r\f" for letter in text)
