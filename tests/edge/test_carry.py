"""Studies carried to their end: once, and with the reason where they are refused."""

from __future__ import annotations

import json
from pathlib import Path

from edge.carry import Places, carry
from edge.ingest import report_names
from edge.outcome import Job
from edge.pipeline import Reading
from edge.spool import Spool, Step
from evaluation.kill_agent import settings_in
from tests.edge.daemon import work_off
from tests.edge.killable import put, quick_line


def test_reason_file_names_kind_file_and_reason(tmp_path: Path) -> None:
    """What was wrong, with which file of which study, and where the report is."""
    put(tmp_path / "inbox", "c", "bad")
    work_off(tmp_path)
    (path,) = (tmp_path / "state" / "quarantine").glob("*/reason.json")
    reason = json.loads(path.read_text())
    assert (reason["kind"], reason["file"]) == ("NotCt", "0.dcm")
    assert (reason["reason"], reason["study"]) == ("this is no CT", "c")
    assert Path(reason["report"]).is_file()
    assert reason["study_key"] == path.parent.name


def test_a_report_that_is_out_is_not_written_again(tmp_path: Path) -> None:
    """Killed between report and database, the next start believes the report."""
    places = Places.of(settings_in(tmp_path))
    places.make()
    with Spool(places.state / "s.db") as spool:
        record = spool.open_claim(("a",), "p", report_names("a"))
        assert record is not None
        put(places.work / record.id, "a", "bad")
        spool.advance(record.id, Step.CLAIMED)
        job = Job(places.work / record.id / "a", places.outbox / "a", record.id)
        spool.advance(record.id, Step.READING)
        quick_line(job)

        def never(_job: Job) -> Reading:
            raise AssertionError("read again")

        carry(spool.get(record.id), places, spool, never, 10.0)
        assert spool.get(record.id).step is Step.QUARANTINED
        assert spool.get(record.id).kind == "NotCt"
