"""What people read of a report, on its page, in the terminal and in JSON."""

import base64
import re
from dataclasses import fields, replace
from pathlib import Path

import numpy as np
import pytest
from jinja2 import Environment

from edge.audit_sampling import Audit, AuditOutcome
from edge.budget import LedgerEntry
from edge.clinical.sidecar import Clinical
from edge.findings import Outline, Route, SecondReading
from edge.guarantee import Guarantee
from edge.link.estimate import OFF
from edge.report.compose import completed
from edge.report.model import NOT_A_DEVICE, Rejection, Status
from edge.report.page import _template, render_page
from edge.report.view import view_of
from edge.report.wording import coverage_text, reasons_once
from edge.rules.rule import AppliedRule
from imaging.coverage import Coverage, Cut
from imaging.volume import Limitation, LimitationKind, StudyHeader
from tests.edge.builders import TERMS
from tests.edge.report.reports import (
    FINDING,
    LOCATOR,
    POSSIBLE,
    REPORT,
    UNCERTAIN,
    VERDICT,
    page,
    printed,
    said,
    values_of,
    write,
)

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
    assert "outline by the cloud, not measured" in text
    assert "27 mm³" not in text  # it is drawn, but its volume is not stated


def test_page_holds_its_own_pictures_and_points_nowhere(tmp_path: Path) -> None:
    paths = write(REPORT, tmp_path)
    text = paths.html.read_text()
    inside = re.findall(r'href="data:image/jpeg;base64,([^"]+)"', text)
    assert [base64.b64decode(data) for data in inside] == [p.read_bytes() for p in paths.pictures]
    assert len(re.findall(r"role=\"img\" aria-label=\"[^\"]{40,}\"", text)) == len(inside) == 2
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
        assert view_of(report).banners == ()
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
    assert [(banner.level, banner.title) for banner in view_of(report).banners] == [
        ("warn", title) for title in titles
    ]
    text = page(report).split("<main>")[1]
    assert text.count("the link is down") == 1
    assert f"second reading {second.value}." in text
    assert all(title in text for title in titles)


def test_a_study_that_was_not_read_has_no_result_and_says_why() -> None:
    ignored = replace(REPORT, findings=(), status=Status.IGNORED)
    for report in (REFUSED, ignored):
        assert completed(report).result == "This study was not read."
        assert len(completed(report).next_steps) == 1
        assert "This study was not read." in page(report)
    text = page(REFUSED)
    assert "This study was not read: IncompleteSeries" in text
    assert "slice 12 of 100 is missing (000012.dcm)" in text
    assert "finding" not in re.sub(r"Findings are suggestions.*", "", text.split("<main>")[1])
    assert values_of(REFUSED)["rejection"]["kind"] == "IncompleteSeries"
    for words in ("not read: IncompleteSeries", "slice 12 of 100 is missing", "000012.dcm"):
        assert words in said(REFUSED)


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
    assert "suggested: category 4A" in said(SCREENED)
    assert values_of()["lung_rads"] is None
    assert "Lung-RADS" not in page() + printed(REPORT)
    refused = replace(REFUSED, rule=SCREENED.rule)
    assert values_of(refused)["lung_rads"]["category"] == "0"
    assert "suggested: category 0.</strong> The study was not read." in page(refused)
    ignored = replace(SCREENED, findings=(), status=Status.IGNORED)
    assert values_of(ignored)["lung_rads"] is None
    assert "not read" in printed(ignored)


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
    assert "Brock probability of cancer 1: 9.8 % Of findings" in said(SCREENED)
    assert "Unknown of the patient: age, sex, " in said(SCREENED)


def test_each_list_has_a_table_with_centre_scores_and_reason_and_the_ledger_its_deadline() -> None:
    """All of it fits a terminal of 80 columns; findings below 6 mm have a star."""
    small = replace(FINDING, diameter_mm=5.94)
    report = replace(REPORT, findings=(FINDING, small), possible=(POSSIBLE,), locator=LOCATOR)
    lines = printed(report).splitlines()
    rows = {line.split("│")[1].strip(): line for line in lines if line.count("│") == 8}
    cells = ["1", "-21.1, -137.2, 237.1", "12.3", "0.95", "0.61", "0.93", "cloud"]
    assert [cell.strip() for cell in rows["1"].split("│")[1:-1]] == cells
    assert "5.9*" in rows["2"]
    assert "4.6*" in rows["3"]
    assert sum("* below 6 mm" in line for line in lines) == 2
    titles = [line.strip() for line in lines]
    assert titles.index("2 findings") < titles.index("1 possible finding")
    assert any("1 of 1 candidate dismissed on the edge, highest score 0.041" in x for x in lines)
    assert "1  right upper zone, image 56: 0.61 lies between 0.10 and 0.90; the cloud" in "".join(
        lines
    )
    assert any("0.40 s of 10.00 s" in line for line in lines)
    assert any("│ read   │   10.000 │  0.300 │" in line for line in lines)
    assert "possible" not in printed(REPORT)


def test_second_reading_guarantee_and_audit_are_said_in_words() -> None:
    """In the terminal; a header's text is no markup there."""
    audit = Audit(AuditOutcome.CLEAR, 0.05, 0.09, 3, 2, reason="DeadlinePassed: late")
    uncertain = replace(REPORT, decisions=(UNCERTAIN,))
    off = replace(uncertain, second_reading=SecondReading.OFF, second_reading_reason=OFF.reason)
    for report, text in (
        (uncertain, "Second reading complete: 1 of 1 regions"),
        (off, "Second reading edge only: no second reader is configured"),
        (REPORT, "Second reading not needed: 1 of 1 regions"),
        (replace(REPORT, guarantee=Guarantee(TERMS, "")), f"Guarantee {TERMS.text}"),
        (replace(REPORT, audit=audit), "Audit no candidate was uncertain, the highest dismissed "
         "score is 0.090; sampled, 2 of 3 dismissed candidates were read again, 0 of them "
         "confirmed: DeadlinePassed: late"),
        (replace(REPORT, audit=Audit(AuditOutcome.NOT_SAMPLED, 0.05, 0.09)),
         "not sampled (rate 5 %)"),
        (replace(REPORT, other_series=("[bold]series 3[/]",)), "[bold]series 3[/]"),
    ):  # fmt: skip
        assert text in said(report)
    assert "Audit" not in said(REPORT)


LARGE = replace(
    FINDING, diameter_mm=22.4, probability=0.8, verdict=replace(VERDICT, texture="solid")
)
MANY = replace(
    REPORT,
    findings=(FINDING, LARGE),
    possible=(replace(POSSIBLE, diameter_mm=40.0),) * 2,
    locator=LOCATOR,
    second_reading=SecondReading.PARTIAL,
)


def test_the_result_names_the_largest_finding_with_type_and_side() -> None:
    """The largest, not the most probable; not a larger possible finding, unless none is found."""
    report = completed(MANY)
    assert report.result == (
        "2 findings, the largest 22 mm, solid, right upper zone; 2 possible findings; "
        "second reading partial."
    )
    first = "Look first at finding 1, the most probable (right upper zone, image 56)."
    assert first in report.next_steps
    small = replace(MANY, findings=(replace(LARGE, diameter_mm=5.96),), locator=None)
    assert completed(small).result.startswith("1 finding, 6.0 mm, solid; 2 possible")
    none = completed(replace(MANY, findings=(), second_reading=SecondReading.OFF))
    assert none.result == (
        "No findings; 2 possible findings, the largest 40 mm, left lower zone; no second reading."
    )
    assert none.next_steps[-1].startswith("Look first at possible finding 1, the most probable (")


def test_limitations_come_first_of_what_to_know() -> None:
    limitations = (Limitation(LimitationKind.COVERAGE, "The lungs are cut."),) * 2
    report = replace(REPORT, limitations=limitations)
    steps = completed(report).next_steps
    assert steps[0] == "No guarantee: this study has 2 limitations."
    body = page(report).split("</header>")[1]
    places = [body.index(x) for x in (NOT_A_DEVICE, steps[0], "The lungs are", "<dl")]
    assert places == sorted(places)
    assert steps[1].startswith("A radiologist must read all images")


def test_readers_that_disagree_are_named_beside_the_finding_in_every_form() -> None:
    """Also for a possible finding, and not for others."""
    apart = replace(FINDING, edge_score=1.0, verdict=replace(VERDICT, probability=0.36))
    possible = replace(POSSIBLE, edge_score=0.9)
    report = replace(REPORT, findings=(FINDING, apart), possible=(possible,))
    step = "The two readers disagree strongly about finding 2 and possible finding 3."
    written = values_of(report)
    assert written["next_steps"][-1] == step
    both = (*written["findings"], *written["possible_findings"])
    told = [None, "edge 1.00, cloud 0.36", "edge 0.90, cloud 0.25"]
    assert [one["disagreement"] for one in both] == told
    rows = re.findall(r"<tr>.*?</tr>", page(report), re.DOTALL)
    beside = [row for row in rows if "the readers disagree: edge" in row]
    assert [re.findall(r">(\d)</a>", row) for row in beside] == [["2"], ["3"]]
    assert step in said(report)
    assert "2 the readers disagree, edge 1.00, cloud 0.36; " in said(report)
    assert "disagree" not in page(REPORT)


def test_equal_reasons_are_said_once_without_their_scores() -> None:
    """A threshold stays, also where it equals a score; other numbers stay."""
    below = "an answer takes 0.50 s; edge score {} is below the threshold 0.51"
    reasons = [
        (n, replace(FINDING, edge_score=float(score), reason=below.format(score)))
        for n, score in ((1, "0.22"), (3, "0.31"))
    ]
    raised = "the cloud raised 0.500 to 0.94, at or above the threshold 0.94"
    other = replace(FINDING, edge_score=0.5, probability=0.94, reason=raised)
    assert reasons_once([*reasons, (2, other)]) == {
        below.format("…"): [1, 3],
        "the cloud raised … to …, at or above the threshold 0.94": [2],
    }


def test_the_coverage_names_where_the_lungs_are_cut() -> None:
    cut = Coverage(212.5, (Cut("apex", 12.0), Cut("left", 4.0)))
    limited = (Limitation(LimitationKind.COVERAGE, "The lungs are cut."),)
    height = "212.5 mm of lung from apex to base"
    texts = (
        coverage_text(replace(REPORT, coverage=cut, limitations=limited)),
        coverage_text(replace(REPORT, coverage=Coverage(212.5))),
        coverage_text(REPORT),
    )
    assert texts == (
        f"The images show {height}, cut at apex and left.",
        f"The images show the whole lungs: {height}.",
        "",
    )


@pytest.mark.parametrize("kept", ["kept", "damaged", "no folder"])
def test_a_page_that_was_compiled_is_not_compiled_at_the_next_start(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kept: str
) -> None:
    """It is compiled again where it is damaged, or where the folder cannot be written."""
    folder, compiled, real = tmp_path / "home" / "pages", list[object](), Environment.compile

    def counted(environment: Environment, *given: object, **more: object) -> object:
        compiled.append(given)
        return real(environment, *given, **more)  # type: ignore[call-overload]

    if kept == "no folder":
        folder.parent.touch()
    monkeypatch.setattr(Environment, "compile", counted)
    monkeypatch.setattr("edge.report.page.PAGES", str(folder))
    pages = []
    for _ in range(2):
        _template.cache_clear()
        compiled.clear()
        pages.append(render_page(REPORT, {}))
        for file in folder.glob("*") if kept == "damaged" else ():
            file.write_bytes(b"x")
    assert bool(compiled) is (kept != "kept")
    assert pages[0] == pages[1]
    _template.cache_clear()
