"""One DICOM file's header, and how its values are read without trusting them."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from pydicom import Dataset, dcmread
from pydicom.multival import MultiValue

from imaging.errors import UnreadableFile
from imaging.volume import FloatArray

HEADER_KEYWORDS = (
    *("SOPClassUID", "Modality", "ImageType", "SeriesInstanceUID", "SeriesNumber"),
    *("PatientID", "PatientName", "PatientSex", "PatientAge", "AccessionNumber"),
    *("StudyInstanceUID", "StudyDate", "StudyDescription", "SeriesDescription"),
    *("Manufacturer", "ConvolutionKernel", "BodyPartExamined", "ProtocolName"),
    *("Rows", "Columns", "SamplesPerPixel", "NumberOfFrames", "PhotometricInterpretation"),
    *("BitsAllocated", "BitsStored", "HighBit", "PixelRepresentation"),
    *("PixelPaddingValue", "PixelPaddingRangeLimit"),
    *("RescaleSlope", "RescaleIntercept", "RescaleType"),
    *("ImagePositionPatient", "ImageOrientationPatient", "PixelSpacing"),
    *("SliceThickness", "GantryDetectorTilt"),
    *("SharedFunctionalGroupsSequence", "PerFrameFunctionalGroupsSequence"),
)
"""What is read of each file; everything else in it is skipped unparsed."""


@dataclass(frozen=True, eq=False)
class Instance:
    """One image as its header describes it; ``frame`` is its index inside its file."""

    file: Path
    data: Dataset
    transfer_syntax: str = ""
    frame: int = 0

    def text(self, keyword: str) -> str:
        """The value as stripped text, values of several joined by a backslash; else empty."""
        return "\\".join(self.texts(keyword))

    def texts(self, keyword: str) -> tuple[str, ...]:
        """Every value of the attribute as stripped text; none where it is absent or empty."""
        value = self._raw(keyword)
        if value is None or value == "":
            return ()
        values = value if isinstance(value, MultiValue | list | tuple) else [value]
        return tuple(str(v).strip() for v in values)

    def number(self, keyword: str) -> float | None:
        """The value as a finite float; None where it is absent or empty."""
        values = self._numbers(keyword)
        if len(values) > 1:
            raise UnreadableFile(f"{keyword} has {len(values)} values instead of 1", self.file)
        return values[0] if values else None

    def integer(self, keyword: str) -> int | None:
        """The value as an int; None where it is absent or empty."""
        value = self.number(keyword)
        return None if value is None else int(value)

    def numbers(self, keyword: str, count: int) -> FloatArray | None:
        """The ``count`` values as finite floats ``(count,)``; None where they are absent."""
        values = self._numbers(keyword)
        if values and len(values) != count:
            reason = f"{keyword} has {len(values)} values instead of {count}: send the file again"
            raise UnreadableFile(reason, self.file)
        return np.array(values) if values else None

    def _numbers(self, keyword: str) -> list[float]:
        try:
            numbers = [float(text) for text in self.texts(keyword) if text]
        except ValueError:
            reason = f"{keyword} is no number ({self.text(keyword)[:40]!r}): send the file again"
            raise UnreadableFile(reason, self.file) from None
        if not all(map(math.isfinite, numbers)):
            raise UnreadableFile(f"{keyword} is not finite: {numbers}", self.file)
        return numbers

    def _raw(self, keyword: str) -> object:
        try:
            return _plain(self.data.get(keyword))
        # A damaged value is met only now, when pydicom converts it, and fails as anything:
        # ValueError, TypeError, OverflowError, struct.error, NotImplementedError ...
        except Exception as error:
            reason = f"{keyword} cannot be read ({_short(error)}): send the file again"
            raise UnreadableFile(reason, self.file) from None


def read_instance(file: Path, *, bare: bool = False) -> Instance:
    """The header of one DICOM file; ``bare`` for a data set without preamble.

    Raises:
        UnreadableFile: the header is damaged or cut off.
    """
    data = load(file, HEADER_KEYWORDS, bare=bare, pixels=False)
    if not len(data):
        raise UnreadableFile("holds no DICOM attributes: send the file again", file)
    return Instance(file, data, _transfer_syntax(data))


def load(file: Path, keywords: tuple[str, ...], *, bare: bool, pixels: bool) -> Dataset:
    """The named attributes of a file as pydicom reads them.

    Raises:
        UnreadableFile: the file cannot be opened or parsed.
    """
    try:
        return dcmread(
            file, force=bare, stop_before_pixels=not pixels, specific_tags=list(keywords)
        )
    # pydicom promises no set of exceptions for damaged files.
    except Exception as error:
        reason = f"damaged DICOM file ({_short(error)}): send it again"
        raise UnreadableFile(reason, file) from None


def _transfer_syntax(data: Dataset) -> str:
    try:
        return str(data.file_meta.get("TransferSyntaxUID", ""))
    except Exception:  # a damaged value, as above; the pixel data then speaks for itself
        return ""


def _plain(value: object) -> object:
    """Bytes, which pydicom leaves where it does not know the sign of a value, as an int."""
    return int.from_bytes(value, "little") if isinstance(value, bytes) else value


def _short(error: Exception) -> str:
    return f"{type(error).__name__}: {error}"[:120]
