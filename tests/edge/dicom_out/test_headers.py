"""What the headers of the images say, in all objects of a report; and what is not known."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pydicom import Dataset, dcmread
from pydicom.config import disable_value_validation
from pydicom.sr.codedict import codes

from edge.dicom_out.objects import MadeObjects, make_objects
from edge.errors import NotExportable
from edge.report.evidence import OBJECTS, SOURCE
from imaging.read import read_study
from tests.edge.dicom_out.studies import (
    ALL,
    CAPTURES,
    DEVICE,
    change_headers,
    groups_in,
    names,
    procedures_in,
    require_valid,
    values_of,
    write_reported,
    write_study,
)


def made_with(tmp_path: Path, change: Callable[[Dataset], None]) -> MadeObjects:
    """The objects of a report of axial images whose headers were changed."""
    folder = write_study(tmp_path / "study")
    with disable_value_validation():
        change_headers(folder, change)
    write_reported(folder, tmp_path / "report")
    return make_objects(tmp_path / "report", DEVICE)


def test_little_is_known_of_an_anonymous_patient(tmp_path: Path) -> None:
    def change(image: Dataset) -> None:
        for keyword in (
            *("PatientID", "PatientName", "PatientBirthDate", "PatientSex", "PatientAge"),
            *("StudyID", "StudyDate", "StudyTime", "AccessionNumber", "Manufacturer"),
            *("ReferringPhysicianName", "SeriesDescription", "InstanceNumber"),
        ):
            image.pop(keyword, None)
        image.PatientIdentityRemoved = "YES"
        image.add_new((0x0009, 0x0010), "LO", "PRIVATE")
        image.add_new((0x0009, 0x1001), "LO", "secret")

    made = made_with(tmp_path, change)
    assert names(made) == ALL
    for file in made.files:
        assert dcmread(file).PatientID in ("", None)
        assert b"secret" not in file.read_bytes()
    require_valid(*made.files)


def code(value: str, scheme: str, meaning: str) -> Dataset:
    item = Dataset()
    item.CodeValue, item.CodingSchemeDesignator, item.CodeMeaning = value, scheme, meaning
    return item


def order_of(image: Dataset) -> None:
    """What scanners copy from the worklist, and what is no part of it."""
    request, issuer = Dataset(), Dataset()
    issuer.LocalNamespaceEntityID = "HOSPITAL"
    request.RequestedProcedureID, request.ScheduledProcedureStepID = "RP1", "SPS1"
    request.StudyInstanceUID, request.AccessionNumber = "1.2.3.4", "A12"
    request.RequestedProcedureDescription = "Thorax nativ, für Jörg"
    study = Dataset()
    study.ReferencedSOPClassUID = study.ReferencedSOPInstanceUID = "1.2.840.10008.3.1.2.3.1"
    image.ReferencedStudySequence = [study]
    request.add_new((0x0009, 0x0010), "LO", "PRIVATE")
    request.add_new((0x0009, 0x1001), "LO", "secret")
    image.SpecificCharacterSet = "ISO_IR 100"
    image.RequestAttributesSequence = [request]
    image.IssuerOfAccessionNumberSequence = [issuer]
    image.PlacerOrderNumberImagingServiceRequest = "PL7"
    image.ProcedureCodeSequence = [code("CTTHX", "99KIS", "CT Thorax"), code("", "", "no code")]


def test_every_object_names_the_order_that_the_images_name(tmp_path: Path) -> None:
    made = made_with(tmp_path, order_of)
    assert names(made) == ALL
    for file in made.files:
        one = dcmread(file)
        (request,) = one.RequestAttributesSequence
        assert (request.RequestedProcedureID, request.AccessionNumber) == ("RP1", "A12")
        assert request.RequestedProcedureDescription == "Thorax nativ, für Jörg"
        assert one.IssuerOfAccessionNumberSequence[0].LocalNamespaceEntityID == "HOSPITAL"
        assert one.PlacerOrderNumberImagingServiceRequest == "PL7"
        assert one.ProcedureCodeSequence[0].CodeValue == "CTTHX"
        assert b"secret" not in file.read_bytes()
    document = dcmread(made.folder / "sr.dcm")
    (request,) = document.ReferencedRequestSequence
    assert (request.RequestedProcedureID, request.StudyInstanceUID) == ("RP1", "1.2.3.4")
    assert request.PlacerOrderNumberImagingServiceRequest == "PL7"
    assert request.IssuerOfAccessionNumberSequence[0].LocalNamespaceEntityID == "HOSPITAL"
    assert not request.FillerOrderNumberImagingServiceRequest
    assert [one.CodeValue for one in document.PerformedProcedureCodeSequence] == ["CTTHX"]
    assert procedures_in(document) == ["CT Thorax"]
    require_valid(*made.files)


def test_without_a_frame_of_reference_points_are_in_images(tmp_path: Path) -> None:
    made = made_with(tmp_path, lambda image: image.pop("FrameOfReferenceUID"))
    assert "FrameOfReferenceUID" in made.skipped["seg"]
    values = values_of(tmp_path / "report")["findings"][0]
    group = groups_in(made.folder)["Overread 1"]
    assert group.reference_type == codes.DCM.ImageRegion
    (region,) = group.roi
    image = next(
        one
        for one in map(dcmread, (tmp_path / "study").glob("*.dcm"))
        if one.SOPInstanceUID == values["location"]["sop_instance_uid"]
    )
    column, row = region.GraphicData
    first, spacing = np.array(image.ImagePositionPatient, float), image.PixelSpacing
    found = first[:2] + np.array([column - 0.5, row - 0.5]) * spacing[1]
    np.testing.assert_allclose(found, values["centre_mm"][:2], atol=0.1)
    require_valid(*made.files)


@pytest.mark.parametrize(
    ("charset", "name"),
    [
        (["", "ISO 2022 IR 87"], "Yamada^Tarou=山田^太郎=やまだ^たろう"),
        (["ISO_IR 144"], "Иванов^Иван"),
        (["ISO_IR 192"], "王^小東"),
        (["ISO_IR 100"], "Buc^Jérôme"),
    ],
)
def test_names_of_any_script_are_kept(charset: list[str], name: str, tmp_path: Path) -> None:
    def change(image: Dataset) -> None:
        image.SpecificCharacterSet, image.PatientName = charset, name

    made = made_with(tmp_path, change)
    assert not made.skipped
    for file in made.files:
        data = dcmread(file)
        assert (data.SpecificCharacterSet, str(data.PatientName)) == ("ISO_IR 192", name)
    require_valid(*made.files)


def test_invalid_values_are_left_out_but_not_those_that_identify(tmp_path: Path) -> None:
    number = "12345678901234567890"  # an accession number of 20 characters, 16 are allowed

    def change(image: Dataset) -> None:
        image.StudyDate, image.PatientAge, image.AccessionNumber = "28.02.26", "ABCY", number

    made = made_with(tmp_path, change)
    assert names(made) == ALL
    data = dcmread(made.folder / "report.dcm")
    assert "PatientAge" not in data
    assert not data.StudyDate
    assert data.get_item("AccessionNumber").value == number.encode()


INVALID: dict[str, tuple[Any, ...]] = {
    "PatientBirthDate": (
        *("19500230", "00000101", "19500229", "1950", "1950.01.02", "20260230-20260301"),
        *("19500101-19500102", ["19500101", "19500102"], "not known"),
    ),
    "StudyDate": ("20260230", "00000101", "20261301", "2026022", ["20260228", "20260301"]),
    "StudyTime": ("235960", "246060", "2561", "12:30:45", "1230-1330", ["10", "11"]),
    "AcquisitionDate": ("20260230", ["20260228", "20260230"]),
    "AcquisitionTime": ("236100", "99"),
    "TimezoneOffsetFromUTC": ("+9999", "-1300", "+0160", "CET", ["+0100", "+0200"]),
    "PatientAge": ("999", "ABCY", "60Y", ["060Y", "061Y"]),
    "PatientSex": ("X", "male", ["M", "F"]),
    "PatientName": ("A^" * 9, "x" * 99, "a=b=c=d=e", ["Doe^Jane", "Roe^Mary"]),
    "ReferringPhysicianName": ("x" * 99, ["Who^A", "Who^B"]),
    "PatientID": ("7" * 99, ["P7", "P8"], "P\x007\n"),
    "AccessionNumber": ("1" * 20, ["A12", "A13"]),
    "StudyID": ("1" * 99, ["1", "2"]),
    "StudyDescription": (["CHEST", "LOW DOSE"], ["", "CHEST"], "x" * 99),
    "IssuerOfPatientID": (["A", "B"],),
    "PatientSize": ("0.000000000000000017", ["1.7", "1.8"]),
    "PatientWeight": ("70.1234567890123456",),
    "PatientIdentityRemoved": ("MAYBE", ["YES", "NO"]),
    "DeidentificationMethod": (["A", "B" * 99],),
    "SliceThickness": ("1.0000000000000001", "99999999999999999999"),
    "PixelSpacing": (["1.6000000000000001", "1.6000000000000001"],),
    "LossyImageCompression": ("MAYBE", ["00", "01"]),
    "ScheduledProcedureStepStartDate": ("20260230", "00000101", ["20260101", "20260102"]),
}
"""Values that break a rule of DICOM, or that no calendar has."""
SINGLE = (
    *("PatientBirthDate", "StudyDate", "StudyTime", "StudyDescription", "PatientAge"),
    *("ReferringPhysicianName", "TimezoneOffsetFromUTC", "PatientSex", "IssuerOfPatientID"),
)
IN_ORDER = "ScheduledProcedureStepStartDate"
INVALID_UIDS = ("1.2.a", "1" * 70, ["1.2.3", "1.2.4"])


def test_every_object_is_made_whatever_the_images_say_or_the_version_is_not_made(
    tmp_path: Path,
) -> None:
    """An impossible date once cost all objects, and nothing said so.

    A round has one more of the values of every keyword; those of the study's UID are alone.
    """
    folder, out = write_study(tmp_path / "study"), tmp_path / "report"
    write_reported(folder, out)
    for picture in out.glob("finding_*.jpg"):  # the overview is a capture too
        picture.unlink()
    expected = ALL - CAPTURES | {"capture-overview"}
    plain, wrong = tmp_path / "plain", list[Any]()
    shutil.copytree(folder, plain)

    def change(image: Dataset, values: dict[str, Any]) -> None:
        order_of(image)
        image.ReferringPhysicianName = "Who^A"
        for keyword, value in values.items():
            in_order = image.RequestAttributesSequence[0]
            setattr(in_order if keyword == IN_ORDER else image, keyword, value)

    most = max(map(len, INVALID.values()))
    rounds = [{key: of[i] for key, of in INVALID.items() if i < len(of)} for i in range(most)]
    rounds += [{"StudyInstanceUID": value} for value in INVALID_UIDS]
    for values in rounds:
        for file in plain.glob("*.dcm"):
            shutil.copy(file, folder)
        with disable_value_validation():
            change_headers(folder, lambda image: change(image, values))  # noqa: B023
        shutil.rmtree(out / OBJECTS, ignore_errors=True)
        headers = read_study(folder).headers
        assert headers is not None
        (out / SOURCE).write_bytes(headers())
        try:
            made = make_objects(out, DEVICE)
        except NotExportable as error:
            if "StudyInstanceUID" not in values:
                wrong.append((values, str(error)))
            assert not (out / OBJECTS).exists()
            continue
        objects = [dcmread(file) for file in made.files]
        few = any(one.get_item(name) and one[name].VM > 1 for one in objects for name in SINGLE)
        if names(made) != expected or few or "StudyInstanceUID" in values:
            wrong.append((values, names(made), few))
    assert not wrong
    assert sum(map(len, rounds)) >= 60


def test_images_without_a_study_have_no_objects(tmp_path: Path) -> None:
    with pytest.raises(NotExportable, match="StudyInstanceUID"):
        made_with(tmp_path, lambda image: setattr(image, "StudyInstanceUID", ""))


def test_images_without_a_name_are_not_referred_to(tmp_path: Path) -> None:
    made = made_with(tmp_path, lambda image: setattr(image, "SOPInstanceUID", ""))
    assert (names(made), set(made.skipped)) == ({*CAPTURES, "report"}, {"sr", "seg"})
    require_valid(*made.files)
