"""Build secondary captures: a picture of the report as an image that every viewer shows."""

import cv2
import numpy as np
from highdicom.enum import CoordinateSystemNames
from highdicom.sc import SCImage
from pydicom import Dataset
from pydicom.valuerep import DSfloat

from edge.dicom_out.errors import NotExportable
from edge.dicom_out.identity import Device, Kind, complete, general, names_of, patient_and_study
from edge.dicom_out.subject import Source, put
from edge.report.model import NOT_A_DEVICE, Report

OVERVIEW_NUMBER = 1


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
    names = names_of(report)
    number = OVERVIEW_NUMBER + (shown or 0)
    pixels = np.asarray(decoded, dtype=np.uint8)
    made = SCImage(
        pixel_array=pixels,
        photometric_interpretation="RGB",
        bits_allocated=8,
        coordinate_system=CoordinateSystemNames.PATIENT,
        patient_orientation=("L", "P"),
        **patient_and_study(source),
        **general(Kind.CAPTURE, names, device, number),
    )
    made.BodyPartExamined = "CHEST"
    put(made, "PatientOrientation", None)  # several views in one picture
    made.BurnedInAnnotation = "NO"  # numbers of findings, but no patient
    made.ImageComments = _comment(report, shown)
    made.DerivationDescription = "Picture of the report, with marks of findings"
    made.LossyImageCompression = "01"
    made.LossyImageCompressionMethod = "ISO_10918_1"
    made.LossyImageCompressionRatio = DSfloat(pixels.nbytes / len(picture), auto_format=True)
    complete(made, source, names)
    return made


def _comment(report: Report, shown: int | None) -> str:
    what = "Overview of findings and possible findings"
    for kind, numbered in (
        ("Finding", report.numbered),
        ("Possible finding", report.numbered_possible),
    ):
        for number, one in numbered:
            if number == shown:
                what = f"{kind} {number}: {one.diameter_mm:g} mm, "
                what += f"probability of being a nodule {one.probability:.2f}"
    return f"{what}. Report version {report.version}. {NOT_A_DEVICE}"
