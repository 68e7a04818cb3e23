import sqlite3
from collections.abc import Iterator
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from edge.amend.persist import answers_of, pending_candidates, save, unpacked, verdict_rows
from edge.database import WrongStep
from edge.decide import Plan
from edge.escalation.rois import EscalationResult
from edge.findings import SecondReading
from edge.merge import merge
from edge.selection import SELECTION_POLICY
from edge.store.pending import PendingRead, PendingStep, PendingStore
from imaging.volume import Geometry
from protos.messages import Roi, Verdict
from tests.edge.amend.test_amendment import context_of, full_report
from tests.edge.builders import THRESHOLDS, WEIGHTS, open_store, plan_of
from tests.edge.running_agent import sql

MASK = np.zeros((8, 8, 8), bool)
MASK[2:5, 3:6, 1:4] = True
REASON = EscalationResult(reason="dead")


@pytest.fixture
def database(tmp_path: Path) -> Path:
    return tmp_path / "s.db"


@pytest.fixture
def pending(database: Path) -> Iterator[PendingStore]:
    with open_store(database) as store:
        yield store.pending


def roi(roi_id: int) -> Roi:
    """A region of noise, another for every identifier."""
    voxels = np.random.default_rng(roi_id).integers(0, 255, (8, 8, 8), np.uint8)
    return Roi(roi_id, voxels, (1.0, 1.0, 1.0), (-1000.0, 400.0), 0.5)


def verdict(roi_id: int) -> Verdict:
    return Verdict(roi_id, 0.75, 9.0, "m 1", 0.0, 0.001, 0.5, "solid")


def pending_read(pending: PendingStore, answers: EscalationResult = REASON) -> PendingRead:
    """A pending read of ROIs 2 and 1, whose report is out in version 2."""
    save(pending, context_of(full_report()), answers, [roi(2), roi(1)])
    pending.publish("k1")
    return pending.get("k1")


def with_verdict(pending: PendingStore, read: PendingRead, *roi_ids: int) -> PendingRead:
    return pending.advance(read, PendingStep.AMENDING, verdicts=verdict_rows(answered(*roi_ids)))


def test_rois_come_back_as_they_were_and_in_their_order(pending: PendingStore) -> None:
    pending_read(pending)
    for _ in range(2):
        kept = [unpacked(data) for data in pending.rois("k1")]
        assert [r.roi_id for r in kept] == [2, 1]
        for found in kept:
            np.testing.assert_array_equal(found.voxels, roi(found.roi_id).voxels)
            assert (found.spacing_mm, found.window_hu) == ((1.0, 1.0, 1.0), (-1000.0, 400.0))
        while pending.compress_one():
            pass
    assert pending.roi("k1", 7) is None


def test_rows_that_a_deleted_pending_read_left_behind_keep_no_study_from_being_saved(
    pending: PendingStore, database: Path
) -> None:
    """The sqlite shell does not delete the regions with their pending read."""
    answers = EscalationResult(reason="dead", verdicts={3: verdict(3)}, masks={3: MASK})
    pending_read(pending, answers)
    sql(database, "DELETE FROM pending")  # foreign keys are off
    pending_read(pending, answers)
    assert pending.open_rois("k1") == (2, 1)


def test_what_is_not_published_does_not_count_and_is_replaced(pending: PendingStore) -> None:
    for rois, kept in (([roi(1), roi(2)], (1, 2)), ([roi(3)], (3,)), ([], ())):
        save(pending, context_of(full_report()), EscalationResult(), rois)
        assert pending.at(PendingStep.PENDING) == []
        assert pending.open_rois("k1") == kept
    assert pending.keys() == set()


def test_verdicts_count_from_their_version_on_with_their_masks(pending: PendingStore) -> None:
    """Those of the first report, then those that came later; each is taken once."""
    first = EscalationResult({0: verdict(0)}, masks={0: MASK}, reason="dead")
    begun = with_verdict(pending, pending_read(pending, first), 2, 0)
    assert pending.open_rois("k1") == (1,)
    before, after = (answers_of(pending.verdicts("k1", version), "") for version in (2, 3))
    assert (set(before.verdicts), set(after.verdicts), begun.version) == ({0}, {0, 2}, 2)
    np.testing.assert_array_equal(after.masks[0], MASK)
    assert after.verdicts[2] == verdict(2)


def test_a_version_that_is_out_drops_what_was_answered_and_the_last_drops_all(
    pending: PendingStore, database: Path
) -> None:
    begun = with_verdict(pending, pending_read(pending), 2)
    again = pending.advance(begun, PendingStep.PENDING)
    assert (again.version, again.step) == (3, PendingStep.PENDING)
    assert pending.roi("k1", 2) is None
    assert pending.open_rois("k1") == (1,)
    pending.advance(with_verdict(pending, again, 1), PendingStep.CLOSED)
    with closing(sqlite3.connect(database)) as opened:
        for table in ("pending", "pending_rois", "pending_verdicts"):
            assert opened.execute(f"SELECT count(*) FROM {table}").fetchone()[0] == 0


def test_no_step_is_made_twice(pending: PendingStore) -> None:
    old = pending_read(pending)
    begun = with_verdict(pending, old, 1)
    with pytest.raises(WrongStep):
        with_verdict(pending, old, 2)
    pending.advance(begun, PendingStep.PENDING)
    with pytest.raises(WrongStep):
        pending.advance(begun, PendingStep.PENDING)
    assert pending.get("k1").version == begun.version + 1


LOST = EscalationResult(reason="Unreachable: lost")
REQUESTED = replace(plan_of(0.95, 0.3, 0.7, 0.4, 0.05), send=(2, 3, 0), later=(1,))
"""Its characterization is that of candidate 0."""
UNCHARACTERIZED = plan_of(0.95, 0.05, 0.97, policy=replace(SELECTION_POLICY, characterize=False))
AUDITED = replace(plan_of(0.95, 0.05), send=(1, 0), audit=(1,))
EMPTY = replace(plan_of(0.08, 0.05), send=(0, 1), audit=(0, 1))


def answered(*roi_ids: int, reason: str = "") -> EscalationResult:
    return EscalationResult({roi_id: verdict(roi_id) for roi_id in roi_ids}, reason=reason)


@pytest.mark.parametrize(
    ("plan", "answers", "expected", "reading"),
    [
        # sent and unanswered first, then what was held back, last what the edge reports
        (REQUESTED, answered(2), (3, 1, 0), SecondReading.PARTIAL),
        (REQUESTED, EscalationResult(), (2, 3, 1, 0), SecondReading.MISSING),
        (REQUESTED, answered(2, 3, 1), (0,), SecondReading.PARTIAL),
        (REQUESTED, answered(2, 3, 1, 0), (), SecondReading.COMPLETE),
        # nothing was uncertain
        (plan_of(0.95, 0.05, 0.97), LOST, (2, 0), SecondReading.MISSING),
        (plan_of(0.95, 0.05, 0.97), answered(0), (2,), SecondReading.PARTIAL),
        (plan_of(0.95, 0.05, 0.97), answered(0, 2), (), SecondReading.COMPLETE),
        # without characterization, a report without anything uncertain is complete
        (UNCHARACTERIZED, LOST, (), SecondReading.COMPLETE),
        # the verdict on an audited candidate is no characterization
        (AUDITED, answered(1, reason="too slow"), (0,), SecondReading.MISSING),
        (AUDITED, answered(0), (), SecondReading.COMPLETE),
        # after an audit without findings there is nothing to characterize
        (EMPTY, answered(0), (), SecondReading.COMPLETE),
        (EMPTY, LOST, (), SecondReading.COMPLETE),
        # a site without a cloud
        (plan_of(0.7, 0.3), EscalationResult(switched_off=True), (), SecondReading.OFF),
    ],
)
def test_which_candidates_are_pending(
    plan: Plan, answers: EscalationResult, expected: tuple[int, ...], reading: SecondReading
) -> None:
    assert pending_candidates(plan, answers) == expected
    assert merge(plan, answers, THRESHOLDS, WEIGHTS, Geometry()).second_reading is reading
