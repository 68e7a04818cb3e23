"""Reports of small chests in three geometries, with the files that DICOM objects are made from."""

import json
import subprocess
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from shutil import which
from typing import Any

import highdicom as hd
import numpy as np
import pytest
from highdicom.legacy import LegacyConvertedEnhancedCTImage
from pydicom import Dataset, dcmread
from pydicom.uid import generate_uid

from edge.dicom_out.identity import Device
from edge.dicom_out.objects import MadeObjects
from edge.findings import DecidedBy, Finding, Route, SecondReading
from edge.merge import outlined
from edge.report.compose import completed
from edge.report.evidence import OUTLINES, SOURCE, outlines_file
from edge.report.model import Report
from edge.report.pictures import draw_pictures
from edge.report.write import write_report
from imaging.dicom.writer import write_series
from imaging.location import locator_of
from imaging.preprocess import Preprocessed, preprocess
from imaging.read import read_study
from imaging.volume import Geometry, Study, StudyHeader, Volume
from protos.messages import Verdict
from tests.evaluation.plain_chest import chest

DEVICE = Device("serial 7", "0.1.0")
HEADER = StudyHeader(
    patient_id="P7", patient_name="Doe^Jane", sex="F", age="060Y", study_date="20260228",
    accession="A12", series_description="thorax", manufacturer="ACME", kernel="STANDARD",
)  # fmt: skip
CAPTURES = {"capture-overview", "capture-01", "capture-02", "capture-03"}
ALL = {"report", "seg", "sr", *CAPTURES}
KINDS = ("axial", "oblique", "enhanced")
NODULE_MM = 12.0


def write_study(folder: Path, kind: str = "axial") -> Path:
    """Write a chest with two lungs as a DICOM series."""
    volume = chest()
    if kind == "oblique":
        volume = Volume(volume.hu, _tilted(volume.geometry))
    write_series(volume, folder, header=HEADER, seed=7)
    if kind == "enhanced":
        _join_frames(folder)
    return folder


def _tilted(geometry: Geometry) -> Geometry:
    """Turn the patient by 12 degrees about the x axis, and by 5 about the new z axis."""
    a, b = np.radians((12, 5))
    about_x = np.array([[1, 0, 0], [0, np.cos(a), -np.sin(a)], [0, np.sin(a), np.cos(a)]])
    about_z = np.array([[np.cos(b), -np.sin(b), 0], [np.sin(b), np.cos(b), 0], [0, 0, 1]])
    return replace(geometry, direction=about_x @ about_z)


def _join_frames(folder: Path) -> None:
    """Replace the files of a series by one image of many frames, head first."""
    files = sorted(folder.glob("*.dcm"))
    images = [dcmread(file) for file in reversed(files)]
    series, instance = (generate_uid(entropy_srcs=[name]) for name in ("series", "joined"))
    joined = LegacyConvertedEnhancedCTImage(images, series, 1, instance, 1)
    for file in files:
        file.unlink()
    joined.save_as(folder / "joined.dcm", enforce_file_format=True)


def change_headers(folder: Path, change: Callable[[Dataset], None]) -> None:
    for file in folder.glob("*.dcm"):
        image = dcmread(file)
        change(image)
        image.save_as(file)


def finding(
    box: Preprocessed, at_zyx: tuple[float, float, float], probability: float, outline: bool
) -> Finding:
    """A finding at this share of the lung box, with the outline of a ball or without."""
    index = tuple(float(v) for v in np.array(at_zyx) * np.array(box.voxels.shape))
    x, y, z = (float(v) for v in box.geometry.to_world(index))
    made = Finding(
        (x, y, z), NODULE_MM, probability, 0.6, DecidedBy.CLOUD, "the cloud raised 0.60",
        (index[0], index[1], index[2]), Route.ESCALATE,
        Verdict(1, probability, NODULE_MM, "hybrid-int8 1", 0.01, 0.02, 0.3, "part-solid"),
    )  # fmt: skip
    if not outline:
        return made
    grid = np.indices((48, 48, 48)) - 24
    return outlined(made, (grid**2).sum(0) <= (NODULE_MM / 2) ** 2, box.geometry)


def report_of(study: Study, box: Preprocessed) -> Report:
    """A report with two findings, the first with an outline, and a possible finding."""
    findings = (
        finding(box, (0.4, 0.5, 0.2), 0.95, True),
        finding(box, (0.6, 0.5, 0.8), 0.8, False),
    )
    report = Report(
        study_key="0123456789abcdef" * 2,
        created="2026-03-01T10:11:12+00:00",
        source=study.source,
        deadline_s=10.0,
        header=study.header,
        series_uid=study.volume.series_uid,
        findings=findings,
        possible=(finding(box, (0.5, 0.6, 0.25), 0.3, True),),
        second_reading=SecondReading.COMPLETE,
        second_reading_reason="3 of 3 uncertain candidates were read again",
        locator=locator_of(study, box),
        models={"edge": "screening-int8 1 (openvino)", "cloud": "hybrid-int8 1"},
        coverage=box.measures.coverage,
    )
    return completed(report)


def write_reported(folder: Path, out: Path) -> Report:
    """Read the study, and write its report with all that objects are made from."""
    study = read_study(folder)
    box = preprocess(study.volume, folder)
    report = report_of(study, box)
    assert study.headers is not None
    pictures = draw_pictures(report.findings, report.possible, box, out)
    evidence = {SOURCE: study.headers(), OUTLINES: outlines_file(report.listed, box.geometry)}
    write_report(report, pictures, out, evidence)
    return report


def values_of(out: Path) -> dict[str, Any]:
    values: dict[str, Any] = json.loads((out / "report.json").read_bytes())
    return values


def require_valid(*files: Path) -> None:
    """Require that dciodvfy finds no error in the objects; skip where it is not installed."""
    if which("dciodvfy") is None:
        pytest.skip("needs dciodvfy (Debian: dicom3tools)")
    assert files
    for file in files:
        done = subprocess.run(["dciodvfy", str(file)], capture_output=True, text=True, check=False)
        lines = (done.stdout + done.stderr).splitlines()
        errors = [line for line in lines if line.startswith("Error")]
        assert not errors, f"{file.name}: {errors}"


def names(made: MadeObjects) -> set[str]:
    return {file.stem for file in made.files}


def groups_in(folder: Path) -> dict[str, Any]:
    """The measurement groups in a folder of objects by tracking identifier."""
    document = hd.sr.srread(folder / "sr.dcm")
    groups = document.content.get_volumetric_roi_measurement_groups()
    return {group.tracking_identifier: group for group in groups}


def procedures_in(document: Dataset) -> list[str]:
    """What the document says that it reports on."""
    return [
        item.ConceptCodeSequence[0].CodeMeaning
        for item in document.ContentSequence
        if item.ConceptNameCodeSequence[0].CodeMeaning == "Procedure reported"
    ]
