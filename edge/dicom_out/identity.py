"""How objects are named: UIDs that do not change when an object is made again, series, device."""

from dataclasses import dataclass
from datetime import datetime
from enum import Enum
from importlib.metadata import version
from pathlib import Path
from typing import Any

from pydicom import Dataset
from pydicom.uid import UID, generate_uid

from edge.dicom_out.source import DESCRIBING, UTF8, Source, put
from edge.report.model import Report
from imaging.dicom.source import ORDER_KEYWORDS

MANUFACTURER = "Overread"
MODEL = "Overread edge"
_MACHINE = Path("/etc/machine-id")


class Kind(Enum):
    """The kinds of object, each a series of its own.

    Attributes:
        file: name of the file, without number and suffix.
        series_number: behind all that a scanner uses.
        description: of the series.
    """

    SR = ("sr", 9101, "Overread: lung nodules, not a medical device")
    SEG = ("seg", 9102, "Overread: outlines of nodules")
    CAPTURE = ("capture", 9103, "Overread: pictures of findings")
    PDF = ("report", 9104, "Overread: report")

    def __init__(self, file: str, series_number: int, description: str) -> None:
        self.file, self.series_number, self.description = file, series_number, description


@dataclass(frozen=True)
class Device:
    """The machine that made the objects; ``serial`` tells it from others of its kind."""

    serial: str
    version: str

    @classmethod
    def here(cls) -> "Device":
        """Return this machine, named by a UID that follows from its machine id."""
        identity = _MACHINE.read_text().strip() if _MACHINE.is_file() else "unknown machine"
        return cls(uid("device", identity).rpartition(".")[2][-16:], version("overread"))


def uid(*parts: str) -> UID:
    """Return the UID that always follows from these parts, and from no others."""
    # with their lengths: version 1, picture 11 is not version 11, picture 1
    return generate_uid(entropy_srcs=["overread", *(f"{len(part)}:{part}" for part in parts)])


def tracking_uid(report: Report, number: int) -> UID:
    """Return the UID of a finding or possible finding, the same in all versions.

    A study that was read again with more images has other findings.
    """
    return uid(report.study_key, str(report.read_version), "finding", str(number))


def general(kind: Kind, report: Report, device: Device, number: int = 1) -> dict[str, Any]:
    """Return the arguments that every class of highdicom takes: series, instance and equipment.

    The versions of a report share a series; ``number`` tells objects of one kind apart.
    """
    key, version = report.study_key, report.version
    return {
        "series_instance_uid": uid(key, kind.file, "series"),
        "series_number": kind.series_number,
        "sop_instance_uid": uid(key, kind.file, str(version), str(number)),
        "instance_number": (version - 1) * 100 + number,
        "manufacturer": MANUFACTURER,
        "manufacturer_model_name": MODEL,
        "software_versions": device.version,
        "device_serial_number": device.serial,
        "series_description": kind.description,
        "specific_character_set": UTF8,
    }


def patient_and_study(source: Source) -> dict[str, Any]:
    """Return the arguments for a class of highdicom that takes no source images."""
    subject = source.subject
    return {
        "study_instance_uid": str(subject.StudyInstanceUID),
        "patient_id": subject.PatientID,
        "patient_birth_date": subject.PatientBirthDate,
        "patient_sex": subject.PatientSex,
        "accession_number": subject.AccessionNumber,
        "study_id": subject.StudyID,
        "study_date": subject.StudyDate or None,
        "study_time": subject.StudyTime or None,
    }


def complete(made: Dataset, source: Source, report: Report) -> None:
    """Add what is known of patient and study, and set every date to that of the report.

    highdicom takes the clock for dates, and an object that is made again would differ.
    """
    # the time zone is among them: all times of an object are of one zone
    for keyword in ("PatientName", "ReferringPhysicianName", *DESCRIBING, *ORDER_KEYWORDS):
        if keyword in source.subject:
            put(made, keyword, source.subject.get(keyword))
    for equipment in made.get("ContributingEquipmentSequence") or []:
        equipment.pop("ContributionDateTime", None)
    moment = source.local(datetime.fromisoformat(report.created))
    day, time = moment.strftime("%Y%m%d"), moment.strftime("%H%M%S")
    made.SeriesDate, made.SeriesTime = day, time
    for what in ("InstanceCreation{}", "Content{}", "{}OfSecondaryCapture"):
        if what.format("Date") in made:
            setattr(made, what.format("Date"), day)
            setattr(made, what.format("Time"), time)
