"""Clinical scores in report.json, on the page and on the terminal."""

from __future__ import annotations

from dataclasses import replace

from edge.clinical.sidecar import Clinical
from edge.report.model import Rejection, Report, Status
from edge.report.terminal import render_report
from edge.rules.rule import AppliedRule
from tests.edge.report.reports import FINDING, LOCATOR, POSSIBLE, REPORT, VERDICT, page, values_of
from tests.edge.report.test_terminal import PATHS, printed

SCREENING = AppliedRule("lung screening", screening=True)
SOLID = replace(FINDING, verdict=replace(VERDICT, texture="solid"))
SCREENED = replace(REPORT, findings=(SOLID,), possible=(POSSIBLE,), rule=SCREENING, locator=LOCATOR)


def test_a_screening_examination_has_a_category_with_its_inputs_and_no_other_has() -> None:
    written = values_of(SCREENED)["lung_rads"]
    assert (written["category"], written["standard"]) == ("4A", "ACR Lung-RADS v2022")
    assert written["inputs"] == [
        {
            "number": 1,
            "diameter_mm": 12.3,
            "type": "solid",
            "least": "4A",
            "most": "4A",
            "missing": (),
        }
    ]
    assert "ACR Lung-RADS v2022, suggested: category 4A." in page(SCREENED)
    assert "suggested: category 4A" in printed(SCREENED)
    assert values_of(REPORT)["lung_rads"] is None
    assert "Lung-RADS" not in page(REPORT)
    assert "Lung-RADS" not in printed(REPORT)


def test_each_finding_has_its_probability_of_cancer_and_a_possible_finding_none() -> None:
    written = values_of(SCREENED)
    (finding,), (possible,) = written["findings"], written["possible_findings"]
    assert finding["brock"] == {
        "probability": 0.0976,
        "diameter_mm": 12.3,
        "texture": "solid",
        "upper": True,
        "unknown": [],
    }
    patient = written["brock"]
    assert (patient["inputs"]["age_years"], patient["inputs"]["count"]) == (62.0, 1)
    assert patient["unknown"][:2] == ["age", "sex"]
    assert possible["brock"] is None
    assert "9.8 %" in page(SCREENED)
    assert "Brock probability of cancer  1: 9.8%; unknown: age, sex, " in printed(SCREENED, 300)


def test_a_screening_examination_that_was_refused_is_category_0() -> None:
    refused = replace(
        REPORT,
        findings=(),
        rule=SCREENING,
        status=Status.REJECTED,
        rejection=Rejection("IncompleteSeries", "3 slices", "study"),
    )
    assert values_of(refused)["lung_rads"]["category"] == "0"
    assert "suggested: category 0.</strong> The study was not read." in page(refused)


def test_an_ignored_study_has_no_category() -> None:
    ignored = replace(REPORT, findings=(), rule=SCREENING, status=Status.IGNORED)
    assert values_of(ignored)["lung_rads"] is None
    assert "Not read" in printed(ignored)


def test_hostile_text_of_the_sidecar_stays_text() -> None:
    hostile: Report = replace(
        REPORT, clinical=Clinical(source="clinical.json", problem="<script>[red]")
    )
    assert "<script>" not in page(hostile)
    assert "[red]" in printed(hostile)
    render_report(hostile, PATHS)
