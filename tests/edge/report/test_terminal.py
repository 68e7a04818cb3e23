import io
from dataclasses import replace
from pathlib import Path

from rich.console import Console

from edge.audit_sampling import Audit, AuditOutcome
from edge.findings import SecondReading
from edge.guarantee import Guarantee
from edge.link.estimate import OFF
from edge.report.compose import completed
from edge.report.model import Rejection, Report, Status
from edge.report.terminal import render_report
from edge.report.write import ReportPaths
from tests.edge.builders import TERMS
from tests.edge.report.reports import FINDING, LOCATOR, POSSIBLE, REPORT, UNCERTAIN

PATHS = ReportPaths(Path("out/report.json"), Path("out/report.html"))


def printed(report: Report, width: int = 80) -> str:
    console = Console(width=width, file=io.StringIO(), record=True)
    console.print(render_report(completed(report), PATHS))
    return console.export_text()


def said(report: Report) -> str:
    """All of it in one line."""
    return " ".join(printed(report, 200).split())


def test_each_list_has_a_table_with_centre_scores_and_reason_and_the_ledger_its_deadline() -> None:
    """All of it fits a terminal of 80 columns; findings below 6 mm have a star."""
    small = replace(FINDING, diameter_mm=5.96)
    report = replace(REPORT, findings=(FINDING, small), possible=(POSSIBLE,), locator=LOCATOR)
    lines = printed(report).splitlines()
    rows = {line.split("│")[1].strip(): line for line in lines if line.count("│") == 8}
    cells = ["1", "-21.1, -137.2, 237.1", "12.3", "0.95", "0.61", "0.93", "cloud"]
    assert [cell.strip() for cell in rows["1"].split("│")[1:-1]] == cells
    assert "6.0*" in rows["2"]
    assert "4.6*" in rows["3"]
    assert sum("* below 6 mm" in line for line in lines) == 2
    titles = [line.strip() for line in lines]
    assert titles.index("2 findings of 1 candidate") < titles.index("1 possible finding")
    assert "below the threshold of findings; most are not nodules" in titles
    assert "1  right upper zone, image 56: 0.61 lies between 0.10 and 0.90; the cloud" in "".join(
        lines
    )
    assert any("0.40 s of 10.00 s" in line for line in lines)
    assert any("│ read   │   10.000 │  0.300 │" in line for line in lines)
    assert "possible" not in printed(REPORT)


def test_the_second_reading_is_said_in_words() -> None:
    uncertain = replace(REPORT, decisions=(UNCERTAIN,))
    assert "second reading complete: 1 of 1 regions" in said(uncertain)
    off = replace(uncertain, second_reading=SecondReading.OFF, second_reading_reason=OFF.reason)
    assert "second reading edge only: no second reader is configured" in said(off)
    assert "second reading not needed: 1 of 1 regions" in said(REPORT)


def test_guarantee_and_audit_are_printed() -> None:
    audit = Audit(AuditOutcome.CLEAR, 0.05, 0.09, 3, 2, reason="DeadlinePassed: late")
    text = said(replace(REPORT, guarantee=Guarantee(TERMS, ""), audit=audit))
    assert f"guarantee {TERMS.text}" in text
    assert (
        "audit no candidate was uncertain, the highest dismissed score is 0.090; sampled, 2 of 3 "
        "dismissed candidates were read again, 0 of them confirmed: DeadlinePassed: late"
    ) in text
    idle = Audit(AuditOutcome.NOT_SAMPLED, 0.05, 0.09)
    assert "not sampled (rate 5 %)" in said(replace(REPORT, audit=idle))
    assert "audit" not in said(REPORT)


def test_header_text_is_no_markup() -> None:
    assert "[bold]series 3[/]" in printed(replace(REPORT, other_series=("[bold]series 3[/]",)))


def test_refusal_says_kind_reason_and_file() -> None:
    rejection = Rejection("NotCt", "the modality is MR", "a/b.dcm")
    text = printed(replace(REPORT, status=Status.REJECTED, rejection=rejection))
    assert [x in text for x in ("Refused: NotCt", "the modality is MR", "a/b.dcm")] == [True] * 3
