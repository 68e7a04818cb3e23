from pathlib import Path

import pytest

from edge.agent.inbox import report_names
from edge.database import WrongStep
from edge.store.pending import PendingStep
from edge.store.steps import Step
from edge.store.studies import Record, StudyStore
from tests.edge.builders import open_claim
from tests.edge.databases import open_store


def claimed(store: StudyStore, name: str = "a") -> Record:
    return store.advance(open_claim(store, name).id, Step.CLAIMED)


def test_a_study_reaches_done_and_the_next_process_knows_it(tmp_path: Path) -> None:
    with open_store(tmp_path / "s.db") as store:
        record = open_claim(store, "a b ü", "a b ü.done")
        assert record.step is Step.CLAIMING
        for step in (Step.CLAIMED, Step.READING, Step.REPORTED, Step.DONE):
            assert store.advance(record.id, step).step is step
    with open_store(tmp_path / "s.db") as again:
        kept = again.get(record.id)
    assert (kept.members, kept.step, kept.attempts) == (("a b ü", "a b ü.done"), Step.DONE, 1)
    assert kept.updated >= kept.created


def test_no_step_is_left_out_or_made_twice(store: StudyStore) -> None:
    record = claimed(store)
    for step in (Step.REPORTED, Step.DONE, Step.QUARANTINED):
        with pytest.raises(WrongStep, match="claimed"):
            store.advance(record.id, step)
    assert store.get(record.id).step is Step.CLAIMED


def test_attempts_count_up_and_a_returned_one_counts_down(store: StudyStore) -> None:
    key = claimed(store).id
    assert store.advance(key, Step.READING).attempts == 1
    assert store.advance(key, Step.READING).attempts == 2
    assert store.advance(key, Step.CLAIMED).attempts == 1


def test_a_quarantined_study_keeps_its_reason(store: StudyStore) -> None:
    """Kind, reason and file are in the row, whatever bytes the file name had."""
    key = claimed(store).id
    store.quarantine(key, "NotCt", "no CT", "odd\udcff.dcm")
    record = store.advance(key, Step.QUARANTINED)
    assert (record.kind, record.reason, record.file) == ("NotCt", "no CT", "odd?.dcm")


def test_two_processes_cannot_be_claiming_the_same_name(tmp_path: Path) -> None:
    """The second claim of a name gets nothing while the first is open; later it is a new study."""
    with open_store(tmp_path / "s.db") as one, open_store(tmp_path / "s.db") as two:
        first = open_claim(one, "a")
        assert two.open_claim(("a",), "p", report_names("a")) is None
        one.advance(first.id, Step.CLAIMED)
        second = open_claim(two, "a")
        assert (first.report_name, second.report_name) == ("a", "a-2")


def test_a_forgotten_claim_leaves_nothing_and_a_made_one_is_not_forgotten(
    store: StudyStore,
) -> None:
    key = open_claim(store, "a").id
    store.forget_claim(key)
    with pytest.raises(KeyError):
        store.get(key)
    made = claimed(store)
    store.forget_claim(made.id)
    assert store.at(Step.CLAIMED) == [made]


def test_studies_come_in_the_order_of_their_claims(store: StudyStore) -> None:
    keys = [claimed(store, name).id for name in "cab"]
    assert [record.id for record in store.at(Step.CLAIMED, Step.READING)] == keys


def test_hook_sees_each_step_before_and_after_it_is_durable(tmp_path: Path) -> None:
    """Whoever crashes in the hook crashes around exactly one step."""
    seen: list[tuple[Step | PendingStep, bool]] = []
    with open_store(
        tmp_path / "s.db", on_step=lambda step, durable: seen.append((step, durable))
    ) as store:
        claimed(store)
    both = [(s, d) for s in (Step.CLAIMING, Step.CLAIMED) for d in (False, True)]
    assert seen == both
