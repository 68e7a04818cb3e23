"""Studies carried to their end: once, and with the reason where they are refused."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from edge.agent.study import MAX_ATTEMPTS, process_study
from edge.folders import AgentFolders
from edge.job import Job
from edge.pipeline import StudyResult
from edge.report.folder import take_folder
from edge.report.model import Report
from edge.store.steps import Step
from edge.store.studies import Record, StudyStore
from evaluation.world import settings_in
from tests.edge.builders import open_claim, put
from tests.edge.databases import open_store
from tests.edge.running_agent import quick_read


@pytest.fixture
def places(tmp_path: Path) -> AgentFolders:
    places = AgentFolders.of(settings_in(tmp_path))
    places.make()
    return places


@pytest.fixture
def store(places: AgentFolders) -> Iterator[StudyStore]:
    with open_store(places.state / "s.db") as store:
        yield store


def being_read(
    places: AgentFolders, store: StudyStore, text: str = "pixels", times: int = 1
) -> Record:
    """The study ``a``, whose reading was started that many times."""
    record = open_claim(store, "a")
    put(places.work / record.id, "a", text)
    take_folder(places.outbox / "a", record.id)
    store.advance(record.id, Step.CLAIMED)
    for _ in range(times):
        record = store.advance(record.id, Step.READING)
    return record


def never(_job: Job) -> StudyResult:
    """The line of a study that must not be read."""
    raise AssertionError("read again")


def test_a_report_that_is_out_is_not_written_again(places: AgentFolders, store: StudyStore) -> None:
    """Killed between report and database, the next start believes the report."""
    record = being_read(places, store, "bad")
    quick_read(Job(places.work / record.id / "a", places.outbox / "a", record.id))
    process_study(record, None, places, store, never, 10.0, [].append)
    assert store.get(record.id).step is Step.QUARANTINED
    assert store.get(record.id).kind == "NotCt"


@pytest.mark.parametrize("damaged", ["", '{"rejec', "[]", "{}", '{"rejection": {"odd": 1}}'])
def test_a_damaged_report_counts_as_none(
    places: AgentFolders, store: StudyStore, damaged: str
) -> None:
    """The study is read again, and its report takes the place of the damaged one."""
    record = being_read(places, store)
    answer = places.outbox / "a" / "report.json"
    answer.write_text(damaged)
    process_study(record, None, places, store, quick_read, 10.0, [].append)
    assert store.get(record.id).step is Step.DONE
    assert json.loads(answer.read_text())["status"] == "final"


def test_a_study_rejected_unread_has_a_report(places: AgentFolders, store: StudyStore) -> None:
    told: list[Report] = []
    record = being_read(places, store, times=MAX_ATTEMPTS)
    process_study(record, 0.0, places, store, never, 10.0, told.append, lambda: 12.0)
    (report,) = told
    assert [(entry.stage, entry.took_s) for entry in report.ledger] == [("wait", 12.0)]
    assert report.rejection is not None
    assert report.rejection.kind == store.get(record.id).kind == "RepeatedCrash"


def test_the_folder_in_quarantine_outlasts_a_power_cut(
    places: AgentFolders, store: StudyStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its entry is on the disk before the reason lies in it."""
    synced: list[tuple[Path, list[Path]]] = []
    monkeypatch.setattr(
        "edge.agent.study.sync_folder",
        lambda folder: synced.append((folder, list(folder.glob("*/reason.json")))),
    )
    record = being_read(places, store, "bad")
    process_study(record, None, places, store, quick_read, 10.0, [].append)
    assert synced == [(places.quarantine, [])]
