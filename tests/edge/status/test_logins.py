"""Who came into the status page, and what they did, is in the audit trail."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from datetime import UTC, datetime
from pathlib import Path

import pytest
from structlog.testing import capture_logs

from edge.folders import DATABASE
from edge.status.deliveries import DeadLetter, StoredDeliveries
from edge.status.login import SESSION_S, Door
from edge.status.logins import MOST_FAILED, WITHIN_S, LoginTrail
from edge.store.steps import Step
from edge.trail.records import Event, Person
from tests.edge.builders import HandClock
from tests.edge.dicom_out.sites import pacs_at
from tests.edge.status.site import PASSWORD, SEEN, Letters, Site, visiting

HERE = {"user": "password, from 127.0.0.1", "peer": "127.0.0.1"}
ANNA = Person("CN=anna", "10.0.0.9")


@pytest.fixture
def site(tmp_path: Path) -> Site:
    return Site(tmp_path)


def logins(site: Site) -> list[dict[str, object]]:
    return [dict(record.fields) for record in site.trail() if record.event == Event.LOGIN]


def test_logins_are_recorded_with_user_and_address_whether_they_succeed(site: Site) -> None:
    with visiting(site.app()) as visit:
        visit.log_in("wrong")
        visit.log_in()
    failed = {"user": "unknown", "peer": "127.0.0.1"}
    assert logins(site) == [
        {"outcome": "failure", "reason": "wrong password", **failed},
        {"outcome": "success", **HERE},
    ]
    assert PASSWORD not in str(site.trail())


def test_a_login_that_cannot_be_recorded_is_none(site: Site) -> None:
    with (
        visiting(site.app()) as visit,
        closing(sqlite3.connect(site.folders.state / DATABASE, isolation_level=None)) as other,
    ):
        other.execute("BEGIN IMMEDIATE")
        answer = visit.log_in()
        assert answer.status_code == 503
        assert "Logins cannot be recorded now" in answer.text
        assert "set-cookie" not in answer.headers
        other.execute("ROLLBACK")
        assert visit.log_in().status_code == 303


def test_a_flood_of_failures_leaves_few_records_and_their_number(
    site: Site, clock: HandClock
) -> None:
    """The next record, whatever it is of, says how many were left out."""
    trail = LoginTrail(site.folders.state / DATABASE, clock)
    for _ in range(MOST_FAILED + 500):
        trail.failed(Person("unknown", "10.0.0.1"), "wrong password")
    assert len(logins(site)) == MOST_FAILED
    assert trail.succeeded(ANNA)
    assert logins(site)[-1]["failures_not_recorded"] == 500
    clock.sleep(WITHIN_S + 1)
    trail.failed(ANNA, "wrong password")
    assert "failures_not_recorded" not in logins(site)[-1]


def test_a_visitor_with_a_certificate_is_recorded_once_a_session(
    site: Site, clock: HandClock
) -> None:
    trail = LoginTrail(site.folders.state / DATABASE, clock)
    for after_s in (0.0, SESSION_S - 1, 2.0):
        clock.sleep(after_s)
        trail.came(ANNA)
    trail.came(Person("CN=anna", "10.0.0.10"))
    assert [one["peer"] for one in logins(site)] == ["10.0.0.9", "10.0.0.9", "10.0.0.10"]


def test_where_everyone_may_come_nobody_logs_in(site: Site) -> None:
    with visiting(site.app(Door(None))) as visit:
        visit.get("/")
    assert logins(site) == []


def test_a_study_put_back_from_the_page_is_recorded_with_the_visitor(site: Site) -> None:
    key = site.add("a", step=Step.QUARANTINED, report=None)
    with visiting(site.app()) as visit:
        visit.log_in()
        assert visit.post("/requeue", {"study": key, "token": visit.token()}).status_code == 303
    (again,) = [record for record in site.trail() if record.event == Event.REQUEUED]
    assert again.fields == {"study_key": key, "name": "a", **HERE}


def test_results_resent_from_the_page_are_recorded_with_the_visitor(site: Site) -> None:
    key = site.add("a", report=SEEN)
    settings = site.settings.model_copy(update={"targets": (pacs_at(104),)})
    with visiting(site.app(deliveries=StoredDeliveries(settings))) as visit:
        visit.log_in()
        fields = {"study": key, "target": "pacs", "token": visit.token()}
        assert visit.post("/resend", fields).status_code == 303
    (again,) = [record for record in site.trail() if record.event == Event.RESENT]
    what = {"study_key": key, "versions": [1], "targets": ["pacs"]}
    assert again.fields == {**what, **HERE}


def test_the_deliveries_get_the_name_of_the_visitor(site: Site) -> None:
    key = site.add("a", report=SEEN)
    letters = Letters([DeadLetter(key, "pacs", 1, 9, "refused", datetime.now(UTC))], [])
    with visiting(site.app(deliveries=letters)) as visit, capture_logs():
        visit.log_in()
        visit.post("/resend", {"study": key, "target": "pacs", "token": visit.token()})
    assert letters.by == [Person(**HERE)]
