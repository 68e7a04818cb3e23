import errno
import json
from dataclasses import replace
from pathlib import Path
from unittest.mock import Mock

import pytest

from edge.amend.persist import pending_candidates
from edge.escalation.client import NoSecondReader
from edge.findings import SecondReading
from edge.job import Job
from edge.pipeline import read_and_report
from edge.report.compose import Assessment
from edge.report.evidence import OUTLINES, SOURCE
from edge.report.model import Report, Status
from edge.report.pictures import draw_pictures
from imaging.errors import NoLung
from imaging.preprocess import Preprocessed
from imaging.render import Mark, finding_picture
from imaging.volume import StudyHeader, UInt8Array, Volume
from tests.edge.builders import LISTING, SETTINGS, HandClock, pipeline_of, report_of, study_at
from tests.edge.fake_cloud import FakeCloud, escalator

RESERVE_S = 20.0
STAGES = ["read", "preprocess", "screen", "decide", "escalate", "merge", "draw", "report"]


def read_with_cloud(address: str, out: Path, deadline_s: float = 60.0) -> Report:
    with escalator(address, reserve_s=RESERVE_S) as second:
        limits = {"deadline_s": deadline_s, "reserve_s": RESERVE_S}
        return report_of(pipeline_of(second, **limits), out)


def deciders(report: Report) -> list[str]:
    return [finding.decided_by.value for finding in report.findings]


def test_a_study_passes_every_stage(tmp_path: Path) -> None:
    with FakeCloud() as cloud:
        report = read_with_cloud(cloud.address, tmp_path)
    assert [entry.stage for entry in report.ledger] == STAGES
    assert (report.status, report.second_reading) == (Status.FINAL, SecondReading.COMPLETE)
    assert [f.edge_score for f in report.findings] == [0.95, 0.7, 0.3]
    assert deciders(report) == ["edge", "cloud", "cloud"]
    assert report.models == {"edge": "fixed 1 (none)", "cloud": "fake 1"}
    assert report.highest_dismissed_score == 0.05


def test_service_that_dies_leaves_a_provisional_partial_report(tmp_path: Path) -> None:
    with FakeCloud(dies_after=1) as cloud:
        report = read_with_cloud(cloud.address, tmp_path)
    assert (report.status, report.second_reading) == (Status.PROVISIONAL, SecondReading.PARTIAL)
    assert report.second_reading_reason.startswith(
        "1 of 2 uncertain candidates were read again: the cloud cannot be reached"
    )


def test_silent_port_leaves_the_edge_s_report_within_the_deadline(
    silent: str, tmp_path: Path
) -> None:
    """A port that accepts and never answers costs the second reading, not the report."""
    report = read_with_cloud(silent, tmp_path, deadline_s=RESERVE_S + 1.0)
    assert report.second_reading is SecondReading.MISSING
    assert deciders(report) == ["edge", "edge alone"]
    assert report.took_s <= report.deadline_s


def test_a_study_that_has_waited_has_so_much_less_time(tmp_path: Path) -> None:
    clock = HandClock()
    pipeline = pipeline_of(NoSecondReader(), clock=clock, reserve_s=RESERVE_S)
    job = Job(Path("study"), tmp_path, "key-1", since_s=clock() - 25.0)
    report = read_and_report(pipeline, job).report
    given = {entry.stage: entry.budget_s for entry in report.ledger}
    assert [*given] == ["wait", *STAGES]
    assert (report.ledger[0].took_s, report.took_s) == (25.0, 25.0)
    assert (given["wait"], given["read"], given["escalate"], given["merge"]) == (60, 35, 15, 35)


def test_a_study_without_time_left_is_read_by_the_edge_alone_and_pending(tmp_path: Path) -> None:
    clock, kept = HandClock(), list[tuple[int, ...]]()

    def persist(_report: Report, assessment: Assessment, *_: object) -> None:
        kept.append(pending_candidates(assessment.plan, assessment.answers))

    with FakeCloud() as cloud, escalator(cloud.address, reserve_s=RESERVE_S) as second:
        pipeline = replace(pipeline_of(second, clock=clock), persist_pending=persist)
        job = Job(Path("study"), tmp_path, "key-1", since_s=clock() - 61.0)
        report = read_and_report(pipeline, job).report
    assert cloud.headers == []
    assert (report.status, report.second_reading) == (Status.PROVISIONAL, SecondReading.MISSING)
    assert "no time was left for a second reading" in report.second_reading_reason
    assert deciders(report) == ["edge", "edge alone"]
    assert kept == [(1, 2, 0)]
    assert report.took_s > report.deadline_s


def test_unreadable_study_is_reported_as_refused(tmp_path: Path) -> None:
    no_lung = Mock(side_effect=NoLung("no air inside the body", Path("study")))
    header = StudyHeader(patient_name="Doe^Jane", patient_id="P1")
    passed_over = ("'chest' was passed over",)
    study = replace(study_at(Path("study")), header=header, other_series=passed_over)
    pipeline = replace(pipeline_of(NoSecondReader()), preprocess=no_lung, read=lambda _: study)
    report = report_of(pipeline, tmp_path)
    assert (report.header.patient_id, report.series_uid) == ("P1", "1.2.3")
    assert report.other_series == passed_over
    assert "Doe Jane" in (tmp_path / "report.html").read_text()
    assert report.status is Status.REJECTED
    assert report.rejection is not None
    assert (report.rejection.kind, report.rejection.file) == ("NoLung", "study")
    assert not report.rejection.internal
    assert report.guarantee.text == "No guarantee for this scan: the study was not read."
    assert [entry.stage for entry in report.ledger] == ["read", "preprocess", "report"]
    assert json.loads((tmp_path / "report.json").read_text())["status"] == "rejected"


def test_a_fault_of_the_program_is_reported_too(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    burst = Mock(side_effect=ZeroDivisionError("by zero"))
    report = report_of(replace(pipeline_of(NoSecondReader()), preprocess=burst), tmp_path)
    assert report.rejection is not None
    assert (report.rejection.kind, report.rejection.internal) == ("ZeroDivisionError", True)
    assert "study failed" in capsys.readouterr().out


FAULTS = [OSError(errno.EIO, "bad sector"), OSError(errno.EMFILE, "too many"), MemoryError()]


@pytest.mark.parametrize("fault", FAULTS, ids=["EIO", "EMFILE", "no memory"])
@pytest.mark.parametrize("stage", ["read", "preprocess"])
def test_a_fault_of_the_machine_is_not_blamed_on_the_study(
    stage: str, fault: Exception, tmp_path: Path
) -> None:
    pipeline = replace(pipeline_of(NoSecondReader()), **{stage: Mock(side_effect=fault)})
    with pytest.raises(type(fault)):
        read_and_report(pipeline, Job(tmp_path / "study", tmp_path / "out"))
    assert not (tmp_path / "out").exists()


def test_an_error_while_drawing_costs_the_picture_and_no_finding(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def draw(voxels: UInt8Array, mark: Mark) -> UInt8Array:
        if mark.label == "2":
            raise MemoryError
        return finding_picture(voxels, mark)

    monkeypatch.setattr("edge.report.pictures.finding_picture", draw)
    pipeline = replace(pipeline_of(NoSecondReader()), draw=draw_pictures)
    report = report_of(pipeline, tmp_path)
    assert [f.edge_score for f in report.findings] == [0.95, 0.7]
    assert report.picture_note == "An error of this program prevented pictures: finding 2."
    assert sorted(p.name for p in tmp_path.glob("*.jpg")) == ["finding_01.jpg", "overview.jpg"]


def test_possible_findings_reach_report_log_and_picture_note(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(SETTINGS, "thresholds", LISTING.__dict__)
    scores = (0.95, 0.7, 0.45, 0.3, 0.15, 0.05)
    monkeypatch.setattr("edge.report.pictures.finding_picture", Mock(side_effect=MemoryError))
    report = report_of(pipeline_of(NoSecondReader(), scores), tmp_path)
    assert [f.edge_score for f in report.findings] == [0.95, 0.7]
    assert [f.edge_score for f in report.possible] == [0.45, 0.3]
    (line,) = [line for line in capsys.readouterr().out.splitlines() if "study reported" in line]
    assert " findings=2 " in line
    assert " possible_findings=2 " in line
    assert report.picture_note == (
        "An error of this program prevented pictures: finding 1, finding 2, possible finding 3, "
        "possible finding 4."
    )
    written = json.loads((tmp_path / "report.json").read_text())
    assert [one["number"] for one in written["possible_findings"]] == [3, 4]


@pytest.mark.parametrize(("waited_s", "drawn"), [(0.0, [1, 2, 3, 4]), (59.0, [1, 2])])
def test_possible_findings_are_drawn_where_more_than_the_reserve_is_left(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, waited_s: float, drawn: list[int]
) -> None:
    """The report must not wait for them; the numbers drawn are kept for an amendment."""
    monkeypatch.setitem(SETTINGS, "thresholds", LISTING.__dict__)
    clock = HandClock()
    pipeline = pipeline_of(NoSecondReader(), (0.95, 0.7, 0.45, 0.3), clock=clock)

    def preprocess(volume: Volume, source: Path) -> Preprocessed:
        clock.sleep(waited_s)
        return pipeline.preprocess(volume, source)

    report = report_of(replace(pipeline, draw=draw_pictures, preprocess=preprocess), tmp_path)
    assert [number for number, _ in (*report.numbered, *report.numbered_possible)] == [1, 2, 3, 4]
    assert list(report.pictured) == drawn
    assert ("Numbers above 2 are in the overview only." in report.picture_note) is (drawn == [1, 2])


def test_a_report_without_any_picture_has_its_findings(tmp_path: Path) -> None:
    draw = Mock(side_effect=ZeroDivisionError)
    report = report_of(replace(pipeline_of(NoSecondReader()), draw=draw), tmp_path)
    assert len(report.findings) == 2
    note = "An error of this program prevented pictures: overview, finding 1, finding 2."
    assert report.picture_note == note
    assert note in (tmp_path / "report.html").read_text()


def test_headers_lie_beside_the_report_and_a_fault_in_them_costs_no_report(tmp_path: Path) -> None:
    study = replace(study_at(tmp_path), headers=Mock(side_effect=[ZeroDivisionError, b"headers"]))
    pipeline = replace(pipeline_of(NoSecondReader()), read=lambda _: study)
    assert report_of(pipeline, tmp_path).status is Status.FINAL
    assert not (tmp_path / SOURCE).exists()
    report_of(pipeline, tmp_path)
    assert (tmp_path / SOURCE).read_bytes() == b"headers"
    assert not (tmp_path / OUTLINES).exists()  # without a second reading there is none
