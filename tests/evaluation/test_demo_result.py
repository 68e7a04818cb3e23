"""What a demonstration shows in the end."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console, RenderableType

from edge.finding import DecidedBy, Decision, Finding, Route, SecondReading
from edge.outcome import LedgerEntry, Rejection, Report, Status
from edge.report import write_report
from evaluation.demo_result import Result, matches, missed, render_result
from imaging.volume import Nodule
from models.runtime.detection import Candidate
from protos.messages import Verdict

TRUTH = (
    Nodule((10.0, 0.0, 0.0), 8.0, "solid round"),
    Nodule((50.0, 0.0, 0.0), 6.0, "ground-glass round"),
    Nodule((90.0, 0.0, 0.0), 12.0, "part-solid lobulated"),
)
VERDICT = Verdict(0, 0.93, 8.2, "hybrid-int8 1", 0.01, 0.02)


def _candidate(x: float, score: float) -> Candidate:
    return Candidate((x, 0.0, 0.0), (1.0, 2.0, 3.0), 8.0, score)


def _finding(x: float, verdict: Verdict | None) -> Finding:
    route = Route.ESCALATE if verdict else Route.REPORT
    by = DecidedBy.CLOUD if verdict else DecidedBy.EDGE
    return Finding((x, 0.0, 0.0), 8.0, 0.71, 0.64, by, "why", (1.0, 2.0, 3.0), route, verdict)


@pytest.fixture
def report() -> Report:
    """A hit that the cloud decided, a false alarm of the edge, one nodule dismissed, one unseen."""
    return Report(
        study_key="0",
        created="2025-01-01T00:00:00+00:00",
        source=Path("study"),
        deadline_s=30.0,
        findings=(_finding(12.0, VERDICT), _finding(-70.0, None)),
        decisions=(Decision(_candidate(51.0, 0.03), Route.DISMISS, "low"),),
        ledger=(LedgerEntry("screen", 29.5, 0.123), LedgerEntry("escalate", 29.0, 0.456)),
        second_reading=SecondReading.COMPLETE,
        second_reading_reason="1 of 1 uncertain candidates were read again",
        models={"edge": "screening-int8 1 (openvino)"},
    )


def _written(report: Report, out: Path, truth: tuple[Nodule, ...] | None) -> Result:
    return Result.of(write_report(report, {}, out).json, truth)


def _shown(what: RenderableType) -> list[list[str]]:
    """The words of each line."""
    console = Console(file=io.StringIO(), width=160)
    with console.capture() as capture:
        console.print(what)
    return [line.split() for line in capture.get().splitlines()]


def test_table_says_of_every_finding_what_it_is(report: Report, tmp_path: Path) -> None:
    """Place, size, both readers, who decided, and which nodule it is or that it is none."""
    lines = _shown(render_result(_written(report, tmp_path, TRUTH)))
    hit = next(line for line in lines if line[:1] == ["1"])
    assert hit[1:4] == ["12.0,", "0.0,", "0.0"]
    assert hit[4:10] == ["8.0", "0.64", "escalate", "0.93", "0.71", "cloud"]
    assert hit[10:] == ["1:", "solid", "round", "8.0", "mm,", "2.0", "mm", "off"]
    false = next(line for line in lines if line[:2] == ["2", "-70.0,"])
    assert false[4:] == ["8.0", "0.64", "report", "-", "0.71", "edge", "false", "alarm"]


def test_missed_nodules_are_rows_too(report: Report, tmp_path: Path) -> None:
    """With the candidate that the edge dismissed there, or that it proposed none."""
    lines = _shown(render_result(_written(report, tmp_path, TRUTH)))
    dismissed, unseen = (line for line in lines if line[-1:] == ["missed"])
    assert dismissed[1:9] == ["50.0,", "0.0,", "0.0", "6.0", "0.03", "dismiss", "-", "-"]
    assert unseen[1:9] == ["90.0,", "0.0,", "0.0", "12.0", "-", "-", "-", "-"]
    assert unseen[9:11] == ["not", "proposed"]
    text = " ".join(" ".join(line) for line in lines)
    assert "1 of 3 nodules found, false alarms: 1" in text


def test_own_study_has_no_truth(report: Report, tmp_path: Path) -> None:
    """Neither the column nor rows of what was missed: nobody knows."""
    lines = _shown(render_result(_written(report, tmp_path, None)))
    text = " ".join(" ".join(line) for line in lines)
    assert not {"truth", "missed", "false"} & set(text.split())


def test_ledger_and_paths_are_shown(report: Report, tmp_path: Path) -> None:
    """Budget and time of every stage, and where page, data and pictures are."""
    result = _written(report, tmp_path, TRUTH)
    (tmp_path / "overview.png").touch()
    lines = _shown(render_result(result))
    assert ["screen", "29.500", "0.123"] in lines
    assert ["escalate", "29.000", "0.456"] in lines
    ends = {line[0]: line[1] for line in lines if len(line) == 2}
    assert Path(ends["report"]).resolve() == tmp_path / "report.html"
    assert Path(ends["data"]).resolve() == tmp_path / "report.json"
    assert Path(ends["pictures"]).resolve() == tmp_path / "overview.png"


def test_long_path_is_not_broken(report: Report, tmp_path: Path) -> None:
    """It stands on one line, though the terminal is narrower, so that it can be copied."""
    deep = tmp_path / ("deep" * 30)
    console = Console(file=io.StringIO(), width=80)
    with console.capture() as capture:
        console.print(render_result(_written(report, deep, TRUTH)), crop=False)
    assert f"report    {deep}/report.html" in capture.get().splitlines()


def test_refusal_is_shown_with_its_kind(tmp_path: Path) -> None:
    """The class, the reason and the file, and no table."""
    rejection = Rejection("NotCt", "is MR [T1]: send the chest CT series", "a.dcm")
    refused = Report("0", "now", Path("study"), 30.0, status=Status.REJECTED, rejection=rejection)
    lines = _shown(render_result(_written(refused, tmp_path, None)))
    text = " ".join(" ".join(line) for line in lines)
    assert "Refused: NotCt" in text
    assert "is MR [T1]: send the chest CT series" in text
    assert "a.dcm" in text
    assert "candidates" not in text


def test_nearest_of_two_nodules_is_hit() -> None:
    """Where two overlap, a finding is put down to the nearer one; a hit is nearer than d/2."""
    pair = (Nodule((0.0, 0.0, 0.0), 20.0), Nodule((8.0, 0.0, 0.0), 20.0))
    findings: list[dict[str, Any]] = [{"centre_mm": [x, 0.0, 0.0]} for x in (7.0, 1.0, 18.0)]
    assert matches(findings, pair) == [1, 0, None]
    assert missed(findings[:1], pair) == [0]
