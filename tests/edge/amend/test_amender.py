"""Amended reports: what is written and given up, also after a full disk or a kill.

When a pending read is retried, and for how long.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from edge.amend.amender import DAY_S, MAX_WAIT_S, MB, QUIET_S, Amender, RetryBudget
from edge.amend.amendment import AmendmentContext
from edge.amend.persist import save, unpacked
from edge.escalation.rois import EscalationResult
from edge.report.compose import AMENDED_LATER
from edge.settings.core import load_settings
from edge.store.pending import PendingStep
from protos.deadline import Deadline
from protos.errors import DeadlineUnmeetable, Overloaded, OverreadError, TooLarge, VersionMismatch
from protos.messages import Priority, Roi
from tests.edge.builders import BY_EDGE, PAUSE_S, UNHURRIED, SilentCloud, Site, findings, site_at
from tests.edge.fake_cloud import FakeCloud, escalator
from tests.edge.running_agent import Killed, once_at, sql


def test_a_retry_is_as_urgent_as_the_study_was(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    site.study("a")
    monkeypatch.setenv("OVERREAD_EDGE_PRIORITY", "stat")
    site.study("b")
    site.cloud.answers = [2, 2]
    site.turns()
    assert site.cloud.priorities == [Priority.ROUTINE, Priority.STAT]


def test_a_pending_read_is_retried_and_amends_the_report(site: Site) -> None:
    site.study("a")
    first = site.report("a")
    assert (first["version"], first["status"], findings(first)) == (1, "provisional", BY_EDGE)
    site.cloud.answers = [2]
    site.turns()
    second = site.report("a")
    assert (second["version"], second["status"]) == (2, "final")
    assert (second["second_reading"], second["guarantee"]["given"]) == ("complete", True)
    assert "2 of 2 uncertain candidates were not read" in first["guarantee"]["reason"]
    assert findings(second) == {2: 0.9957, 3: 0.977, 1: 0.95}
    assert site.report("a", ".v1") == first
    kept = ("study_key", "source", "study", "series_uid", "ledger", "candidates", "other_series")
    assert [second[key] for key in kept] == [first[key] for key in kept]
    assert second["models"] == {**first["models"], "cloud": "fake 1"}
    # each new verdict is one change, in words and as data
    moved, added = second["changes"]
    assert (moved["kind"], moved["number"]) == ("probability changed", 2)
    assert (moved["probability_before"], moved["probability_after"]) == (0.7, 0.9957)
    assert moved["verdict"] == {"probability": 0.99, "model": "fake 1"}
    assert (added["kind"], added["number"]) == ("finding added", 3)
    assert added["text"] == (
        "new finding 3, slice 2 of 2 from the feet, at (2.0, 2.0, 3.0) mm: "
        "probability from 0.30 to 0.98 by the verdict 0.99 of fake 1"
    )
    page = (site.places.outbox / "a" / "report.html").read_text()
    assert "Amended report, version 2" in page
    assert added["text"] in page
    assert page.index("Changes since version 1") < page.index('id="findings"')
    assert "Amended" not in (site.places.outbox / "a" / "report.v1.html").read_text()


class TricklingCloud(SilentCloud):
    """It answers one region each ``every_s``, and no retry before."""

    def __init__(self, site: Site, every_s: float) -> None:
        super().__init__()
        self._clock, self._every_s, self._at_s = site.clock, every_s, 0.0

    def read_rois(self, rois: Sequence[Roi], *rest: Any, **more: Any) -> EscalationResult:
        """One, or none."""
        if self._clock() - self._at_s >= self._every_s:
            self.answers, self._at_s = [1], self._clock()
        return super().read_rois(rois, *rest, **more)


ELEVEN = [0.85 - 0.05 * number for number in range(11)]


def trickle(site: Site, every_s: float, for_s: float) -> list[int]:
    """The versions at each second while a cloud answers a region of eleven now and then."""
    site.study("a", *ELEVEN)
    site.cloud = TricklingCloud(site, every_s)
    site.amender = site.start(pause_s=5.0)
    versions = []
    for _ in range(round(for_s)):
        site.turns(1.0)
        versions.append(site.report("a")["version"])
        if site.cloud.asked:
            site.amender.responded()  # a link that is up, and slow
    return versions


def test_a_cloud_that_answers_one_region_every_few_seconds_makes_one_version(site: Site) -> None:
    assert set(trickle(site, every_s=13.0, for_s=160.0)) == {1, 2}
    report = site.report("a")
    assert (report["status"], len(report["changes"])) == ("final", 11)


def test_on_a_link_that_trickles_no_change_is_held_for_longer_than_five_minutes(site: Site) -> None:
    versions = trickle(site, every_s=45.0, for_s=600.0)
    assert [versions.index(version) + 1 for version in (2, 3)] == [
        pytest.approx(MAX_WAIT_S, abs=10), pytest.approx(45 * 10, abs=10),
    ]  # fmt: skip
    assert versions[-1] == 3


def test_verdicts_of_a_study_that_is_read_again_while_some_are_held_wait_as_any(site: Site) -> None:
    key, pending = site.study("a").id, site.store.pending
    site.cloud.answers = [1, 0]
    site.turns()
    context = AmendmentContext.from_bytes(pending.context(key))
    rois = [unpacked(data) for data in pending.rois(key)]
    save(pending, context, EscalationResult(reason="late"), rois)
    pending.publish(key)
    site.cloud.answers = [0, 1, 0]
    site.turns(MAX_WAIT_S)
    assert site.report("a")["version"] == 1
    site.turns(QUIET_S)
    assert site.report("a")["version"] == 2


def test_verdicts_that_follow_within_seconds_make_one_version(site: Site) -> None:
    key = site.study("a").id
    site.cloud.answers = [1, 0, 1]
    site.turns()
    assert site.report("a")["version"] == 1
    site.turns(PAUSE_S)
    report = site.report("a")
    assert (report["version"], report["status"]) == (2, "final")
    assert [change["number"] for change in report["changes"]] == [2, 3]
    assert site.cloud.asked == [(key, (1, 2)), (key, (2,)), (key, (2,))]
    assert not (site.places.outbox / "a" / "report.v2.json").exists()


def test_a_partial_answer_is_a_version_of_its_own_when_no_verdict_follows(site: Site) -> None:
    key = site.study("a").id
    site.cloud.answers = [1]
    site.turns()
    site.cloud.available = False
    site.turns(QUIET_S - 0.1)
    assert site.report("a")["version"] == 1
    site.turns(0.1)
    assert site.report("a")["version"] == 2
    site.cloud.available, site.cloud.answers = True, [1]
    site.turns()
    two, three = site.report("a", ".v2"), site.report("a")
    assert (two["status"], three["status"]) == ("provisional", "final")
    assert two["second_reading"] == "partial"
    assert two["second_reading_reason"].endswith(AMENDED_LATER)
    assert "amended" not in site.report("a")["second_reading_reason"]
    assert [change["version"] for change in two["changes"]] == [2]
    assert [change["version"] for change in three["changes"]] == [2, 3]
    assert {asked for asked, _ in site.cloud.asked} == {key}
    assert site.report("a", ".v1")["version"] == 1


def test_a_verdict_that_an_earlier_process_stored_is_in_a_version_at_once(tmp_path: Path) -> None:
    """The agent was killed while the version waited for the other verdict."""
    cloud = SilentCloud([1])
    with site_at(tmp_path, cloud) as site:
        site.study("a")
        site.turns()
        assert site.report("a")["version"] == 1
    cloud.available = False
    with site_at(tmp_path, cloud) as site:
        site.turns()
        assert (site.report("a")["version"], site.report("a")["status"]) == (2, "provisional")
        cloud.available, cloud.answers = True, [1]
        site.turns()
        assert (site.report("a")["version"], site.report("a")["status"]) == (3, "final")


def test_a_pending_read_too_old_is_given_up_in_a_last_version(site: Site) -> None:
    record = site.study("a")
    site.turns(30 * DAY_S - 100)
    assert site.report("a")["version"] == 1
    site.turns(200)
    report = site.report("a")
    assert (report["version"], report["status"]) == (2, "final")
    assert report["second_reading"] == "missing"
    (change,) = report["changes"]
    assert change["kind"] == "given up"
    assert change["text"] == "2 candidates were not read again: no answer within 30 days"
    assert findings(report) == BY_EDGE
    with pytest.raises(KeyError):
        site.store.pending.get(record.id)


def test_beyond_the_limit_only_the_oldest_pending_read_is_given_up(site: Site) -> None:
    site.cloud.available = False
    old = site.study("old")
    site.store.pending.add_age(60.0)
    # the order is that of age alone
    read = site.store.pending.get(old.id)
    site.store.pending.advance(read, PendingStep.RETRYING, attempts=1)
    young = site.study("young")
    # compressing makes no more room
    sql(site.places.state / "s.db", "UPDATE pending_rois SET compressed = 1")
    room = site.store.pending.used_bytes() - 1
    site.amender = site.start(max_bytes=room)
    assert site.amender.over_limit
    site.turns()
    assert not site.amender.over_limit
    report = site.report("old")
    assert (report["version"], report["status"]) == (2, "final")
    assert report["changes"][0]["text"] == (
        f"2 candidates were not read again: pending reads exceeded {room / MB:g} MB"
    )
    assert site.report("young")["version"] == 1
    assert site.store.pending.get(young.id).step is PendingStep.PENDING


@pytest.mark.parametrize("durable", [False, True], ids=["before", "after"])
@pytest.mark.parametrize("step", [PendingStep.AMENDING, PendingStep.CLOSED], ids=lambda s: s.value)
def test_an_interrupted_version_is_finished_and_not_made_twice(
    tmp_path: Path, step: PendingStep, durable: bool
) -> None:
    cloud = SilentCloud([2, 2])
    with site_at(tmp_path, cloud, once_at(step, durable)) as site:
        site.study("a")
        with pytest.raises(Killed):
            site.turns()
    with site_at(tmp_path, cloud) as site:
        site.turns()
        report = site.report("a")
        assert (report["version"], report["status"]) == (2, "final")
        asked_again = step is PendingStep.AMENDING and not durable
        assert len(cloud.asked) == 1 + asked_again
        assert not (site.places.outbox / "a" / "report.v2.json").exists()
        assert [read for step in PendingStep for read in site.store.pending.at(step)] == []


def test_pauses_after_failed_retries_double_up_to_five_minutes(site: Site) -> None:
    record = site.study("a")
    pauses = []
    for _ in range(9):
        asked, waited = len(site.cloud.asked), 0.0
        while len(site.cloud.asked) == asked:
            site.turns()
            site.clock.sleep(1.0)
            waited += 1.0
        pauses.append(waited)
    assert pauses == [1.0, 4.0, 8.0, 16.0, 32.0, 64.0, 128.0, 256.0, 300.0]
    assert site.store.pending.get(record.id).attempts == 9
    site.amender = site.start()
    site.cloud.answers = [2]
    site.turns()
    assert site.report("a")["status"] == "final"


def test_a_link_that_is_down_is_tried_with_one_study_and_a_response_frees_all(site: Site) -> None:
    for name in "ab":
        site.study(name)
    site.turns()
    site.turns()
    assert len(site.cloud.asked) == 1
    site.amender.responded()
    site.cloud.answers = [2, 2]
    site.turns()
    assert [site.report(name)["status"] for name in "ab"] == ["final", "final"]


def test_one_damaged_roi_suspends_its_own_read_alone(site: Site) -> None:
    for name in "ab":
        site.study(name)
    key = site.report("a")["study_key"]
    damage = "UPDATE pending_rois SET roi = x'00' WHERE study_key = ? AND roi_id = 2"
    sql(site.places.state / "s.db", damage, values=[key])
    site.cloud.available = False
    site.turns()
    site.cloud.available, site.cloud.answers = True, [2]
    site.turns()
    assert [site.report(name)["version"] for name in "ab"] == [1, 2]
    assert site.store.pending.get(key).step is PendingStep.PENDING


@pytest.mark.parametrize(
    "fault",
    [DeadlineUnmeetable("late"), TooLarge("big"), Overloaded("full"), VersionMismatch("old")],
    ids=lambda fault: fault.kind,
)
def test_a_stream_that_the_cloud_refuses_keeps_no_other_waiting(
    site: Site, fault: OverreadError
) -> None:
    """Whatever its reason: it was there, and the next study is asked for at once."""
    keys = [site.study(name).id for name in "ab"]
    attempts = 3 if isinstance(fault, Overloaded) else 1
    with FakeCloud(faults=[fault] * attempts) as fake, escalator(fake.address) as second:
        site.amender = Amender(site.store, site.places.outbox, second, UNHURRIED)
        while site.amender.run_once():
            pass
    assert [header.study_key for header in fake.headers] == [keys[0]] * attempts + [keys[1]]
    assert [site.report(name)["version"] for name in "ab"] == [1, 2]


def test_a_half_open_breaker_is_probed_with_one_roi(site: Site) -> None:
    key = site.study("a").id
    site.cloud.answers, site.cloud.probing = [1, 1], True
    site.amender.run_once()
    site.cloud.probing = False
    site.turns()
    assert site.cloud.asked == [(key, (1,)), (key, (2,))]
    assert site.report("a")["status"] == "final"


def test_age_is_counted_through_starts(site: Site) -> None:
    """Ten lives of four days are forty days, whatever the wall clock says."""
    site.study("a")
    for _ in range(10):
        site.amender = site.start()
        site.turns(4 * DAY_S)
    assert site.report("a")["changes"][0]["kind"] == "given up"


def test_a_retry_may_take_longer_after_failed_ones_of_any_study(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a slow link not every read fails at the shortest limit before one may take longer."""
    for name in "abcd":
        site.study(name)
    given_s: list[float] = []
    ask = site.cloud.read_rois

    def asked(
        rois: Sequence[Roi], deadline: Deadline, study_key: str, priority: Priority | None
    ) -> EscalationResult:
        given_s.append(deadline.remaining_s)
        site.cloud.answers = [2] if len(given_s) in (4, 5) else []
        return ask(rois, deadline, study_key, priority)

    monkeypatch.setattr(site.cloud, "read_rois", asked)
    site.amender = site.start(first_s=2.0)
    for _ in range(5):
        site.turns()
        site.clock.sleep(300.0)
    assert len({key for key, _ in site.cloud.asked[:4]}) == 4
    assert given_s[:6] == [2.0, 4.0, 8.0, 16.0, 2.0, 2.0]


@pytest.mark.parametrize(
    ("deadline_s", "budgets_s"),
    [(10.0, [2.0, 4.0, 5.0, 5.0]), (60.0, [2.0, 4.0, 8.0, 16.0]), (5.0, [1.0, 2.0, 2.5, 2.5])],
)
def test_a_retry_is_short_and_longer_only_after_failed_ones(
    deadline_s: float, budgets_s: list[float]
) -> None:
    persistence = RetryBudget.of(load_settings(deadline_s=deadline_s), 5.0)
    assert [persistence.budget_s(failed_in_a_row) for failed_in_a_row in range(4)] == budgets_s
    assert persistence.budget_s(10**6) == deadline_s / 2
