"""All objects of a report: read back by highdicom, valid by dciodvfy, the same when made again."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import cv2
import highdicom as hd
import numpy as np
import pytest
from pydicom import dcmread
from pydicom.sr.codedict import codes
from pydicom.uid import JPEGBaseline8Bit

from edge.dicom_out.identity import Kind, general
from edge.dicom_out.objects import make_objects
from edge.errors import NotExportable
from edge.findings import SecondReading
from edge.report.evidence import OBJECTS, OUTLINES, SOURCE
from edge.report.model import Change, ChangeKind, Rejection, Report, Status
from edge.report.pictures import OVERVIEW
from edge.report.write import write_report, write_version
from tests.edge.dicom_out.studies import (
    ALL,
    CAPTURES,
    DEVICE,
    KINDS,
    groups_in,
    names,
    procedures_in,
    require_valid,
    values_of,
    write_reported,
    write_study,
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
def plain(tmp_path_factory: pytest.TempPathFactory) -> tuple[Report, Path]:
    """A report of axial images and its folder, whose objects were not made."""
    folder = tmp_path_factory.mktemp("axial")
    return write_reported(write_study(folder / "study"), folder / "report"), folder / "report"


@pytest.fixture
def out(plain: tuple[Report, Path], tmp_path: Path) -> Path:
    """A copy of that folder."""
    return Path(shutil.copytree(plain[1], tmp_path / "report"))


def test_every_object_is_valid_and_belongs_to_the_patient_and_the_study(reported: Path) -> None:
    made, values = make_objects(reported, DEVICE), values_of(reported)
    assert (names(made), made.skipped) == (ALL, {})
    require_valid(*made.files)
    objects = [dcmread(file) for file in made.files]
    for item in objects:
        who = (item.PatientID, str(item.PatientName), item.AccessionNumber, item.PatientAge)
        assert who == ("P7", "Doe^Jane", "A12", "060Y")
        assert item.StudyInstanceUID == values["study"]["study_uid"]
        assert item.SeriesInstanceUID != values["series_uid"]
        assert item.DeviceSerialNumber == "serial 7"
    series = {one.SeriesNumber: one.SeriesInstanceUID for one in objects}
    assert len(set(series.values())) == len(series) == 4
    assert len({one.SOPInstanceUID for one in objects}) == len(objects)


def test_points_types_and_measurements_agree_with_the_report(reported: Path) -> None:
    groups, values = groups_in(reported / OBJECTS / "v1"), values_of(reported)
    possible = "Possible nodule, of low probability"
    for one, kind in zip(
        (*values["findings"], *values["possible_findings"]),
        ("Nodule", "Nodule", possible),
        strict=True,
    ):
        group = groups[f"Overread {one['number']}"]
        assert group.finding_type.meaning == kind
        points = [i for i in group[0].ContentSequence if i.ValueType == "SCOORD3D"]
        np.testing.assert_allclose(points[0].GraphicData, one["centre_mm"], atol=0.1)
        (diameter,) = group.get_measurements(name=codes.SCT.Diameter)
        assert diameter.value == one["diameter_mm"]
        (volume,) = group.get_measurements(name=codes.SCT.Volume) or (None,)
        assert (volume and volume.value) == one["volume_mm3"]
    assert groups["Overread 2"].reference_type == codes.DCM.VolumeSurface


def test_segments_lie_where_the_report_says_and_belong_to_their_groups(reported: Path) -> None:
    """The centre of the voxels agrees, and their volume with that of the report, to one pixel."""
    seg = hd.seg.segread(reported / OBJECTS / "v1" / "seg.dcm")
    groups, values = groups_in(reported / OBJECTS / "v1"), values_of(reported)
    expected = (values["findings"][0], "Finding 1"), (values["possible_findings"][0],
                                                      "Possible finding 3")  # fmt: skip
    for segment, (one, label) in zip(seg.segment_numbers, expected, strict=True):
        described = seg.get_segment_description(segment)
        assert described.segment_label == label
        volume = seg.get_volume(segment_numbers=[segment], combine_segments=True)
        voxels = np.argwhere(volume.array > 0)
        centre = volume.map_indices_to_reference(voxels.mean(0)[None])[0]
        np.testing.assert_allclose(centre, one["centre_mm"], atol=0.3)
        pixel_mm3 = float(np.prod(volume.spacing))
        close = pytest.approx(one["volume_mm3"], abs=pixel_mm3 / 2 + 0.1)
        assert len(voxels) * pixel_mm3 == close
        group = groups[f"Overread {one['number']}"]
        assert group.referenced_segment.referenced_segment_numbers == [segment]
        assert group.referenced_segment.referenced_sop_instance_uid == seg.SOPInstanceUID
        assert described.tracking_uid == group.tracking_uid
    sources = {image for _, _, image in seg.get_source_image_uids()}
    assert values["findings"][0]["location"]["sop_instance_uid"] in sources


def test_the_report_says_what_it_is_and_how_far_to_trust_it(reported: Path) -> None:
    document = hd.sr.srread(reported / OBJECTS / "v1" / "sr.dcm")
    items = hd.sr.utils.find_content_items(
        document.content[0], value_type=hd.sr.ValueTypeValues.TEXT, recursive=True
    )
    texts, values = {item.name.meaning: item.value for item in items}, values_of(reported)
    assert texts["Disclaimer"] == values["disclaimer"]
    assert texts["Guarantee on missed nodules"] == values["guarantee"]["text"]
    assert values["second_reading_reason"] in texts["State of the second reading"]
    result = texts["Result in one line, and what to do next"]
    assert result == " ".join([values["result"], *values["next_steps"]])
    assert result.startswith("2 findings, the largest 12 mm, part-solid, right")
    assert (document.CompletionFlag, document.VerificationFlag) == ("COMPLETE", "UNVERIFIED")


def test_captures_show_the_pictures_compressed_under_a_line_of_text(reported: Path) -> None:
    """Each lossy step is named; the line says what a viewer that shows no header must say."""
    for capture, picture, words in (
        ("overview", OVERVIEW, "Report version 1. Overview of findings and possible findings"),
        ("01", "finding_01.jpg", "Finding 1: 12.1 mm, right of the patient, probability"),
        ("03", "finding_03.jpg", "Possible finding 3: 12.1 mm, right of the patient, probability"),
    ):
        file = reported / OBJECTS / "v1" / f"capture-{capture}.dcm"
        made, drawn = dcmread(file), cv2.imread(str(reported / picture), cv2.IMREAD_COLOR_RGB)
        assert made.file_meta.TransferSyntaxUID == JPEGBaseline8Bit
        assert file.stat().st_size < drawn.nbytes / 5
        line, shown = np.split(made.pixel_array, [-len(drawn)])
        assert np.abs(shown.astype(int) - drawn).mean() < 4.0
        assert line.max(axis=(0, 2))[:400].reshape(-1, 20).max(1).min() > 150  # letters
        assert made.ImageComments.startswith("AI, not a medical device. Report version 1. ")
        assert words in made.ImageComments
        assert (made.BurnedInAnnotation, made.LossyImageCompression) == ("YES", "01")
        assert made.LossyImageCompressionMethod == ["ISO_10918_1"] * 2
        assert all(ratio > 5 for ratio in made.LossyImageCompressionRatio)


def test_an_object_made_again_is_the_same(reported: Path, tmp_path: Path) -> None:
    out = Path(shutil.copytree(reported, tmp_path / "report"))
    before = make_objects(out, DEVICE)
    contents = {file.name: file.read_bytes() for file in before.files}
    times = {file.name: file.stat().st_mtime_ns for file in before.files}
    again = make_objects(out, DEVICE)
    assert {file.name: file.stat().st_mtime_ns for file in again.files} == times
    # as a crash leaves it
    before.folder.rename(before.folder.with_name(".v1.part"))
    (out / OBJECTS / ".v1.part" / "sr.dcm").write_bytes(b"half")
    new = make_objects(out, DEVICE)
    assert {file.name: file.read_bytes() for file in new.files} == contents
    assert [path.name for path in (out / OBJECTS).iterdir()] == ["v1"]


def test_no_two_objects_of_a_study_have_one_uid(plain: tuple[Report, Path]) -> None:
    """Also not version 1, picture 11 and version 11, picture 1."""
    versions = [replace(plain[0], version=version) for version in range(1, 13)]
    made = [
        general(kind, report, DEVICE, number)["sop_instance_uid"]
        for kind in Kind
        for report in versions
        for number in range(1, 13)
    ]
    assert len(set(made)) == len(made) == len(Kind) * 144


def test_readers_that_disagree_are_named_in_the_group_of_their_finding_alone(out: Path) -> None:
    values = values_of(out)
    values["findings"][1]["edge_score"] = 0.1
    (out / "report.json").write_text(json.dumps(values))
    told = [
        item.TextValue
        for group in groups_in(make_objects(out, DEVICE).folder).values()
        for item in group[0].ContentSequence
        if "disagreement" in item.ConceptNameCodeSequence[0].CodeMeaning
    ]
    assert told == ["edge 0.10, cloud 0.80"]


def test_the_conformance_statement_lists_the_objects_as_they_are(reported: Path) -> None:
    page = (Path(__file__).resolve().parents[3] / "docs" / "conformance.md").read_text()
    section = page.split("## Objects that are created\n\n")[1].split("\n\n")[0]
    made = set[str]()
    for file in make_objects(reported, DEVICE).files:
        one, syntax = dcmread(file), dcmread(file).file_meta.TransferSyntaxUID
        cells = (one.SOPClassUID.name, f"`{one.SOPClassUID}`", syntax.name, one.Modality)
        name, series = file.stem.partition("-")[0], one.SeriesNumber
        made.add(f"| `{name}` | {' | '.join(cells)} | {series} |")
    assert set(section.splitlines()[2:]) == made


@pytest.mark.parametrize(
    ("reading", "status"),
    [
        (SecondReading.COMPLETE, "Succeeded"),
        (SecondReading.PARTIAL, "Partially Succeeded"),
        (SecondReading.MISSING, "Failed"),
        (SecondReading.OFF, "Not Attempted"),
    ],
)
def test_the_status_of_each_analysis_is_coded(
    reading: SecondReading, status: str, plain: tuple[Report, Path], out: Path
) -> None:
    write_version(replace(plain[0], version=2, second_reading=reading), {}, out)
    made = make_objects(out, DEVICE)
    document = hd.sr.srread(made.folder / "sr.dcm")
    (group,) = document.content.get_image_measurement_groups()
    told = {one.name.meaning: one.value for one in group.get_qualitative_evaluations()}
    assert told["Summary of Detections"] == codes.DCM.Succeeded
    assert (told["Summary of Analyses"].meaning, told["Summary of Analyses"].scheme_designator) == (
        status, "DCM",
    )  # fmt: skip
    require_valid(*made.files)


def test_no_outline(out: Path) -> None:
    (out / OUTLINES).unlink()
    made = make_objects(out, DEVICE)
    assert names(made) == ALL - {"seg"}
    assert made.skipped == {"seg": "no finding has an outline: only a second reading gives one"}
    groups = groups_in(made.folder).values()
    assert {group.reference_type.meaning for group in groups} == {"Volume Surface"}
    require_valid(*made.files)


def test_no_findings(plain: tuple[Report, Path], out: Path) -> None:
    """The structured report then says that there are none."""
    write_version(replace(plain[0], version=2, findings=(), possible=()), {}, out)
    made = make_objects(out, DEVICE)
    assert (names(made), set(made.skipped)) == ({"report", "sr"}, {"seg"})
    document = hd.sr.srread(made.folder / "sr.dcm")
    (group,) = document.content.get_image_measurement_groups()
    counts = {one.name.meaning: one.value for one in group.get_measurements()}
    assert counts == {"Number of findings": 0, "Number of possible findings": 0}
    require_valid(*made.files)


def test_a_refused_study_has_the_status_failed_and_no_counts(
    plain: tuple[Report, Path], tmp_path: Path
) -> None:
    """Counts of 0 would read like those of healthy lungs."""
    why = Rejection("NoLung", "there is no lung in it", "study")
    report = replace(plain[0], findings=(), possible=(), status=Status.REJECTED, rejection=why)
    write_report(report, {}, tmp_path, {SOURCE: (plain[1] / SOURCE).read_bytes()})
    made = make_objects(tmp_path, DEVICE)
    assert names(made) == {"report", "sr"}
    document = hd.sr.srread(made.folder / "sr.dcm")
    (group,) = document.content.get_image_measurement_groups()
    told = {one.name.meaning: one.value.meaning for one in group.get_qualitative_evaluations()}
    told.pop("Algorithm Family")
    assert told == {"Summary of Detections": "Failed", "Summary of Analyses": "Not Attempted"}
    assert not group.get_measurements()
    assert (document.CompletionFlag, document.PreliminaryFlag) == ("PARTIAL", "FINAL")
    assert "there is no lung in it" in json.dumps(document.to_json_dict())
    require_valid(*made.files)


def test_the_structured_report_names_every_other_object_of_its_version(reported: Path) -> None:
    """In its content, and in its evidence."""
    files = make_objects(reported, DEVICE).files
    uids = {file.stem: str(dcmread(file).SOPInstanceUID) for file in files}
    document = hd.sr.srread(reported / OBJECTS / "v1" / "sr.dcm")
    named = {
        str(item.ReferencedSOPSequence[0].ReferencedSOPInstanceUID)
        for item in document.ContentSequence
        if item.ValueType in ("IMAGE", "COMPOSITE")
    }
    assert named == {uids[name] for name in (*CAPTURES, "report")}
    evidence = {one[2] for one in document.get_evidence(current_procedure_only=True)}
    assert {*named, uids["seg"]} <= evidence


def test_a_volume_file_has_no_objects_and_says_why(out: Path) -> None:
    (out / SOURCE).unlink()
    with pytest.raises(NotExportable, match="no DICOM series"):
        make_objects(out, DEVICE)
    assert not (out / OBJECTS).exists()


@pytest.mark.parametrize("name", [SOURCE, OUTLINES, "report.json"])
def test_damaged_files_are_named(name: str, out: Path) -> None:
    (out / name).write_bytes(b"not what it was")
    with pytest.raises(NotExportable, match=name):
        make_objects(out, DEVICE)


def test_an_amendment_names_its_predecessor_and_what_changed(
    plain: tuple[Report, Path], out: Path
) -> None:
    second = plain[0]
    first = replace(
        second,
        findings=second.findings[:1],
        possible=(),
        status=Status.PROVISIONAL,
        second_reading=SecondReading.PARTIAL,
    )
    write_report(first, {}, out, {SOURCE: (plain[1] / SOURCE).read_bytes()})
    before = make_objects(out, DEVICE)
    old = hd.sr.srread(before.folder / "sr.dcm")
    assert (old.CompletionFlag, old.PreliminaryFlag) == ("PARTIAL", "PRELIMINARY")

    change = Change(2, ChangeKind.ADDED, "new finding 2", 2, second.findings[1].centre_mm, 0.3, 0.8)
    write_version(replace(second, version=2, changes=(change,)), {}, out)
    made = make_objects(out, DEVICE)
    assert made.folder.name == "v2"
    new = hd.sr.srread(made.folder / "sr.dcm")
    (study_item,) = new.PredecessorDocumentsSequence
    (series_item,) = study_item.ReferencedSeriesSequence
    (reference,) = series_item.ReferencedSOPSequence
    assert reference.ReferencedSOPInstanceUID == old.SOPInstanceUID
    assert new.SeriesInstanceUID == old.SeriesInstanceUID
    assert new.InstanceNumber > old.InstanceNumber
    assert "new finding 2" in json.dumps(new.to_json_dict())
    uids = {groups_in(one.folder)["Overread 1"].tracking_uid for one in (before, made)}
    assert len(uids) == 1
    require_valid(*made.files)


def test_an_older_version_can_be_made_after_the_next_one_is_out(
    plain: tuple[Report, Path], out: Path
) -> None:
    """It gets its own findings and outlines, but no pictures: those are of the newest version.

    Findings of a study that was read again with more images are others, with numbers from 1.
    """
    change = Change(2, ChangeKind.MORE_IMAGES, "3 more images were added")
    newer = replace(plain[0], version=2, changes=(change,), findings=plain[0].findings[1:])
    write_version(newer, {}, out, {OUTLINES: b""})
    first, second = (make_objects(out, DEVICE, version=version) for version in (1, None))
    assert names(first) == {"sr", "seg", "report"}
    assert len(groups_in(first.folder)) == 3
    uids = {groups_in(one.folder)["Overread 1"].tracking_uid for one in (first, second)}
    assert len(uids) == 2


def test_images_without_an_order_are_of_a_chest_ct(reported: Path) -> None:
    document = dcmread(reported / OBJECTS / "v1" / "sr.dcm")
    assert procedures_in(document) == ["CT Chest"]
    (request,) = document.ReferencedRequestSequence
    assert (request.AccessionNumber, request.RequestedProcedureID) == ("A12", "")
