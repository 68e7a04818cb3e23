"""A study as it was read: the volume, who and what it is of, and what else lay beside it."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from imaging.volume import Volume


@dataclass(frozen=True)
class StudyHeader:
    """What the file says of patient and examination; empty where it says nothing.

    None of it leaves the site. ``spacing_mm`` and the volume's geometry are the measured truth;
    these are the scanner's words.
    """

    patient_id: str = ""
    patient_name: str = ""
    sex: str = ""
    age: str = ""
    study_uid: str = ""
    study_date: str = ""
    accession: str = ""
    modality: str = "CT"
    manufacturer: str = ""
    kernel: str = ""
    series_description: str = ""
    transfer_syntax: str = ""


@dataclass(frozen=True, eq=False)
class Study:
    """One readable study: the chosen series as a volume, and the series passed over (as text)."""

    volume: Volume
    source: Path
    header: StudyHeader = field(default_factory=StudyHeader)
    other_series: tuple[str, ...] = ()
