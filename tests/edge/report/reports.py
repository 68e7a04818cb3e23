"""Reports for the tests of files and page."""

import io
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console

from edge.budget import LedgerEntry
from edge.findings import DecidedBy, Decision, Finding, Route, SecondReading
from edge.report.compose import completed
from edge.report.model import Change, ChangeKind, Report
from edge.report.page import render_page
from edge.report.pictures import draw_pictures
from edge.report.serialize import report_to_dict
from edge.report.terminal import render_report
from edge.report.write import ReportPaths, write_report
from imaging.location import Locator
from imaging.preprocess import Preprocessed
from imaging.volume import Geometry, ImageRef, StudyHeader
from models.runtime.detection import Candidate
from protos.messages import Verdict

VERDICT = Verdict(3, 0.93, 11.5, "hybrid-int8 1", 0.01, 0.04)


FINDING = Finding(
    (-21.104, -137.2, 237.1),
    12.346,
    0.95,
    0.61234,
    DecidedBy.CLOUD,
    "0.61 lies between 0.10 and 0.90; the cloud says 0.93",
    (20.0, 30.0, 40.0),
    Route.ESCALATE,
    VERDICT,
)


POSSIBLE = replace(
    FINDING,
    centre_mm=(51.5, -100.0, 210.0),
    diameter_mm=4.6,
    probability=0.21,
    edge_score=0.45,
    reason="the cloud lowered 0.45 to 0.21, below the threshold 0.60 of findings, "
    "at or above 0.10 of possible findings",
    index_zyx=(30.0, 20.0, 60.0),
    verdict=replace(VERDICT, roi_id=4, probability=0.25),
)


DISMISSED = Decision(
    Candidate((1.0, 2.0, 3.0), (5.0, 6.0, 7.0), 5.0, 0.0412), Route.DISMISS, "below 0.10"
)

UNCERTAIN = Decision(
    Candidate((1.0, 2.0, 3.0), (5.0, 6.0, 7.0), 5.0, 0.5), Route.ESCALATE, "between"
)


REPORT = Report(
    study_key="k1",
    created="2026-03-01T10:11:12+00:00",
    source=Path("/inbox/case 1"),
    deadline_s=10.0,
    header=StudyHeader(patient_id="P1", patient_name="Doe^Jane", study_date="20260301"),
    series_uid="1.2.3",
    findings=(FINDING,),
    decisions=(DISMISSED,),
    ledger=(LedgerEntry("read", 10.0, 0.3), LedgerEntry("screen", 9.7, 0.1)),
    second_reading=SecondReading.COMPLETE,
    second_reading_reason="1 of 1 regions",
    models={"edge": "screening-int8 1 on openvino"},
    other_series=("1.2.4: 2 slices, localizer",),
)


def box() -> Preprocessed:
    voxels = np.random.default_rng(0).integers(0, 255, (48, 64, 80)).astype(np.uint8)
    return Preprocessed(voxels, Geometry())


def values_of(report: Report = REPORT) -> dict[str, Any]:
    """The content of report.json."""
    return report_to_dict(completed(report))


def write(report: Report, out: Path) -> ReportPaths:
    report = completed(report)
    return write_report(report, draw_pictures(report.findings, report.possible, box(), out), out)


def printed(report: Report, width: int = 80) -> str:
    """What a terminal of that width shows."""
    console = Console(width=width, file=io.StringIO(), record=True)
    console.print(render_report(completed(report)))
    return console.export_text()


def said(report: Report) -> str:
    """All of it in one line."""
    return " ".join(printed(report, 200).split())


def page(report: Report = REPORT) -> str:
    return render_page(completed(report), {})


LOCATOR = Locator(
    (-100.0, -200.0, 235.0),
    (2.0, 1.0, 1.0),
    ((1.0, 0.0, 0.0), (0.0, 1.0, 0.0), (0.0, 0.0, 1.0)),
    2,
    (ImageRef(57, "1.2.3.57"), ImageRef(56, "1.2.3.56")),
    "1.2.9",
    between=((90.0, 110.0),) * 2,
    zones=(-1.0, 0.5),
)


CHANGE = Change(2, ChangeKind.ADDED, "finding 4 is new", 4, (1.0, 2.0, 3.0), 0.3, 0.9, 0.8, "m 1")
