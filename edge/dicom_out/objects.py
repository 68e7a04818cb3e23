"""Make all DICOM objects of one version of a report: ``dicom/vN`` in the folder of the report.

They are made from files alone: the report, its pictures, and what `edge.report.evidence` keeps.
The same files give the same objects with the same UIDs.

A study that was refused gets the document that says so, and nothing else: a structured report
without findings would read like one of healthy lungs.
"""

import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial
from io import BytesIO
from pathlib import Path
from traceback import extract_tb

import cv2
import numpy as np
import structlog
from highdicom import SOPClass
from highdicom.enum import CoordinateSystemNames
from highdicom.sc import SCImage
from highdicom.sr import CodedConcept
from pydicom import Dataset, dcmread
from pydicom.config import disable_value_validation
from pydicom.sr.codedict import codes
from pydicom.uid import EncapsulatedPDFStorage, ExplicitVRLittleEndian
from pydicom.valuerep import DSfloat

from edge.access import make_folder
from edge.atomic_files import move, remove, write_atomically
from edge.dicom_out.identity import Device, Kind, complete, general, patient_and_study
from edge.dicom_out.pages import report_pages
from edge.dicom_out.seg import segmentation
from edge.dicom_out.source import Source, put, source_of
from edge.dicom_out.sr import structured_report
from edge.errors import NotExportable
from edge.report.evidence import OUTLINES, SOURCE, objects_folder, of_version, read_outlines
from edge.report.model import NOT_A_DEVICE, Report
from edge.report.pictures import OVERVIEW, picture_name
from edge.report.serialize import NotAReport, read_report
from imaging.dicom.source import read_source_headers

SKIPPED = "skipped.json"
"""Why objects are missing, by kind; absent where none is."""

log = structlog.get_logger()


@dataclass(frozen=True)
class MadeObjects:
    """The objects of one version: their files by name, and by kind why others are missing."""

    folder: Path
    files: tuple[Path, ...]
    skipped: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, eq=False)
class _Inputs:
    """All that the objects of one version are made from; ``outlines`` is the file's content."""

    report: Report
    source: Source
    outlines: bytes
    pictures: Mapping[str, bytes]
    predecessor: Dataset | None
    device: Device


def make_objects(out: Path, device: Device, version: int | None = None) -> MadeObjects:
    """Make the objects of a version of the report in the folder ``out``, by default the newest.

    The folder of the version is complete or missing. What was made is not made again.

    Raises:
        NotExportable: no object can be made; the message says why. Nothing is written.
        OSError: files cannot be read or written; call again later.
    """
    newest = _report(out / "report.json")
    version = newest.version if version is None else version
    folder = objects_folder(out, version)
    if not folder.is_dir():
        _write(folder, *_make(_inputs(out, newest, version, device)))
    return objects_in(folder)


def objects_in(folder: Path) -> MadeObjects:
    """Return the objects that were made into the folder of a version."""
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


def _inputs(out: Path, newest: Report, version: int, device: Device) -> _Inputs:
    """Read the files of a version; an older one has its own, but not its pictures."""
    is_newest = version == newest.version
    report = newest if is_newest else _report(out / of_version("report.json", version))
    source, outlines = (
        out / (name if is_newest else of_version(name, version)) for name in (SOURCE, OUTLINES)
    )
    if not source.is_file():
        reason = "the study was no DICOM series that could be read, so there are no headers of its"
        raise NotExportable(f"{reason} images to refer to ({SOURCE} is missing)")
    try:
        headers = read_source_headers(source.read_bytes())
    except ValueError as error:
        raise NotExportable(f"{source.name} is damaged: {error}") from None
    return _Inputs(
        report,
        source_of(headers),
        outlines.read_bytes() if outlines.is_file() else b"",
        _pictures(out, report) if is_newest else {},
        _predecessor(out, report),
        device,
    )


def _pictures(out: Path, report: Report) -> dict[str, bytes]:
    paths = [out / OVERVIEW, *(out / picture_name(number) for number, _ in report.listed)]
    return {path.name: path.read_bytes() for path in paths if path.is_file()}


def _predecessor(out: Path, report: Report) -> Dataset | None:
    """Return the head of the structured report of the version before, if one was made."""
    for version in range(report.version - 1, 0, -1):
        path = objects_folder(out, version) / f"{Kind.SR.file}.dcm"
        if path.is_file():
            tags = ["SOPClassUID", "SOPInstanceUID", "StudyInstanceUID", "SeriesInstanceUID"]
            return dcmread(path, specific_tags=tags)
    return None


def _make(inputs: _Inputs) -> tuple[dict[str, Dataset], dict[str, str]]:
    """Return the objects by file name, and why others are missing, by kind."""
    made: dict[str, Dataset] = {}
    skipped: dict[str, str] = {}

    def attempt(kind: Kind, name: str, make: Callable[[], Dataset]) -> Dataset | None:
        try:
            made[name] = make()
        except NotExportable as error:
            skipped[kind.file] = str(error)
        # highdicom meets values that it cannot use with any of these
        except (ValueError, TypeError, KeyError, AttributeError, IndexError) as error:
            # no message and no values: they may be of the patient
            kind_of_error, last = type(error).__name__, extract_tb(error.__traceback__)[-1]
            at = f"{Path(last.filename).name}:{last.lineno}"
            log.error("object not made", kind=kind.file, error=kind_of_error, at=at)
            skipped[kind.file] = f"a value of the source images cannot be used ({kind_of_error})"
        return made.get(name)

    report, source, device = inputs.report, inputs.source, inputs.device
    # values that identify the patient are copied although they break a rule; pydicom would log them
    with disable_value_validation():
        if report.rejection is None:
            if source.unfit:
                skipped |= {kind.file: source.unfit for kind in (Kind.SR, Kind.SEG)}
            else:
                seg = attempt(Kind.SEG, "seg", lambda: _segmentation(inputs))
                attempt(
                    Kind.SR,
                    "sr",
                    lambda: structured_report(
                        report, source, device, segmentation=seg, predecessor=inputs.predecessor
                    ),
                )
            for name, number, picture in _captured(inputs):
                attempt(
                    Kind.CAPTURE, name, partial(capture, report, source, device, picture, number)
                )
        attempt(
            Kind.PDF,
            "report",
            lambda: encapsulated_pdf(report, source, device, report_pages(report, inputs.pictures)),
        )
    return made, skipped


def _segmentation(inputs: _Inputs) -> Dataset:
    try:
        outlines = read_outlines(inputs.outlines)
    except ValueError as error:
        raise NotExportable(str(error)) from None
    return segmentation(inputs.report, inputs.source, outlines, inputs.device)


def _captured(inputs: _Inputs) -> Iterator[tuple[str, int | None, bytes]]:
    """Yield file name, number of the finding, and picture; the overview has no number."""
    if OVERVIEW in inputs.pictures:
        yield f"{Kind.CAPTURE.file}-overview", None, inputs.pictures[OVERVIEW]
    for number, _ in inputs.report.listed:
        if picture := inputs.pictures.get(picture_name(number)):
            yield f"{Kind.CAPTURE.file}-{number:02d}", number, picture


def _write(folder: Path, made: Mapping[str, Dataset], skipped: Mapping[str, str]) -> None:
    """Write the folder under a hidden name, then give it its own."""
    make_folder(folder.parent)
    hidden = folder.with_name(f".{folder.name}.part")
    remove(hidden)
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
    """Return one picture as a secondary capture in RGB.

    Args:
        report: the report with the picture.
        source: the images that were read.
        device: the machine that makes it.
        picture: JPEG.
        shown: number of the finding or possible finding in it; None for the overview.

    Raises:
        NotExportable: the picture cannot be decoded.
    """
    decoded = cv2.imdecode(np.frombuffer(picture, np.uint8), cv2.IMREAD_COLOR_RGB)
    if decoded is None:
        raise NotExportable("the picture is damaged")
    pixels = np.asarray(decoded, dtype=np.uint8)
    made = SCImage(
        pixel_array=pixels,
        photometric_interpretation="RGB",
        bits_allocated=8,
        coordinate_system=CoordinateSystemNames.PATIENT,
        patient_orientation=("L", "P"),
        **patient_and_study(source),
        **general(Kind.CAPTURE, report, device, 1 + (shown or 0)),
    )
    made.BodyPartExamined = "CHEST"
    put(made, "PatientOrientation", None)  # several views in one picture
    made.BurnedInAnnotation = "NO"  # numbers of findings, but no patient
    made.ImageComments = _comment(report, shown)
    made.DerivationDescription = "Picture of the report, with marks of findings"
    made.LossyImageCompression = "01"
    made.LossyImageCompressionMethod = "ISO_10918_1"
    made.LossyImageCompressionRatio = DSfloat(pixels.nbytes / len(picture), auto_format=True)
    complete(made, source, report)
    return made


def _comment(report: Report, shown: int | None) -> str:
    what = "Overview of findings and possible findings"
    for number, one in report.listed:
        if number == shown:
            kind = "Finding" if number in dict(report.numbered) else "Possible finding"
            what = f"{kind} {number}: {one.diameter_mm:g} mm, "
            what += f"probability of being a nodule {one.probability:.2f}"
    return f"{what}. Report version {report.version}. {NOT_A_DEVICE}"


def encapsulated_pdf(report: Report, source: Source, device: Device, pages: bytes) -> Dataset:
    """Return the document as a DICOM object (PS3.3, A.45.1); ``pages`` is the PDF."""
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
    made.DocumentTitle = f"Overread report, version {report.version}"
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
