"""The agent's audit trail: each step of a study once, whatever kills it; and its commands."""

import json
from pathlib import Path
from typing import Any
from unittest.mock import Mock
from xml.etree import ElementTree

import numpy as np
import pytest

from edge.audit import Event
from edge.folders import RECEIVED
from edge.job import Job
from edge.pipeline import PersistPending, StudyResult
from edge.queue import requeue
from edge.report.model import Report
from edge.report.write import write_report
from edge.run import site_of
from edge.trail.records import TrailRecord, records_after
from edge.trail.verify import Verified, verify
from evaluation.world import settings_in
from imaging.dicom.writer import write_series
from imaging.volume import Geometry, StudyHeader, Volume
from tests.edge.builders import put, put_all
from tests.edge.running_agent import command, work_off


def trail_of(root: Path) -> list[TrailRecord]:
    return list(records_after(root / "state" / "trail", 0))


def verified(root: Path) -> Verified:
    return verify(root / "state" / "trail", root / "state" / "spool.sqlite3")


def facts(root: Path, event: Event) -> list[dict[str, Any]]:
    return [dict(record.fields) for record in trail_of(root) if record.event == event]


def of_studies(root: Path) -> dict[str, list[str]]:
    """By study key, the events of each study in their order."""
    found: dict[str, list[str]] = {}
    for record in trail_of(root):
        if key := record.fields.get("study_key"):
            found.setdefault(key, []).append(record.event)
    return found


def test_the_trail_has_the_start_every_study_and_the_stop(tmp_path: Path) -> None:
    put_all(tmp_path / "inbox", a="x", b="bad")
    work_off(tmp_path)
    records = trail_of(tmp_path)
    assert [record.event for record in records] == [
        *(Event.FILE, Event.STARTED, Event.RECEIVED, Event.RECEIVED),
        *(Event.READ, Event.REJECTED, Event.STOPPED),
    ]
    started, received, read, rejected = (records[i].fields for i in (1, 2, 4, 5))
    assert len(started["settings_sha256"]) == 64
    assert (received["name"], received["files"]) == ("a", 2)
    assert (read["status"], read["findings"], read["version"]) == ("final", 0, 1)
    assert (rejected["kind"], rejected["status"]) == ("NotCt", "rejected")
    assert verified(tmp_path).broken is None
    assert verified(tmp_path).waiting == 0
    requeue("b", site_of(settings_in(tmp_path)))  # a person has it read again
    assert verified(tmp_path).waiting == 1
    work_off(tmp_path)
    (again,) = facts(tmp_path, Event.REQUEUED)
    assert (again["study_key"], again["user"] != "") == (rejected["study_key"], True)


def test_what_a_receiver_says_of_the_sender_is_in_the_trail(tmp_path: Path) -> None:
    """With the identifiers of the first image; what is no known key is left out."""
    header = StudyHeader(patient_id="P1", patient_name="Doe^Jane")
    series = tmp_path / "inbox" / "a" / "1"
    write_series(Volume(np.zeros((2, 8, 8), np.int16), Geometry()), series, header=header, seed=1)
    sender = {"way": "dicom", "calling_ae": "CT1", "called_ae": "OVERREAD", "peer": "10.0.0.5"}
    (series / RECEIVED).write_text(json.dumps({**sender, "name": "Doe^Jane", "first": ["odd"]}))
    (series.parent / ".done").touch()

    def read(job: Job, _persist: PersistPending) -> StudyResult:
        report = Report(job.study_key, "2026-01-02T03:04:05+00:00", job.source, 10.0, header)
        return StudyResult(report, write_report(report, {}, job.out))

    work_off(tmp_path, read)
    (received,) = facts(tmp_path, Event.RECEIVED)
    assert received.items() >= {**sender, "patient_id": "P1", "name": "a", "files": 2}.items()
    assert "first" not in received
    assert "Doe" not in json.dumps([record.line for record in trail_of(tmp_path)])
    (read_fields,) = facts(tmp_path, Event.READ)
    assert read_fields["study_uid"] == received["study_uid"] != ""


def test_a_trail_that_cannot_be_written_stops_no_study(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its records wait in the database, and are written by the next start."""
    put(tmp_path / "inbox", "a")
    with monkeypatch.context() as patched:
        denied = PermissionError(13, "Permission denied")
        patched.setattr("edge.trail.store.append", Mock(side_effect=denied))
        work_off(tmp_path)
    assert trail_of(tmp_path) == []
    assert verified(tmp_path).waiting == 5
    put(tmp_path / "inbox", "b")
    work_off(tmp_path)
    assert [*of_studies(tmp_path).values()] == [[Event.RECEIVED, Event.READ]] * 2


def test_a_lost_database_is_in_the_trail_and_the_chain_goes_on(tmp_path: Path) -> None:
    put(tmp_path / "inbox", "a")
    work_off(tmp_path)
    for file in (tmp_path / "state").glob("spool.sqlite3*"):
        file.unlink()
    put(tmp_path / "inbox", "b")
    work_off(tmp_path)
    assert len(facts(tmp_path, Event.CONTINUED)) == 1
    assert [*of_studies(tmp_path).values()] == [
        [Event.RECEIVED, Event.READ, Event.ADOPTED],
        [Event.RECEIVED, Event.READ],
    ]
    assert verified(tmp_path).broken is None


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """An agent that has refused a study and was stopped."""
    put(tmp_path / "inbox", "a", "bad")
    work_off(tmp_path)
    return tmp_path


def test_a_trail_is_checked_and_a_broken_record_named(root: Path) -> None:
    """A sound one ends with 0, a broken or missing one with 1."""
    values = json.loads(command(root, "audit", "verify", "--json", status=0).stdout)
    assert (values["records"], values["broken"], values["end_checked"]) == (5, None, True)
    (file,) = (root / "state" / "trail").iterdir()
    command(root, "audit", "verify", str(file.parent), status=0)
    file.write_text(file.read_text().replace("NotCt", "NotMe"))
    broken = command(root, "audit", "verify", status=1)
    assert f"BROKEN at {file.name}, line 5" in broken.stdout
    assert command(root, "audit", "verify", str(root), status=1).stderr.startswith("NoTrail: ")


def test_a_trail_is_exported_as_a_message_a_line(root: Path) -> None:
    lines = command(root, "audit", "export").stdout.splitlines()
    assert [ElementTree.fromstring(line).tag for line in lines] == ["AuditMessage"] * 5
    for since, count in (("2999-01-01", 0), ("2020-01-01T10:00:00", 5)):
        told = command(root, "audit", "export", "--since", since).stdout
        assert len(told.splitlines()) == count
