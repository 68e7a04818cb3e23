"""The result line, what to do next, and reasons: on page and terminal, in JSON."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import pytest

from edge.findings import SecondReading
from edge.report.compose import completed
from edge.report.model import Rejection, Report, Status
from edge.report.wording import next_steps, reasons_once
from imaging.volume import Limitation, LimitationKind
from tests.edge.report.reports import (
    FINDING,
    LOCATOR,
    POSSIBLE,
    REPORT,
    VERDICT,
    page,
    values_of,
    write,
)
from tests.edge.report.test_terminal import printed

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
APART = replace(FINDING, edge_score=1.0, verdict=replace(VERDICT, probability=0.36))


def test_the_result_names_the_largest_finding_with_type_and_side() -> None:
    """The largest, not the most probable; not a larger possible finding."""
    assert completed(MANY).result == (
        "2 findings, the largest 22 mm, solid, right upper zone; 2 possible findings; "
        "second reading partial."
    )
    first = "Look first at finding 1, the most probable (right upper zone, image 56)."
    assert first in completed(MANY).next_steps
    small = replace(MANY, findings=(replace(LARGE, diameter_mm=5.96),), locator=None)
    assert completed(small).result.startswith("1 finding, 6.0 mm, solid; 2 possible")


def test_without_findings_the_largest_possible_finding_leads() -> None:
    report = replace(MANY, findings=(), second_reading=SecondReading.OFF)
    assert completed(report).result == (
        "No findings; 2 possible findings, the largest 40 mm, left lower zone; no second reading."
    )
    assert completed(report).next_steps[-1] == (
        "Look first at possible finding 1, the most probable (left lower zone, image 57)."
    )


def test_limitations_come_first_of_what_to_know() -> None:
    limitations = (Limitation(LimitationKind.COVERAGE, "The lungs are cut."),) * 2
    steps = next_steps(replace(REPORT, limitations=limitations))
    assert steps[0] == "No guarantee: this study has 2 limitations."
    assert next_steps(REPORT)[0].startswith("A radiologist must read all images")


@pytest.mark.parametrize("status", [Status.REJECTED, Status.IGNORED])
def test_a_study_that_was_not_read_has_no_result(status: Status) -> None:
    why = Rejection("NoLung", "there is none") if status is Status.REJECTED else None
    report = Report("k", "2026-03-01", Path("x"), 10.0, status=status, rejection=why)
    assert completed(report).result == "This study was not read."
    assert len(completed(report).next_steps) == 1
    assert "This study was not read." in page(report)


def test_readers_that_disagree_are_named_beside_the_finding_in_every_form() -> None:
    """Also for a possible finding, and not for others."""
    report = replace(
        REPORT, findings=(FINDING, APART), possible=(replace(POSSIBLE, edge_score=0.9),)
    )
    step = "The two readers disagree strongly about finding 2 and possible finding 3."
    written = values_of(report)
    assert written["next_steps"][-1] == step
    assert written["result"] == completed(report).result
    both = (*written["findings"], *written["possible_findings"])
    assert [one["disagreement"] for one in both] == [
        None,
        "edge 1.00, cloud 0.36",
        "edge 0.90, cloud 0.25",
    ]
    rows = re.findall(r"<tr>.*?</tr>", page(report), re.DOTALL)
    beside = [row for row in rows if "the readers disagree: edge" in row]
    assert [re.findall(r">(\d)</a>", row) for row in beside] == [["2"], ["3"]]
    text = " ".join(printed(report, 200).split())
    assert step in text
    assert "2 the readers disagree, edge 1.00, cloud 0.36; " in text
    assert "disagree" not in page(REPORT)


def test_each_row_has_a_key_image_and_scores_are_in_a_fold(tmp_path: Path) -> None:
    text = write(replace(REPORT, possible=(POSSIBLE,)), tmp_path).html.read_text()
    rows = text[text.index('id="findings"') : text.index("<details")]
    for number in (1, 2):
        assert rows.count(f'<use href="#finding_{number:02d}.jpg"/>') == 1
    assert "threshold 0.60" not in rows
    fold = text[text.index("<details") : text.index("Guarantee.")]
    for name in ("Probability of being a nodule", "Looks malignant (0 to 1)",
                 "Brock probability of cancer", "is not a probability"):  # fmt: skip
        assert name in fold


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
