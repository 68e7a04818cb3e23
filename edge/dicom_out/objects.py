"""Make all DICOM objects of one version of a report: ``dicom/vN`` in the folder of the report.

They are made from files alone: the report, its pictures, and what `edge.report.evidence` keeps.
The same files give the same objects with the same UIDs.

A study that was refused gets the document that says so, and a structured report of that status.
"""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from io import BytesIO
from pathlib import Path
from traceback import extract_tb

import cv2
import numpy as np
from highdicom import SOPClass
from highdicom.enum import CoordinateSystemNames
from highdicom.sc import SCImage
from highdicom.sr import CodedConcept
from pydicom import Dataset, dcmread
from pydicom.config import disable_value_validation
from pydicom.sr.codedict import codes
from pydicom.uid import EncapsulatedPDFStorage, ExplicitVRLittleEndian, JPEGBaseline8Bit
from pydicom.valuerep import DSfloat

from edge.access import make_folder
from edge.atomic_files import move, remove, write_atomically
from edge.dicom_out.identity import Device, Kind, complete, general, patient_and_study
from edge.dicom_out.pages import report_pages
from edge.dicom_out.seg import segmentation
from edge.dicom_out.source import Source, put, source_of
from edge.dicom_out.sr import structured_report
from edge.errors import NotApplicable, NotDicom, NotExportable
from edge.report.evidence import OUTLINES, SOURCE, objects_folder, of_version, read_outlines
from edge.report.model import NOT_A_DEVICE, Report
from edge.report.pictures import OVERVIEW, picture_name, pictures_in
from edge.report.serialize import NotAReport, read_report
from imaging.dicom.source import read_source_headers

SKIPPED = "skipped.json"
"""Why objects are missing, by kind; absent where none is."""


@dataclass(frozen=True)
class MadeObjects:
    """The objects of one version: their files by name, and by kind why others do not apply."""

    folder: Path
    files: tuple[Path, ...]
    skipped: Mapping[str, str] = field(default_factory=dict)


def make_objects(out: Path, device: Device, version: int | None = None) -> MadeObjects:
    """Make the objects of a version of the report in the folder ``out``, by default the newest.

    The folder of the version is complete or missing. What was made is not made again.

    Raises:
        NotExportable: one that should be there cannot be made; the message says why. Nothing is
            written: a part of the results would pass for all.
        OSError: files cannot be read or written; call again later.
    """
    newest = _report(out / "report.json")
    version = newest.version if version is None else version
    folder = objects_folder(out, version)
    if not any(folder.glob("*.dcm")):
        is_newest = version == newest.version
        report = newest if is_newest else _report(out / of_version("report.json", version))
        _write(folder, *_make(out, report, device, is_newest=is_newest))
    skipped = folder / SKIPPED
    reasons = json.loads(skipped.read_bytes()) if skipped.is_file() else {}
    return MadeObjects(folder, tuple(sorted(folder.glob("*.dcm"))), reasons)


def _report(path: Path) -> Report:
    try:
        return read_report(path)
    except FileNotFoundError:
        raise NotExportable(f"there is no {path.name}") from None
    except NotAReport as error:
        raise NotExportable(str(error)) from None


def _source(file: Path) -> Source:
    if not file.is_file():
        reason = "the study was no DICOM series that could be read, so there are no headers of its"
        raise NotDicom(f"{reason} images to refer to ({SOURCE} is missing)")
    try:
        return source_of(read_source_headers(file.read_bytes()))
    except ValueError as error:
        raise NotExportable(f"{file.name} is damaged: {error}") from None


def _predecessor(out: Path, report: Report) -> Dataset | None:
    """Return the head of the structured report of the version before, if one was made."""
    for version in range(report.version - 1, 0, -1):
        path = objects_folder(out, version) / f"{Kind.SR.file}.dcm"
        if path.is_file():
            tags = ["SOPClassUID", "SOPInstanceUID", "StudyInstanceUID", "SeriesInstanceUID"]
            return dcmread(path, specific_tags=tags)
    return None


def _make(
    out: Path, report: Report, device: Device, *, is_newest: bool
) -> tuple[dict[str, Dataset], dict[str, str]]:
    """Return the objects by file name, and why others are missing, by kind.

    An older version has files of its own, but not its pictures.
    """
    source_file, outlines = (
        out / (name if is_newest else of_version(name, report.version))
        for name in (SOURCE, OUTLINES)
    )
    source = _source(source_file)
    pictures = pictures_in(out, report) if is_newest else {}
    made: dict[str, Dataset] = {}
    skipped: dict[str, str] = {}

    def attempt(
        kind: Kind, part: str, make: Callable[..., Dataset], *given: object
    ) -> Dataset | None:
        try:
            made[kind.file + part] = make(report, source, device, *given)
        except NotApplicable as error:
            skipped[kind.file] = str(error)
        # highdicom meets values that it cannot use with any of these
        except (ValueError, TypeError, KeyError, AttributeError, IndexError) as error:
            # no message and no values: they may be of the patient
            last = extract_tb(error.__traceback__)[-1]
            at = f"{type(error).__name__} at {Path(last.filename).name}:{last.lineno}"
            raise NotExportable(f"{kind.file}{part} cannot be made: {at}") from error
        return made.get(kind.file + part)

    # values that identify the patient are copied although they break a rule; pydicom would log them
    with disable_value_validation():
        if report.rejection is None:
            if OVERVIEW in pictures:
                attempt(Kind.CAPTURE, "-overview", capture, pictures[OVERVIEW], None)
            for number, _ in report.listed:
                if picture := pictures.get(picture_name(number)):
                    attempt(Kind.CAPTURE, f"-{number:02d}", capture, picture, number)
        attempt(Kind.PDF, "", encapsulated_pdf, pictures)
        if source.unfit:
            skipped |= {kind.file: source.unfit for kind in (Kind.SR, Kind.SEG)}
        else:
            others, seg = [*made.values()], None
            if report.rejection is None:
                seg = attempt(Kind.SEG, "", _segmentation, outlines)
            attempt(Kind.SR, "", structured_report, seg, _predecessor(out, report), others)
    return made, skipped


def _segmentation(report: Report, source: Source, device: Device, outlines: Path) -> Dataset:
    try:
        placed = read_outlines(outlines.read_bytes() if outlines.is_file() else b"")
    except ValueError as error:
        raise NotExportable(str(error)) from None
    return segmentation(report, source, device, placed)


def _write(folder: Path, made: Mapping[str, Dataset], skipped: Mapping[str, str]) -> None:
    """Write the folder under a hidden name, then give it its own."""
    make_folder(folder.parent)
    hidden = folder.with_name(f".{folder.name}.part")
    remove(hidden)
    remove(folder)
    make_folder(hidden)
    for name, dataset in made.items():
        file = BytesIO()
        with disable_value_validation():
            dataset.save_as(file, enforce_file_format=True)
        write_atomically(hidden / f"{name}.dcm", file.getvalue())
    if skipped:
        text = json.dumps(skipped, indent=2, ensure_ascii=False)
        write_atomically(hidden / SKIPPED, f"{text}\n".encode())
    move(hidden, folder)


def capture(
    report: Report, source: Source, device: Device, picture: bytes, shown: int | None
) -> Dataset:
    """Return one picture under a line of text as a secondary capture, JPEG.

    Args:
        report: the report with the picture.
        source: the images that were read.
        device: the machine that makes it.
        picture: JPEG.
        shown: number of the finding or possible finding in it; None for the overview.

    Raises:
        NotExportable: the picture cannot be decoded.
    """
    drawn = cv2.imdecode(np.frombuffer(picture, np.uint8), cv2.IMREAD_COLOR_RGB)
    if drawn is None:
        raise NotExportable(f"{picture_name(shown) if shown else OVERVIEW} is damaged")
    text = _caption(report, shown)
    line = np.zeros((30, drawn.shape[1], 3), np.uint8)
    cv2.putText(line, text, (8, 20), cv2.FONT_HERSHEY_SIMPLEX, 0.5, (255,) * 3, 1, cv2.LINE_AA)
    pixels = np.vstack((line, drawn.astype(np.uint8)))
    made = SCImage(
        pixel_array=pixels,
        photometric_interpretation="YBR_FULL_422",
        bits_allocated=8,
        transfer_syntax_uid=JPEGBaseline8Bit,
        coordinate_system=CoordinateSystemNames.PATIENT,
        patient_orientation=("L", "P"),
        **patient_and_study(source),
        **general(Kind.CAPTURE, report, device, 1 + (shown or 0)),
    )
    made.BodyPartExamined = "CHEST"
    put(made, "PatientOrientation", None)  # several views in one picture
    made.BurnedInAnnotation = "YES"
    made.ImageComments = f"{text}. {NOT_A_DEVICE}"
    made.DerivationDescription = "Picture of the report, with marks of findings"
    made.LossyImageCompression = "01"
    made.LossyImageCompressionMethod = ["ISO_10918_1"] * 2  # of the report's picture, and of this
    ratios = drawn.nbytes / len(picture), pixels.nbytes / len(made.PixelData)
    made.LossyImageCompressionRatio = [DSfloat(one, auto_format=True) for one in ratios]
    complete(made, source, report)
    return made


def _caption(report: Report, shown: int | None) -> str:
    what = "Overview of findings and possible findings"
    if report.read_version < report.version:
        what += f" of version {report.read_version}"
    for number, finding in report.listed:
        if number == shown:
            kind = "Finding" if number in dict(report.numbered) else "Possible finding"
            place = report.locations.get(number)
            side = f"{place.side} of the patient" if place and place.side else "side not known"
            what = f"{kind} {number}: {finding.diameter_mm:.1f} mm, {side}, "
            what += f"probability of being a nodule {finding.probability:.2f}"
    return f"AI, not a medical device. Report version {report.version}. {what}"


def encapsulated_pdf(
    report: Report, source: Source, device: Device, pictures: Mapping[str, bytes]
) -> Dataset:
    """Return the report's pages as a DICOM object (PS3.3, A.45.1); ``pictures`` as of a report."""
    pages = report_pages(report, pictures)
    made = SOPClass(
        sop_class_uid=EncapsulatedPDFStorage,
        modality="DOC",
        transfer_syntax_uid=ExplicitVRLittleEndian,
        **patient_and_study(source),
        **general(Kind.PDF, report, device),
    )
    made.ConversionType = "WSD"
    made.AcquisitionDateTime = None
    made.BurnedInAnnotation = "YES"  # the pages name the patient
    made.VerificationFlag = "UNVERIFIED"
    unread = ": the study was not read" if report.rejection else ""
    made.DocumentTitle = f"Overread report, version {report.version}{unread}"
    made.ConceptNameCodeSequence = [CodedConcept.from_code(codes.LN.CTChestReport)]
    made.MIMETypeOfEncapsulatedDocument = "application/pdf"
    made.EncapsulatedDocument = pages + b"\0" * (len(pages) % 2)
    made.EncapsulatedDocumentLength = len(pages)
    if not source.unfit:
        made.SourceInstanceSequence = [_reference(image) for image in source.images]
    complete(made, source, report)
    return made


def _reference(image: Dataset) -> Dataset:
    reference = Dataset()
    reference.ReferencedSOPClassUID = image.SOPClassUID
    reference.ReferencedSOPInstanceUID = image.SOPInstanceUID
    return reference
