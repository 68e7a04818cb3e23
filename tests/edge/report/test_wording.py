"""The result line, what to do next, and reasons."""

import re
from dataclasses import replace

import pytest

from edge.findings import SecondReading
from edge.report.compose import completed
from edge.report.model import Rejection, Status
from edge.report.wording import coverage_text, reasons_once
from imaging.coverage import Coverage, Cut
from imaging.volume import Limitation, LimitationKind
from tests.edge.report.reports import FINDING, LOCATOR, POSSIBLE, REPORT, VERDICT, page, values_of
from tests.edge.report.test_terminal import said

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
    """The largest, not the most probable; not a larger possible finding."""
    report = completed(MANY)
    assert report.result == (
        "2 findings, the largest 22 mm, solid, right upper zone; 2 possible findings; "
        "second reading partial."
    )
    first = "Look first at finding 1, the most probable (right upper zone, image 56)."
    assert first in report.next_steps
    small = replace(MANY, findings=(replace(LARGE, diameter_mm=5.96),), locator=None)
    assert completed(small).result.startswith("1 finding, 6.0 mm, solid; 2 possible")


def test_without_findings_the_largest_possible_finding_leads() -> None:
    report = completed(replace(MANY, findings=(), second_reading=SecondReading.OFF))
    assert report.result == (
        "No findings; 2 possible findings, the largest 40 mm, left lower zone; no second reading."
    )
    assert report.next_steps[-1] == (
        "Look first at possible finding 1, the most probable (left lower zone, image 57)."
    )


def test_limitations_come_first_of_what_to_know() -> None:
    limitations = (Limitation(LimitationKind.COVERAGE, "The lungs are cut."),) * 2
    steps = completed(replace(REPORT, limitations=limitations)).next_steps
    assert steps[0] == "No guarantee: this study has 2 limitations."
    assert steps[1].startswith("A radiologist must read all images")


@pytest.mark.parametrize("status", [Status.REJECTED, Status.IGNORED])
def test_a_study_that_was_not_read_has_no_result(status: Status) -> None:
    why = Rejection("NoLung", "there is none") if status is Status.REJECTED else None
    report = completed(replace(REPORT, findings=(), status=status, rejection=why))
    assert report.result == "This study was not read."
    assert len(report.next_steps) == 1
    assert "This study was not read." in page(report)


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
