"""The page of a report, and what page, terminal and JSON say alike."""

import base64
import re
from dataclasses import fields, replace
from pathlib import Path

import numpy as np
import pytest

from edge.budget import LedgerEntry
from edge.clinical.sidecar import Clinical
from edge.findings import Outline, Route, SecondReading
from edge.report.model import NOT_A_DEVICE, Rejection, Status
from edge.report.page import banners
from edge.rules.rule import AppliedRule
from imaging.volume import Limitation, LimitationKind, StudyHeader
from tests.edge.report.reports import (
    FINDING,
    LOCATOR,
    POSSIBLE,
    REPORT,
    UNCERTAIN,
    VERDICT,
    page,
    values_of,
    write,
)
from tests.edge.report.test_terminal import printed

REFUSED = replace(
    REPORT,
    findings=(),
    status=Status.REJECTED,
    rejection=Rejection("IncompleteSeries", "slice 12 of 100 is missing", "000012.dcm"),
)


def test_no_report_says_what_a_guideline_asks() -> None:
    """Guidelines exclude patients whom the program does not recognise; nobody may rest on them."""
    small = replace(FINDING, diameter_mm=4.2)
    text = page(replace(REPORT, findings=(small,))).lower()
    assert "below 6 mm" in text
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
    report = replace(
        REPORT,
        header=StudyHeader(*[hostile] * len(fields(StudyHeader))),
        findings=(replace(FINDING, reason=hostile),),
        source=Path("/inbox") / hostile.replace("\x00", "").replace("/", "-"),
        second_reading_reason=hostile,
        models={hostile: hostile},
        other_series=(hostile,),
        ledger=(LedgerEntry(hostile, 1.0, 1.0),),
        clinical=Clinical(source="clinical.json", problem=hostile),
    )
    text = page(report)
    assert set(re.findall(r"<([a-z]+)", text)) <= set(re.findall(r"<([a-z]+)", page()))
    assert not re.search(r"<[^>]*\son[a-z]+\s*=\s*[^>\"]*>", text.replace("&#34;", ""))
    assert "49" not in text.replace("249", "")
    assert "default-src 'none'" in text


def test_zones_and_outlines_are_explained_only_where_there_are_some(tmp_path: Path) -> None:
    """A scan that is cut has no zones, and one that no cloud measured has no outlines."""
    outlined = replace(FINDING, outline=Outline(np.ones((3, 3, 3), bool), (18, 28, 38), 1.0))
    plain = replace(REPORT, locator=replace(LOCATOR, zones=None))
    full = replace(REPORT, locator=LOCATOR, findings=(outlined,))
    for report, there in ((plain, False), (full, True)):
        text = write(report, tmp_path / str(there)).html.read_text()
        assert ("Zones are thirds" in text) is there
        assert ("Outline of the nodule by the cloud" in text) is there
    assert "27 mm³" not in text  # it is drawn, but its volume is not stated


def test_page_holds_its_own_pictures_and_points_nowhere(tmp_path: Path) -> None:
    paths = write(REPORT, tmp_path)
    text = paths.html.read_text()
    inside = re.findall(r'href="data:image/jpeg;base64,([^"]+)"', text)
    assert [base64.b64decode(data) for data in inside] == [p.read_bytes() for p in paths.pictures]
    assert len(re.findall(r"role=\"img\" aria-label=\"[^\"]{40,}\"", text)) == len(inside) == 2
    assert len(re.findall(r'<use href="#[a-z0-9_.]+"/>', text)) == (2 - 1) + (8 - 1) + 1
    assert not re.search(r"<script|<link|https?:|@import|url\(|javascript:", text)


def test_possible_findings_have_a_section_only_where_there_are_some(tmp_path: Path) -> None:
    """It says what they are, after the findings and before the guarantee, which covers both."""
    assert "possible findings" not in page().lower()
    text = write(replace(REPORT, possible=(POSSIBLE,)), tmp_path).html.read_text()
    assert "1 finding<" in text
    assert "1 possible finding<" in text
    assert "Most of them are not nodules." in text
    assert text.index('id="findings"') < text.index('id="possible"') < text.index("Guarantee.")
    section = text[text.index('id="possible"') : text.index("Guarantee.")]
    rows, fold = section.split("<details", 1)
    assert re.findall(r'class="badge"[^>]*>(\d+)<', rows) == ["2"]
    assert "the cloud lowered" not in rows
    assert "the cloud lowered … to …, below the threshold 0.60 of findings" in fold
    assert "2</span> Possible finding, 4.6 mm, probability of being a nodule 0.21" in text
    assert "in the overview with a question mark" in text
    for name in ("Probability of being a nodule", "Looks malignant (0 to 1)",
                 "Brock probability of cancer", "is not a probability"):  # fmt: skip
        assert name in fold
    rows = text[text.index('id="findings"') : text.index("<details")]
    assert [rows.count(f'<use href="#finding_{n:02d}.jpg"/>') for n in (1, 2)] == [1, 1]


def test_a_report_without_findings_says_so_and_never_that_nothing_is_there() -> None:
    alone = page(replace(REPORT, findings=(), possible=(POSSIBLE,)))
    assert "No findings; 1 possible finding, 4.6 mm; second reading not needed." in alone
    none = page(replace(REPORT, findings=()))
    assert "No findings; no possible findings; second reading not needed." in none
    for text in (alone, none):
        assert "No candidate is probable enough for a finding." in text
        assert "A radiologist must read all images: the program can miss nodules." in text
        assert "normal" not in text.split("<main>")[1]


def test_a_report_by_the_edge_alone_is_no_warning() -> None:
    """Nor is a second reading that was not needed; and nothing says that it is complete."""
    off = replace(
        REPORT,
        decisions=(UNCERTAIN,),
        second_reading=SecondReading.OFF,
        second_reading_reason="no second reader is configured",
    )
    audited = replace(REPORT, findings=(replace(FINDING, route=Route.DISMISS),))
    ends = ("no second reading.", "second reading not needed.", "second reading by audit.")
    for report, end in zip((off, REPORT, audited), ends, strict=True):
        assert banners(report) == ()
        text = page(report).split("<main>")[1]
        assert f"; {end}" in text
        assert "banner" not in text
        assert report.second_reading_reason in text
        assert "complete" not in text


@pytest.mark.parametrize("second", [SecondReading.MISSING, SecondReading.PARTIAL])
def test_banners_state_that_the_second_reading_is_incomplete(second: SecondReading) -> None:
    report = replace(
        REPORT,
        decisions=(UNCERTAIN,),
        status=Status.PROVISIONAL,
        second_reading=second,
        second_reading_reason="the link is down",
    )
    titles = ["Provisional report", f"Second reading {second.value}"]
    assert [(banner.level, banner.title) for banner in banners(report)] == [
        ("warn", title) for title in titles
    ]
    text = page(report).split("<main>")[1]
    assert text.count("the link is down") == 1
    assert f"second reading {second.value}." in text
    assert all(title in text for title in titles)


def test_a_rejected_study_has_a_page_that_says_why() -> None:
    text = page(REFUSED)
    assert "This study was not read: IncompleteSeries" in text
    assert "slice 12 of 100 is missing (000012.dcm)" in text
    assert "finding" not in re.sub(r"Findings are suggestions.*", "", text.split("<main>")[1])
    assert values_of(REFUSED)["rejection"]["kind"] == "IncompleteSeries"


def test_page_names_everything_that_the_reader_must_know() -> None:
    text = page()
    for words in (
        *("Doe Jane", "2026-03-01</dd>", "12.3 mm", "0.95", "400 ms", "10.00 s"),
        "1 finding, 12 mm; second reading not needed.",
        "Look first at finding 1.",
        "screening-int8 1 on openvino",
        REPORT.guarantee.text,
        "1.2.4: 2 slices, localizer",
        "Dismissed: 1, highest score 0.041",
    ):
        assert words in text
    # before anything that could be believed; chromium repeats the margin box on each page
    assert text.split("</header>")[1].index(NOT_A_DEVICE) < 100
    assert re.search(r"@bottom-left \{ content: \"" + re.escape(NOT_A_DEVICE), text)


@pytest.mark.parametrize("count", [1, 2])
def test_limitations_stand_in_one_box_under_the_disclaimer(count: int) -> None:
    texts = ("the scan ends inside the lungs at the base", "the patient is 9 years old")[:count]
    limitations = tuple(Limitation(LimitationKind.PATIENT, text) for text in texts)
    body = page(replace(REPORT, limitations=limitations)).split("</header>")[1].split("<dl")[0]
    _, box = body.split('<div class="banner bad"')
    assert [one in box.split("</div>")[0] for one in texts] == [True] * count
    assert body.index(NOT_A_DEVICE) < body.index("No guarantee: this study") < body.index(texts[0])


SCREENED = replace(
    REPORT,
    findings=(replace(FINDING, verdict=replace(VERDICT, texture="solid")),),
    possible=(POSSIBLE,),
    rule=AppliedRule("lung screening", screening=True),
    locator=LOCATOR,
)


def test_a_screening_examination_has_a_category_with_its_inputs_and_no_other_has() -> None:
    """That of a refused study is 0, an ignored one has none."""
    written = values_of(SCREENED)["lung_rads"]
    assert (written["category"], written["standard"]) == ("4A", "ACR Lung-RADS v2022")
    (nodule,) = written["inputs"]
    assert (nodule["diameter_mm"], nodule["type"], nodule["missing"]) == (12.3, "solid", ())
    assert "ACR Lung-RADS v2022, suggested: category 4A." in page(SCREENED)
    assert "suggested: category 4A" in printed(SCREENED)
    assert values_of()["lung_rads"] is None
    assert "Lung-RADS" not in page() + printed(REPORT)
    refused = replace(REFUSED, rule=SCREENED.rule)
    assert values_of(refused)["lung_rads"]["category"] == "0"
    assert "suggested: category 0.</strong> The study was not read." in page(refused)
    ignored = replace(SCREENED, findings=(), status=Status.IGNORED)
    assert values_of(ignored)["lung_rads"] is None
    assert "Not read" in printed(ignored)


def test_each_finding_has_its_probability_of_cancer_and_a_possible_finding_none() -> None:
    written = values_of(SCREENED)
    (finding,), (possible,) = written["findings"], written["possible_findings"]
    nodule = {"diameter_mm": 12.3, "texture": "solid", "upper": True, "unknown": []}
    assert finding["brock"] == {"probability": 0.0976, **nodule}
    assert possible["brock"] is None
    patient = written["brock"]
    assert (patient["inputs"]["age_years"], patient["inputs"]["count"]) == (62.0, 1)
    assert patient["unknown"][:2] == ["age", "sex"]
    assert "9.8 %" in page(SCREENED)
    assert "Brock probability of cancer  1: 9.8%; unknown: age, sex, " in printed(SCREENED, 300)
