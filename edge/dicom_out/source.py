"""The source images that objects refer to: patient and study, and the planes in the patient.

What identifies patient and study is copied as it is, also where it breaks a rule of DICOM: another
value would be another patient. What only describes them is checked by making it again: a day that
no calendar has is left out like any invalid value.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import date, datetime, time
from typing import Any

import numpy as np
from pydicom import Dataset
from pydicom.config import RAISE, disable_value_validation
from pydicom.datadict import dictionary_VM, dictionary_VR
from pydicom.valuerep import DSfloat, validate_value

from edge.errors import NotExportable
from imaging.dicom.source import ORDER_KEYWORDS
from imaging.volume import FloatArray

UTF8 = "ISO_IR 192"
IDENTIFYING = ("PatientName", "PatientID", "AccessionNumber", "StudyID")
"""Copied as they are; empty where the files do not state them, as DICOM requires."""
_DESCRIBING_OR_EMPTY = (
    *("PatientBirthDate", "PatientSex", "StudyDate", "StudyTime", "ReferringPhysicianName"),
)
DESCRIBING = (
    *("IssuerOfPatientID", "PatientAge", "PatientSize", "PatientWeight", "StudyDescription"),
    *("PatientIdentityRemoved", "DeidentificationMethod", "TimezoneOffsetFromUTC"),
)
_OF_IMAGE = (
    *("SOPClassUID", "SOPInstanceUID", "SeriesInstanceUID", "StudyInstanceUID", "Modality"),
    *("InstanceNumber", "FrameOfReferenceUID", "PositionReferenceIndicator"),
    *("Rows", "Columns", "NumberOfFrames", "PixelSpacing", "SliceThickness"),
    *("ImagePositionPatient", "ImageOrientationPatient"),
    *("SharedFunctionalGroupsSequence", "PerFrameFunctionalGroupsSequence"),
    *("Manufacturer", "ManufacturerModelName", "InstitutionName", "DeviceSerialNumber"),
    *("SoftwareVersions", "StationName", "AcquisitionDate", "AcquisitionTime"),
    *("LossyImageCompression", "LossyImageCompressionRatio", "LossyImageCompressionMethod"),
)
_CODE = ("CodeValue", "CodingSchemeDesignator", "CodeMeaning")
_UID = re.compile(r"[0-9]+(\.[0-9]+)+")
_TIMEZONE = re.compile(r"(\+(0\d|1[0-4])|-(0\d|1[0-2]))[0-5]\d")
_TEXTS = ("LO", "PN", "SH")


@dataclass(frozen=True, eq=False)
class Source:
    """The images of the series that was read, in the order of its slices.

    Attributes:
        subject: patient and study, in UTF-8.
        images: data sets without pixels. Each has patient and study too, but no names of people:
            highdicom would warn of a name that is unlikely, and the log would hold it.
        unfit: why an object cannot name these images; empty where it can.
    """

    subject: Dataset
    images: tuple[Dataset, ...]
    unfit: str = ""

    @property
    def frame_of_reference_uid(self) -> str:
        """Of all coordinates in mm; empty where the files do not state a valid one."""
        uid = str(self.images[0].get("FrameOfReferenceUID") or "")
        return uid if is_uid(uid) else ""

    def local(self, moment: datetime) -> datetime:
        """Return the moment on the clock of the study's times: its time zone, or this machine's."""
        zone = self.subject.get("TimezoneOffsetFromUTC")
        return moment.astimezone(datetime.strptime(zone, "%z").tzinfo if zone else None)


def source_of(headers: Sequence[Dataset]) -> Source:
    """Make the source images from the headers that were kept.

    Raises:
        NotExportable: the images do not say to which study they belong.
    """
    if not headers:
        raise NotExportable("no header of a source image was kept")
    study = str(headers[0].get("StudyInstanceUID") or "")
    if not is_uid(study):
        reason = f"the source images have no valid StudyInstanceUID, found {study[:70]!r}"
        raise NotExportable(f"{reason}: an object could not be filed with its study")
    # without this pydicom logs values that do not follow the standard, which may be of a patient
    with disable_value_validation():
        subject = _subject(headers)
        images = []
        for header in headers:
            image = Dataset()
            image.update(subject)
            put(image, "PatientName", None)
            put(image, "ReferringPhysicianName", None)
            for keyword in _OF_IMAGE:
                value = header.get(keyword)
                if keyword.endswith(("UID", "Sequence")) and keyword in header:
                    image[keyword] = header[keyword]
                elif (value := built(keyword, value)) is not None:
                    put(image, keyword, value)
            images.append(image)
    for keyword in ("SOPClassUID", "SOPInstanceUID", "SeriesInstanceUID"):
        for image in images:
            if not is_uid(uid := str(image.get(keyword) or "")):
                reason = f"a source image has no valid {keyword}, found {uid[:70]!r}"
                return Source(subject, tuple(images), reason)
    return Source(subject, tuple(images))


def put(data: Dataset, keyword: str, value: object) -> None:
    """Give the data set an element of its own: those that it has may be shared with others."""
    data.pop(keyword, None)
    setattr(data, keyword, value)


def is_uid(text: str) -> bool:
    """Tell whether an archive will take the text as a UID; leading zeros are not looked at."""
    return len(text) <= 64 and _UID.fullmatch(text) is not None


def _subject(headers: Sequence[Dataset]) -> Dataset:
    """Return patient and study; some scanners leave a value empty in single images."""
    subject = Dataset()
    subject.SpecificCharacterSet = UTF8
    subject.StudyInstanceUID = str(headers[0].StudyInstanceUID)
    for keyword in ORDER_KEYWORDS:
        value = headers[0].get(keyword)
        if keyword == "ProcedureCodeSequence":
            value = [one for one in value or [] if all(one.get(part) for part in _CODE)]
        if value:
            setattr(subject, keyword, value)
    for keyword in (*IDENTIFYING, *_DESCRIBING_OR_EMPTY, *DESCRIBING):
        values = (header.get(keyword) for header in headers)
        value = next((one for one in values if one not in (None, "")), "")
        if keyword not in IDENTIFYING:
            value = built(keyword, value) or ""
        if value != "" or keyword not in DESCRIBING:
            setattr(subject, keyword, value)
    if subject.get("PatientSex") not in ("M", "F", "O"):
        subject.PatientSex = ""
    if subject.get("PatientIdentityRemoved") not in ("YES", "NO"):
        subject.pop("PatientIdentityRemoved", None)
    if subject.get("PatientIdentityRemoved") == "YES" and "DeidentificationMethod" not in subject:
        subject.DeidentificationMethod = "not stated by the source images"
    return subject


def built(keyword: str, value: Any) -> Any:
    """Return the value of an attribute, made again; None where it is empty or cannot be made.

    Of several where one is allowed, the first text is taken; two dates of birth say nothing.
    """
    vr, is_single = dictionary_VR(keyword), dictionary_VM(keyword) == "1"
    is_many = isinstance(value, list | tuple) or hasattr(value, "append")
    values = [one for one in (value if is_many else [value]) if one not in (None, "")]
    try:
        made = [_built(vr, one) for one in values]
    except ValueError:
        return None
    if not made or (is_single and len(made) > 1 and vr not in _TEXTS):
        return None
    if keyword == "TimezoneOffsetFromUTC" and not _TIMEZONE.fullmatch(made[0]):
        return None
    return made[0] if is_single else made


def _built(vr: str, value: Any) -> Any:
    """Return one value, made again; a ValueError where it, or a day or time of it, cannot be."""
    text = str(value)
    if vr == "DS":  # with more digits than allowed it is still a number
        return DSfloat(float(text), auto_format=True)
    if vr not in ("US", "UL", "SS", "FD", "FL"):
        validate_value(vr, text, RAISE)
    if vr == "TM":
        time.fromisoformat(f"{text}Z")  # a range of times has no zone
    elif vr == "DA":
        date.fromisoformat(text)
    return value


@dataclass(frozen=True, eq=False)
class Plane:
    """One image of ``rows`` x ``columns`` pixels in the patient.

    Attributes:
        image: the data set that it belongs to.
        frame: its number in that, from 1; None in an image of one frame.
        position_mm: centre of the first pixel, ``(x, y, z)`` LPS.
        axes: ``(2, 3)``, unit directions in which the column and the row index grow.
        pixel_mm: distance of rows and of columns.
        thickness_mm: nominal thickness; None where the image does not state it.
    """

    image: Dataset
    frame: int | None
    position_mm: FloatArray
    axes: FloatArray
    pixel_mm: tuple[float, float]
    rows: int
    columns: int
    thickness_mm: float | None = None

    @property
    def normal(self) -> FloatArray:
        """Unit normal, ``(3,)``."""
        normal = np.cross(self.axes[0], self.axes[1])
        return np.asarray(normal / np.linalg.norm(normal))

    def pixel_of(self, point_mm: Sequence[float]) -> tuple[float, float]:
        """Return row and column of the point's projection; 0 is the middle of the first pixel."""
        offset = np.asarray(point_mm, dtype=np.float64) - self.position_mm
        y_mm, x_mm = self.pixel_mm
        return float(offset @ self.axes[1]) / y_mm, float(offset @ self.axes[0]) / x_mm

    def points_mm(self, rows: FloatArray, columns: FloatArray) -> FloatArray:
        """Return the centres of the pixels of these rows and columns, ``(rows, columns, 3)``."""
        down = rows[:, None, None] * self.pixel_mm[0] * self.axes[1]
        across = columns[None, :, None] * self.pixel_mm[1] * self.axes[0]
        return np.asarray(self.position_mm + down + across)


def planes_of(source: Source) -> list[Plane]:
    """Return the planes in the order of the images and of their frames.

    Raises:
        NotExportable: an image has no position, orientation or pixel spacing.
    """
    return [plane for image in source.images for plane in _planes(image)]


def nearest_plane(planes: Sequence[Plane], point_mm: Sequence[float]) -> Plane:
    """Return the plane with the least distance from the point."""
    point = np.asarray(point_mm, dtype=np.float64)
    return min(planes, key=lambda plane: abs(float((point - plane.position_mm) @ plane.normal)))


def _planes(image: Dataset) -> list[Plane]:
    frames = image.get("PerFrameFunctionalGroupsSequence")
    if not frames:
        return [_plane(image, [image], None)]
    shared = (image.get("SharedFunctionalGroupsSequence") or [Dataset()])[0]
    return [
        _plane(image, [*_macros(own), *_macros(shared), image], number)
        for number, own in enumerate(frames, start=1)
    ]


def _macros(group: Dataset) -> list[Dataset]:
    keywords = ("PlanePositionSequence", "PlaneOrientationSequence", "PixelMeasuresSequence")
    return [item for keyword in keywords for item in (group.get(keyword) or [])[:1]]


def _plane(image: Dataset, parts: Sequence[Dataset], frame: int | None) -> Plane:
    position = _numbers(parts, "ImagePositionPatient", 3)
    axes = _numbers(parts, "ImageOrientationPatient", 6).reshape(2, 3)
    y_mm, x_mm = (float(value) for value in _numbers(parts, "PixelSpacing", 2))
    lengths = np.linalg.norm(axes, axis=1, keepdims=True)
    try:
        rows, columns = int(image.Rows), int(image.Columns)
    except (AttributeError, TypeError, ValueError):
        raise NotExportable("a source image does not state its rows and columns") from None
    # an image of a single frame may still have functional groups
    many = int(image.get("NumberOfFrames") or 1) > 1
    return Plane(
        image,
        frame if many else None,
        position,
        axes / lengths,
        (y_mm, x_mm),
        rows,
        columns,
        _thickness_mm(parts),
    )


def _thickness_mm(parts: Sequence[Dataset]) -> float | None:
    """Return what the image states; a damaged value is none, since no point depends on it."""
    value = _first(parts, "SliceThickness")
    try:
        thickness = float(value) if value is not None else 0.0
    except (TypeError, ValueError):
        return None
    return thickness if 0 < thickness < 100 else None


def _numbers(parts: Sequence[Dataset], keyword: str, count: int) -> FloatArray:
    value = _first(parts, keyword)
    try:
        values = np.array([float(one) for one in value], dtype=np.float64)
    except (TypeError, ValueError):
        values = np.empty(0)
    if values.shape != (count,) or not np.isfinite(values).all():
        raise NotExportable(f"a source image has no valid {keyword}")
    return values


def _first(parts: Sequence[Dataset], keyword: str) -> Any:
    return next((part.get(keyword) for part in parts if part.get(keyword)), None)
