"""Build secondary captures: a picture of the report as an image that every viewer shows."""

from collections.abc import Mapping
from typing import Any

import cv2
import numpy as np
from highdicom.enum import CoordinateSystemNames
from highdicom.sc import SCImage
from pydicom import Dataset
from pydicom.valuerep import DSfloat

from edge.dicom_out.errors import NotExportable
from edge.dicom_out.identity import Device, Kind, complete, general, names_of, patient_and_study
from edge.dicom_out.subject import Source, put

OVERVIEW_NUMBER = 1


def capture(
    report: Mapping[str, Any],
    source: Source,
    device: Device,
    picture: bytes,
    values: Mapping[str, Any] | None,
) -> Dataset:
    """Return one picture as a secondary capture in RGB.

    Args:
        report: content of ``report.json``.
        source: the images that were read.
        device: the machine that makes it.
        picture: JPEG.
        values: the finding or possible finding in the picture; None for the overview.

    Raises:
        NotExportable: the picture cannot be decoded.
    """
    decoded = cv2.imdecode(np.frombuffer(picture, np.uint8), cv2.IMREAD_COLOR_RGB)
    if decoded is None:
        raise NotExportable("the picture is damaged")
    names = names_of(report)
    number = OVERVIEW_NUMBER if values is None else OVERVIEW_NUMBER + int(values["number"])
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
    made.ImageComments = _comment(report, values)
    made.DerivationDescription = "Picture of the report, with marks of findings"
    made.LossyImageCompression = "01"
    made.LossyImageCompressionMethod = "ISO_10918_1"
    made.LossyImageCompressionRatio = DSfloat(pixels.nbytes / len(picture), auto_format=True)
    complete(made, source, names)
    return made


def _comment(report: Mapping[str, Any], values: Mapping[str, Any] | None) -> str:
    if values is None:
        what = "Overview of findings and possible findings"
    else:
        is_finding = any(one["number"] == values["number"] for one in report["findings"])
        kind = "Finding" if is_finding else "Possible finding"
        what = f"{kind} {values['number']}: {values['diameter_mm']:g} mm, "
        what += f"probability of being a nodule {values['probability']:.2f}"
    return f"{what}. Report version {report['version']}. {report['disclaimer']}"
