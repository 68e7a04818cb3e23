"""All objects of a report: read back by highdicom, valid by dciodvfy, the same when made again."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import highdicom as hd
import numpy as np
import pytest
from pydicom import Dataset, dcmread
from pydicom.config import disable_value_validation
from pydicom.sr.codedict import codes

from edge.dicom_out.errors import NotExportable
from edge.dicom_out.objects import make_objects
from edge.findings import SecondReading
from edge.report.evidence import OBJECTS, OUTLINES, SOURCE
from edge.report.model import Change, ChangeKind, Rejection, Status
from edge.report.write import write_report, write_version
from imaging.preprocess import preprocess
from imaging.read import read_study
from tests.edge.dicom_out.studies import (
    DEVICE,
    KINDS,
    change_headers,
    report_of,
    require_valid,
    values_of,
    write_reported,
    write_study,
    write_with_evidence,
)


@pytest.fixture(scope="module", params=KINDS)
def reported(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a report whose objects were made; the study's files are gone."""
    folder = tmp_path_factory.mktemp(request.param)
    study = write_study(folder / "study", request.param)
    write_reported(study, folder / "report")
    shutil.rmtree(study)
    make_objects(folder / "report", DEVICE)
    return folder / "report"


@pytest.fixture(scope="module")
def axial(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_study(tmp_path_factory.mktemp("axial study"))


def _groups(report: Path, version: int = 1) -> dict[str, Dataset]:
    document = hd.sr.srread(report / OBJECTS / f"v{version}" / "sr.dcm")
    groups = document.content.get_volumetric_roi_measurement_groups()
    return {group.tracking_identifier: group for group in groups}


def test_every_object_is_valid(reported: Path) -> None:
    made = make_objects(reported, DEVICE)
    names = [file.name for file in made.files]
    assert names == [
        *("capture-01.dcm", "capture-02.dcm", "capture-03.dcm", "capture-overview.dcm"),
        *("report.dcm", "seg.dcm", "sr.dcm"),
    ]
    assert not made.skipped
    require_valid(*made.files)


def test_all_objects_belong_to_the_patient_and_the_study(reported: Path) -> None:
    objects = [dcmread(file) for file in make_objects(reported, DEVICE).files]
    for one in objects:
        assert (one.PatientID, str(one.PatientName), one.AccessionNumber) == (
            "P7",
            "Doe^Jane",
            "A12",
        )
        assert one.StudyInstanceUID == values_of(reported)["study"]["study_uid"]
        assert one.SeriesInstanceUID != values_of(reported)["series_uid"]
        assert one.PatientAge == "060Y"
        assert one.DeviceSerialNumber == "serial 7"
    series = {one.SeriesNumber: one.SeriesInstanceUID for one in objects}
    assert len(set(series.values())) == len(series) == 4
    assert len({one.SOPInstanceUID for one in objects}) == len(objects)


def test_points_agree_with_the_report(reported: Path) -> None:
    groups, values = _groups(reported), values_of(reported)
    for one in (*values["findings"], *values["possible_findings"]):
        group = groups[f"Overread {one['number']}"]
        points = [i for i in group[0].ContentSequence if i.ValueType == "SCOORD3D"]
        np.testing.assert_allclose(points[0].GraphicData, one["centre_mm"], atol=0.1)
        (diameter,) = group.get_measurements(name=codes.SCT.Diameter)
        assert diameter.value == one["diameter_mm"]
        (volume,) = group.get_measurements(name=codes.SCT.Volume) or (None,)
        assert (volume and volume.value) == one["volume_mm3"]


def test_findings_and_possible_findings_are_told_apart(reported: Path) -> None:
    groups = _groups(reported)
    types = [groups[f"Overread {number}"].finding_type.meaning for number in (1, 2, 3)]
    assert types == ["Nodule", "Nodule", "Possible nodule, of low probability"]


def test_segments_lie_where_the_report_says(reported: Path) -> None:
    """The centre of the voxels agrees, and their volume with that of the report, to one pixel."""
    seg = hd.seg.segread(reported / OBJECTS / "v1" / "seg.dcm")
    values = values_of(reported)
    listed = {v["number"]: v for v in (*values["findings"], *values["possible_findings"])}
    assert [seg.get_segment_description(n).segment_label for n in seg.segment_numbers] == [
        "Finding 1",
        "Possible finding 3",
    ]
    for segment, number in zip(seg.segment_numbers, (1, 3), strict=True):
        volume = seg.get_volume(segment_numbers=[segment], combine_segments=True)
        voxels = np.argwhere(volume.array > 0)
        centre = volume.map_indices_to_reference(voxels.mean(0)[None])[0]
        np.testing.assert_allclose(centre, listed[number]["centre_mm"], atol=0.3)
        pixel_mm3 = float(np.prod(volume.spacing))
        stated_mm3 = listed[number]["volume_mm3"]
        assert len(voxels) * pixel_mm3 == pytest.approx(stated_mm3, abs=pixel_mm3 / 2 + 0.1)


def test_groups_refer_to_their_segments_and_segments_to_their_images(reported: Path) -> None:
    seg = hd.seg.segread(reported / OBJECTS / "v1" / "seg.dcm")
    groups = _groups(reported)
    assert groups["Overread 2"].reference_type == codes.DCM.VolumeSurface
    for number, segment in ((1, 1), (3, 2)):
        group = groups[f"Overread {number}"]
        assert group.referenced_segment.referenced_segment_numbers == [segment]
        assert group.referenced_segment.referenced_sop_instance_uid == seg.SOPInstanceUID
        assert seg.get_segment_description(segment).tracking_uid == group.tracking_uid
    sources = {image for _, _, image in seg.get_source_image_uids()}
    assert values_of(reported)["findings"][0]["location"]["sop_instance_uid"] in sources


def test_the_report_says_what_it_is_and_how_far_to_trust_it(reported: Path) -> None:
    document = hd.sr.srread(reported / OBJECTS / "v1" / "sr.dcm")
    texts = {
        item.name.meaning: item.value
        for item in hd.sr.utils.find_content_items(
            document.content[0], value_type=hd.sr.ValueTypeValues.TEXT, recursive=True
        )
    }
    values = values_of(reported)
    assert texts["Disclaimer"] == values["disclaimer"]
    assert texts["Guarantee on missed nodules"] == values["guarantee"]["text"]
    assert values["second_reading_reason"] in texts["State of the second reading"]
    result = texts["Result in one line, and what to do next"]
    assert result.startswith("2 findings, the largest 12 mm, part-solid, right")
    assert all(step in result for step in values["next_steps"])
    assert document.CompletionFlag == "COMPLETE"
    assert document.VerificationFlag == "UNVERIFIED"


def test_readers_that_disagree_are_named_in_the_group_of_their_finding_alone(
    axial: Path, tmp_path: Path
) -> None:
    write_reported(axial, tmp_path / "report")
    path = tmp_path / "report" / "report.json"
    values = json.loads(path.read_text())
    values["findings"][1]["edge_score"] = 0.1
    del values["result"], values["next_steps"]  # as in a report of an older version
    path.write_text(json.dumps(values))
    make_objects(tmp_path / "report", DEVICE)
    told = {
        uid: [
            item.TextValue
            for item in group[0].ContentSequence
            if "disagreement" in item.ConceptNameCodeSequence[0].CodeMeaning
        ]
        for uid, group in _groups(tmp_path / "report").items()
    }
    assert sorted(told.values()) == [[], [], ["edge 0.10, cloud 0.80"]]


def test_captures_show_the_pictures(reported: Path) -> None:
    overview = dcmread(reported / OBJECTS / "v1" / "capture-overview.dcm")
    assert overview.pixel_array.shape[2] == 3
    assert overview.pixel_array.std() > 10
    picture = dcmread(reported / OBJECTS / "v1" / "capture-03.dcm")
    assert picture.ImageComments.startswith("Possible finding 3")


def test_an_object_made_again_is_the_same(reported: Path, tmp_path: Path) -> None:
    shutil.copytree(reported, tmp_path / "report")
    before = make_objects(tmp_path / "report", DEVICE)
    contents = {file.name: file.read_bytes() for file in before.files}
    times = {file.name: file.stat().st_mtime_ns for file in before.files}
    again = make_objects(tmp_path / "report", DEVICE)
    assert {file.name: file.stat().st_mtime_ns for file in again.files} == times
    shutil.rmtree(before.folder)
    new = make_objects(tmp_path / "report", DEVICE)
    assert {file.name: file.read_bytes() for file in new.files} == contents


def test_a_folder_that_a_crash_left_is_made_again(axial: Path, tmp_path: Path) -> None:
    write_reported(axial, tmp_path)
    left = tmp_path / OBJECTS / ".v1.part"
    left.mkdir(parents=True)
    (left / "sr.dcm").write_bytes(b"half")
    made = make_objects(tmp_path, DEVICE)
    assert not left.exists()
    assert len(made.files) == 7


def test_no_outline(axial: Path, tmp_path: Path) -> None:
    write_reported(axial, tmp_path, outline=False)
    made = make_objects(tmp_path, DEVICE)
    assert "seg.dcm" not in {file.name for file in made.files}
    assert made.skipped == {"seg": "no finding has an outline: only a second reading gives one"}
    types = {group.reference_type.meaning for group in _groups(tmp_path).values()}
    assert types == {"Volume Surface"}
    require_valid(*made.files)


def test_no_findings(axial: Path, tmp_path: Path) -> None:
    """The structured report then says that there are none."""
    study = read_study(axial)
    box = preprocess(study.volume)
    report = replace(report_of(study, box), findings=(), possible=())
    write_with_evidence(report, study, box, tmp_path)
    made = make_objects(tmp_path, DEVICE)
    assert {file.name for file in made.files} == {"capture-overview.dcm", "report.dcm", "sr.dcm"}
    assert set(made.skipped) == {"seg"}
    document = hd.sr.srread(made.folder / "sr.dcm")
    (group,) = document.content.get_image_measurement_groups()
    counts = {one.name.meaning: one.value for one in group.get_measurements()}
    assert counts == {"Number of findings": 0, "Number of possible findings": 0}
    require_valid(*made.files)


def test_a_refused_study_gets_only_the_document_that_says_so(axial: Path, tmp_path: Path) -> None:
    """A structured report without findings would read like one of healthy lungs."""
    study = read_study(axial)
    assert study.headers is not None
    report = replace(
        report_of(study, preprocess(study.volume)),
        findings=(),
        possible=(),
        status=Status.REJECTED,
        rejection=Rejection("NoLung", "there is no lung in it", "study"),
    )
    write_report(report, {}, tmp_path, {SOURCE: study.headers()})
    made = make_objects(tmp_path, DEVICE)
    assert [file.name for file in made.files] == ["report.dcm"]
    require_valid(*made.files)


def test_a_volume_file_has_no_objects_and_says_why(axial: Path, tmp_path: Path) -> None:
    write_reported(axial, tmp_path)
    (tmp_path / SOURCE).unlink()
    with pytest.raises(NotExportable, match="no DICOM series"):
        make_objects(tmp_path, DEVICE)
    assert not (tmp_path / OBJECTS).exists()


@pytest.mark.parametrize("name", [SOURCE, OUTLINES, "report.json"])
def test_damaged_files_are_named(name: str, axial: Path, tmp_path: Path) -> None:
    write_reported(axial, tmp_path)
    (tmp_path / name).write_bytes(b"not what it was")
    if name == OUTLINES:
        assert OUTLINES in make_objects(tmp_path, DEVICE).skipped["seg"]
        return
    with pytest.raises(NotExportable, match=name):
        make_objects(tmp_path, DEVICE)


def test_an_amendment_names_its_predecessor_and_what_changed(axial: Path, tmp_path: Path) -> None:
    study = read_study(axial)
    box = preprocess(study.volume)
    second = report_of(study, box)
    first = replace(
        second,
        findings=second.findings[:1],
        possible=(),
        status=Status.PROVISIONAL,
        second_reading=SecondReading.PARTIAL,
    )
    write_with_evidence(first, study, box, tmp_path)
    before = make_objects(tmp_path, DEVICE)
    old = hd.sr.srread(before.folder / "sr.dcm")
    assert (old.CompletionFlag, old.PreliminaryFlag) == ("PARTIAL", "PRELIMINARY")

    change = Change(2, ChangeKind.ADDED, "new finding 2", 2, second.findings[1].centre_mm, 0.3, 0.8)
    write_version(replace(second, version=2, changes=(change,)), {}, tmp_path)
    made = make_objects(tmp_path, DEVICE)
    assert made.folder.name == "v2"
    new = hd.sr.srread(made.folder / "sr.dcm")
    (study_item,) = new.PredecessorDocumentsSequence
    (series_item,) = study_item.ReferencedSeriesSequence
    (reference,) = series_item.ReferencedSOPSequence
    assert reference.ReferencedSOPInstanceUID == old.SOPInstanceUID
    assert new.SeriesInstanceUID == old.SeriesInstanceUID
    assert new.InstanceNumber > old.InstanceNumber
    assert "new finding 2" in json.dumps(new.to_json_dict())
    uids = [_groups(tmp_path, version)["Overread 1"].tracking_uid for version in (1, 2)]
    assert uids[0] == uids[1]
    require_valid(*made.files)


def test_an_older_version_can_be_made_after_the_next_one_is_out(
    axial: Path, tmp_path: Path
) -> None:
    """It gets its own findings and outlines, but no pictures: those are of the newest version."""
    first = write_reported(axial, tmp_path)
    change = Change(2, ChangeKind.GIVEN_UP, "not read again")
    write_version(
        replace(first, version=2, changes=(change,), findings=first.findings[1:]),
        {},
        tmp_path,
        {OUTLINES: b""},
    )
    made = make_objects(tmp_path, DEVICE, version=1)
    assert {file.name for file in made.files} == {"sr.dcm", "seg.dcm", "report.dcm"}
    assert len(_groups(tmp_path, 1)) == 3


def test_findings_of_a_study_that_was_read_again_are_others(axial: Path, tmp_path: Path) -> None:
    first = write_reported(axial, tmp_path)
    make_objects(tmp_path, DEVICE)
    change = Change(2, ChangeKind.MORE_IMAGES, "3 more images were added")
    write_version(replace(first, version=2, changes=(change,)), {}, tmp_path)
    make_objects(tmp_path, DEVICE)
    uids = [_groups(tmp_path, version)["Overread 1"].tracking_uid for version in (1, 2)]
    assert uids[0] != uids[1]


def test_little_is_known_of_an_anonymous_patient(tmp_path: Path) -> None:
    folder = write_study(tmp_path / "study")

    def change(image: Dataset) -> None:
        for keyword in (
            *("PatientID", "PatientName", "PatientBirthDate", "PatientSex", "PatientAge"),
            *("StudyID", "StudyDate", "StudyTime", "AccessionNumber", "Manufacturer"),
            *("ReferringPhysicianName", "SeriesDescription", "InstanceNumber"),
        ):
            if keyword in image:
                delattr(image, keyword)
        image.PatientIdentityRemoved = "YES"
        image.add_new((0x0009, 0x0010), "LO", "PRIVATE")
        image.add_new((0x0009, 0x1001), "LO", "secret")

    change_headers(folder, change)
    write_reported(folder, tmp_path / "report")
    made = make_objects(tmp_path / "report", DEVICE)
    assert len(made.files) == 7
    for file in made.files:
        data = dcmread(file)
        assert data.PatientID in ("", None)
        assert b"secret" not in file.read_bytes()
    require_valid(*made.files)


def test_without_a_frame_of_reference_points_are_in_images(tmp_path: Path) -> None:
    folder = write_study(tmp_path / "study")

    def change(image: Dataset) -> None:
        del image.FrameOfReferenceUID

    change_headers(folder, change)
    write_reported(folder, tmp_path / "report")
    made = make_objects(tmp_path / "report", DEVICE)
    assert "FrameOfReferenceUID" in made.skipped["seg"]
    values = values_of(tmp_path / "report")["findings"][0]
    group = _groups(tmp_path / "report")["Overread 1"]
    assert group.reference_type == codes.DCM.ImageRegion
    (region,) = group.roi
    number = next(
        dcmread(file)
        for file in folder.glob("*.dcm")
        if dcmread(file).SOPInstanceUID == values["location"]["sop_instance_uid"]
    )
    column, row = region.GraphicData
    first, spacing = np.array(number.ImagePositionPatient, float), number.PixelSpacing
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
    folder = write_study(tmp_path / "study")

    def change(image: Dataset) -> None:
        image.SpecificCharacterSet, image.PatientName = charset, name

    change_headers(folder, change)
    write_reported(folder, tmp_path / "report")
    made = make_objects(tmp_path / "report", DEVICE)
    assert not made.skipped
    for file in made.files:
        data = dcmread(file)
        assert data.SpecificCharacterSet == "ISO_IR 192"
        assert str(data.PatientName) == name
    require_valid(*made.files)


def test_invalid_values_are_left_out_but_not_those_that_identify(tmp_path: Path) -> None:
    folder = write_study(tmp_path / "study")
    for file in folder.glob("*.dcm"):
        content = file.read_bytes()
        for old, new in ((b"20260228", b"28.02.26"), (b"060Y", b"ABCY")):
            content = content.replace(old, new)
        file.write_bytes(content)
    number = "12345678901234567890"  # an accession number of 20 characters, 16 are allowed

    def change(image: Dataset) -> None:
        image.AccessionNumber = number

    with disable_value_validation():
        change_headers(folder, change)
    write_reported(folder, tmp_path / "report")
    made = make_objects(tmp_path / "report", DEVICE)
    assert len(made.files) == 7
    data = dcmread(made.folder / "report.dcm")
    assert "PatientAge" not in data
    assert not data.StudyDate
    assert data.get_item("AccessionNumber").value == number.encode()


def test_images_without_a_study_have_no_objects(tmp_path: Path) -> None:
    folder = write_study(tmp_path / "study")

    def change(image: Dataset) -> None:
        image.StudyInstanceUID = ""

    change_headers(folder, change)
    write_reported(folder, tmp_path / "report")
    with pytest.raises(NotExportable, match="StudyInstanceUID"):
        make_objects(tmp_path / "report", DEVICE)


def test_images_without_a_name_are_not_referred_to(tmp_path: Path) -> None:
    folder = write_study(tmp_path / "study")

    def change(image: Dataset) -> None:
        image.SOPInstanceUID = ""

    change_headers(folder, change)
    write_reported(folder, tmp_path / "report")
    made = make_objects(tmp_path / "report", DEVICE)
    assert set(made.skipped) == {"sr", "seg"}
    assert "report.dcm" in {file.name for file in made.files}
    require_valid(*made.files)
