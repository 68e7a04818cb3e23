from pathlib import Path

import pytest

from edge.database import WrongStep
from edge.report.folder import report_names
from edge.store.record import Record, Step
from edge.store.studies import Change, StudyStore
from tests.edge.builders import open_claim, open_store


def claimed(store: StudyStore, name: str = "a") -> Record:
    return store.advance(open_claim(store, name).id, Step.CLAIMED)


def test_no_step_is_left_out_or_made_twice(store: StudyStore) -> None:
    record = claimed(store)
    for step in (Step.REPORTED, Step.DONE, Step.QUARANTINED):
        with pytest.raises(WrongStep, match="claimed"):
            store.advance(record.id, step)
    assert store.get(record.id).step is Step.CLAIMED


def test_a_quarantined_study_keeps_its_reason(store: StudyStore) -> None:
    key = claimed(store).id
    why = {"kind": "NotCt", "reason": "no CT", "file": "odd\udcff.dcm"}
    store.advance(key, Step.QUARANTINING, Change(why))
    record = store.advance(key, Step.QUARANTINED)
    assert (record.kind, record.reason, record.file) == ("NotCt", "no CT", "odd?.dcm")


def test_two_processes_cannot_be_claiming_the_same_name(tmp_path: Path) -> None:
    with open_store(tmp_path / "s.db") as one, open_store(tmp_path / "s.db") as two:
        first = open_claim(one, "a")
        assert two.open_claim(("a",), report_names("a")) is None
        one.advance(first.id, Step.CLAIMED)
        second = open_claim(two, "a")
        assert (first.report_name, second.report_name) == ("a", "a-2")
