from __future__ import annotations

import base64
import json
import re
from dataclasses import fields, replace
from pathlib import Path

import numpy as np
import pytest

from edge.budget import LedgerEntry
from edge.findings import Decision, Outline, Route, SecondReading
from edge.report.model import NOT_A_DEVICE, Rejection, Report, Status
from edge.report.page import banners
from edge.report.wording import result_of
from edge.report.write import write_report
from imaging.volume import Limitation, LimitationKind, StudyHeader
from models.runtime.detection import Candidate
from tests.edge.report.reports import FINDING, LOCATOR, POSSIBLE, REPORT, page, write


def test_no_report_says_what_a_guideline_asks() -> None:
    """Guidelines exclude patients whom the program does not recognise; nobody may rest on them."""
    small = replace(FINDING, diameter_mm=4.2)
    text = page(replace(REPORT, findings=(small,))).lower()
    for word in ("guideline", "follow-up", "fleischner", "lung-rads"):
        assert word not in text


@pytest.mark.parametrize(
    "hostile",
    [
        "<script>alert(1)</script>",
        '"><img src=x onerror=alert(1)>',
        "'; alert(1); //",
        "</title></style><svg onload=alert(1)>",
        "{{ 7 * 7 }}",
        "${7*7} & < > \x00",
    ],
)
def test_hostile_text_stays_text(hostile: str) -> None:
    """Whatever a header, path or reason says, the page shows it and runs none of it."""
    header = StudyHeader(*[hostile] * len(fields(StudyHeader)))
    finding = replace(FINDING, reason=hostile)
    report = replace(
        REPORT,
        header=header,
        findings=(finding,),
        source=Path("/inbox") / hostile.replace("\x00", "").replace("/", "-"),
        second_reading_reason=hostile,
        models={hostile: hostile},
        other_series=(hostile,),
        ledger=(LedgerEntry(hostile, 1.0, 1.0),),
    )
    text = page(report)
    tags = set(re.findall(r"<([a-z]+)", text))
    assert tags <= set(re.findall(r"<([a-z]+)", page()))
    assert not re.search(r"<[^>]*\son[a-z]+\s*=\s*[^>\"]*>", text.replace("&#34;", ""))
    assert "49" not in text.replace("249", "")
    assert "default-src 'none'" in text


def test_zones_and_outlines_are_explained_only_where_there_are_some(tmp_path: Path) -> None:
    """A scan that is cut has no zones, and one that no cloud measured has no outlines."""
    plain = write(replace(REPORT, locator=replace(LOCATOR, zones=None)), tmp_path / "a")
    text = plain.html.read_text()
    assert "Zones are thirds" not in text
    assert "Outline of the nodule" not in text
    outlined = replace(FINDING, outline=Outline(np.ones((3, 3, 3), bool), (18, 28, 38), 1.0))
    full = write(replace(REPORT, locator=LOCATOR, findings=(outlined,)), tmp_path / "b")
    text = full.html.read_text()
    assert "Zones are thirds" in text
    assert "Outline of the nodule by the cloud" in text
    assert "27 mm³" not in text  # it is drawn, but its volume is not stated


def test_page_holds_its_own_pictures_and_points_nowhere(tmp_path: Path) -> None:
    paths = write(REPORT, tmp_path)
    text = paths.html.read_text()
    inside = re.findall(r'href="data:image/jpeg;base64,([^"]+)"', text)
    assert [base64.b64decode(data) for data in inside] == [p.read_bytes() for p in paths.pictures]
    assert len(re.findall(r"role=\"img\" aria-label=\"[^\"]{40,}\"", text)) == len(inside) == 2
    assert len(re.findall(r'<use href="#[a-z0-9_.]+"/>', text)) == (2 - 1) + (8 - 1) + 1
    assert not re.search(r"<script|<link|https?:|@import|url\(|javascript:", text)


def test_possible_findings_have_a_section_only_where_there_are_some() -> None:
    """It says what they are, after the findings and before the guarantee, which covers both."""
    assert "possible findings" not in page().lower()
    text = page(replace(REPORT, possible=(POSSIBLE,)))
    assert "1 finding<" in text
    assert "1 possible finding<" in text
    assert "Most of them are not nodules." in text
    assert text.index('id="findings"') < text.index('id="possible"') < text.index("Guarantee.")
    section = text[text.index('id="possible"') : text.index("Guarantee.")]
    rows, fold = section.split("<details", 1)
    assert re.findall(r'class="badge"[^>]*>(\d+)<', rows) == ["2"]
    assert "the cloud lowered" not in rows
    assert "the cloud lowered … to …, below the threshold 0.60 of findings" in fold


def test_a_report_without_findings_says_so_and_never_that_nothing_is_there() -> None:
    alone = page(replace(REPORT, findings=(), possible=(POSSIBLE,)))
    assert "No findings; 1 possible finding, 4.6 mm; second reading not needed." in alone
    none = page(replace(REPORT, findings=()))
    assert "No findings; no possible findings; second reading not needed." in none
    for text in (alone, none):
        assert "No candidate is probable enough for a finding." in text
        assert "A radiologist must read all images: the program can miss nodules." in text
        assert "normal" not in text.split("<main>")[1]


def test_the_pictures_of_possible_findings_say_what_they_are(tmp_path: Path) -> None:
    text = write(replace(REPORT, possible=(POSSIBLE,)), tmp_path).html.read_text()
    assert "2</span> Possible finding, 4.6 mm, probability of being a nodule 0.21" in text
    assert "in the overview with a question mark" in text
    assert "1 numbered findings and 1 possible findings" in text
    assert "question mark" not in write(REPORT, tmp_path).html.read_text()


UNCERTAIN = Decision(
    Candidate((1.0, 2.0, 3.0), (5.0, 6.0, 7.0), 5.0, 0.5), Route.ESCALATE, "between"
)


def test_a_report_by_the_edge_alone_is_no_warning() -> None:
    """Nor is a second reading that was not needed; and nothing says that it is complete."""
    off = replace(
        REPORT,
        decisions=(UNCERTAIN,),
        second_reading=SecondReading.OFF,
        second_reading_reason="no second reader is configured",
    )
    audited = replace(REPORT, findings=(replace(FINDING, route=Route.DISMISS),))
    reports = (off, REPORT, audited)
    assert [result_of(report).split("; ")[-1] for report in reports] == [
        "no second reading.",
        "second reading not needed.",
        "second reading by audit.",
    ]
    for report in reports:
        assert banners(report) == ()
        text = page(report).split("<main>")[1]
        assert "banner" not in text
        assert report.second_reading_reason in text
        assert "complete" not in text


@pytest.mark.parametrize(
    ("status", "second", "expected"),
    [
        (Status.FINAL, SecondReading.COMPLETE, []),
        (
            Status.PROVISIONAL,
            SecondReading.MISSING,
            [("warn", "Provisional report"), ("warn", "Second reading missing")],
        ),
        (
            Status.PROVISIONAL,
            SecondReading.PARTIAL,
            [("warn", "Provisional report"), ("warn", "Second reading partial")],
        ),
    ],
)
def test_banner_states_how_complete_the_second_reading_is(
    status: Status, second: SecondReading, expected: list[tuple[str, str]]
) -> None:
    report = replace(
        REPORT,
        decisions=(UNCERTAIN,),
        status=status,
        second_reading=second,
        second_reading_reason="the link is down",
    )
    assert [(banner.level, banner.title) for banner in banners(report)] == expected
    text = page(report).split("<main>")[1]
    assert text.count("the link is down") == 1
    assert f"second reading {second.value}." in text
    assert all(banner.title in text for banner in banners(report))


def test_a_rejected_study_has_a_page_that_says_why(tmp_path: Path) -> None:
    """The banner has kind, reason and file; nothing is said about findings."""
    report = Report(
        "k",
        "2026-03-01T10:11:12+00:00",
        Path("/inbox/x"),
        10.0,
        status=Status.REJECTED,
        rejection=Rejection("IncompleteSeries", "slice 12 of 100 is missing", "000012.dcm"),
    )
    paths = write_report(report, {}, tmp_path)
    text = paths.html.read_text()
    assert "IncompleteSeries" in text
    assert "slice 12 of 100 is missing (000012.dcm)" in text
    assert "finding" not in re.sub(r"Findings are suggestions.*", "", text.split("<main>")[1])
    assert paths.pictures == ()
    assert json.loads(paths.json.read_text())["rejection"]["kind"] == "IncompleteSeries"


def test_page_names_everything_that_the_reader_must_know() -> None:
    text = page()
    for words in (
        "Doe Jane",
        "2026-03-01</dd>",
        "12.3 mm",
        "0.95",
        "1 finding, 12 mm; second reading not needed.",
        "Look first at finding 1.",
        "400 ms",
        "10.00 s",
        "screening-int8 1 on openvino",
        REPORT.guarantee.text,
        "1.2.4: 2 slices, localizer",
        "Dismissed: 1, highest score 0.041",
        NOT_A_DEVICE,
    ):
        assert words in text


def test_the_disclaimer_stands_under_the_header_and_on_every_printed_page() -> None:
    """Before anything that could be believed; chromium repeats the margin box on each page."""
    text = page()
    body = text.split("</header>")[1]
    assert body.index(NOT_A_DEVICE) < 100
    assert re.search(r"@bottom-left \{ content: \"" + re.escape(NOT_A_DEVICE), text)


@pytest.mark.parametrize("count", [1, 2])
def test_limitations_stand_in_one_box_under_the_disclaimer(count: int) -> None:
    texts = ("the scan ends inside the lungs at the base", "the patient is 9 years old")[:count]
    limitations = tuple(Limitation(LimitationKind.PATIENT, text) for text in texts)
    text = page(replace(REPORT, limitations=limitations))
    body = text.split("</header>")[1].split("<dl")[0]
    box = body.split('<div class="banner bad"')
    assert len(box) == 2
    assert [one in box[1].split("</div>")[0] for one in texts] == [True] * count
    assert body.index(NOT_A_DEVICE) < body.index("No guarantee: this study") < body.index(texts[0])
